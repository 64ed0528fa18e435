"""Matching submissions: rows of predictions and of ground truth, in memory or as JSON lines."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..data.rows.jsonl import read_jsonl
from ..data.rows.qids import canonical_qid

Row = Mapping[str, Any]
RowsOrPath = Iterable[Row] | str | os.PathLike[str]

_MAX_EXAMPLES = 5


@dataclass(frozen=True)
class RowTable:
    """Rows, and what a message needs to name one of them."""

    rows: list[Row]
    numbers: list[int]  # the index of each row in its source
    source: str  # the name of the argument, or of the file the rows were read from
    is_file: bool

    def where(self, index: int) -> str:
        """`predictions[3] (qid 17)` or `predictions.jsonl:4 (qid 17)`."""
        number = self.numbers[index]
        place = f"{self.source}:{number + 1}" if self.is_file else f"{self.source}[{number}]"
        qid = self.rows[index].get("qid")
        return place if qid is None else f"{place} (qid {qid!r})"

    def take(self, indices: list[int]) -> "RowTable":
        rows = [self.rows[index] for index in indices]
        return RowTable(rows, [self.numbers[index] for index in indices], self.source, self.is_file)

    def has(self, field: str) -> bool:
        """Whether any row has a value for `field`; a missing field and None are the same."""
        return any(row.get(field) is not None for row in self.rows)


def load_rows(rows: RowsOrPath, argument: str) -> RowTable:
    """Rows from memory or from a JSON lines file; `argument` names them in messages.

    Raises:
        TypeError: `rows` is not a sequence of dictionaries.
        ValueError: There are no rows, or the file is not JSON lines.
        FileNotFoundError: `rows` is a path to no file.
    """
    if isinstance(rows, (str, os.PathLike)):
        from_file: list[Row] = list(read_jsonl(rows))
        return RowTable(from_file, list(range(len(from_file))), os.fspath(rows), is_file=True)
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        raise TypeError(
            f"{argument} must be a list of dictionaries or the path of a file, received {type(rows).__name__}"
        )
    in_memory = list(rows)
    for index, row in enumerate(in_memory):
        if not isinstance(row, Mapping):
            raise TypeError(f"{argument}[{index}] must be a dictionary, received {type(row).__name__}.")
    if not in_memory:
        raise ValueError(f"{argument} is empty; expected at least one row.")
    return RowTable(in_memory, list(range(len(in_memory))), argument, is_file=False)


def match_by_qid(predictions: RowTable, ground_truth: RowTable) -> RowTable:
    """The predictions in the order of the ground truth.

    Raises:
        TypeError: A `qid` is neither a string nor an integer.
        ValueError: A `qid` is missing or given twice, the two sides do not hold the same queries, or a prediction
            names another video (`vid`) than the ground truth does for the same `qid`.
    """
    predicted, true = _index_by_qid(predictions), _index_by_qid(ground_truth)
    missing = [qid for qid in true if qid not in predicted]
    extra = [qid for qid in predicted if qid not in true]
    if missing or extra:
        raise ValueError(
            f"{predictions.source} and {ground_truth.source} do not hold the same queries: "
            f"{len(missing)} of {len(true)} in {ground_truth.source} have no prediction{_examples(missing)}, "
            f"{len(extra)} of {len(predicted)} in {predictions.source} are not in the ground truth{_examples(extra)}. "
            "Expected one prediction for every query: predict the missing ones and remove the others, or evaluate "
            "against the split that the predictions were made for."
        )
    matched = predictions.take([predicted[qid] for qid in true])
    for index, (prediction, truth) in enumerate(zip(matched.rows, ground_truth.rows, strict=True)):
        predicted_vid, true_vid = prediction.get("vid"), truth.get("vid")
        if predicted_vid is not None and true_vid is not None and predicted_vid != true_vid:
            raise ValueError(
                f"{matched.where(index)} is about the video {predicted_vid!r}, {ground_truth.where(index)} about "
                f"{true_vid!r}; expected one video for one qid. The two sides number their queries differently: "
                "evaluate against the file that the predictions were made from."
            )
    return matched


def _index_by_qid(table: RowTable) -> dict[str, int]:
    index_by_qid: dict[str, int] = {}
    for index, row in enumerate(table.rows):
        if row.get("qid") is None:
            raise ValueError(f"{table.where(index)} has no qid; expected a string or an integer.")
        try:
            qid = canonical_qid(row["qid"])
        except (TypeError, ValueError) as error:
            raise type(error)(f"{table.where(index)}: {error}") from None
        if qid in index_by_qid:
            first = table.where(index_by_qid[qid])
            raise ValueError(f"{table.where(index)} repeats the qid of {first}; expected every query once.")
        index_by_qid[qid] = index
    return index_by_qid


def _examples(qids: list[str]) -> str:
    if not qids:
        return ""
    shown = ", ".join(repr(qid) for qid in qids[:_MAX_EXAMPLES])
    return f" (qid {shown}{', ...' if len(qids) > _MAX_EXAMPLES else ''})"
