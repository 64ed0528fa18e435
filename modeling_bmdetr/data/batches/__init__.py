"""From rows and features to batches: examples, collation, sampling, shifting, negative queries."""
