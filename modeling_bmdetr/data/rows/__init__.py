"""The canonical annotation row: its schema, its JSONL files, their validation and cleaning."""
