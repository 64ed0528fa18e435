"""WebVTT and SubRip captions: every cue is a sentence about the stretch that it is shown for."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from .moments import Faults, Moment, fault, parse_time, read_text

_TIMES = re.compile(r"^\s*(?P<start>\S+)\s+-->\s+(?P<end>\S+)(?P<settings>.*)$")
_STAMP = re.compile(r"(?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3}")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<[\d:.]+>|\{\\[^}]*\}")


def read_captions(path: Path, *, video: str | None = None, encoding: str | None = None) -> list[Moment]:
    """The cues of a `.vtt` or `.srt` file, which is about one video: `video`, or the one named like the file.

    Comments, styles and regions are passed over; tags such as `<v Anna>` or `<i>` are taken out of the text. A cue
    without text describes nothing and is left out.

    Raises:
        AnnotationError: if the file holds no cue, or one whose times cannot be read, with line and column.
    """
    text = read_text(path, encoding)
    lines = text.splitlines()
    if path.suffix.lower() == ".vtt" and not (lines and re.match(r"WEBVTT(\s|$)", lines[0])):
        raise fault(path, "line 1, column 1", "a WebVTT file begins with the word WEBVTT; is it SubRip (.srt)?")
    moments, faults = [], Faults(path)
    for number, block in _blocks(lines):
        at = next((index for index, line in enumerate(block) if "-->" in line), None)
        if at is None:
            if block[0].startswith(("WEBVTT", "NOTE", "STYLE", "REGION")):
                continue
            faults.add(f"line {number}, column 1", f"expected START --> END, received {block[0].strip()!r}")
            continue
        line = block[at]
        sentence = " ".join(html.unescape(_TAG.sub("", " ".join(block[at + 1 :]))).split())
        place = f"line {number + at}"
        times = _TIMES.match(line)
        if times is None:
            faults.add(f"{place}, column 1", f"expected START --> END, received {line.strip()!r}")
            continue
        stamps = [times["start"], times["end"]]
        wrong = next((name for name in ("start", "end") if not _STAMP.fullmatch(times[name])), None)
        if wrong is not None:
            column = times.start(wrong) + 1
            faults.add(f"{place}, column {column}", f"expected a time such as 00:01:05.500, received {times[wrong]!r}")
            continue
        try:
            start, end = (parse_time(stamp) for stamp in stamps)
        except ValueError as error:
            faults.add(f"{place}, column {times.start('start') + 1}", str(error))
            continue
        if sentence:
            moments.append(Moment(video or path.stem, sentence, start, end, place))
    faults.raise_if_any()
    if not moments:
        raise fault(path, "", "holds no caption; expected blocks of START --> END and a text below")
    return moments


def _blocks(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Runs of lines without a blank one, with the number of their first line, from 1."""
    block: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            block.append(line)
        elif block:
            yield number - len(block), block
            block = []
