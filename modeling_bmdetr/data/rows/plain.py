"""Rows as Parquet, pandas and NumPy hand them over, turned into the plain values of the schema."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from .qids import canonical_qid, is_whole_number

_OPTIONAL = (
    *("relevant_windows", "absent_kind", "text_qid", "relevant_clip_ids", "saliency_scores"),
    *("neg_query_ids", "neg_query_weights", "video"),
)


def plain_rows(rows: Iterable[Mapping[str, Any]], name: str = "rows") -> list[dict[str, Any]]:
    """Copies of rows with lists where they have arrays, and None where an optional field is NaN.

    A qid is a string: 7 and 7.0 become "7". Whole numbers among `neg_query_ids` likewise, and those of
    `relevant_clip_ids` become integers. What is wrong with a row in any other way is left for validation to name.

    Args:
        rows: Mappings by field, such as `frame.to_dict("records")` or a `datasets.Dataset`.
        name: What to call them in messages.

    Raises:
        TypeError: not an iterable of mappings.
        ValueError: lists within lists without end.
    """
    if isinstance(rows, str | bytes | Mapping) or hasattr(rows, "iloc") or not isinstance(rows, Iterable):
        hint = '; of a pandas frame pass frame.to_dict("records")' if hasattr(rows, "iloc") else ""
        raise TypeError(f"`{name}` must be a sequence of rows (mappings), received {type(rows).__name__}{hint}")
    plain = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"row {number} of `{name}` must be a mapping, received {type(row).__name__}")
        try:
            plain.append(_plain_row(row))
        except RecursionError as error:
            raise ValueError(f"row {number} of `{name}` is nested too deeply to be read") from error
    return plain


def _plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    values = {str(field): plain_value(value) for field, value in row.items()}
    for field in _OPTIONAL:
        if field in values and _is_nan(values[field]):
            values[field] = None
    if is_whole_number(values.get("qid")):
        values["qid"] = canonical_qid(values["qid"])
    if isinstance(negatives := values.get("neg_query_ids"), list):
        values["neg_query_ids"] = [canonical_qid(qid) if is_whole_number(qid) else qid for qid in negatives]
    if isinstance(clips := values.get("relevant_clip_ids"), list):
        values["relevant_clip_ids"] = [int(clip) if is_whole_number(clip) else clip for clip in clips]
    return values


def plain_value(value: Any) -> Any:
    """A value of JSON for an array, a scalar or a tensor, and lists for tuples, at any depth."""
    if value is None or isinstance(value, str | bytes | bool | int | float):
        return value
    if callable(to_list := getattr(value, "tolist", None)):
        return plain_value(to_list())
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    return value


def _is_nan(value: Any) -> bool:
    return (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in ("NAType", "NaTType")
