"""The canonical annotation row: its definition, the report on what is wrong with rows, their JSONL reader and writer.

Every benchmark builder yields this row, every user's own data set is written in it, and everything downstream (feature
store, negative mining, collator, metrics) reads it. It is the JSONL schema of QVHighlights, which the other code bases
of the field read as well.
"""

import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TextIO, TypedDict, overload

TIME_TOLERANCE_S = 1e-3
"""Times that differ by less than this many seconds are the same time: decimal fractions are not exact in binary."""


class CanonicalRow(TypedDict):
    """One query about one video.

    - `qid`: identifies the query; unique in a file. An integer in a file is read as a string and can be written back as
      an integer (`RowFile.integer_qids`). Text features are named after it (`qid<qid>.npz`).
    - `vid`: identifies the video; video files and video features are named after it.
    - `query`: the sentence.
    - `duration`: length of the video in seconds.
    - `relevant_windows`: the moments, `[[start, end], ...]` in seconds. Absent or None where labels are not public.
    - `relevant_clip_ids`: indices of the clips inside the moments, ascending from 0; optional.
    - `saliency_scores`: (relevant clips, annotators), one list for each entry of `relevant_clip_ids`; optional.
    - `neg_query_ids`: qids of queries of the same video that do not describe these moments; optional.
    - `neg_query_weights`: how much each of them counts, in [0, 1], one for each entry of `neg_query_ids`; optional, all
      count fully where absent.
    - `video`: path of the video file, where it does not follow from `vid`; optional.
    """

    qid: str
    vid: str
    query: str
    duration: float
    relevant_windows: NotRequired[list[list[float]] | None]
    relevant_clip_ids: NotRequired[list[int] | None]
    saliency_scores: NotRequired[list[list[float]] | None]
    neg_query_ids: NotRequired[list[str] | None]
    neg_query_weights: NotRequired[list[float] | None]
    video: NotRequired[str | None]


ROW_FIELDS: tuple[str, ...] = tuple(CanonicalRow.__annotations__)


# ------------------------------------------------------------------------------------------------------------ problems


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the data. `line` is the 1-based line of the file, or None when it concerns no single row."""

    severity: Literal["error", "warning"]
    line: int | None
    field: str
    message: str
    qid: str | None = None

    def __str__(self) -> str:
        place = [f"line {self.line}"] if self.line is not None else []
        place += [f"qid {self.qid}"] if self.qid is not None else []
        place += [self.field] if self.field else []
        return f"{self.severity}: {', '.join(place)}: {self.message}" if place else f"{self.severity}: {self.message}"


@dataclass
class ValidationReport:
    """What validation found. An error makes the data unusable; a warning is handled by rule downstream."""

    rows: int
    problems: list[Problem] = field(default_factory=list)
    source: str = "rows"
    notes: list[str] = field(default_factory=list)

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "warning"]

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings are allowed."""
        return not self.errors

    def format(self, limit: int | None = None) -> str:
        """The report as text: every problem in the order of the lines, at most `limit` of them, then the counts."""
        ordered = sorted(self.problems, key=lambda problem: math.inf if problem.line is None else problem.line)
        shown = ordered if limit is None else ordered[:limit]
        lines = [str(problem) for problem in shown]
        if len(shown) < len(ordered):
            lines.append(f"... and {len(ordered) - len(shown)} more")
        lines += self.notes
        lines.append(f"{self.source}: {self.rows} rows, {len(self.errors)} errors, {len(self.warnings)} warnings")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def raise_for_errors(self) -> None:
        """Raise a ValueError that lists the first errors, if there are any."""
        if self.errors:
            listed = "\n".join(str(problem) for problem in self.errors[:20])
            more = f"\n... and {len(self.errors) - 20} more" if len(self.errors) > 20 else ""
            raise ValueError(f"{self.source} has {len(self.errors)} errors:\n{listed}{more}")


# --------------------------------------------------------------------------------------------------- reading, writing


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

    def original_qid(self, qid: str) -> str | int:
        """`qid` in the type that the file used."""
        return original_qid(qid, self.integer_qids)


def original_qid(qid: str, integer_qids: Collection[str]) -> str | int:
    """`qid` as an integer if it is one of `integer_qids`, else as it is."""
    return int(qid) if qid in integer_qids else qid


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def parse_rows(path: str | Path) -> tuple[RowFile, list[Problem]]:
    """Read a JSONL file and return its rows and one problem for each line that holds no JSON object.

    Blank lines are skipped. Integers in `qid` and `neg_query_ids` become strings; nothing else is changed or checked.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No annotation file at '{path}'. Expected a JSONL file: one JSON object on each line.")
    parsed = RowFile(rows=[], line_numbers=[], integer_qids=frozenset(), source=str(path))
    problems: list[Problem] = []
    integer_qids: set[str] = set()
    with path.open("rb") as file:
        for number, raw_line in enumerate(file, start=1):
            try:
                text = raw_line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                row = json.loads(text) if text else None
            except UnicodeDecodeError as error:
                problems.append(Problem("error", number, "", f"is not UTF-8 text ({error.reason})"))
                continue
            except json.JSONDecodeError as error:
                hint = " (the file looks like one JSON array; write one object on each line)" if text == "[" else ""
                problems.append(Problem("error", number, "", f"is not JSON: {error.msg} at column {error.colno}{hint}"))
                continue
            if not text:
                continue
            if not isinstance(row, dict):
                message = f"expected a JSON object, got {type(row).__name__}; write one row on each line"
                problems.append(Problem("error", number, "", message))
                continue
            if is_integer(row.get("qid")):
                row["qid"] = str(row["qid"])
                integer_qids.add(row["qid"])
            if isinstance(row.get("neg_query_ids"), list):
                row["neg_query_ids"] = [str(qid) if is_integer(qid) else qid for qid in row["neg_query_ids"]]
            parsed.rows.append(row)  # type: ignore[arg-type]  # the validator checks what is in it
            parsed.line_numbers.append(number)
    parsed.integer_qids = frozenset(integer_qids)
    return parsed, problems


def read_rows(path: str | Path) -> RowFile:
    """Read a JSONL file of rows; raise a ValueError that lists every line that is not a JSON object.

    The rows are not validated: that is `validate_rows` or `validate_file`.
    """
    rows, problems = parse_rows(path)
    ValidationReport(rows=len(rows), problems=problems, source=str(path)).raise_for_errors()
    return rows


@contextmanager
def replaced_when_whole(path: str | Path) -> Iterator[TextIO]:
    """A text file to write to, which takes the place of `path` only when it is whole: a process that dies, or an
    error, leaves what was there before. A device or pipe is written to as it is."""
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_rows(
    path: str | Path, rows: Iterable[Mapping[str, Any]], *, integer_qids: Collection[str] | None = None
) -> None:
    """Write rows (or predictions) as JSONL, whole or not at all. Fields that are None are left out.

    `integer_qids` names the qids that are written as integers; by default those which the file that `rows` was read
    from wrote as integers, none for other rows.
    """
    if integer_qids is None:
        integer_qids = rows.integer_qids if isinstance(rows, RowFile) else ()
    with replaced_when_whole(path) as file:
        for row in rows:
            record = {key: value for key, value in row.items() if value is not None}
            record["qid"] = original_qid(record["qid"], integer_qids)
            if "neg_query_ids" in record:
                record["neg_query_ids"] = [original_qid(qid, integer_qids) for qid in record["neg_query_ids"]]
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
