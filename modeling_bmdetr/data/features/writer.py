"""Writes the packed form of a feature store, which `packed.py` describes, safely against being killed.

Rows are made durable before the index names them, and the manifest names them only after `FeatureWriter.finish`. A
writer that opens a folder which another left drops what the index does not name, and goes on from there; a store that
was complete stays readable as it was until the writer has finished.
"""

import json
import logging
import os
import time
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from ...contract_bmdetr import FeatureContract, check_rows
from ...files_bmdetr import naming_failed_writes, take_lock, write_json
from .packed import (
    DTYPES,
    FORMAT,
    MANIFEST,
    VERSION,
    data_path,
    index_path,
    is_packed,
    parse_entry,
    read_manifest,
)

logger = logging.getLogger(__name__)

# Rows are made durable when so much is waiting, or when the last time is so long ago.
_COMMIT_BYTES = 64 * 2**20
_COMMIT_SECONDS = 2.0


class FeatureWriter:
    """Writes a packed folder, array by array. A folder that an earlier writer left, finished or not, is continued.

    ```python
    with FeatureWriter("features/charades", contract) as writer:
        for vid in vids:
            if vid not in writer.videos:
                writer.add_video(vid, rows)
        writer.finish()
    ```

    Args:
        directory: the folder, made if need be.
        contract: what is written; its encoders give the widths.
        dtype: `float32`, or `float16` for half the space and about three significant digits.

    Attributes:
        videos: names of the videos in the folder, those of an earlier writer included.
        queries: the same for queries, with the sentence of each where it was recorded.

    Raises:
        ValueError: if the folder holds features of another contract or number type, or another process writes to it.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        contract: FeatureContract,
        *,
        dtype: Literal["float16", "float32"] = "float32",
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {sorted(DTYPES)}, received {dtype!r}")
        if not (contract.video_encoders or contract.text_encoder):
            raise ValueError("`contract` names no encoder: give the name and width of those that made the features")
        self.directory, self.contract, self.dtype = Path(directory), contract, dtype
        self.directory.mkdir(parents=True, exist_ok=True)
        self._streams: dict[str, _Stream] = {}
        self._failures: dict[str, str] = {}
        manifest = read_manifest(self.directory) if is_packed(self.directory) else None
        if manifest is not None:
            self._require_same(manifest)
        try:
            for modality, dim in (("video", contract.video_dim), ("text", contract.text_dim)):
                self._streams[modality] = _Stream(self.directory, modality, dim, DTYPES[dtype])
            if manifest is None or not all(
                stream.holds(manifest[modality]) for modality, stream in self._streams.items()
            ):
                self._write_manifest(complete=False)
        except BaseException:
            self._close_streams()
            raise
        self._committed_at = time.monotonic()

    @property
    def videos(self) -> Collection[str]:
        return self._streams["video"].sentences.keys()

    @property
    def queries(self) -> Mapping[str, str | None]:
        return self._streams["text"].sentences

    def add_video(self, vid: str, features: np.ndarray) -> None:
        """Adds the rows of a video, `(clips, dim)`.

        Raises:
            ValueError: if the video is there already, or the array has another shape than the contract says, is empty,
                or holds values that are not finite in the number type of the store.
        """
        self._failures.pop(vid, None)
        self._add("video", vid, features, {})

    def add_text(self, qid: str, features: np.ndarray, sentence: str | None = None) -> None:
        """Adds the rows of a query, `(tokens, dim)`, and the sentence they were made from; errors as in `add_video`."""
        self._add("text", qid, features, {} if sentence is None else {"sentence": sentence})

    def add_failure(self, vid: str, reason: str) -> None:
        """Records why a video has no features; the manifest keeps it for whoever misses them."""
        self._failures[vid] = reason

    def commit(self) -> None:
        """Makes all that was added durable. Happens by itself every two seconds of adding."""
        with naming_failed_writes(self.directory):
            for stream in self._streams.values():
                stream.commit()
        self._committed_at = time.monotonic()

    def finish(self) -> None:
        """Commits, and marks the store as complete."""
        self.commit()
        self._write_manifest(complete=True)

    def close(self) -> None:
        """Commits and closes the files. Without `finish` before it, the store stays as it was, or unfinished."""
        try:
            if self._streams:
                self.commit()
        finally:
            self._close_streams()

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, modality: str, name: str, features: np.ndarray, extra: dict[str, Any]) -> None:
        stream = self._streams[modality]
        with naming_failed_writes(self.directory):
            stream.add(str(name), np.asarray(features), extra)
        if stream.waiting_bytes >= _COMMIT_BYTES or time.monotonic() - self._committed_at >= _COMMIT_SECONDS:
            self.commit()

    def _close_streams(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams = {}

    def _require_same(self, manifest: Mapping[str, Any]) -> None:
        written: FeatureContract = manifest["contract"]
        differences = self.contract.mismatches(written)
        if (written.video_dim, written.text_dim) != (self.contract.video_dim, self.contract.text_dim):
            widths = f"{written.video_dim} and {written.text_dim}"
            differences.append(f"widths: {self.contract.video_dim} and {self.contract.text_dim} against {widths}")
        if manifest["dtype"] != self.dtype:
            differences.append(f"dtype: {self.dtype} against {manifest['dtype']}")
        if differences:
            raise ValueError(
                f"'{self.directory}' holds features that differ from those to be written (these against those):\n  "
                + "\n  ".join(differences)
                + "\nWrite to another folder, or delete this one."
            )
        self._failures = dict(manifest.get("failed_videos", {}))

    def _write_manifest(self, complete: bool) -> None:
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "complete": complete,
            "dtype": self.dtype,
            "contract": self.contract.to_dict(),
            **{modality: stream.summary() for modality, stream in self._streams.items()},
            "failed_videos": dict(sorted(self._failures.items())),
        }
        write_json(self.directory / MANIFEST, manifest)


class _Stream:
    """One flat file and its index, open for appending. Every array goes to the place that its entry names."""

    def __init__(self, directory: Path, modality: str, dim: int, dtype: np.dtype) -> None:
        self.modality, self.dim, self.dtype = modality, dim, dtype
        self._index = _open(index_path(directory, modality))
        if not take_lock(self._index.fileno()):
            self._index.close()
            raise ValueError(f"another process is writing to '{directory}': wait for it, or write to another folder")
        self._data = _open(data_path(directory, modality))
        entries = self._recover(directory)
        self.sentences: dict[str, str | None] = {entry["name"]: entry.get("sentence") for entry in entries}
        self._rows = sum(entry["rows"] for entry in entries)
        lines = index_path(directory, modality).read_bytes()
        self._index_bytes, self._index_crc32 = len(lines), zlib.crc32(lines)
        self._waiting: list[bytes] = []
        self.waiting_bytes = 0

    def add(self, name: str, features: np.ndarray, extra: dict[str, Any]) -> None:
        kind = "video" if self.modality == "video" else "query"
        if name in self.sentences:
            raise ValueError(f"the {kind} '{name}' is in the store already")
        check_rows(features, self.dim, f"the features of {kind} '{name}'")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(features, dtype=self.dtype)
        if not np.isfinite(stored).all():
            cause = f"too large for {self.dtype.name}" if np.isfinite(features).all() else "not finite"
            raise ValueError(f"the features of {kind} '{name}' hold values that are {cause}")
        entry = {"name": name, "first": self._rows, "rows": len(stored), "crc32": zlib.crc32(stored.data), **extra}
        line = json.dumps(entry).encode() + b"\n"
        _write_all(self._data, stored.data.cast("B"), self._rows * self.dim * self.dtype.itemsize)
        self._waiting.append(line)
        self._rows += len(stored)
        self.sentences[name] = extra.get("sentence")
        self.waiting_bytes += stored.nbytes

    def commit(self) -> None:
        if not self._waiting:
            return
        os.fsync(self._data.fileno())
        lines = b"".join(self._waiting)
        _write_all(self._index, memoryview(lines), self._index_bytes)
        os.fsync(self._index.fileno())
        self._index_bytes += len(lines)
        self._index_crc32 = zlib.crc32(lines, self._index_crc32)
        self._waiting, self.waiting_bytes = [], 0

    def close(self) -> None:
        self._data.close()
        self._index.close()

    def summary(self) -> dict[str, int]:
        sizes = {"arrays": len(self.sentences), "rows": self._rows, "dim": self.dim}
        return {**sizes, "index_bytes": self._index_bytes, "index_crc32": self._index_crc32}

    def holds(self, stated: Mapping[str, int]) -> bool:
        """Whether what a manifest names is there, so that it may stand."""
        return len(self.sentences) >= stated["arrays"] and self._rows >= stated["rows"]

    def _recover(self, directory: Path) -> list[dict[str, Any]]:
        """Entries of what was written before; what a killed writer left half done is cut off both files."""
        path = index_path(directory, self.modality)
        row_bytes = self.dim * self.dtype.itemsize
        data_bytes = data_path(directory, self.modality).stat().st_size
        entries: list[dict[str, Any]] = []
        kept_bytes = rows = 0
        for line in path.read_bytes().splitlines(keepends=True):
            entry = parse_entry(line)
            if entry is None or entry["first"] != rows or (rows + entry["rows"]) * row_bytes > data_bytes:
                break  # the rest is dropped
            entries.append(entry)
            kept_bytes, rows = kept_bytes + len(line), rows + entry["rows"]
        dropped = path.stat().st_size - kept_bytes, data_bytes - rows * row_bytes
        if any(dropped):
            logger.info(
                f"{path}: continuing after {len(entries)} arrays; dropped {dropped[1]} bytes that were half written"
            )
            self._index.truncate(kept_bytes)
            self._data.truncate(rows * row_bytes)
        return entries


def _open(path: Path) -> BinaryIO:
    """A file to read and to write at any place, made if need be, without a buffer."""
    return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)


def _write_all(file: BinaryIO, content: memoryview, offset: int) -> None:
    """Writes at a place; after a failure nothing else lies elsewhere than it should."""
    file.seek(offset)
    while len(content):
        content = content[file.write(content) :]
