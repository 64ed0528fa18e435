"""JSON whose values can be found again in the text, so that an error names a line and a column."""

import json
import re
from pathlib import Path
from typing import Any

from .moments import AnnotationError, fault

Keys = tuple[str | int, ...]
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def parse_json(path: Path, text: str) -> Any:
    """The value of a JSON text.

    Raises:
        AnnotationError: if it is not JSON, with line and column.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise fault(path, f"line {error.lineno}, column {error.colno}", f"is not JSON: {error.msg}") from error


def place_in_json(text: str, keys: Keys) -> str:
    """`line 3, column 7 (tasks[0].data)` of the value that `keys` lead to, or of the last one on the way there."""
    at = _position(text, keys)
    shown = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return f"line {line}, column {column}" + (f" ({shown})" if shown else "")


def as_dict(value: Any) -> dict[str, Any]:
    """The value, or an empty object for anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value, or an empty list for anything else."""
    return value if isinstance(value, list) else []


def json_fault(path: Path, text: str, keys: Keys, message: str) -> AnnotationError:
    """The error of a value that is JSON but not what its place asks for."""
    return fault(path, place_in_json(text, keys), message)


def _position(text: str, keys: Keys) -> int:
    at = _skip(text, 0)
    for key in keys:
        inside = _entry(text, at, key)
        if inside is None:
            return at
        at = inside
    return at


def _entry(text: str, at: int, key: str | int) -> int | None:
    """Where the entry `key` of the object or list at `at` begins; None if it has none."""
    if text[at] not in "{[" or (text[at] == "{") != isinstance(key, str):
        return None
    closing = "}" if text[at] == "{" else "]"
    at, index = _skip(text, at + 1), 0
    while text[at] != closing:
        name: str | int = index
        if closing == "}":
            name, at = _DECODER.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)  # past the colon
        if name == key:
            return at
        _, at = _DECODER.raw_decode(text, at)
        at, index = _skip(text, at), index + 1
        if text[at] == ",":
            at = _skip(text, at + 1)
    return None


def _skip(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return blank.end() if blank else at
