"""JSON whose values can be found again in the text, so that an error names a line and a column."""

import bisect
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..jsonl import json_integer, json_object
from .moments import AnnotationError, fault

Keys = tuple[str | int, ...]
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_DEEPEST_PLACE = 8


def parse_json(path: Path, text: str) -> Any:
    """The value of a JSON text.

    Raises:
        AnnotationError: if it is not JSON, with line and column where they are known.
    """
    try:
        return json.loads(text, parse_int=json_integer, object_pairs_hook=json_object)
    except json.JSONDecodeError as error:
        raise fault(path, f"line {error.lineno}, column {error.colno}", f"is not JSON: {error.msg}") from error
    except ValueError as error:
        raise fault(path, "", f"is not JSON: {error}") from error
    except RecursionError as error:
        raise fault(path, "", "is nested too deeply to be an annotation file") from error


def place_in_json(text: str, keys: Keys) -> str:
    """`line 3, column 7 (tasks[0].data)` of the value that `keys` lead to, or of the last one on the way there."""
    positions, line_ends = _places(text)
    at = next(positions[keys[:length]] for length in range(len(keys), -1, -1) if keys[:length] in positions)
    shown = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    line = bisect.bisect_left(line_ends, at)
    column = at - (line_ends[line - 1] if line else -1)
    return f"line {line + 1}, column {column}" + (f" ({shown})" if shown else "")


def as_dict(value: Any) -> dict[str, Any]:
    """The value, or an empty object for anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value, or an empty list for anything else."""
    return value if isinstance(value, list) else []


def json_fault(path: Path, text: str, keys: Keys, message: str) -> AnnotationError:
    """The error of a value that is JSON but not what its place asks for."""
    return fault(path, place_in_json(text, keys), message)


@lru_cache(maxsize=1)
def _places(text: str) -> tuple[dict[Keys, int], list[int]]:
    """Where each value in a JSON text begins, down to `_DEEPEST_PLACE` keys, and where its lines end; in one pass."""
    positions: dict[Keys, int] = {}
    _place_values(text, _skip(text, 0), (), positions)
    return positions, [match.start() for match in re.finditer("\n", text)]


def _place_values(text: str, at: int, keys: Keys, positions: dict[Keys, int]) -> int:
    """Notes the value at `at` and those in it; returns where it ends."""
    positions[keys] = at
    if text[at] not in "{[" or len(keys) == _DEEPEST_PLACE:
        return int(_DECODER.raw_decode(text, at)[1])
    closing = "}" if text[at] == "{" else "]"
    at, index = _skip(text, at + 1), 0
    while text[at] != closing:
        name: str | int = index
        if closing == "}":
            name, at = _DECODER.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)  # past the colon
        at = _skip(text, _place_values(text, at, (*keys, name), positions))
        index += 1
        if text[at] == ",":
            at = _skip(text, at + 1)
    return at + 1


def _skip(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return blank.end() if blank else at
