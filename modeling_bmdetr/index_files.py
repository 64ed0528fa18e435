"""What lies in the folder of an index, and in a folder of videos: manifest, catalogue, names by content."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .contract_bmdetr import FeatureContract, is_number
from .data.features.packed import read_stamped, whole_object
from .data.rows.schema import VIDEO_SUFFIXES

FORMAT, VERSION = "bmdetr-index", 1
MANIFEST, CATALOG = "index.json", "catalog.jsonl"


def video_files(root: Path) -> Iterator[Path]:
    """Video files below a folder, in order; hidden ones, and what a link leads to outside files, are left alone."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder) / name
            if not name.startswith(".") and path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
                yield path


def content_key(path: Path) -> str:
    """A name for what a file holds: 32 hexadecimal digits of its hash."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def weights_key(model: torch.nn.Module) -> str:
    """A name for a model's weights: the same weights have the same, wherever they lie."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_index(directory: str | os.PathLike) -> dict[str, Any]:
    """What `index.json` of an index says.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another version.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"'{directory}' is no index: it has no {MANIFEST}. Make one with `bmdetr index`")
    try:
        manifest = read_stamped(path, FORMAT, VERSION)
        missing = sorted({"store", "dtype", "folder", "model", "weights", "contract", "complete"} - set(manifest))
        if missing or Path(manifest["store"]).name != manifest["store"]:
            raise ValueError(f"entries {missing} are missing" if missing else "its store is not a folder in it")
        contract = FeatureContract.from_dict(manifest["contract"])
        if not contract.video_encoders or contract.text_encoder is None:
            raise ValueError("its `contract` names no encoders")
        if manifest["dtype"] not in ("float16", "float32"):
            raise ValueError(f"its `dtype` is {manifest['dtype']!r}")
        for name, kind in (("folder", str), ("model", str), ("weights", str), ("complete", bool)):
            if not isinstance(manifest[name], kind):
                raise ValueError(f"its `{name}` is {manifest[name]!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or of another version: {error}. Make the index again") from error
    return manifest


def read_catalog(path: Path) -> dict[str, dict[str, Any]]:
    """The last entry of each path; a last line that a killed run left half written is ignored.

    Raises:
        ValueError: an entry of an encoded video has no name of its features, or no length.
    """
    entries: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.is_file() else (), start=1):
        entry = whole_object(line)
        if entry is None or not isinstance(entry.get("path"), str):
            continue
        length_s = entry.get("duration_s")
        if "key" in entry and not (isinstance(entry["key"], str) and is_number(length_s) and length_s > 0):
            raise ValueError(
                f"{path}, line {number}, is damaged: the video {entry['path']!r} has key {entry['key']!r} and "
                f"duration_s {length_s!r}. Make the index again"
            )
        entries[entry.pop("path")] = entry
    return entries
