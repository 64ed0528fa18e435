"""Features by video and by query, wherever they lie: in published files or in a packed folder.

```python
store = FeatureStore.from_packed("features/charades")
store = FeatureStore.from_files(["slowfast", "clip"], text_dir="clip_text", contract=config.feature_contract)
store.require(rows)               # everything that is missing or does not fit, at once
store.video("AO8RW"), store.text("train_0")
```
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...contract_bmdetr import FeatureContract, check_rows
from .fit import find_problems
from .hdf5_files import FeatureFile
from .packed import MODALITIES, PackedArrays, count_arrays, is_packed, join_arrays, read_manifest
from .published import TEXT_KEY, VIDEO_KEY, FeatureFolder, FolderTexts, FolderVideos, open_features
from .sources import ArraySource

PathOrPaths = str | os.PathLike | Sequence[str | os.PathLike]


class FeatureStore:
    """Video and text features of a data set, read one array at a time.

    Build it with [`FeatureStore.open`], [`FeatureStore.from_packed`] or [`FeatureStore.from_files`]. Opening reads no
    array. A store can be pickled, and keeps nothing it has read: each worker of a data loader opens the files for
    itself, and its memory does not grow over an epoch.

    Attributes:
        contract: what the features are; the widths of its encoders divide the columns of `video`.
        failures: videos that could not be encoded when the store was written, with the reason.
    """

    def __init__(
        self,
        contract: FeatureContract,
        videos: ArraySource | None,
        texts: ArraySource | None,
        failures: Mapping[str, str] | None = None,
    ) -> None:
        self.contract = contract
        self.failures = dict(failures or {})
        self._videos, self._texts = videos, texts

    @classmethod
    def open(
        cls,
        path: PathOrPaths,
        *,
        text_dir: str | os.PathLike | None = None,
        contract: FeatureContract | None = None,
        token_counts: Mapping[str, int] | None = None,
        **layout: str,
    ) -> "FeatureStore":
        """Opens packed folders as `from_packed` does, any other folders as `from_files` does with `path` as videos.

        Several packed folders make one store that has the arrays of all; several folders of files are concatenated.
        `layout` are `video_key`, `text_key` and `video_suffix` of `from_files`.
        """
        paths = _as_paths(path)
        packed = [is_packed(item) for item in paths]
        if all(packed):
            if text_dir is not None or token_counts is not None or layout:
                raise ValueError(f"`text_dir`, `token_counts`, keys and suffixes do not go with {path}, a packed store")
            return cls.from_packed(paths, contract)
        if any(packed):
            raise ValueError(
                f"{[str(item) for item in paths]} mixes packed folders and folders of files: pack the latter"
            )
        if contract is None:
            raise ValueError(
                f"{[str(item) for item in paths]} holds plain feature files, which do not say what they are: pass "
                "`contract`, such as `config.feature_contract`"
            )
        return cls.from_files(paths, text_dir, contract=contract, token_counts=token_counts, **layout)

    @classmethod
    def from_packed(cls, directory: PathOrPaths, contract: FeatureContract | None = None) -> "FeatureStore":
        """Opens a packed folder, or several whose arrays are joined (a video in two of them is read from the first).

        Args:
            directory: the folder or folders.
            contract: what is expected. The features must fit it; its `max_tokens` and its entries on preparation then
                hold in place of those stored.

        Raises:
            FileNotFoundError: if a folder is not a packed store.
            ValueError: if one is unfinished, damaged, or does not fit the contract or the other folders.
        """
        directories = _as_paths(directory)
        manifests = [read_manifest(item) for item in directories]
        for item, manifest in zip(directories, manifests, strict=True):
            if not manifest["complete"]:
                videos, queries = (count_arrays(item, modality) for modality in MODALITIES)
                raise ValueError(
                    f"'{item}' is unfinished ({videos} videos and {queries} queries so far): run the extraction or "
                    "packing again, which goes on where it stopped"
                )
        merged = _merged_contract(manifests, directories)
        if contract is not None:
            contract.require_match(merged, "the contract given", " + ".join(f"'{item}'" for item in directories))
            merged = _with_encoders(contract, merged)
        video_arrays, text_arrays = (
            join_arrays(
                [PackedArrays(item, modality, manifest) for item, manifest in zip(directories, manifests, strict=True)]
            )
            for modality in MODALITIES
        )
        failures = {vid: why for manifest in manifests for vid, why in manifest["failed_videos"].items()}
        return cls(merged, video_arrays, text_arrays, failures)

    @classmethod
    def from_files(
        cls,
        video_dirs: PathOrPaths,
        text_dir: str | os.PathLike | None = None,
        *,
        contract: FeatureContract,
        token_counts: Mapping[str, int] | None = None,
        video_key: str = VIDEO_KEY,
        text_key: str = TEXT_KEY,
        video_suffix: str = "",
    ) -> "FeatureStore":
        """Opens features in the layouts in which they are published; `published.py` lists them.

        Args:
            video_dirs: one folder or HDF5 file per video encoder, in the order of the contract; their rows are
                concatenated after cutting to the shortest.
            text_dir: folder or HDF5 file of text features.
            contract: what the features are. Where it names no encoder, the folders are taken as they are, each as
                an encoder named after it.
            token_counts: tokens of each query, by `qid`, for text features padded to 77 rows (`count_tokens`). Used
                when `contract.text_rows` is `to_end_of_text`.
            video_key, text_key: arrays to read from files that hold several.
            video_suffix: what file names of video features have between the `vid` and the file type, such as
                `-cam-002`.

        Raises:
            FileNotFoundError: if a folder does not exist.
            ValueError: if a folder holds no features, or its first file is not as wide as the contract says.
        """
        folders = [open_features(item, video_key, suffix=video_suffix) for item in _as_paths(video_dirs)]
        text_folder = None if text_dir is None else open_features(text_dir, text_key, prefix="qid")
        found = replace(
            contract,
            video_encoders=tuple(_as_encoder(folder) for folder in folders),
            text_encoder=None if text_folder is None else _as_encoder(text_folder),
        )
        _require_widths(contract, found)
        contract = _with_encoders(contract, found)
        to_end_of_text = contract.text_rows == "to_end_of_text"
        texts = FolderTexts(text_folder, to_end_of_text, token_counts) if text_folder else None
        return cls(contract, FolderVideos(folders), texts)

    @property
    def video_ids(self) -> list[str]:
        """All videos, sorted. Where features lie in several folders, those that every folder has."""
        return self._videos.names if self._videos else []

    @property
    def query_ids(self) -> list[str]:
        """All queries that have text features, sorted."""
        return self._texts.names if self._texts else []

    def has_video(self, vid: str) -> bool:
        return self._videos is not None and vid in self._videos

    def has_text(self, qid: str) -> bool:
        return self._texts is not None and qid in self._texts

    def num_clips(self, vid: str) -> int:
        """Clips of a video, from the index or the file header."""
        return self.source("video").num_rows(vid)

    def video(self, vid: str) -> np.ndarray:
        """Rows of a video as they were extracted: `(clips, dim)` float32, neither normalised nor cut.

        Raises:
            FileNotFoundError: if the store does not have the video.
            ValueError: if its file is damaged or not as wide as the contract says.
        """
        rows = self.source("video").read(vid)
        return check_rows(rows, self.contract.video_dim, f"video '{vid}' in {self.where('video')}")

    def text(self, qid: str) -> np.ndarray:
        """Rows of a query: `(tokens, dim)` float32, not normalised, at most `contract.max_tokens`.

        With `text_rows="to_end_of_text"` only rows of real tokens; with `all` every row stored, padding included.

        Raises:
            FileNotFoundError: if the store does not have the query.
            ValueError: if its file is damaged, is not as wide as the contract says, or does not tell where the
                sentence ends.
        """
        rows = self.source("text").read(qid, self.contract.max_tokens)
        return check_rows(rows, self.contract.text_dim, f"query '{qid}' in {self.where('text')}")

    def sentence(self, qid: str) -> str | None:
        """The sentence whose features are stored, where the store recorded it."""
        recorded = getattr(self.source("text"), "sentence", None)
        return recorded(qid) if recorded else None

    def require(self, rows: Iterable[Mapping[str, Any]], *, check_values: bool = False) -> None:
        """Checks that the store has what `rows` need, and raises one error that lists everything that is wrong.

        Missing videos and queries, and sentences other than those recorded, are found without exception. Widths,
        lengths, and whether padding can be told from tokens, are checked on some videos and queries; so is
        whether rows with the same sentence have the same text features, which a wrong join by `qid` breaks. Features
        that cover much more or less time than the videos last are logged as a warning.

        Args:
            rows: canonical rows.
            check_values: read every array that the rows need, not some; finds NaN, infinities and damaged files too.

        Raises:
            FileNotFoundError: if something is missing; the message lists the other problems as well.
            ValueError: if nothing is missing but something does not fit.
        """
        missing, unfit = find_problems(self, rows, check_values=check_values)
        if missing:
            raise FileNotFoundError("the feature store lacks what the rows need:\n" + "\n".join([*missing, *unfit]))
        if unfit:
            raise ValueError("the feature store does not fit the rows:\n" + "\n".join(unfit))

    def where(self, modality: Literal["video", "text"]) -> str:
        """The folders that the features of a modality lie in, for messages."""
        source = self._videos if modality == "video" else self._texts
        return source.where if source else "a store without them"

    def close(self) -> None:
        """Closes open files; reading opens them again."""
        for source in (self._videos, self._texts):
            if close := getattr(source, "close", None):
                close()

    def source(self, modality: Literal["video", "text"]) -> ArraySource:
        """The arrays of a modality, as stored.

        Raises:
            FileNotFoundError: if the store has none of it.
        """
        source = self._videos if modality == "video" else self._texts
        if source is None:
            raise FileNotFoundError(f"this store has no {modality} features at all")
        return source


def _as_paths(path: PathOrPaths) -> list[Path]:
    paths = [Path(path)] if isinstance(path, str | os.PathLike) else [Path(item) for item in path]
    if not paths:
        raise ValueError("no feature folder was given: name at least one")
    return paths


def _as_encoder(folder: FeatureFolder | FeatureFile) -> dict[str, Any]:
    """The folder as an encoder: its name, and the width of its first file."""
    if not folder.names:
        raise ValueError(f"{folder.where} holds no .npz, .npy or .pt files, nor arrays: was anything extracted there?")
    return {"name": folder.title, "dim": folder.shape(folder.names[0])[1]}


def _with_encoders(contract: FeatureContract, found: FeatureContract) -> FeatureContract:
    """`contract`, with the encoders of `found` where it names none; none where nothing was found."""
    return replace(
        contract,
        video_encoders=(contract.video_encoders or found.video_encoders) if found.video_encoders else (),
        text_encoder=(contract.text_encoder or found.text_encoder) if found.text_encoder else None,
    )


def _merged_contract(manifests: Sequence[Mapping[str, Any]], directories: Sequence[Path]) -> FeatureContract:
    merged: FeatureContract = manifests[0]["contract"]
    for manifest, directory in zip(manifests[1:], directories[1:], strict=True):
        contract: FeatureContract = manifest["contract"]
        merged.require_match(contract, f"'{directories[0]}'", f"'{directory}'")
        merged = replace(
            merged,
            video_encoders=merged.video_encoders or contract.video_encoders,
            text_encoder=merged.text_encoder or contract.text_encoder,
        )
    return merged


def _require_widths(contract: FeatureContract, found: FeatureContract) -> None:
    """The folders are as many and as wide as the encoders of the contract, where it names any."""
    expected = [(encoder["name"], encoder["dim"]) for encoder in contract.video_encoders]
    received = [(encoder["name"], encoder["dim"]) for encoder in found.video_encoders]
    if expected and [dim for _, dim in expected] != [dim for _, dim in received]:
        same_widths = sorted(dim for _, dim in expected) == sorted(dim for _, dim in received)
        raise ValueError(
            f"the contract expects video features of {_listed(expected)}, but the folders hold {_listed(received)}. "
            + ("Give the folders in the order of the contract." if same_widths else "Give one folder for each encoder.")
        )
    if contract.text_encoder and found.text_encoder and contract.text_dim != found.text_dim:
        wanted, got = contract.text_encoder, found.text_encoder
        raise ValueError(
            f"the contract expects text features of {wanted['name']} ({wanted['dim']} wide), but the folder "
            f"'{got['name']}' holds rows {got['dim']} wide. Give the folder of that encoder."
        )


def _listed(widths: Sequence[tuple[str, int]]) -> str:
    return " + ".join(f"{name} ({dim} wide)" for name, dim in widths)
