"""The packed form of a feature store: one flat file for all videos, one for all sentences.

A packed folder holds

- `manifest.json`: format version, whether writing has finished, the feature contract, the number type, for each
  modality the number of arrays, of rows, the width, and the length and checksum of the index, and the videos that could
  not be encoded;
- `video.bin`, `text.bin`: rows one after another, little-endian float16 or float32, nothing between them;
- `video.index.jsonl`, `text.index.jsonl`: one line per array, in the order of the rows: its name, its first row, its
  number of rows, the checksum of its rows, and for a query its sentence.

The manifest names what is whole: a reader looks at so many entries and no further, so that a writer may append while
others read. Checksums are CRC-32; that of an index is compared on opening, that of an array when it is first read.
Stores of version 0.1.0 have none. Rows are as the encoders gave them: not normalised, not cut to a number of clips.
`writer.py` writes the form.
"""

import json
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from ...contract_bmdetr import FeatureContract
from ..rows.jsonl import json_integer
from .sources import no_features

FORMAT, VERSION = "bmdetr-features", 1
MANIFEST = "manifest.json"
MODALITIES: tuple[Literal["video"], Literal["text"]] = ("video", "text")
_HAS_POSITIONAL_READS = hasattr(os, "preadv")
DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}


def is_packed(directory: str | os.PathLike) -> bool:
    """Whether a folder holds a packed feature store, finished or not."""
    return (Path(directory) / MANIFEST).is_file()


def read_stamped(path: Path, form: str, version: int) -> dict[str, Any]:
    """A JSON file that says of which format and version it is.

    Raises:
        ValueError, KeyError, TypeError: it is not JSON, says nothing, or is of another format or version.
    """
    held = json.loads(path.read_text(encoding="utf-8"), parse_int=json_integer)
    written = (held["format"], held["version"])
    if written != (form, version):
        raise ValueError(f"it says {written}, expected {(form, version)}")
    return held


def whole_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object on a line, or None where a killed writer left the line half written."""
    try:
        held = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return held if isinstance(held, dict) else None


def read_manifest(directory: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a packed folder, with `contract` as a [`FeatureContract`].

    Raises:
        FileNotFoundError: if there is no manifest.
        ValueError: if it is not one, or of another version.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"'{directory}' is not a packed feature store: it has no {MANIFEST}.")
    try:
        manifest = read_stamped(path, FORMAT, VERSION)
        contract = FeatureContract.from_dict(manifest["contract"])
        if manifest["dtype"] not in DTYPES or not isinstance(manifest["complete"], bool):
            raise ValueError(f"it says dtype {manifest['dtype']!r} and complete {manifest['complete']!r}")
        for modality, dim in (("video", contract.video_dim), ("text", contract.text_dim)):
            stated = [manifest[modality][name] for name in ("arrays", "rows", "dim")]
            if not all(type(number) is int and number >= 0 for number in stated) or stated[2] != dim:
                raise ValueError(f"it says {manifest[modality]!r} of {modality}, the contract has width {dim}")
        dict(manifest["failed_videos"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a manifest that this version reads: {error}. Pack the features again."
        ) from error
    return {**manifest, "contract": contract}


class PackedArrays:
    """The arrays of one modality of a finished packed folder.

    Each read is one system call into a fresh array, so that a process holds what it asked for and nothing else; where
    the system has no positional reads, the file is memory-mapped. The file is opened on first use and is not pickled.

    Raises:
        ValueError: if the index is not the one that the manifest names, if its entries do not lie one after another, or
            if the flat file is shorter than they need.
    """

    def __init__(
        self, directory: str | os.PathLike, modality: Literal["video", "text"], manifest: Mapping[str, Any]
    ) -> None:
        self.directory, self.modality = Path(directory), modality
        self._path = data_path(self.directory, modality)
        self.dim = int(manifest[modality]["dim"])
        self.dtype = DTYPES[manifest["dtype"]]
        entries = _read_index(index_path(self.directory, modality), manifest[modality])
        self._position = {entry["name"]: i for i, entry in enumerate(entries)}
        self._rows = np.array([entry["rows"] for entry in entries], dtype=np.int64)
        self._first = np.concatenate(([0], np.cumsum(self._rows)[:-1])) if entries else self._rows
        self._checksums = [entry.get("crc32") for entry in entries]
        self._sentences = [entry.get("sentence") for entry in entries]
        self._file: BinaryIO | None = None
        self._map: np.ndarray | None = None
        self._require_rows(manifest[modality])

    @property
    def where(self) -> str:
        return f"'{self.directory}'"

    @property
    def names(self) -> list[str]:
        return sorted(self._position)

    def __contains__(self, name: object) -> bool:
        return name in self._position

    def num_rows(self, name: str) -> int:
        return int(self._rows[self._index(name)])

    def sentence(self, name: str) -> str | None:
        """The sentence a text array was made from, where it was recorded."""
        return self._sentences[self._index(name)]

    def read(self, name: str, max_rows: int | None = None) -> np.ndarray:
        """An array as float32, `(rows, dim)`, or its first `max_rows` rows."""
        index = self._index(name)
        checksum = self._checksums[index]
        rows = int(self._rows[index]) if max_rows is None or checksum is not None else min(self._rows[index], max_rows)
        block = np.empty((rows, self.dim), dtype=self.dtype)
        self._read_into(block, int(self._first[index]))
        if checksum is not None:
            if zlib.crc32(block.data) != checksum:
                raise ValueError(f"{self._path} is damaged: it holds other rows of '{name}'. Copy or pack it again.")
            self._checksums[index] = None  # checked once
        block = block[:max_rows]
        if self.dtype == np.float16:
            # PyTorch converts several times faster than NumPy, but is not loaded for this alone.
            torch = sys.modules.get("torch")
            return torch.from_numpy(block).float().numpy() if torch else block.astype(np.float32)
        return block

    def close(self) -> None:
        """Closes the file; the next read opens it again."""
        if self._file is not None:
            self._file.close()
        self._file = self._map = None

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_map": None}

    def _index(self, name: str) -> int:
        index = self._position.get(name)
        if index is None:
            kind = "video" if self.modality == "video" else "query"
            raise no_features(self.where, name, self._position, f" ({kind})")
        return index

    def _read_into(self, block: np.ndarray, first_row: int) -> None:
        if not _HAS_POSITIONAL_READS:
            if self._map is None:
                self._map = np.memmap(self._path, dtype=self.dtype, mode="r").reshape(-1, self.dim)
            block[:] = self._map[first_row : first_row + len(block)]
            return
        if self._file is None:
            self._file = open(self._path, "rb", buffering=0)  # noqa: SIM115  (stays open from read to read)
        view = memoryview(block.data).cast("B")
        offset = first_row * self.dim * self.dtype.itemsize
        while len(view):
            received = os.preadv(self._file.fileno(), [view], offset)
            if not received:
                raise ValueError(f"{self._path} ends early: it was cut off after it was opened. Copy or pack it again.")
            view, offset = view[received:], offset + received

    def _require_rows(self, stated: Mapping[str, int]) -> None:
        expected = stated["rows"] * self.dim * self.dtype.itemsize
        received = self._path.stat().st_size if self._path.is_file() else 0
        if received < expected or int(self._rows.sum()) != stated["rows"]:
            raise ValueError(
                f"{self._path} is damaged: the manifest names {stated['rows']} rows and {expected} bytes, the index "
                f"{int(self._rows.sum())} rows, and the file holds {received} bytes. Copy or pack it again."
            )


class JoinedArrays:
    """The arrays of several packed folders; the first folder that has a name serves it."""

    def __init__(self, parts: Sequence[PackedArrays]) -> None:
        self.parts = list(parts)

    @property
    def where(self) -> str:
        return ", ".join(part.where for part in self.parts)

    @property
    def names(self) -> list[str]:
        return sorted({name for part in self.parts for name in part.names})

    def __contains__(self, name: object) -> bool:
        return any(name in part for part in self.parts)

    def num_rows(self, name: str) -> int:
        return self._part(name).num_rows(name)

    def read(self, name: str, max_rows: int | None = None) -> np.ndarray:
        return self._part(name).read(name, max_rows)

    def sentence(self, name: str) -> str | None:
        return self._part(name).sentence(name)

    def close(self) -> None:
        for part in self.parts:
            part.close()

    def _part(self, name: str) -> PackedArrays:
        for part in self.parts:
            if name in part:
                return part
        raise no_features(self.where, name, self.names)


def join_arrays(parts: Sequence[PackedArrays]) -> PackedArrays | JoinedArrays | None:
    """One source for the arrays of several folders, None where no folder has any.

    Raises:
        ValueError: if a `qid` is in two folders and not known to be the same sentence there: splits numbered from 0
            would otherwise be mixed up.
    """
    parts = [part for part in parts if part.names]
    if len(parts) < 2:
        return parts[0] if parts else None
    seen: dict[str, PackedArrays] = {}
    for part in parts if parts[0].modality == "text" else ():
        for qid in part.names:
            first = seen.setdefault(qid, part)
            if first is not part and (part.sentence(qid) is None or part.sentence(qid) != first.sentence(qid)):
                raise ValueError(
                    f"query '{qid}' is in {first.where} and in {part.where}, and not known to be the same sentence: "
                    "open the folders as two stores, or give the rows of each split qids of their own"
                )
    return JoinedArrays(parts)


def data_path(directory: Path, modality: str) -> Path:
    return directory / f"{modality}.bin"


def index_path(directory: Path, modality: str) -> Path:
    return directory / f"{modality}.index.jsonl"


def count_arrays(directory: str | os.PathLike, modality: str) -> int:
    """How many arrays the index of a folder names, finished or not."""
    path = index_path(Path(directory), modality)
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def parse_entry(line: bytes) -> dict[str, Any] | None:
    """An entry of the index, or None where a line is not whole."""
    entry = whole_object(line)
    if entry is None or not isinstance(entry.get("name"), str):
        return None
    whole = type(entry.get("first")) is int and type(entry.get("rows")) is int and entry["rows"] > 0
    return entry if whole else None


def _read_index(path: Path, stated: Mapping[str, int]) -> Sequence[dict[str, Any]]:
    """The entries that the manifest names."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: copy the folder whole, or pack it again.")
    lines = path.read_bytes().splitlines(keepends=True)[: stated["arrays"]]
    checksum = stated.get("index_crc32")
    if len(lines) < stated["arrays"] or (checksum is not None and zlib.crc32(b"".join(lines)) != checksum):
        raise ValueError(
            f"{path} is damaged: it is not the index of {stated['arrays']} arrays that the manifest names. Copy or "
            "pack the store again."
        )
    entries: list[dict[str, Any]] = []
    names: set[str] = set()
    first = 0
    for number, line in enumerate(lines, 1):
        entry = parse_entry(line)
        if entry is None or entry["first"] != first or entry["name"] in names:
            raise ValueError(f"{path} is damaged in line {number}: copy or pack the store again.")
        entries.append(entry)
        names.add(entry["name"])
        first += entry["rows"]
    return entries
