"""VIA video annotator (version 3): temporal segments of a project file, in seconds."""

from pathlib import Path
from typing import Any

from .json_text import Keys, as_dict, as_list, json_fault, place_in_json
from .moments import Faults, Moment, fault


def is_via(content: Any) -> bool:
    """Whether a JSON value is a VIA project, of whichever version."""
    return isinstance(content, dict) and ("_via_img_metadata" in content or {"metadata", "attribute"} <= set(content))


def read_via(path: Path, text: str, content: dict[str, Any], *, attribute: str | None = None) -> list[Moment]:
    """The temporal segments of a project; those of one file are told from regions and whole-file entries by `z`.

    Args:
        path, text, content: the file, its text and its value.
        attribute: name of the attribute that holds the sentence; needed where segments have values of several.

    Raises:
        AnnotationError: if the project is one of VIA's image annotator, or a segment refers to what is not there, with
            line and column.
    """
    if "_via_img_metadata" in content:
        raise json_fault(path, text, ("_via_img_metadata",), "is a project of the image annotator, which has no times")
    attributes, files, views = (_objects(path, text, content, name) for name in ("attribute", "file", "view"))
    metadata = _objects(path, text, content, "metadata")
    segments = {key: entry for key, entry in metadata.items() if len(as_list(entry.get("z"))) == 2}
    used = {
        str(key) for entry in segments.values() for key, value in as_dict(entry.get("av")).items() if str(value).strip()
    }
    names = {str(as_dict(attributes.get(key)).get("aname", key)): key for key in sorted(used)}
    if attribute is not None and attribute not in names:
        raise fault(path, "", f"no segment has the attribute '{attribute}'; there are {', '.join(names) or 'none'}")
    if attribute is None and len(names) > 1:
        raise fault(
            path, "", f"segments have {len(names)} attributes: {', '.join(names)}; choose with --attribute NAME"
        )
    chosen = names[attribute] if attribute is not None else next(iter(names.values()), "")
    options = as_dict(as_dict(attributes.get(chosen)).get("options"))

    moments, faults = [], Faults(path)
    for key, entry in segments.items():
        value = str(as_dict(entry.get("av")).get(chosen, "")).strip()
        if not value:
            continue
        keys: Keys = ("metadata", key)
        video = _video(entry, views, files)
        times = entry["z"]
        if video is None:
            faults.add(place_in_json(text, (*keys, "vid")), f"refers to view {entry.get('vid')!r}, which has no file")
        elif not all(isinstance(time, (int, float)) and not isinstance(time, bool) for time in times):
            faults.add(place_in_json(text, (*keys, "z")), f"expected [start, end] in seconds, received {times!r}")
        else:
            sentence = ", ".join(str(options.get(part, part)) for part in value.split(",")) if options else value
            place = place_in_json(text, keys).split(",")[0]
            moments.append(Moment(video, sentence, float(times[0]), float(times[1]), place))
    faults.raise_if_any()
    if not moments:
        raise fault(path, "", "holds no temporal segment with a description")
    return moments


def _video(entry: dict[str, Any], views: dict[str, Any], files: dict[str, Any]) -> str | None:
    identifiers = as_list(as_dict(views.get(str(entry.get("vid")))).get("fid_list"))
    file = as_dict(files.get(str(identifiers[0]))) if identifiers else {}
    name = file.get("fname") or file.get("src")
    return name if isinstance(name, str) and name else None


def _objects(path: Path, text: str, content: dict[str, Any], name: str) -> dict[str, Any]:
    """The object `name` of the project, whose values must be objects too."""
    value = content.get(name, {})
    if not isinstance(value, dict):
        raise json_fault(path, text, (name,), f"expected an object, received {type(value).__name__}")
    wrong = next((key for key, entry in value.items() if not isinstance(entry, dict)), None)
    if wrong is not None:
        raise json_fault(path, text, (name, wrong), f"expected an object, received {type(value[wrong]).__name__}")
    return value
