"""What every reader yields, one described moment, and how it says what it could not read."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ....contract_bmdetr import is_number

# Further places that an error message names after the first.
LISTED_PLACES = 5


class AnnotationError(ValueError):
    """An annotation file cannot be read as it is; the message names file, place, reason and remedy."""


@dataclass(frozen=True)
class Moment:
    """One sentence about one stretch of one video, as an annotation file has it.

    Attributes:
        video: the video as the file names it: an identifier, a file name, a path or an address.
        query: the sentence.
        start, end: in `unit`.
        place: where in the file it stands, such as `line 3`.
        unit: seconds, or frames counted from 0.
        fps: frames per second that frames are counted at, where the file says so.
        duration: length of the video in `duration_unit`, where the file says so.
        duration_unit: seconds, or frames.
        qid: identifier of the query, where the file has one.
    """

    video: str
    query: str
    start: float
    end: float
    place: str
    unit: Literal["seconds", "frames"] = "seconds"
    fps: float | None = None
    duration: float | None = None
    duration_unit: Literal["seconds", "frames"] = "seconds"
    qid: str | None = None


@dataclass
class Faults:
    """Everything that one file holds and that cannot be read, told in one message."""

    path: Path
    found: list[tuple[str, str]] = field(default_factory=list)

    def add(self, place: str, message: str) -> None:
        self.found.append((place, message))

    def raise_if_any(self) -> None:
        """Raise an AnnotationError that gives the first fault in full and the places of the next ones."""
        if not self.found:
            return
        place, message = self.found[0]
        if more := [other for other, _ in self.found[1:]]:
            listed = "; ".join(more[:LISTED_PLACES]) + (" ..." if len(more) > LISTED_PLACES else "")
            message += f" ({len(more)} more could not be read: {listed})"
        raise fault(self.path, place, message)


def fault(path: Path, place: str, message: str) -> AnnotationError:
    """The error of a file of which nothing can be read because of one place in it."""
    return AnnotationError(f"'{path}', {place}: {message}" if place else f"'{path}': {message}")


def read_text(path: Path, encoding: str | None = None) -> str:
    """The text of a file in `encoding`; by default UTF-8, or UTF-16 where the file begins with its mark."""
    raw = path.read_bytes()
    utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return raw.decode(encoding or ("utf-16" if utf16 else "utf-8-sig"))
    except LookupError as error:
        raise ValueError(f"encoding must be one that Python knows, such as latin-1, received {encoding!r}") from error
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        message = (
            f"is not {encoding or 'UTF-8'} text; save the file as UTF-8, or name its encoding (--encoding latin-1)"
        )
        raise fault(path, f"line {line}, byte {column}", message) from error


_CLOCK = re.compile(r"(?:(\d{1,5}):)?(\d{1,3}):(\d{1,2}(?:[.,]\d+)?)")


def parse_time(text: str, decimal: str = ".") -> float:
    """Seconds of `12.5`, `1:05`, `1:05.5`, `00:01:05,500`.

    A comma is a decimal mark after minutes, where it leaves no doubt; in a bare number it must be the `decimal` mark.

    Raises:
        ValueError: if `text` is no time; the message says what to write.
    """
    text = text.strip()
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, seconds = clock[1], int(clock[2]), float(clock[3].replace(",", "."))
        if seconds >= 60 or (hours is not None and minutes >= 60):
            raise ValueError(f"expected a time such as 65.5, 1:05.5 or 00:01:05,500, received {text!r}")
        return int(hours or 0) * 3600 + minutes * 60 + seconds
    return parse_number(text.removesuffix("s").rstrip(), decimal, shown=text, what="a time such as 65.5 or 1:05.5")


def parse_number(text: str, decimal: str = ".", *, shown: str | None = None, what: str = "a number") -> float:
    """A plain number with the given decimal mark.

    Raises:
        ValueError: if `text` is none; the message says what to write.
    """
    shown = text if shown is None else shown
    if re.fullmatch(r"[+-]?\d+,\d+", text) and decimal != ",":
        raise ValueError(f"{shown!r} has a decimal comma; write a point, or say that commas are meant (--decimal ,)")
    number = text.replace(decimal, ".") if decimal != "." else text
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", number):
        raise ValueError(f"expected {what}, received {shown!r}")
    if not is_number(value := float(number)):
        raise ValueError(f"expected {what}, received {shown!r}, which is too large")
    return value
