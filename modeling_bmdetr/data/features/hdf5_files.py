"""Features in one HDF5 file: a dataset for each video or query, or a group that holds several.

The file is what [`FeatureFolder`] is for a folder. It is opened for each array that is read, so that a store can be
pickled and nothing stays open; `bmdetr pack` makes the faster form. Nothing outside the file is read: links into other
files, external storage and virtual datasets are refused. Needs h5py (the extra `hdf5`).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...packages_bmdetr import needed_module
from .array_files import MAX_ARRAY_BYTES, Refused, checked_shape, described, require_key
from .sources import NamedFeatures, no_features

HDF5_SUFFIXES = (".h5", ".hdf5")


class FeatureFile(NamedFeatures):
    """An HDF5 file, see [`NamedFeatures`]: a name is a dataset, or a group that has it under the key.

    Raises:
        ImportError: h5py is not installed.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, place: str | os.PathLike, key: str, prefix: str = "", suffix: str = "") -> None:
        super().__init__(place, key, prefix, suffix)
        _h5py()
        if not self.place.is_file():
            raise FileNotFoundError(f"the feature file {self.where} does not exist.")

    @property
    def names(self) -> list[str]:
        """Names of all arrays, sorted."""
        return sorted(self._list())

    def __contains__(self, name: object) -> bool:
        return name in self._list()

    def path(self, name: str) -> str:
        """The place of an array, for messages."""
        return f"{self.place}:{self._list().get(name, name)}"

    def shape(self, name: str) -> tuple[int, int]:
        """`(rows, dim)` of an array, as the file states it.

        Raises:
            FileNotFoundError, ValueError: as for `read`.
        """
        with self._datasets(name) as datasets:
            return datasets[self.key].shape

    def read_with_extras(self, name: str, extras: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        with self._datasets(name, extras) as datasets, np.errstate(over="ignore"):
            arrays = {key: dataset[()] for key, dataset in datasets.items()}
            return arrays.pop(self.key).astype(np.float32, copy=False), arrays

    def _stored(self) -> list[tuple[str, str]]:
        with self._opened() as file:
            return [(name, name) for name in sorted(file)]

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The open file; what a damaged one makes of it is one error that names it."""
        with described(self.place, "HDF5 features"), _h5py().File(self.place, "r") as file:
            yield file

    @contextmanager
    def _datasets(self, name: str, extras: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """The dataset of a name, under the key, and those beside it; each is checked before it is read."""
        stored = self._list().get(name)
        if stored is None:
            wanted = f" (looked for {self.prefix}{name}{self.suffix})"
            raise no_features(self.where, name, self._list(), wanted)
        h5py = _h5py()
        with self._opened() as file:
            _require_inside(h5py, file, stored, self.path(name))
            held = file[stored]
            if isinstance(held, h5py.Dataset):
                datasets = {self.key: held}
            else:
                for key in (key for key in (self.key, *extras) if key in held):
                    _require_inside(h5py, held, key, self.path(name))
                datasets = {key: held[key] for key in (self.key, *extras) if key in held}
                if not isinstance(datasets.get(self.key), h5py.Dataset):
                    require_key(self.path(name), self.key, sorted(set(held) - {self.key}))
            for key, dataset in datasets.items():
                _check(dataset, self.path(name), is_features=key == self.key)
            yield datasets


def _h5py() -> Any:
    return needed_module("h5py", "features in HDF5 files need h5py: pip install h5py")


def _require_inside(h5py: Any, group: Any, name: str, place: str) -> None:
    """Refuses a link on the way to an array, which may lead into another file, before it is followed."""
    parts = name.split("/")
    for end in range(1, len(parts) + 1):
        if not isinstance(group.get("/".join(parts[:end]), getlink=True), h5py.HardLink):
            raise Refused(f"{place} is a link, perhaps into another file, and is not followed: store the array itself.")


def _check(dataset: Any, place: str, is_features: bool) -> None:
    """Refuses what would read other files, is too large, or is no array of numbers."""
    if getattr(dataset, "external", None) or getattr(dataset, "is_virtual", False):
        raise Refused(f"{place} keeps its values in another file, which is not read: copy them into this one.")
    if dataset.dtype.kind not in "fiub":
        raise Refused(f"{place} cannot be read as features (it holds values of type {dataset.dtype}).")
    if is_features:
        checked_shape(place, dataset.shape or ())
    if dataset.size is None or dataset.size * max(dataset.dtype.itemsize, 4) > MAX_ARRAY_BYTES:
        raise Refused(f"{place} states {dataset.shape} values; an array has at most {MAX_ARRAY_BYTES} bytes.")
