"""JSON lines: annotations, predictions and submissions, read with every fault named and written whole or not at all."""

import codecs
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from ...files_bmdetr import replacing_file
from .qids import canonical_qid, is_whole_number, original_qid
from .schema import CanonicalRow, Problem, ValidationReport

MAX_DIGITS = 300  # of an integer; float64 holds no larger ones
_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass
class RowFile(Sequence[CanonicalRow]):
    """The rows of a JSONL file: a sequence of rows that remembers where each came from.

    `line_numbers[i]` is the 1-based line of row `i`; `integer_qids` holds the qids (as strings) that the file wrote as
    integers, so that `write_rows` and prediction files can write them back the same way.
    """

    rows: list[CanonicalRow]
    line_numbers: list[int]
    integer_qids: frozenset[str]
    source: str = "rows"

    @overload
    def __getitem__(self, index: int) -> CanonicalRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[CanonicalRow]: ...
    def __getitem__(self, index: int | slice) -> CanonicalRow | list[CanonicalRow]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)


# ------------------------------------------------------------------------------------------------------------- reading


def _scan(path: Path, *, strict: bool) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, object or what is wrong with the line) for every line of a JSONL file that is not blank.

    `strict` also reports blank lines between others, and NaN and infinities, which JSON does not have.
    """
    blank: list[int] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and (encoding := _other_encoding(line)):
                yield number, f"is {encoding} text: save the file as UTF-8"
                return
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                yield number, f"is not UTF-8 text ({error.reason})"
                continue
            if not text:
                blank.append(number)
                continue
            if strict:
                yield from ((gap, "is blank: remove the blank line") for gap in blank)
            blank = []
            yield number, _parse(text, strict)


def _other_encoding(line: bytes) -> str | None:
    for mark, name in _OTHER_ENCODINGS.items():
        if line.startswith(mark):
            return name
    return "UTF-16" if line[1:2] == b"\0" or line[:1] == b"\0" else None


def _parse(text: str, strict: bool) -> dict[str, Any] | str:
    try:
        constants = _refuse_constant if strict else None
        value = json.loads(text, parse_int=json_integer, parse_constant=constants, object_pairs_hook=json_object)
    except json.JSONDecodeError as error:
        hint = " (the file looks like one JSON document; write one object on each line)" if text in ("[", "{") else ""
        return f"is not JSON: {error.msg} at column {error.colno}{hint}"
    except ValueError as error:  # a constant, an integer of hundreds of digits, or a name that stands twice
        return f"is not JSON: {error}"
    except RecursionError:
        return "is nested too deeply: a row holds lists of numbers, no deeper structures"
    if not isinstance(value, dict):
        hint = " (the file looks like one JSON array)" if isinstance(value, list) else ""
        return f"expected a JSON object, received {type(value).__name__}{hint}; write one row on each line"
    return value


def json_integer(digits: str) -> int:
    """An integer of JSON, if float64 can hold it.

    Raises:
        ValueError: it has hundreds of digits.
    """
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits is too large for a number")
    return int(digits)


def json_object(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which no name stands twice: most readers would keep one of the two without a word.

    Raises:
        ValueError: one does.
    """
    held = dict(fields)
    if len(held) < len(fields):
        names = [name for name, _ in fields]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {twice!r} twice")
    return held


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a JSON lines file as it is: UTF-8, one JSON object per line; only the end of the file may be blank.

    Raises:
        FileNotFoundError: `path` is not a file.
        ValueError: A line is not a JSON object, or holds NaN or an infinity, which JSON does not have; the message
            names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}. Expected JSON lines (.jsonl), one object per line.")
    rows = []
    for number, found in _scan(path, strict=True):
        if isinstance(found, str):
            raise ValueError(f"{path}:{number} {found}")
        rows.append(found)
    if not rows:
        raise ValueError(f"{path} is empty; expected one JSON object per line.")
    return rows


def parse_rows(path: str | os.PathLike[str]) -> tuple[RowFile, list[Problem]]:
    """Read a JSONL file and return its rows and one problem for each line that holds no JSON object.

    Blank lines are skipped. Whole numbers in `qid` and `neg_query_ids` become strings; nothing else is changed or
    checked.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No annotation file at '{path}'. Expected a JSONL file: one JSON object on each line.")
    parsed = RowFile(rows=[], line_numbers=[], integer_qids=frozenset(), source=str(path))
    problems: list[Problem] = []
    integer_qids: set[str] = set()
    for number, row in _scan(path, strict=False):
        if isinstance(row, str):
            problems.append(Problem("error", number, "", row))
            continue
        if is_whole_number(row.get("qid")):
            row["qid"] = canonical_qid(row["qid"])
            integer_qids.add(row["qid"])
        if isinstance(row.get("neg_query_ids"), list):
            row["neg_query_ids"] = [canonical_qid(qid) if is_whole_number(qid) else qid for qid in row["neg_query_ids"]]
        parsed.rows.append(row)  # type: ignore[arg-type]  # the validator checks what is in it
        parsed.line_numbers.append(number)
    parsed.integer_qids = frozenset(integer_qids)
    return parsed, problems


def read_rows(path: str | os.PathLike[str]) -> RowFile:
    """Read a JSONL file of rows; raise a ValueError that lists every line that is not a JSON object.

    The rows are not validated: that is `validate_rows` or `validate_file`.
    """
    rows, problems = parse_rows(path)
    ValidationReport(rows=len(rows), problems=problems, source=str(path)).raise_for_errors()
    return rows


# ------------------------------------------------------------------------------------------------------------- writing


def write_jsonl(rows: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write rows as JSON lines, whole or not at all. NumPy arrays and scalars become lists and numbers.

    Missing folders are made. A bad row leaves an existing file as it was.

    Raises:
        TypeError: A row is no mapping, or holds a value that JSON cannot express.
        ValueError: A row holds NaN or an infinity, or is nested too deeply.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as file:
        for index, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise TypeError(f"rows[{index}] must be a mapping by field, received {type(row).__name__}.")
            try:
                file.write(_line(row))
            except (TypeError, ValueError, RecursionError) as error:
                where = f"rows[{index}] (qid {row.get('qid')!r})"
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"{where} cannot be written as JSON: {error}.") from None


def write_rows(
    path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]], *, integer_qids: Collection[str] | None = None
) -> None:
    """Write rows (or predictions) as JSONL, whole or not at all. Fields that are None are left out.

    `integer_qids` names the qids that are written as integers; by default those which the file that `rows` was read
    from wrote as integers, none for other rows.

    Raises:
        TypeError, ValueError: as `write_jsonl`; or a `qid` is missing, or neither a string nor a whole number.
    """
    if integer_qids is None:
        integer_qids = rows.integer_qids if isinstance(rows, RowFile) else ()
    write_jsonl((_record(row, integer_qids) for row in rows), path)


def _record(row: Mapping[str, Any], integer_qids: Collection[str]) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        return row  # which is refused by its number
    record = {key: value for key, value in row.items() if value is not None}
    if "qid" not in record:
        raise ValueError(f"every row must have a `qid`, received one with {sorted(map(str, record))}")
    canonical_qid(record["qid"])  # refused if it is none
    record["qid"] = original_qid(record["qid"], integer_qids)
    if isinstance(record.get("neg_query_ids"), list):
        record["neg_query_ids"] = [original_qid(qid, integer_qids) for qid in record["neg_query_ids"]]
    return record


def _line(row: Mapping[str, Any]) -> str:
    line = json.dumps(row, default=_plain, ensure_ascii=False, allow_nan=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON has an escape for it, UTF-8 has none
        line = json.dumps(row, default=_plain, allow_nan=False)
    return line + "\n"


def _plain(value: object) -> object:
    if callable(to_list := getattr(value, "tolist", None)):  # arrays and scalars of NumPy, tensors
        return to_list()
    raise TypeError(f"{type(value).__name__} is not a JSON type")
