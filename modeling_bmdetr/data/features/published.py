"""Features as they are published: one `.npz` or `.npy` file for each video and each query.

Names that occur, and that are found here without being told which (all suffixes may occur in one folder):

- video: `<vid>.npz` with the array `features` (SlowFast, CLIP), `<vid>.npy` (C3D, I3D, VGG), `<vid>.avi.npy` and
  `<vid>-cam-002.npz` (TACoS); `(clips, dim)`;
- text: `qid<qid>.npz` with the array `last_hidden_state`, or `<qid>.npz`, or the same as `.npy`; `(tokens, dim)`.

[`FeatureStore`] joins such folders; a folder is listed once, on first use, and a file is opened when it is read.
"""

import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...contract_bmdetr import join_rows

VIDEO_KEY = "features"
TEXT_KEY = "last_hidden_state"
CLIP_CONTEXT_LENGTH = 77
"""Rows that CLIP's text encoder gives for any sentence, padding included; a file with so many may be padded."""

_VIDEO_SUFFIX = re.compile(r"\.(avi|mp4|mkv|webm|mov|m4v)$", re.IGNORECASE)
_CAMERA_SUFFIX = re.compile(r"-cam-\d+$")
# Two encodings of one token differ by less than this share of their largest value (half precision).
_SAME_ROW_TOLERANCE = 2e-3


class FeatureFolder:
    """A folder that holds one array a file, found by the name of the video or query.

    Args:
        directory: the folder.
        key: the array to read from an `.npz` file.
        prefix: what the file names have before the name, such as `qid`; a file without it is found as well.

    Raises:
        FileNotFoundError: if there is no such folder.
    """

    def __init__(self, directory: str | os.PathLike, key: str, prefix: str = "") -> None:
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise FileNotFoundError(f"the feature folder '{self.directory}' does not exist.")
        self.key, self.prefix = key, prefix
        self._file_names: dict[str, str] | None = None
        self._plain_names: dict[str, list[str]] = {}

    @property
    def where(self) -> str:
        """The place, for messages."""
        return f"'{self.directory}'"

    @property
    def names(self) -> list[str]:
        """Names of all arrays, sorted, without video and camera suffixes where one is enough. Lists the folder once."""
        self._list()
        return sorted(
            name for plain, stems in self._plain_names.items() for name in (stems if len(stems) > 1 else [plain])
        )

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def path(self, name: str) -> Path:
        """The file of a video or query.

        Raises:
            FileNotFoundError: if the folder has none.
            ValueError: if it has several, such as two cameras of one recording.
        """
        found = self._find(name)
        if found is None:
            wanted = f"{self.prefix}{name}.npz, .npy"
            raise FileNotFoundError(f"{self.where} has no features of '{name}' (looked for {wanted} and the like).")
        return self.directory / found

    def shape(self, name: str) -> tuple[int, int]:
        """`(rows, dim)` of an array, read from the header of its file."""
        path = self.path(name)
        with _readable(path):
            if path.suffix == ".npy":
                with open(path, "rb") as file:
                    shape = _header_shape(file)
            else:
                with zipfile.ZipFile(path) as archive:
                    arrays = [entry.removesuffix(".npy") for entry in archive.namelist()]
                    self._check_key(path, arrays)
                    with archive.open(f"{self.key}.npy") as file:
                        shape = _header_shape(file)
        return _checked_shape(path, shape)

    def read(self, name: str) -> np.ndarray:
        """An array as float32, `(rows, dim)`."""
        return self.read_with_extras(name, ())[0]

    def read_with_extras(self, name: str, extras: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """An array, and those of the arrays named `extras` that lie in the same file."""
        path = self.path(name)
        found: dict[str, np.ndarray] = {}
        with _readable(path):
            if path.suffix == ".npy":
                array = np.load(path, allow_pickle=False)
            else:
                with np.load(path, allow_pickle=False) as archive:
                    self._check_key(path, archive.files)
                    array = archive[self.key]
                    found = {extra: archive[extra] for extra in extras if extra in archive.files}
        _checked_shape(path, array.shape)
        return array.astype(np.float32, copy=False), found

    def _list(self) -> dict[str, str]:
        if self._file_names is not None:
            return self._file_names
        file_names: dict[str, str] = {}
        for file_name in sorted(entry.name for entry in os.scandir(self.directory)):
            if not file_name.endswith((".npz", ".npy")):
                continue
            stem = file_name[:-4].removeprefix(self.prefix)
            if stem in file_names:
                raise ValueError(
                    f"{self.where} holds both {file_names[stem]} and {file_name}: keep one of them, or move one away."
                )
            file_names[stem] = file_name
        for stem in file_names:
            self._plain_names.setdefault(plain_name(stem), []).append(stem)
        self._file_names = file_names
        return file_names

    def _find(self, name: str) -> str | None:
        """The file with exactly this name, else the one that differs only by a video or camera suffix."""
        file_names = self._list()
        if name in file_names:
            return file_names[name]
        stems = self._plain_names.get(plain_name(name), [])
        if len(stems) > 1:
            files = ", ".join(file_names[stem] for stem in stems)
            raise ValueError(
                f"{self.where} holds several files for '{name}': {files}. Keep the one that was annotated."
            )
        return file_names[stems[0]] if stems else None

    def _check_key(self, path: Path, arrays: Iterable[str]) -> None:
        if self.key not in arrays:
            raise ValueError(
                f"{path} has no array '{self.key}', only {', '.join(arrays) or 'none'}. "
                "Name the array to read (`video_key`, `text_key`)."
            )


class FolderVideos:
    """Videos whose features lie in one or several folders: rows concatenated along the feature axis, in the order of
    the folders, after cutting to the shortest."""

    def __init__(self, folders: Sequence[FeatureFolder]) -> None:
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
        self, folder: FeatureFolder, to_end_of_text: bool, token_counts: Mapping[str, int] | None = None
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
    rows = list(rows)
    input_ids = tokenizer([row["query"] for row in rows])["input_ids"] if rows else []
    return {str(row["qid"]): len(ids) for row, ids in zip(rows, input_ids, strict=True)}


def plain_name(name: str) -> str:
    """A video's name without the suffixes of its file and of its camera: `s13-d21-cam-002.avi` is `s13-d21`."""
    return _CAMERA_SUFFIX.sub("", _VIDEO_SUFFIX.sub("", name))


def _header_shape(file: Any) -> tuple[int, ...]:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read_header(file)[0]


def _checked_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{path} must hold an array (rows, dim), neither of them 0; it holds one of shape {shape}.")
    return shape[0], shape[1]


class _readable:
    """Turns the errors of a damaged file into one that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        damaged = isinstance(error, zipfile.BadZipFile | EOFError | OSError | KeyError)
        if damaged or (isinstance(error, ValueError) and str(self.path) not in str(error)):
            raise ValueError(f"{self.path} cannot be read as features ({error}): fetch or extract it again.") from error
