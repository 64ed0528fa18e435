"""Values that no well-meaning caller passes, and documents that are right but for one or two of them."""

import copy
from typing import Any

import numpy as np
from hypothesis import strategies as st

ODD_NUMBERS = [
    0,
    -1,
    1,
    2**31,
    2**70,
    10**400,
    -0.0,
    1e-320,
    1e19,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
]
ODD_WORDS = [
    "",
    " ",
    "no",
    "1.5",
    "nan",
    "\x00",
    "a\nb",
    "\ud800",
    "../../etc/passwd",
    "/",
    "x" * 5000,
    "日本",
    "$\\frac",
]
ODD_OBJECTS: list[Any] = [None, True, False, [], {}, [[]], [None], {"a": {}}, b"bytes", 1j, object, (), {1, 2}]
ODD_ARRAYS = [
    *(np.float64("nan"), np.int64(3), np.array([]), np.array([[1.0, 2.0]]), np.zeros((0, 2)), np.array(["a"])),
    *(np.array(None, object), np.datetime64("2020-01-01"), np.zeros((1, 1, 1, 1))),
]

numbers = st.one_of(st.sampled_from(ODD_NUMBERS), st.integers(-5, 200), st.floats(width=32))
words = st.one_of(st.sampled_from(ODD_WORDS), st.text(max_size=12))
plain = st.one_of(numbers, words, st.sampled_from([None, True, False, [], {}, [[]], [None], {"a": {}}]))
nested = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=2), max_leaves=4
)
anything = st.one_of(nested, st.sampled_from(ODD_OBJECTS), st.sampled_from(ODD_ARRAYS))


DEEPEST_PLACE = 20


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths to everything in a nested document, no deeper than what was put into it may need."""
    found = [path] if path else []
    if len(path) >= DEEPEST_PLACE:
        return found
    if isinstance(value, dict):
        for key, part in value.items():
            found += _places(part, (*path, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            found += _places(part, (*path, index))
    return found


def _own(value: Any) -> Any:
    """A copy of a value that a later change may reach into: the strategies hand out the same objects again."""
    return copy.deepcopy(value) if isinstance(value, (dict, list)) else value


@st.composite
def mutated(draw: Any, document: Any, values: Any = anything, most: int = 3) -> Any:
    """The document with up to so many entries replaced, deleted, added or doubled; at times with none."""
    result = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, most))):
        places = _places(result)
        if not places:
            break
        *parents, last = draw(st.sampled_from(places))
        holder = result
        for step in parents:
            holder = holder[step]
        action = draw(st.sampled_from(["replace", "replace", "replace", "delete", "add"]))
        if action == "replace":
            holder[last] = _own(draw(values))
        elif action == "delete":
            del holder[last]
        elif isinstance(holder, list):
            holder.insert(last, copy.deepcopy(holder[last]) if draw(st.booleans()) else _own(draw(values)))
        else:
            holder[draw(words)] = _own(draw(values))
    return result


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """The bytes with some overwritten, cut off, doubled or none changed."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, 3))):
        if not data:
            break
        start = draw(st.integers(0, len(data) - 1))
        length = draw(st.integers(1, 16))
        action = draw(st.sampled_from(["overwrite", "overwrite", "cut", "delete", "double"]))
        if action == "overwrite":
            data[start : start + length] = draw(st.binary(min_size=1, max_size=length))
        elif action == "cut":
            del data[start:]
        elif action == "delete":
            del data[start : start + length]
        else:
            data[start:start] = data[start : start + length]
    return bytes(data)


arrays = st.builds(
    lambda shape, dtype, fill, seed: _array(shape, dtype, fill, seed),
    st.lists(st.integers(0, 5), max_size=4).map(tuple) | st.sampled_from([(3, 6), (5, 6), (4, 5), (1, 6)]),
    st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?", "c8", "U3", "O"]),
    st.sampled_from([None, None, None, float("nan"), float("inf"), 1e30, -1e300, 0.0]),
    st.integers(0, 9),
)


def _array(shape: tuple[int, ...], dtype: str, fill: float | None, seed: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        values = np.random.default_rng(seed).standard_normal(shape)
        array = np.asarray(values if dtype not in ("U3", "O") else values.astype(object)).astype(dtype)
        if fill is not None and array.size and array.dtype.kind in "fciu?":
            flat = array.reshape(-1)
            with np.errstate(invalid="ignore", over="ignore"):
                flat[seed % flat.size] = np.asarray(fill).astype(array.dtype)
        return array
