"""Reads the files that features are published in. What a file states is checked before memory is taken for it.

A damaged, encrypted, foreign or oversized file is one ValueError that names it, whatever the library beneath says.
"""

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

SUFFIXES = (".npz", ".npy", ".pt")
# An array of features holds at most so many bytes: a day at one clip per second and 4,096 values takes 1.4e9.
MAX_ARRAY_BYTES = 2**31
MAX_EXTRA_BYTES = 2**24  # of what lies beside it, such as the mask of a sentence

# What NumPy, zipfile and torch raise on damaged files, found by damaging them.
DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, MemoryError),
    *(RuntimeError, NotImplementedError, RecursionError, SyntaxError, tokenize.TokenError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, UnpicklingError),
)


class Refused(ValueError):
    """A fault that is described already."""


def read_shape(path: Path, key: str) -> tuple[int, int]:
    """`(rows, dim)` of the array in a file, from its header where the format has one.

    Raises:
        ValueError: the file is damaged, too large, or holds no such array.
    """
    if path.suffix == ".pt":
        return read_arrays(path, key)[0].shape
    with described(path):
        if path.suffix == ".npy":
            with open(path, "rb") as file:
                return _read_header(path, file, path.stat().st_size)[0]
        with zipfile.ZipFile(path) as archive:
            require_key(path, key, _array_names(archive))
            with archive.open(f"{key}.npy") as member:
                return _read_header(path, member, archive.getinfo(f"{key}.npy").file_size)[0]


def read_arrays(path: Path, key: str, extras: Sequence[str] = ()) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The array `(rows, dim)` in a file as float32, and those of the arrays named `extras` that lie beside it.

    Raises:
        ValueError: the file is damaged, too large, or holds no such array.
    """
    found: dict[str, np.ndarray] = {}
    if path.suffix == ".pt":
        with described(path):
            array, found = _read_tensors(path, key, extras)
    else:
        with described(path):
            if path.suffix == ".npy":
                with open(path, "rb") as file:
                    array = _read_array(path, file, path.stat().st_size)
            else:
                with zipfile.ZipFile(path) as archive:
                    names = _array_names(archive)
                    require_key(path, key, names)
                    with archive.open(f"{key}.npy") as member:
                        array = _read_array(path, member, archive.getinfo(f"{key}.npy").file_size)
                    for extra in (name for name in extras if name in names):
                        stated = archive.getinfo(f"{extra}.npy").file_size
                        if stated > MAX_EXTRA_BYTES:
                            raise Refused(
                                f"{path} states {stated} bytes of '{extra}'; at most {MAX_EXTRA_BYTES} are read."
                            )
                        with archive.open(f"{extra}.npy") as member:
                            found[extra] = np.lib.format.read_array(member, allow_pickle=False)
    checked_shape(path, array.shape)
    with np.errstate(over="ignore"):  # what does not fit is infinite, and found where values are checked
        return array.astype(np.float32, copy=False), found


def _read_tensors(path: Path, key: str, extras: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The same of a file of torch, which is loaded without running anything in it."""
    import torch

    if path.stat().st_size > MAX_ARRAY_BYTES:
        raise Refused(f"{path} has {path.stat().st_size} bytes; an array of features has at most {MAX_ARRAY_BYTES}.")
    held = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    tensors = held if isinstance(held, dict) else {key: held}
    require_key(path, key, [name for name in tensors if isinstance(name, str)])
    for name in (name for name in (key, *extras) if name in tensors):
        if (dtype := tensors[name].dtype).is_complex or (name == key and dtype == torch.bool):  # as of NumPy's files
            raise Refused(f"{path} cannot be read as features (it holds values of type {dtype}): expected numbers.")
        stated, there = tensors[name].numel() * tensors[name].element_size(), tensors[name].untyped_storage().nbytes()
        if stated > min(there, MAX_ARRAY_BYTES):  # one value may stand for any number of them
            raise Refused(
                f"{path} cannot be read as features (it states {stated} bytes of '{name}' and holds {there}; at most "
                f"{MAX_ARRAY_BYTES} are read): fetch or extract it again."
            )
    arrays = {name: tensors[name].detach().float().numpy() for name in (key, *extras) if name in tensors}
    return arrays.pop(key), arrays


def _array_names(archive: zipfile.ZipFile) -> list[str]:
    return [entry.removesuffix(".npy") for entry in archive.namelist()]


def require_key(path: str | Path, key: str, arrays: Iterable[str]) -> None:
    """Refuses a file, or a place in one, that has arrays but none of this name."""
    names = list(arrays)
    if key not in names:
        raise Refused(
            f"{path} has no array '{key}', only {', '.join(names[:5]) or 'none'}. Name the array to read: `video_key` "
            "or `text_key`, on the command line `--video-key` or `--text-key`."
        )


def _read_array(path: Path, file: Any, num_bytes: int) -> np.ndarray:
    """The array of a file, once its header is known to be in order."""
    shape, is_fortran, dtype = _read_header(path, file, num_bytes)
    flat = np.empty(shape[0] * shape[1], dtype)
    if file.readinto(flat.view(np.uint8).data) != flat.nbytes:
        raise ValueError("it ends early")
    return flat.reshape(shape, order="F" if is_fortran else "C")


def _read_header(path: Path, file: Any, num_bytes: int) -> tuple[tuple[int, int], bool, np.dtype[Any]]:
    """Shape, order and type that an array's header states, if the file is as long as it says."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    if dtype.kind not in "fiu":
        raise Refused(f"{path} cannot be read as features (it holds values of type {dtype}): expected numbers.")
    rows, dim = checked_shape(path, shape)
    stated = rows * dim * dtype.itemsize
    if stated > MAX_ARRAY_BYTES or stated > num_bytes:
        raise Refused(
            f"{path} cannot be read as features (it states {rows} rows of {dim} values, {stated} bytes; the file has "
            f"{num_bytes}, and at most {MAX_ARRAY_BYTES} are read): fetch or extract it again."
        )
    return (rows, dim), is_fortran, dtype


def checked_shape(path: str | Path, shape: Sequence[int]) -> tuple[int, int]:
    """`shape` as `(rows, dim)`, if it is one; `path` is the file, for the message."""
    if len(shape) != 2 or 0 in shape:
        raise Refused(
            f"{path} must hold an array (rows, dim), neither of them 0; it holds one of shape {tuple(shape)}."
        )
    return int(shape[0]), int(shape[1])


@contextmanager
def described(path: Path, what: str = "features") -> Iterator[None]:
    """Turns the errors of a damaged file into one that names it."""
    try:
        yield
    except Refused:
        raise
    except DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as {what} ({reason}): fetch or extract it again.") from error
