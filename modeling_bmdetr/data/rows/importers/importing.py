"""From an annotation file to checked canonical rows: the format, durations, identifiers, and what does not fit."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..qids import content_qid
from ..schema import CanonicalRow
from ..validation import validate_rows
from .captions import read_captions
from .elan import read_elan
from .json_text import json_fault, parse_json
from .jsonl import read_jsonl
from .label_studio import is_label_studio, read_label_studio
from .moments import AnnotationError, Faults, Moment, fault, read_text
from .sheets import SPREADSHEETS, read_table
from .table import TimeUnit, read_moments
from .via import is_via, read_via
from .videos import VideoFolder

FORMATS = ("table", "label-studio", "via", "elan", "captions", "jsonl")
# A moment that ends after its video by no more than this many seconds is cut to it: tools round durations up.
CLIPPED_S = 1.0
_FORMAT_OF_SUFFIX = {
    **dict.fromkeys((".csv", ".tsv", ".txt", *SPREADSHEETS), "table"),
    **dict.fromkeys((".vtt", ".srt"), "captions"),
    ".eaf": "elan",
    ".jsonl": "jsonl",
}


@dataclass(frozen=True)
class ImportOptions:
    """What a file does not say about itself.

    Attributes:
        format: one of `FORMATS`; by default told from the file's name and content.
        columns: tables: name or number of the column of a role, over the guess. `{"video": ...}` also names the entry
            of a Label Studio task.
        header: tables: line of the column names, 0 for none.
        times: tables: unit of start and end.
        decimal: tables: decimal mark.
        delimiter, encoding, sheet: of the file, where the guess is wrong.
        fps: frames per second that frame numbers count, where the file and the videos do not say.
        video: captions and ELAN: the video that the file is about.
        tiers: ELAN: the tiers that hold sentences.
        attribute: VIA: the attribute that holds the sentence.
        past_end: a moment that ends more than 1 s after its video: an error, cut to the video, or kept as it is.
    """

    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    header: int | None = None
    times: TimeUnit | None = None
    decimal: str = "."
    delimiter: str | None = None
    encoding: str | None = None
    sheet: str | None = None
    fps: float | None = None
    video: str | None = None
    tiers: Sequence[str] | None = None
    attribute: str | None = None
    past_end: Literal["error", "clip", "keep"] = "error"

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, received {self.format!r}")
        if self.decimal not in (".", ","):
            raise ValueError(f"decimal must be '.' or ',', received {self.decimal!r}")
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ValueError(f"delimiter must be one character, received {self.delimiter!r}")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ValueError(f"fps must be a positive number, received {self.fps}")


@dataclass
class ImportReport:
    """What was read, what it was taken for, and what was changed. Plain data for JSON with `to_dict`."""

    files: list[str] = field(default_factory=list)
    taken_for: list[str] = field(default_factory=list)
    rows: int = 0
    moments: int = 0
    videos: int = 0
    durations_measured: int = 0
    clipped: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{file}: {what}" for file, what in zip(self.files, self.taken_for, strict=True)]
        lines.append(f"{self.rows} queries with {self.moments} moments in {self.videos} videos")
        if self.durations_measured:
            lines.append(f"the durations of {self.durations_measured} videos were taken from their files")
        if self.clipped:
            lines.append(f"{self.clipped} moments ended after their video and were cut to it")
        return "\n".join(lines)


def import_annotations(
    files: str | os.PathLike | Sequence[str | os.PathLike],
    video_dir: str | os.PathLike | None = None,
    options: ImportOptions | None = None,
) -> tuple[list[CanonicalRow], ImportReport]:
    """Canonical rows from annotation files of one or several formats.

    Moments of one video with the same sentence become one row with several windows. A row without an identifier of its
    own gets one made from its video and sentence, so that files imported one by one never share one by accident. The
    rows are valid: `validate_rows` finds no error in them.

    Args:
        files: the file, or several, such as one of captions for each video.
        video_dir: folder of the videos, searched with its sub-folders. Needed where the files do not give durations, or
            give frames without a rate.
        options: what the files do not say about themselves.

    Raises:
        AnnotationError: if something in a file cannot be read or does not fit; one message for everything, which gives
            the first place in full.
        FileNotFoundError: if a file or the folder does not exist.
        ImportError: if a spreadsheet needs openpyxl, or videos need PyAV.
    """
    options = options or ImportOptions()
    paths = [Path(file) for file in ([files] if isinstance(files, (str, os.PathLike)) else files)]
    if not paths:
        raise ValueError("files must name at least one annotation file, received none")
    videos = VideoFolder(video_dir)
    report = ImportReport()
    rows: dict[Any, dict[str, Any]] = {}
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"there is no annotation file '{path}'")
        moments, given, taken_for = _read(path, options)
        report.files.append(str(path))
        report.taken_for.append(taken_for)
        faults = Faults(path)
        for place, row in given:
            try:
                _complete_row(row, videos, options, report)
            except (ValueError, FileNotFoundError) as error:
                faults.add(place, str(error))
            rows[(str(path), place)] = row
        for moment in moments:
            try:
                _add_moment(rows, moment, videos, options, report)
            except (ValueError, FileNotFoundError) as error:
                faults.add(moment.place, str(error))
        faults.raise_if_any()
    for row in rows.values():
        row["qid"] = row.get("qid") or content_qid(row)
    made: Any = [{key: value for key, value in row.items() if value is not None} for row in rows.values()]
    check = validate_rows(made, source=", ".join(map(str, paths)), require_windows=False)
    if check.errors:
        first, more = check.errors[0], len(check.errors) - 1
        name = made[first.line - 1]["query"] if first.line else ""
        text = f"the row of {name!r}: {first.field} {first.message}" + (f" ({more} more errors)" if more else "")
        raise AnnotationError(f"'{check.source}': {text}")
    report.rows, report.moments = len(made), sum(len(row.get("relevant_windows") or []) for row in made)
    report.videos, report.durations_measured = len({row["vid"] for row in made}), len(videos.measured)
    return made, report


def _read(path: Path, options: ImportOptions) -> tuple[list[Moment], list[tuple[str, dict[str, Any]]], str]:
    """Moments, or rows with their places where the file has rows, and what it was taken for."""
    kind = options.format or _FORMAT_OF_SUFFIX.get(path.suffix.lower())
    if kind is None and path.suffix.lower() != ".json":
        known = ", ".join(sorted([*_FORMAT_OF_SUFFIX, ".json"]))
        raise fault(path, "", f"cannot tell the format from the name; expected {known}, or say it (--format)")
    if kind == "table":
        table = read_table(path, delimiter=options.delimiter, sheet=options.sheet, encoding=options.encoding)
        moments, columns = read_moments(
            path, table, columns=options.columns, header=options.header, times=options.times, decimal=options.decimal
        )
        return moments, [], f"{table.kind}; {columns}"
    if kind == "captions":
        return read_captions(path, video=options.video, encoding=options.encoding), [], "captions"
    if kind == "elan":
        return read_elan(path, video=options.video, tiers=list(options.tiers) if options.tiers else None), [], "ELAN"
    if kind == "jsonl":
        return [], read_jsonl(path), "JSONL of rows"
    text = read_text(path, options.encoding)
    content = parse_json(path, text)
    if kind == "via" or (kind is None and is_via(content)):
        if not is_via(content):
            raise json_fault(path, text, (), "is not a project of VIA: it has no `metadata` and `attribute`")
        return read_via(path, text, content, attribute=options.attribute), [], "VIA project"
    if kind == "label-studio" or is_label_studio(content):
        if not isinstance(content, list):
            raise json_fault(path, text, (), "is not an export of Label Studio: expected a list of tasks")
        moments = read_label_studio(path, text, content, fps=options.fps, field=options.columns.get("video"))
        return moments, [], "Label Studio"
    raise json_fault(path, text, (), "is neither an export of Label Studio nor a VIA project; rows belong in a .jsonl")


def _add_moment(
    rows: dict[Any, dict[str, Any]], moment: Moment, videos: VideoFolder, options: ImportOptions, report: ImportReport
) -> None:
    """Adds a moment to the row of its video and sentence, which is made if there is none."""
    vid = videos.identifier(moment.video)

    def in_seconds(time: float, unit: str) -> float:
        if unit == "seconds":
            return time
        return time / (moment.fps or options.fps or videos.probe(moment.video, "frame rate").fps)

    start, end = (in_seconds(time, moment.unit) for time in (moment.start, moment.end))
    stated_s = None if moment.duration is None else in_seconds(moment.duration, moment.duration_unit)
    duration_s = videos.duration_s(moment.video, stated_s)
    videos.require_one_duration(moment.video, vid, duration_s)
    window = _checked_window(start, end, duration_s, options, report)
    key = (vid, moment.qid, moment.query)
    row = rows.get(key)
    if row is None:
        row = {"qid": moment.qid, "vid": vid, "query": moment.query, "duration": round(duration_s, 3)}
        row |= {"relevant_windows": [], "video": videos.relative(moment.video, vid)}
        rows[key] = row
    if window not in row["relevant_windows"]:
        row["relevant_windows"] = sorted([*row["relevant_windows"], window])


def _complete_row(row: dict[str, Any], videos: VideoFolder, options: ImportOptions, report: ImportReport) -> None:
    """Fills in what a row of a JSONL file lacks, and checks its windows."""
    name = row.get("video") or row["vid"]
    row["vid"] = videos.identifier(row["vid"])
    if row.get("duration") is None:
        row["duration"] = round(videos.duration_s(name), 3)
    if videos.folder is not None and videos.path(name) is not None:
        row["video"] = videos.relative(name, row["vid"])
    if row.get("relevant_windows") is not None:
        windows = _pairs(row["relevant_windows"])
        row["relevant_windows"] = [_checked_window(*w, row["duration"], options, report) for w in windows]


def _pairs(windows: Any) -> list[tuple[float, float]]:
    numbers = isinstance(windows, list) and all(
        isinstance(window, list)
        and len(window) == 2
        and all(isinstance(t, (int, float)) and not isinstance(t, bool) for t in window)
        for window in windows
    )
    if not numbers:
        raise ValueError(f"expected windows [[start, end], ...] in seconds, received {windows!r}")
    return [(start, end) for start, end in windows]


def _checked_window(
    start_s: float, end_s: float, duration_s: float, options: ImportOptions, report: ImportReport
) -> list[float]:
    """A window inside its video, in milliseconds' precision.

    Raises:
        ValueError: if it is reversed, begins before 0, or does not fit the video.
    """
    shown = f"{start_s:.2f} s to {end_s:.2f} s"
    if start_s < 0:
        raise ValueError(f"the moment {shown} begins before 0")
    if start_s >= end_s:
        raise ValueError(f"the moment {shown} does not end after its start")
    if options.past_end != "keep" and end_s > duration_s:
        if start_s >= duration_s or (options.past_end == "error" and end_s > duration_s + CLIPPED_S):
            message = f"the moment {shown} is past the end of the video ({duration_s:.2f} s)"
            hint = "" if start_s >= duration_s else " (--past-end clip cuts it)"
            raise ValueError(f"{message}; are its times in another unit, or of another video?{hint}")
        end_s = duration_s
        report.clipped += 1
    return [round(start_s, 3), round(end_s, 3)]
