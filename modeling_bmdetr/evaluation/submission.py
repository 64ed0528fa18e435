"""Reading, writing and matching submissions: rows of predictions and of ground truth, in memory or as JSON lines."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a JSON lines file: UTF-8, one JSON object a line; only the end of the file may be blank.

    Raises:
        FileNotFoundError: `path` is not a file.
        ValueError: A line is not a JSON object, or holds NaN or an infinity, which JSON does not have; the message
            names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}. Expected JSON lines (.jsonl), one object a line.")
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); expected JSON lines.") from None
    if lines == [""]:
        raise ValueError(f"{path} is empty; expected one JSON object a line.")
    return [_parse_line(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def _parse_line(line: str, place: str) -> dict[str, Any]:
    if not line.strip():
        raise ValueError(f"{place} is blank; expected one JSON object a line: remove the blank line.")
    try:
        row = json.loads(line, parse_constant=_reject_constant)
    except ValueError as error:
        message = f"{place} is not valid JSON ({error}); expected one JSON object a line."
        if line.strip() in ("[", "{"):
            message += " The file looks like one JSON document: write each row on a line of its own."
        raise ValueError(message) from None
    if not isinstance(row, dict):
        hint = " The file looks like one JSON array: write each row on a line of its own." if line[0] == "[" else ""
        raise ValueError(f"{place} holds a JSON {type(row).__name__}; expected an object.{hint}")
    return row


def _reject_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def write_jsonl(rows: Iterable[Row], path: str | os.PathLike[str]) -> None:
    """Write rows as JSON lines. NumPy arrays and scalars become lists and numbers; missing folders are made.

    Every row is serialised before the file is opened, so that a bad row leaves an existing file as it was.

    Raises:
        TypeError: A row holds a value that JSON cannot express.
        ValueError: A row holds NaN or an infinity.
    """
    lines = []
    for index, row in enumerate(rows):
        try:
            lines.append(json.dumps(row, default=_plain, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise type(error)(f"rows[{index}] (qid {row.get('qid')!r}) cannot be written as JSON: {error}.") from None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _plain(value: object) -> object:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a JSON type")


def canonical_qid(qid: object) -> str:
    """The identifier of a query as a string: 7 and "7" are the same query.

    Raises:
        TypeError: `qid` is neither a string nor an integer.
        ValueError: `qid` is the empty string.
    """
    if isinstance(qid, str):
        if not qid:
            raise ValueError("qid is the empty string; expected a string or an integer that identifies the query.")
        return qid
    if isinstance(qid, (int, np.integer)) and not isinstance(qid, bool):
        return str(int(qid))
    raise TypeError(f"qid must be a string or an integer, got {qid!r} ({type(qid).__name__}).")


def restore_qid_types(predictions: Iterable[Row], ground_truth: Iterable[Row]) -> list[dict[str, Any]]:
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
        raise TypeError(f"{argument} must be a list of dictionaries or the path of a file, got {type(rows).__name__}.")
    in_memory = list(rows)
    for index, row in enumerate(in_memory):
        if not isinstance(row, Mapping):
            raise TypeError(f"{argument}[{index}] must be a dictionary, got {type(row).__name__}.")
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
