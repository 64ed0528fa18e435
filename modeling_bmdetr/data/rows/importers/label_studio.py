"""Label Studio: the regions of a video's timeline, exported as JSON or JSON-MIN, in frames counted from 1."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ....contract_bmdetr import is_number
from .json_text import Keys, as_dict, as_list, json_fault, place_in_json
from .moments import Faults, Moment, fault


def is_label_studio(content: Any) -> bool:
    """Whether a JSON value looks like an export of Label Studio: a list of tasks."""
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return False
    return {"data", "annotations"} <= set(content[0]) or any(_is_regions(value) for value in content[0].values())


def read_label_studio(
    path: Path, text: str, content: list[Any], *, fps: float | None = None, field: str | None = None
) -> list[Moment]:
    """The timeline regions of every task.

    A region's sentence is the text written for it (a `TextArea` for each region), else its label. Frames are counted
    from 1 at the frame rate of the project's `<Video>` tag, whatever the video's own is, and the last frame belongs to
    the region: frames 1 to 25 at 25 frames per second are 0 to 1 s. Annotations that were cancelled are left out; of
    several annotators all are read.

    Args:
        path, text, content: the file, its text and its value.
        fps: `frameRate` of the project's `<Video>` tag, 24 where it states none; needed unless each task's data has
            `fps`.
        field: the entry of a task's data that names the video; by default `video`, or the only one with an address.

    Raises:
        AnnotationError: with line and column, if a region is not what Label Studio documents.
    """
    moments, faults = [], Faults(path)
    for index, task in enumerate(content):
        if not isinstance(task, dict):
            raise json_fault(path, text, (index,), f"expected a task, received {type(task).__name__}")
        exported = isinstance(task.get("annotations"), list)
        data = task.get("data") if exported else task
        if not isinstance(data, dict):
            raise json_fault(path, text, (index, "data"), "expected an object with the address of the video")
        regions = list(_regions(task["annotations"], (index, "annotations")) if exported else _minimal(task, (index,)))
        if not regions:
            continue
        video = _video(data, field)
        if video is None:
            keys: Keys = (index, "data") if exported else (index,)
            faults.add(place_in_json(text, keys), "names no video; say which entry does (--columns video=NAME)")
            continue
        rate = data.get("fps") or data.get("frameRate") or fps
        if not is_number(rate) or rate <= 0:
            message = "counts frames, but not how many there are in a second; give frameRate of the project's <Video> "
            raise json_fault(path, text, (index,), message + "tag, or 24 where it has none (--fps 24)")
        for keys, value, sentence in regions:
            span = _span(value)
            if span is None or not sentence:
                wanted = "a label or a text" if span is not None else 'ranges of {"start": frame, "end": frame}'
                faults.add(place_in_json(text, keys), f"expected {wanted}")
                continue
            place = place_in_json(text, keys).split(",")[0]
            moments += [Moment(video, sentence, (first - 1) / rate, last / rate, place) for first, last in span]
    faults.raise_if_any()
    if not moments:
        raise fault(path, "", "holds no region of a timeline (TimelineLabels)")
    return moments


def _regions(annotations: list[Any], keys: Keys) -> Iterator[tuple[Keys, dict[str, Any], str]]:
    """Place, value and sentence of every timeline region of a task's annotations."""
    for index, annotation in enumerate(annotations):
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        results = [
            (number, result, as_dict(result.get("value")))
            for number, result in enumerate(as_list(annotation.get("result")))
            if isinstance(result, dict)
        ]
        texts: dict[str, str] = {}
        for _, result, value in results:
            written = value.get("text")
            if result.get("type") == "textarea" and written:
                texts[str(result.get("id"))] = " ".join(map(str, as_list(written) or [written]))
        for number, result, value in results:
            if result.get("type") == "timelinelabels":
                sentence = texts.get(str(result.get("id"))) or ", ".join(map(str, as_list(value.get("timelinelabels"))))
                yield (*keys, index, "result", number, "value"), value, sentence


def _minimal(task: dict[str, Any], keys: Keys) -> Iterator[tuple[Keys, dict[str, Any], str]]:
    """The same of a task of the minimal export, where regions stand under the name of their control."""
    for name, value in task.items():
        if _is_regions(value):
            for index, region in enumerate(value):
                yield (*keys, name, index), region, ", ".join(map(str, as_list(region.get("timelinelabels"))))


def _is_regions(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) and "timelinelabels" in v for v in value)


def _span(value: dict[str, Any]) -> list[tuple[float, float]] | None:
    """First and last frame of each range, or None if they are not what they should be."""
    ranges = value.get("ranges")
    if not isinstance(ranges, list) or not ranges:
        return None
    spans = [(r.get("start"), r.get("end")) if isinstance(r, dict) else (None, None) for r in ranges]
    numbers = all(isinstance(n, (int, float)) and not isinstance(n, bool) for span in spans for n in span)
    return spans if numbers else None  # type: ignore[return-value]


def _video(data: dict[str, Any], field: str | None) -> str | None:
    if field is not None or "video" in data:
        value = data.get(field or "video")
        return value if isinstance(value, str) and value.strip() else None
    addresses = [v for v in data.values() if isinstance(v, str) and ("/" in v or "." in v)]
    return addresses[0] if len(addresses) == 1 else None
