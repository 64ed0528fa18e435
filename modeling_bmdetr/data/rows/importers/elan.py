"""ELAN (.eaf): annotations on tiers, whose times stand in a list of time slots, in milliseconds."""

import xml.parsers.expat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from ..jsonl import MAX_DIGITS
from ..schema import VIDEO_SUFFIXES
from .moments import AnnotationError, Faults, Moment, fault

# Tiers refer to tiers: nobody nests them deeper.
MOST_REFERENCES = 100


@dataclass
class _Annotation:
    """An annotation while it is read: its times (two slots) or the annotation that has them, and where it stands."""

    tier: str
    place: str
    slots: tuple[str, str] | None
    parent: str | None
    text: str = ""


@dataclass
class _Media:
    """A media file that the document names, and by how much it is shifted against the annotations."""

    name: str
    origin: str
    place: str


@dataclass
class _Document:
    """What the parser has met so far."""

    media: list[_Media] = field(default_factory=list)
    slots: dict[str, str | None] = field(default_factory=dict)
    tiers: list[str] = field(default_factory=list)
    annotations: dict[str, _Annotation] = field(default_factory=dict)


def read_elan(path: Path, *, video: str | None = None, tiers: list[str] | None = None) -> list[Moment]:
    """The annotations of an ELAN document; those that refer to another one have its times.

    Args:
        path: an `.eaf` file.
        video: the video that it is about; by default the first one that the document names, or where it names no media
            file the name of the document.
        tiers: the tiers whose annotations are sentences. By default the document must have one tier only.

    Raises:
        AnnotationError: if the file is not XML or not ELAN's, if it has several tiers and none is chosen, if its media
            files are no videos, or if an annotation has no times, with line and column.
    """
    document = _parse(path)
    filled = [tier for tier in document.tiers if any(a.tier == tier for a in document.annotations.values())]
    if tiers is None and len(filled) > 1:
        raise fault(path, "", f"has annotations on {len(filled)} tiers: {', '.join(filled)}; choose with --tier NAME")
    unknown = [tier for tier in tiers or [] if tier not in document.tiers]
    if unknown:
        raise fault(path, "", f"has no tier '{unknown[0]}'; its tiers are {', '.join(document.tiers)}")
    chosen = set(tiers or filled)
    media = _media(path, document, video)
    name = video or (media.name if media else path.stem)
    moments, faults = [], Faults(path)
    for annotation in document.annotations.values():
        sentence = " ".join(annotation.text.split())
        if annotation.tier not in chosen or not sentence:
            continue
        try:
            start, end = _times_s(annotation, document)
        except ValueError as error:
            faults.add(annotation.place, str(error))
            continue
        moments.append(Moment(name, sentence, start, end, annotation.place.split(",")[0]))
    faults.raise_if_any()
    if not moments:
        raise fault(path, "", "holds no annotation with a text")
    return moments


def _media(path: Path, document: _Document, video: str | None) -> _Media | None:
    """The first video among the media files; sound often stands before it."""
    videos = [media for media in document.media if Path(media.name).suffix.lower() in VIDEO_SUFFIXES]
    if document.media and not videos and video is None:
        first = document.media[0]
        raise fault(
            path, first.place, f"'{first.name}' is no video; say which one the annotations are of (--video NAME)"
        )
    chosen = next(iter(videos or document.media), None)
    if chosen is not None and chosen.origin not in ("0", ""):
        message = f"the video is shifted against the annotations (TIME_ORIGIN {chosen.origin})"
        raise fault(path, chosen.place, f"{message}; cut or synchronise it so that both begin at 0")
    return chosen


def _times_s(annotation: _Annotation, document: _Document) -> tuple[float, float]:
    seen = 0
    while annotation.slots is None:
        parent = document.annotations.get(annotation.parent or "")
        if parent is None:
            raise ValueError(f"the annotation refers to '{annotation.parent}', which is not in the file")
        if seen > MOST_REFERENCES:
            raise ValueError(f"the annotation has its times by more than {MOST_REFERENCES} others, or refers to itself")
        annotation, seen = parent, seen + 1
    times = []
    for slot in annotation.slots:
        value = document.slots.get(slot)
        if value is None:
            known = "has no time" if slot in document.slots else "is not in the file"
            raise ValueError(f"time slot '{slot}' {known}; align the annotation in ELAN, or choose another tier")
        if not value.lstrip("-").isdigit():
            raise ValueError(f"time slot '{slot}' must be a whole number of milliseconds, received {value!r}")
        if len(value) > MAX_DIGITS:
            raise ValueError(f"time slot '{slot}' is a number of {len(value)} digits, which is too large")
        times.append(int(value) / 1000.0)
    return times[0], times[1]


def _parse(path: Path) -> _Document:
    document = _Document()
    parser = xml.parsers.expat.ParserCreate()
    parser.buffer_text = True  # a text comes in few pieces, however many entities it holds
    tier, current, in_value, started = "", None, False, False

    def place() -> str:
        return f"line {parser.CurrentLineNumber}, column {parser.CurrentColumnNumber + 1}"

    def start(tag: str, attributes: Mapping[str, str]) -> None:
        nonlocal tier, current, in_value, started
        if not started and tag != "ANNOTATION_DOCUMENT":
            raise fault(path, place(), f"expected an ELAN document (ANNOTATION_DOCUMENT), received <{tag}>")
        started = True
        if tag == "HEADER" and attributes.get("TIME_UNITS", "milliseconds") != "milliseconds":
            raise fault(path, place(), f"times must be in milliseconds, received {attributes['TIME_UNITS']!r}")
        if tag == "MEDIA_DESCRIPTOR":
            address = attributes.get("RELATIVE_MEDIA_URL") or attributes.get("MEDIA_URL") or ""
            if name := unquote(address.removeprefix("file:")):
                document.media.append(_Media(name, attributes.get("TIME_ORIGIN", "0"), place()))
        elif tag == "TIME_SLOT":
            document.slots[attributes.get("TIME_SLOT_ID", "")] = attributes.get("TIME_VALUE")
        elif tag == "TIER":
            tier = attributes.get("TIER_ID", "")
            document.tiers.append(tier)
        elif tag in ("ALIGNABLE_ANNOTATION", "REF_ANNOTATION"):
            slots = (attributes.get("TIME_SLOT_REF1", ""), attributes.get("TIME_SLOT_REF2", ""))
            aligned = tag == "ALIGNABLE_ANNOTATION"
            current = _Annotation(tier, place(), slots if aligned else None, attributes.get("ANNOTATION_REF"))
            document.annotations[attributes.get("ANNOTATION_ID", place())] = current
        in_value = tag == "ANNOTATION_VALUE"

    def end(_: str) -> None:
        nonlocal in_value
        in_value = False

    def characters(text: str) -> None:
        if in_value and current is not None:
            current.text += text

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, characters
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except xml.parsers.expat.ExpatError as error:
        reason = xml.parsers.expat.ErrorString(error.code)
        raise fault(path, f"line {error.lineno}, column {error.offset + 1}", f"is not XML: {reason}") from error
    except AnnotationError:
        raise
    except (LookupError, ValueError) as error:  # Python has no such encoding, or expat cannot use it
        raise fault(path, "line 1", f"is in an encoding that cannot be read ({error}): save it as UTF-8") from error
    return document
