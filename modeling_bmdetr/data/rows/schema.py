"""The canonical annotation row, and the report on what is wrong with rows.

Every benchmark builder yields this row, every user's own data set is written in it, and everything downstream (feature
store, negative mining, collator, metrics) reads it. It is the JSONL schema of QVHighlights, which the other code bases
of the field read as well.
"""

import math
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

# Times that differ by less than this many seconds are the same time: decimal fractions are not exact in binary.
TIME_TOLERANCE_S = 1e-3


# Suffixes of the video files that a `vid` alone finds, in capitals too; the first of several wins.
VIDEO_SUFFIXES = (
    *(".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v"),
    *(".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".flv", ".wmv", ".ogv", ".3gp", ".gif"),
)


def folded_name(name: str) -> str:
    """A file name with accents in one of their Unicode forms, and its suffix in small letters."""
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + suffix.lower()


class CanonicalRow(TypedDict):
    """One query about one video.

    - `qid`: identifies the query; unique in a file. An integer in a file is read as a string and can be written back as
      an integer (`RowFile.integer_qids`). Text features are named after it (`qid<qid>.npz`).
    - `vid`: identifies the video; video files and video features are named after it.
    - `query`: the sentence.
    - `duration`: length of the video in seconds.
    - `relevant_windows`: the moments, `[[start, end], ...]` in seconds. An empty list says that the video does not
      show what the query says. Left out or None where labels are not public.
    - `absent_kind`: for a query with no moment, in which way it is absent (`unrelated`, `no_such_object`,
      `other_action`, `exchanged`, or any other name); optional. Presence is measured for each kind by itself.
    - `text_qid`: the query with the same sentence whose text features are this row's too, where the row has none of its
      own; optional.
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
    absent_kind: NotRequired[str | None]
    text_qid: NotRequired[str | None]
    relevant_clip_ids: NotRequired[list[int] | None]
    saliency_scores: NotRequired[list[list[float]] | None]
    neg_query_ids: NotRequired[list[str] | None]
    neg_query_weights: NotRequired[list[float] | None]
    video: NotRequired[str | None]


ROW_FIELDS: tuple[str, ...] = tuple(CanonicalRow.__annotations__)


def is_labelled(row: Mapping[str, Any]) -> bool:
    """Whether a row says where its moments are, or that there are none."""
    return row.get("relevant_windows") is not None


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

    def raise_for_errors(self, most: int = 3) -> None:
        """Raise a ValueError that lists the first errors, at most so many, if there are any."""
        if self.errors:
            listed = [str(problem).removeprefix("error: ") for problem in self.errors[:most]]
            if len(self.errors) > most:
                listed.append(f"and {len(self.errors) - most} more")
            raise ValueError(
                f"{self.source} has {len(self.errors)} errors in {self.rows} rows:\n  "
                + ";\n  ".join(listed)
                + "\nCorrect or leave out these rows; `bmdetr validate` lists all of them"
            )
