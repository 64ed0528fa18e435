"""Features as they are published: one file for each video and each query.

- video: `<vid>.npz` with the array `features` (SlowFast, CLIP), `<vid>.npy` (C3D, I3D, VGG), `<vid>.pt` (a tensor, or a
  dict of tensors); `(clips, dim)`. A file may be named after the video file, `<vid>.avi.npy` (TACoS).
- either: one HDF5 file for all, with a dataset for each video or query, see `hdf5_files.py`.
- text: `qid<qid>.npz` with the array `last_hidden_state`, or `<qid>.npz`, or the same as `.npy` or `.pt`;
  `(tokens, dim)`.

Other endings are named once for a folder (`video_suffix="-cam-002"` for `<vid>-cam-002.npz`). The files that macOS puts
beside others (`._v.npy`) are not looked at. [`FeatureStore`] joins such folders; a folder is listed once, on first use,
and a file is opened when it is read.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os.path import splitext
from pathlib import Path
from typing import Any

import numpy as np

from ...contract_bmdetr import join_rows
from ..rows.qids import canonical_qid
from ..rows.schema import VIDEO_SUFFIXES
from ..rows.validation import require_fields
from .array_files import SUFFIXES, read_arrays, read_shape
from .hdf5_files import HDF5_SUFFIXES, FeatureFile
from .sources import NamedFeatures, no_features

VIDEO_KEY = "features"
TEXT_KEY = "last_hidden_state"
# Rows that CLIP's text encoder gives for any sentence, padding included; a file with so many may be padded.
CLIP_CONTEXT_LENGTH = 77

# Two encodings of one token differ by less than this share of their largest value (half precision).
_SAME_ROW_TOLERANCE = 2e-3


class FeatureFolder(NamedFeatures):
    """A folder that holds one array per file, see [`NamedFeatures`]; a suffix stands before the file type.

    Raises:
        FileNotFoundError: if there is no such folder.
    """

    def __init__(self, place: str | os.PathLike, key: str, prefix: str = "", suffix: str = "") -> None:
        super().__init__(place, key, prefix, suffix)
        if not self.place.is_dir():
            raise FileNotFoundError(f"the feature folder {self.where} does not exist.")

    @property
    def names(self) -> list[str]:
        """Names of all arrays, sorted; without the suffix of the video file where that leaves them distinct."""
        stems = self._list()
        if self.prefix:
            return sorted(stems)
        plain = {stem: root if end in VIDEO_SUFFIXES else stem for stem in stems for root, end in [splitext(stem)]}
        times = Counter(plain.values())
        return sorted(name if times[name] == 1 else stem for stem, name in plain.items())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def path(self, name: str) -> Path:
        """The file of a video or query.

        Raises:
            FileNotFoundError: if the folder has none.
            ValueError: if it has several, of video files with different suffixes.
        """
        found = self._find(name)
        if found is None:
            wanted = f"{self.prefix}{name}{self.suffix}.npz, .npy and the like"
            raise no_features(self.where, name, self._list(), f" (looked for {wanted})")
        return self.place / found

    def shape(self, name: str) -> tuple[int, int]:
        """`(rows, dim)` of an array, read from the header of its file.

        Raises:
            FileNotFoundError, ValueError: as for `read`.
        """
        return read_shape(self.path(name), self.key)

    def read_with_extras(self, name: str, extras: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return read_arrays(self.path(name), self.key, extras)

    def _stored(self) -> Iterator[tuple[str, str]]:
        """Stems of file names, which may end with the suffix of the video file, and the whole names."""
        for file_name in sorted(entry.name for entry in os.scandir(self.place) if entry.is_file()):
            stem, file_type = splitext(file_name)
            if file_type in SUFFIXES and not file_name.startswith("._"):
                yield stem, file_name

    def _find(self, name: str) -> str | None:
        """The file with exactly this name, else the one named after the video file `<name>.avi` or the like."""
        file_names = self._list()
        if name in file_names or self.prefix:
            return file_names.get(name)
        found = [file_names[name + end] for end in VIDEO_SUFFIXES if name + end in file_names]
        if len(found) > 1:
            raise ValueError(
                f"{self.where} holds several files for '{name}': {', '.join(found)}. Keep the one that was annotated."
            )
        return found[0] if found else None


def open_features(
    place: str | os.PathLike, key: str, prefix: str = "", suffix: str = ""
) -> FeatureFolder | FeatureFile:
    """The features in a folder or an HDF5 file, see [`FeatureFolder`] and [`FeatureFile`]."""
    is_file = Path(place).suffix.lower() in HDF5_SUFFIXES and not Path(place).is_dir()
    return (FeatureFile if is_file else FeatureFolder)(place, key, prefix, suffix)


class FolderVideos:
    """Videos whose features lie in one or several folders: rows concatenated along the feature axis, in the order of
    the folders, after cutting to the shortest."""

    def __init__(self, folders: Sequence[FeatureFolder | FeatureFile]) -> None:
        self.folders = list(folders)
        self._names: list[str] | None = None

    @property
    def where(self) -> str:
        return " + ".join(folder.where for folder in self.folders)

    @property
    def names(self) -> list[str]:
        """Videos that every folder holds."""
        if self._names is None:
            self._names = sorted(set.intersection(*(set(folder.names) for folder in self.folders)))
        return self._names

    def __contains__(self, name: object) -> bool:
        return all(name in folder for folder in self.folders)

    def num_rows(self, name: str) -> int:
        return min(folder.shape(name)[0] for folder in self.folders)

    def read(self, name: str, max_rows: int | None = None) -> np.ndarray:
        parts = [folder.read(name) for folder in self.folders]
        return join_rows(parts, max_rows)


class FolderTexts:
    """Text features of a folder, whole or cut at the end of the sentence.

    Published CLIP text features come in two forms: only the rows of real tokens (QVHighlights), or all 77 rows of the
    encoder with nothing that tells tokens from padding (Charades-STA, Charades-CD, TACoS, ActivityNet-Captions).
    Where the end lies is known from, in this order:

    1. `token_counts`, made from the sentences by [`count_tokens`];
    2. an array `attention_mask` in the file;
    3. an array `pooler_output` in the file that equals one of the rows: transformers' CLIP pools the row of the end
       token. The original CLIP pools it through a projection, which equals no row and tells nothing;
    4. rows of zeros at the end, which are padding;
    5. fewer than 77 rows: then every row is a token.

    A file with 77 rows and none of these is an error under `to_end_of_text`, never a guess.
    """

    def __init__(
        self, folder: FeatureFolder | FeatureFile, to_end_of_text: bool, token_counts: Mapping[str, int] | None = None
    ) -> None:
        self.folder, self.to_end_of_text = folder, to_end_of_text
        self.token_counts = None if token_counts is None else {str(qid): int(n) for qid, n in token_counts.items()}

    @property
    def where(self) -> str:
        return self.folder.where

    @property
    def names(self) -> list[str]:
        return self.folder.names

    def __contains__(self, name: object) -> bool:
        return name in self.folder

    def num_rows(self, name: str) -> int:
        return len(self.read(name)) if self.to_end_of_text else self.folder.shape(name)[0]

    def read(self, name: str, max_rows: int | None = None) -> np.ndarray:
        rows, extras = self.folder.read_with_extras(name, ("attention_mask", "pooler_output"))
        if self.to_end_of_text:
            rows = rows[: self._end_of_text(name, rows, extras)]
        return rows[:max_rows]

    def _end_of_text(self, name: str, rows: np.ndarray, extras: Mapping[str, np.ndarray]) -> int:
        if self.token_counts is not None and name in self.token_counts:
            count = self.token_counts[name]
            # A full context is a sentence that was cut; otherwise the file must hold a row for every token.
            if not 0 < count <= len(rows) and not len(rows) == CLIP_CONTEXT_LENGTH < count:
                raise ValueError(
                    f"`token_counts` says that query '{name}' has {count} tokens, but {self.folder.path(name)} holds "
                    f"{len(rows)} rows: it was made from another sentence or by another tokenizer."
                )
            return min(count, len(rows))
        if "attention_mask" in extras and extras["attention_mask"].any():
            return int(np.flatnonzero(extras["attention_mask"].reshape(-1))[-1]) + 1
        pooled = extras.get("pooler_output")
        if pooled is not None and pooled.size == rows.shape[1]:
            difference = np.abs(rows - pooled.reshape(1, -1).astype(np.float32)).max(axis=1)
            if difference.min() <= _SAME_ROW_TOLERANCE * np.abs(rows).max(initial=1e-6):
                return int(difference.argmin()) + 1
        nonzero = np.flatnonzero(rows.any(axis=1))
        count = int(nonzero[-1]) + 1 if len(nonzero) else len(rows)
        if count >= CLIP_CONTEXT_LENGTH:
            raise ValueError(
                f"{self.folder.path(name)} holds {count} rows, and nothing tells tokens from padding. Pass "
                "`token_counts=count_tokens(rows, tokenizer)` with the tokenizer of the text encoder, or use a "
                'contract with `text_rows="all"`, as the released checkpoints were trained.'
            )
        return count


def count_tokens(rows: Iterable[Mapping[str, Any]], tokenizer: Any) -> dict[str, int]:
    """Number of tokens of each row's sentence, begin and end tokens included, by `qid`.

    Args:
        rows: canonical rows.
        tokenizer: a tokenizer of transformers, or the name or folder of one; for CLIP features that of the CLIP model,
            such as `openai/clip-vit-base-patch32`.
    """
    if isinstance(tokenizer, str | os.PathLike):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(tokenizer))
    rows = require_fields(rows, ("qid", "query"))
    input_ids = tokenizer([row["query"] for row in rows])["input_ids"] if rows else []
    return {canonical_qid(row["qid"]): len(ids) for row, ids in zip(rows, input_ids, strict=True)}
