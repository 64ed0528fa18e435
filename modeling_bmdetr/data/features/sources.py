"""What features are read from: arrays by name, whatever holds them, and how a name finds its array.

A name is looked up as it is. What has no array is refused by name, with the names that come nearest as a hint; it never
gets the array of another.
"""

import difflib
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
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


class NamedFeatures(ABC):
    """Features as published in one place, a folder or a file: one array for each video or query, found by its name.

    Args:
        place: the folder or file.
        key: the array to read where a name has several.
        prefix: what stored names have before the name, such as `qid`; a name without it is found as well.
        suffix: what stored names have after the name, such as `-cam-002`.
    """

    def __init__(self, place: str | os.PathLike, key: str, prefix: str = "", suffix: str = "") -> None:
        self.place, self.key, self.prefix, self.suffix = Path(place), key, prefix, suffix
        self._found: dict[str, str] | None = None

    @property
    def where(self) -> str:
        """The place, for messages."""
        return f"'{self.place}'"

    @property
    def title(self) -> str:
        """What the features are called where nobody names them."""
        return self.place.stem if self.place.is_file() else self.place.name

    def read(self, name: str) -> np.ndarray:
        """An array as float32, `(rows, dim)`.

        Raises:
            FileNotFoundError: if the place has none of that name.
            ValueError: if it is damaged, too large, or no array of numbers that lies in this place.
        """
        return self.read_with_extras(name, ())[0]

    @abstractmethod
    def read_with_extras(self, name: str, extras: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """An array, and those of the arrays named `extras` that lie beside it."""

    @abstractmethod
    def _stored(self) -> Iterable[tuple[str, str]]:
        """Names as they are stored, in order, and what finds each."""

    def _list(self) -> dict[str, str]:
        """What finds each array, by the name of the video or query; looked up once."""
        if self._found is None:
            found: dict[str, str] = {}
            for stored, place in self._stored():
                if stored.endswith(self.suffix):
                    name = stored.removeprefix(self.prefix).removesuffix(self.suffix)
                    if name in found:
                        raise ValueError(f"{self.where} holds both '{found[name]}' and '{place}': keep one of them.")
                    found[name] = place
            self._found = found
        return self._found


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
