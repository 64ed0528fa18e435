"""Statistics of a data set's splits, measured on the rows as stored, with the dirt that they hold."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import datasets

from modeling_bmdetr.data import CanonicalRow, CleaningReport, clean_rows
from modeling_bmdetr.tables import markdown_table, plain_table

from .builder import BenchmarkBuilder

# Words (hyphens join), the part of a contraction from its apostrophe on, and every punctuation mark count one each. The
# words in the papers' tables are counted so: this reproduces them to two digits, white-space tokens do not.
_WORD_OR_MARK = re.compile(r"\w+(?:-\w+)*|'\w+|[^\w\s]")
DIRT = (
    "reversed",
    "zero_length",
    "past_end",
    "wholly_past_end",
    "duplicates",
    "duplicates_once_cleaned",
    "white_space",
)


@dataclass
class SplitStatistics:
    """Figures of one split, or of several together. Lengths are means in seconds.

    - `videos`, `queries`, `windows`: how many there are (videos are counted once).
    - `moment_stored_s`: end - start over all windows as stored; a reversed window counts as negative.
    - `moment_s`: the same after reversed windows were swapped.
    - `moment_clipped_s`: the same after windows were cut at the end of the video; one wholly past it counts 0.
    - `video_s`, `video_per_query_s`: duration, each video counted once, or once for each of its queries.
    - `words`, `words_and_marks`: per query; white-space tokens, and tokens with each punctuation mark counted.
    - `dirt`: counts by kind (`modeling_bmdetr.data.CleaningReport`).

    Moments are None where a split has no labels.
    """

    videos: int
    queries: int
    windows: int
    moment_stored_s: float | None
    moment_s: float | None
    moment_clipped_s: float | None
    video_s: float
    video_per_query_s: float
    words: float
    words_and_marks: float
    dirt: dict[str, int]


def split_statistics(rows: Sequence[CanonicalRow], reports: Iterable[CleaningReport]) -> SplitStatistics:
    """Measure rows as stored; `reports` are the cleaning reports of the splits that they come from."""
    if not rows:
        raise ValueError("There are no rows to measure.")
    duration_s = {row["vid"]: row["duration"] for row in rows}
    windows = [(start, end, row["duration"]) for row in rows for start, end in row.get("relevant_windows") or ()]
    counted = [report.counts() for report in reports]

    def mean(values: Iterable[float]) -> float | None:
        numbers = list(values)
        return sum(numbers) / len(numbers) if numbers else None

    return SplitStatistics(
        videos=len(duration_s),
        queries=len(rows),
        windows=len(windows),
        moment_stored_s=mean(end - start for start, end, _ in windows),
        moment_s=mean(abs(end - start) for start, end, _ in windows),
        moment_clipped_s=mean(min(max(s, e), d) - min(s, e, d) for s, e, d in windows),
        video_s=sum(duration_s.values()) / len(duration_s),
        video_per_query_s=sum(row["duration"] for row in rows) / len(rows),
        words=sum(len(row["query"].split()) for row in rows) / len(rows),
        words_and_marks=sum(len(_WORD_OR_MARK.findall(row["query"])) for row in rows) / len(rows),
        dirt={kind: sum(counts[kind] for counts in counted) for kind in DIRT},
    )


def builder_statistics(builder: datasets.DatasetBuilder) -> dict[str, SplitStatistics]:
    """Statistics of every split of a builder, then of the sums of splits that the builder names.

    Any builder that yields canonical rows will do; one that is not a `BenchmarkBuilder` is prepared first.
    """
    rows: dict[str, Sequence[CanonicalRow]] = {}
    totals: Mapping[str, tuple[str, ...]]
    if isinstance(builder, BenchmarkBuilder):
        rows = {split: builder.stored_rows(split) for split in builder.splits}
        totals = builder.TOTALS
    else:
        builder.download_and_prepare()
        rows = {str(split): list(part) for split, part in builder.as_dataset().items()}
        totals = {"all": tuple(rows)}
    reports = {split: clean_rows(part)[1] for split, part in rows.items()}
    statistics = {split: split_statistics(part, [reports[split]]) for split, part in rows.items()}
    for name, parts in totals.items():
        if len(parts) > 1 and set(parts) <= set(rows):
            together = [row for split in parts for row in rows[split]]
            statistics[name] = split_statistics(together, [reports[split] for split in parts])
    return statistics


def statistics_as_json(statistics: Mapping[str, SplitStatistics]) -> dict[str, Any]:
    """Statistics as plain data, unrounded."""
    return {split: asdict(entry) for split, entry in statistics.items()}


def format_statistics(statistics: Mapping[str, SplitStatistics], *, markdown: bool = False) -> str:
    """Two tables, figures and dirt, with one line for each split."""
    figures = [field.name for field in fields(SplitStatistics) if field.name != "dirt"]
    tables = []
    for columns, values in (
        (figures, {split: asdict(entry) for split, entry in statistics.items()}),
        (list(DIRT), {split: entry.dirt for split, entry in statistics.items()}),
    ):
        head = ["split", *columns]
        cells = [[split, *(_cell(entry[column]) for column in columns)] for split, entry in values.items()]
        tables.append(markdown_table(head, cells) if markdown else plain_table([head, *cells]))
    return "\n\n".join(tables)


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
