"""Features on disk: published layouts, the packed store, its fit to rows, and extraction."""
