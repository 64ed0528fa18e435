"""What features are read from: arrays by name, whatever holds them, and how a name finds its array.

A name is looked up as it is. What has no array is refused by name, with the names that come nearest as a hint; it never
gets the array of another.
"""

import difflib
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import numpy as np

_HINTS = 3
_HINT_LETTERS = 200  # longer names are not compared with others: the time grows with the square of the length


class ArraySource(Protocol):
    """Arrays of one modality by name: files, a packed folder, or several packed folders."""

    @property
    def where(self) -> str: ...

    @property
    def names(self) -> list[str]: ...

    def __contains__(self, name: object) -> bool: ...

    def num_rows(self, name: str) -> int: ...

    def read(self, name: str, max_rows: int | None = None) -> np.ndarray: ...


def no_features(where: str, name: str, names: Collection[str], remedy: str = "") -> FileNotFoundError:
    """The error for a name that a source does not have."""
    return FileNotFoundError(f"{where} has no features of '{name}'{remedy}{nearest(name, names)}.")


def examples(names: Sequence[str], most: int = 5) -> str:
    """The first few names, for messages."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint at the names most like `name`; empty where none is."""
    close = difflib.get_close_matches(name, names, n=_HINTS, cutoff=0.7) if len(name) <= _HINT_LETTERS else []
    return f"; the names most like it are {', '.join(map(repr, close))}" if close else ""


def check_rows(rows: np.ndarray, dim: int, what: str) -> np.ndarray:
    """`rows`, if they are `(at least one, dim)`.

    Raises:
        ValueError: they have another shape; `what` names them.
    """
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"{what} must have the shape (rows >= 1, {dim}) that the contract says, received {rows.shape}")
    if rows.shape[1] != dim:
        raise ValueError(
            f"{what} is {rows.shape[1]} wide, the contract says {dim}: it was made by another encoder; expected the "
            f"shape (rows >= 1, {dim}), received {rows.shape}"
        )
    return rows
