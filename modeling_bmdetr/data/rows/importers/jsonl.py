"""Moment-DETR's JSONL, which lighthouse and most code of the field share: rows of the schema, as others write them."""

from pathlib import Path
from typing import Any

from ..jsonl import parse_rows
from ..schema import ROW_FIELDS
from .moments import Faults

_WORDS = {"relevant_windows": ("timestamps", "windows"), "query": ("sentence", "caption", "desc"), "vid": ("video_id",)}


def read_jsonl(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a JSONL file of Moment-DETR, QVHighlights, lighthouse or UniVTG, each with its place.

    Rows are taken as they are: an integer `qid` becomes a string, other names of a field become the schema's
    (`sentence`, `timestamps`, `video_id`), one bare window becomes a list of windows, and fields that the schema does
    not know are left out.

    Raises:
        AnnotationError: if a line is not a JSON object, or lacks the video, the query or its windows.
    """
    parsed, problems = parse_rows(path)
    faults = Faults(path)
    for problem in problems:
        faults.add(f"line {problem.line}", problem.message)
    rows: list[tuple[str, dict[str, Any]]] = []
    for line, given in zip(parsed.line_numbers, parsed.rows, strict=True):
        row: dict[str, Any] = dict(given)
        for name, others in _WORDS.items():
            row[name] = next((row[key] for key in (name, *others) if row.get(key) is not None), None)
        missing = [name for name in ("vid", "query") if not isinstance(row[name], str) or not row[name].strip()]
        if missing:
            faults.add(f"line {line}", f"has no `{missing[0]}`; expected rows with qid, vid, query, relevant_windows")
            continue
        windows = row["relevant_windows"]
        if isinstance(windows, list) and len(windows) == 2 and not any(isinstance(end, list) for end in windows):
            row["relevant_windows"] = [windows]
        rows.append((f"line {line}", {key: value for key, value in row.items() if key in ROW_FIELDS}))
    faults.raise_if_any()
    return rows
