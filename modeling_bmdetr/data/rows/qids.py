"""Identifiers of queries: strings inside, integers or strings in files.

7, "7" and 7.0 (as pandas writes integers in a column with gaps) are the same query.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any


def canonical_qid(qid: object) -> str:
    """The identifier of a query as a string: 7 and "7" are the same query.

    Raises:
        TypeError: `qid` is neither a string nor a whole number.
        ValueError: `qid` is the empty string.
    """
    if isinstance(qid, str):
        if not qid:
            raise ValueError("qid is the empty string; expected a string or an integer that identifies the query.")
        return qid
    if is_whole_number(qid):
        return str(int(qid))  # type: ignore[call-overload]
    raise TypeError(f"qid must be a string or an integer, received {qid!r} ({type(qid).__name__}).")


def content_qid(row: Mapping[str, Any]) -> str:
    """An identifier that follows from a row's video and sentence."""
    text = json.dumps([row["vid"], row["query"]], ensure_ascii=False)
    return f"{row['vid']}-{hashlib.sha1(text.encode()).hexdigest()[:8]}"


def text_qid(row: Mapping[str, Any]) -> str:
    """The query whose text features are those of a row: `text_qid` where the row has one, else its own `qid`."""
    borrowed = row.get("text_qid")
    return canonical_qid(row["qid"] if borrowed is None else borrowed)


def is_whole_number(value: object) -> bool:
    """Whether a value is an integer, or a float without a fraction; True and False are not."""
    if isinstance(value, Integral):
        return not isinstance(value, bool)
    return isinstance(value, Real) and float(value).is_integer()


def original_qid(qid: str, integer_qids: Collection[str]) -> str | int:
    """`qid` as an integer if it is one of `integer_qids`, else as it is."""
    return int(qid) if qid in integer_qids else qid


def restore_qid_types(
    predictions: Iterable[Mapping[str, Any]], ground_truth: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Copies of `predictions` whose `qid`s have the type (integer or string) that they have in `ground_truth`.

    Raises:
        ValueError: A prediction's `qid` is not in `ground_truth`.
    """
    original = {canonical_qid(row["qid"]): row["qid"] for row in ground_truth}
    restored = []
    for row in predictions:
        qid = canonical_qid(row["qid"])
        if qid not in original:
            raise ValueError(f"qid {qid!r} is in predictions but not in ground_truth; expected rows of the same split.")
        restored.append({**row, "qid": original[qid]})
    return restored
