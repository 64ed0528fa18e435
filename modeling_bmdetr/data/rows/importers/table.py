"""Moments from a table: which column is what, and what its times mean."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .moments import Faults, Moment, fault, parse_number, parse_time
from .sheets import Table

TimeUnit = Literal["seconds", "milliseconds", "frames"]
ROLES = ("video", "start", "end", "query", "duration", "qid", "fps")
REQUIRED = ROLES[:4]
_WORDS: dict[str, tuple[str, ...]] = {
    "video": (
        "video",
        "vid",
        "videoid",
        "videoname",
        "videofile",
        "videopath",
        "filename",
        "file",
        "youtubeid",
        "path",
    ),
    "start": ("start", "begin", "from", "onset", "tstart", "momentstart", "clipstart", "beginning", "in"),
    "end": ("end", "stop", "to", "offset", "tend", "momentend", "clipend", "finish", "until", "out"),
    "query": ("query", "sentence", "description", "caption", "text", "label", "annotation", "narration", "event"),
    "duration": ("duration", "videoduration", "videolength"),
    "qid": ("qid", "queryid", "annotationid", "sentenceid"),
    "fps": ("fps", "framerate"),
}
_UNITS: dict[str, TimeUnit] = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds", "mmss", "hhmmss"), "seconds"),
    **dict.fromkeys(("ms", "msec", "millis", "millisecond", "milliseconds"), "milliseconds"),
    **dict.fromkeys(("frame", "frames", "frameno"), "frames"),
}
_FILLERS = ("time", "timestamp", "timecode", "at")


@dataclass(frozen=True)
class Columns:
    """Number (from 1) and name of the column of each role, the unit of start and end, and that of the duration."""

    numbers: dict[str, int]
    names: dict[str, str]
    unit: TimeUnit
    duration_unit: TimeUnit = "seconds"

    def __str__(self) -> str:
        shown = [f"{role} = {self.names.get(role) or f'column {n}'}" for role, n in self.numbers.items()]
        own = f", duration in {self.duration_unit}" if "duration" in self.numbers else ""
        return f"{', '.join(shown)}; times in {self.unit}{own}"


def read_moments(
    path: Path,
    table: Table,
    *,
    columns: Mapping[str, str] | None = None,
    header: int | None = None,
    times: TimeUnit | None = None,
    decimal: str = ".",
) -> tuple[list[Moment], Columns]:
    """One moment from each line below the header, and what the columns were taken for.

    Args:
        path, table: the file and its cells.
        columns: name or number (from 1) of the column of a role (`ROLES`), over the guess by the names.
        header: line of the column names; by default the first that is not blank, 0 for none (then by number).
        times: unit of start and end, over the guess by the names; seconds include `1:05` and `00:01:05,500`.
        decimal: decimal mark of numbers.

    Raises:
        AnnotationError: if a required column cannot be told, or cells cannot be read, with line and column.
    """
    found = _find_columns(path, table, columns or {}, header, times)
    first = _header_index(path, table, header) + 1
    body = table.lines[first:] if header != 0 else table.lines
    if not body:
        raise fault(path, "", "has no line below its header")
    _refuse_second_header(path, table, found, body[0])
    width = len(table.lines[first - 1][1]) if header != 0 else max(len(cells) for _, cells in body)
    moments, faults = [], Faults(path)
    for line, cells in body:
        if len(cells) > width:
            hint = "; a decimal comma, or a comma in a sentence without quotes?" if table.delimiter == "," else ""
            faults.add(table.place(line, width + 1), f"has {len(cells)} cells where the header has {width}{hint}")
            continue
        try:
            moments.append(_moment(table, line, cells, found, decimal))
        except _CellError as error:
            faults.add(table.place(line, error.column), str(error))
    faults.raise_if_any()
    return moments, found


class _CellError(ValueError):
    def __init__(self, column: int, message: str) -> None:
        super().__init__(message)
        self.column = column


def _moment(table: Table, line: int, cells: Sequence[str], columns: Columns, decimal: str) -> Moment:
    texts = {role: cells[n - 1] if n <= len(cells) else "" for role, n in columns.numbers.items()}

    def number(role: str) -> float | None:
        column = columns.numbers.get(role)
        if column is None or (not texts[role] and role not in REQUIRED):
            return None
        unit = {"start": columns.unit, "end": columns.unit, "duration": columns.duration_unit}.get(role)
        try:
            value = (parse_time if unit == "seconds" else parse_number)(texts[role], decimal)
        except ValueError as error:
            raise _CellError(column, f"{columns.names.get(role) or role}: {error}") from error
        return value * 0.001 if unit == "milliseconds" else value

    for role in REQUIRED:
        if not texts[role]:
            raise _CellError(columns.numbers[role], f"{columns.names.get(role) or role} is empty")
    return Moment(
        video=texts["video"],
        query=" ".join(texts["query"].split()),
        start=number("start") or 0.0,
        end=number("end") or 0.0,
        place=table.place(line, None),
        unit="frames" if columns.unit == "frames" else "seconds",
        fps=number("fps"),
        duration=number("duration"),
        duration_unit="frames" if columns.duration_unit == "frames" else "seconds",
        qid=texts.get("qid") or None,
    )


def _header_index(path: Path, table: Table, header: int | None) -> int:
    if not table.lines:
        raise fault(path, "", "is empty")
    if header in (None, 0):
        return 0
    index = next((index for index, (line, _) in enumerate(table.lines) if line == header), None)
    if index is None:
        raise ValueError(f"header must be the number of a line that is not blank, received {header} for '{path}'")
    return index


def _find_columns(
    path: Path, table: Table, wanted: Mapping[str, str], header: int | None, times: TimeUnit | None
) -> Columns:
    unknown = [role for role in wanted if role not in ROLES]
    if unknown:
        raise ValueError(f"columns must be of {', '.join(ROLES)}, received {unknown[0]!r}")
    line, cells = table.lines[_header_index(path, table, header)]
    names = {number: name for number, name in enumerate(cells, start=1) if name and header != 0}
    guesses: dict[str, list[int]] = {role: [] for role in ROLES}
    units: set[TimeUnit] = set()
    meanings = {number: _meaning(name) for number, name in names.items()}
    for number, (role, _) in meanings.items():
        if role is not None:
            guesses[role].append(number)
    numbers: dict[str, int] = {}
    for role in ROLES:
        if role in wanted:
            numbers[role] = _wanted_column(path, table, line, role, wanted[role], names, len(cells))
        elif len(guesses[role]) > 1:
            both = " and ".join(f"'{names[number]}'" for number in guesses[role])
            message = (
                f"the columns {both} could all be the {role}; choose one (--columns {role}={names[guesses[role][0]]})"
            )
            raise fault(path, table.place(line, None), message)
        elif guesses[role]:
            numbers[role] = guesses[role][0]
    missing = [role for role in REQUIRED if role not in numbers]
    if missing:
        seen = ", ".join(repr(name) for name in names.values()) or "no names"
        message = f"cannot tell which column is the {' and the '.join(missing)}: the header has {seen}; "
        raise fault(path, table.place(line, None), message + f"say it (--columns {missing[0]}=NAME or its number)")
    units = {unit for n in (numbers["start"], numbers["end"]) if n in meanings and (unit := meanings[n][1]) is not None}
    if times is None and len(units) > 1:
        message = f"start is in {meanings[numbers['start']][1]}, end in {meanings[numbers['end']][1]}; give --times"
        raise fault(path, table.place(line, None), message)
    own = meanings[numbers["duration"]][1] if numbers.get("duration") in meanings else None
    found = {role: names.get(n, "") for role, n in numbers.items()}
    return Columns(numbers, found, times or (units or {"seconds"}).pop(), own or "seconds")


def _wanted_column(
    path: Path, table: Table, line: int, role: str, wanted: str, names: Mapping[int, str], width: int
) -> int:
    by_name = [number for number, name in names.items() if name.casefold() == wanted.strip().casefold()]
    if by_name:
        return by_name[0]
    if wanted.strip().isdigit() and 1 <= int(wanted) <= width:
        return int(wanted)
    seen = ", ".join(repr(name) for name in names.values()) or f"{width} columns without names"
    raise fault(path, table.place(line, None), f"has no column {wanted!r} for the {role}; it has {seen}")


def _meaning(name: str) -> tuple[str | None, TimeUnit | None]:
    """Role and time unit that a column name says: `Start time (ms)` is the start, in milliseconds."""
    words = re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    unit = next((_UNITS[word] for word in words if word in _UNITS), None)
    kept = "".join(word for word in words if word not in _UNITS and word not in _FILLERS)
    if not kept or "".join(words) in ("framerate", "framespersecond"):
        kept = "fps" if "frame" in "".join(words) and len(words) > 1 else "".join(words)
    role = next((role for role, known in _WORDS.items() if kept in known or "".join(words) in known), None)
    return role, unit


def _refuse_second_header(path: Path, table: Table, columns: Columns, first: tuple[int, list[str]]) -> None:
    line, cells = first
    texts = [cells[columns.numbers[r] - 1] if columns.numbers[r] <= len(cells) else "" for r in ("start", "end")]
    if not any(re.search(r"\d", text) for text in texts):
        shown = " and ".join(repr(text) for text in texts)
        message = f"start and end are {shown}: a second header line? Delete it, or name the header's (--header {line})"
        raise fault(path, table.place(line, columns.numbers["start"]), message)
