"""Dirty annotations, handled by rule and counted: nothing is repaired or dropped silently.

The public benchmarks hold reversed windows, windows of zero length, windows past the end of the video, rows that are
given twice and stray white space. `clean_rows` finds each kind, applies one rule to it and reports how often it did.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, cast, get_args

from .plain import plain_rows
from .schema import TIME_TOLERANCE_S, CanonicalRow


@dataclass(frozen=True)
class CleaningRules:
    """What happens to each kind of dirt. The defaults change no query count and no ground truth but reversed windows.

    Always: the ends of a reversed window are swapped, and white space in a query is reduced to single blanks.

    - `past_end`: `keep` leaves a window that ends after the video as it is (evaluation does so everywhere); `clip` cuts
      it at the duration. A window that lies wholly past the end is then empty and is dropped.
    - `zero_length`: `keep` or `drop` windows without length.
    - `duplicates`: `keep` every copy of a row (evaluation counts each), or `drop` all but the first.

    A row that loses all its windows is dropped.
    """

    past_end: Literal["keep", "clip"] = "keep"
    zero_length: Literal["keep", "drop"] = "keep"
    duplicates: Literal["keep", "drop"] = "keep"

    def __post_init__(self) -> None:
        for rule in fields(self):
            if (value := getattr(self, rule.name)) not in (allowed := get_args(rule.type)):
                raise ValueError(f"{rule.name} must be one of {', '.join(allowed)}, received {value!r}.")


@dataclass
class CleaningReport:
    """How much of each kind of dirt there was, as stored, and what the rules removed.

    `reversed`, `zero_length`, `past_end` and `wholly_past_end` count windows (`past_end` includes those wholly past the
    end); the others count rows. `duplicates` are copies of an earlier row to the letter, `duplicates_once_cleaned`
    those that become copies by the other rules. `examples` names the first few of each kind.
    """

    rows: int = 0
    windows: int = 0
    reversed: int = 0
    zero_length: int = 0
    past_end: int = 0
    wholly_past_end: int = 0
    duplicates: int = 0
    duplicates_once_cleaned: int = 0
    white_space: int = 0
    dropped_rows: int = 0
    dropped_windows: int = 0
    clipped_windows: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    EXAMPLES_KEPT = 5

    def count(self, kind: str, example: str) -> None:
        """Add one to `kind` and keep `example` if it is among the first."""
        setattr(self, kind, getattr(self, kind) + 1)
        listed = self.examples.setdefault(kind, [])
        if len(listed) < self.EXAMPLES_KEPT:
            listed.append(example)

    def counts(self) -> dict[str, int]:
        """Every count by name, without the examples."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "examples"}

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        return asdict(self)

    def format(self) -> str:
        """The counts that are not zero, one to a line, with examples."""
        lines = [f"{self.rows} rows, {self.windows} windows"]
        for kind, number in self.counts().items():
            if number and kind not in ("rows", "windows"):
                listed = self.examples.get(kind, [])
                ellipsis = ", ..." if number > len(listed) else ""
                lines.append(f"  {kind.replace('_', ' ')}: {number} ({', '.join(listed)}{ellipsis})")
        return "\n".join(lines)


def clean_rows(
    rows: Iterable[CanonicalRow], rules: CleaningRules | None = None
) -> tuple[list[CanonicalRow], CleaningReport]:
    """Apply `rules` to rows and count what they were applied to. The rows given are not modified.

    Expects rows that are well formed (`validate_rows` without errors but reversed windows). Windows come back as lists
    of two floats. Rows without `relevant_windows` (unlabelled queries) keep it None, absent ones
    keep it empty.
    """
    rules = rules or CleaningRules()
    report = CleaningReport()
    cleaned: list[CanonicalRow] = []
    stored: set[tuple[Any, ...]] = set()
    seen_clean: set[tuple[Any, ...]] = set()
    for row in cast(list[CanonicalRow], plain_rows(rows)):
        report.rows += 1
        where = f"{row['vid']} (qid {row['qid']})"
        query = " ".join(row["query"].split())
        if query != row["query"]:
            report.count("white_space", where)
        clean: CanonicalRow = {**row, "query": query}
        windows = row.get("relevant_windows")
        if windows is not None:
            clean["relevant_windows"] = _clean_windows(windows, row, rules, report)
        before, after = _content(row), _content(clean)
        is_copy = before in stored or after in seen_clean
        if is_copy:
            report.count("duplicates" if before in stored else "duplicates_once_cleaned", where)
        stored.add(before)
        seen_clean.add(after)
        without_windows = bool(windows) and not clean["relevant_windows"]
        if without_windows or (is_copy and rules.duplicates == "drop"):
            report.count("dropped_rows", where)
            continue
        cleaned.append(clean)
    return cleaned, report


def _content(row: CanonicalRow) -> tuple[Any, ...]:
    return row["vid"], row["query"], tuple(map(tuple, row.get("relevant_windows") or ()))


def _clean_windows(
    windows: Sequence[Sequence[float]], row: CanonicalRow, rules: CleaningRules, report: CleaningReport
) -> list[list[float]]:
    """The windows of one row after the rules, in their order; counts into `report`."""
    duration_s, kept = row["duration"], []
    for window in windows:
        report.windows += 1
        where = f"{row['vid']} [{window[0]:g}, {window[1]:g}]"
        start_s, end_s = float(window[0]), float(window[1])
        if start_s > end_s:
            report.count("reversed", where)
            start_s, end_s = end_s, start_s
        if start_s == end_s:
            report.count("zero_length", where)
            if rules.zero_length == "drop":
                report.count("dropped_windows", where)
                continue
        if end_s > duration_s + TIME_TOLERANCE_S:
            report.count("past_end", where)
            if start_s >= duration_s:
                report.count("wholly_past_end", where)
            if rules.past_end == "clip":
                if start_s >= duration_s:
                    report.count("dropped_windows", where)
                    continue
                report.count("clipped_windows", where)
                end_s = float(duration_s)
        kept.append([start_s, end_s])
    return kept
