"""Converts features from the layouts in which they are published to the packed form."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from tqdm.auto import tqdm

from ...contract_bmdetr import FeatureContract
from ..rows.qids import text_qid
from ..rows.validation import require_fields
from .store import FeatureStore, PathOrPaths
from .writer import FeatureWriter


def pack_features(
    source: FeatureStore | PathOrPaths,
    out_dir: str | os.PathLike,
    *,
    text_dir: str | os.PathLike | None = None,
    contract: FeatureContract | None = None,
    token_counts: Mapping[str, int] | None = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
    dtype: Literal["float16", "float32"] = "float32",
    progress: bool = True,
    **layout: str,
) -> FeatureStore:
    """Copies features into a packed folder, and opens it. Killed and run again, it goes on where it stopped.

    Args:
        source: a store; or folders, which `FeatureStore.open` opens with `text_dir`, `contract` and `token_counts`.
        out_dir: the packed folder.
        rows: canonical rows, to copy only what they need and to record their sentences; otherwise all is copied.
        dtype: number type of the copy.
        progress: whether to show progress bars.
        layout: `video_key`, `text_key` and `video_suffix` of `FeatureStore.from_files`.

    Raises:
        FileNotFoundError, ValueError: see `FeatureStore.open` and `FeatureStore.require`.
        ValueError: if files are damaged; all are listed, the others are copied, and the folder stays unfinished.
    """
    if not isinstance(source, FeatureStore):
        source = FeatureStore.open(source, text_dir=text_dir, contract=contract, token_counts=token_counts, **layout)
    sentences: dict[str, str | None] = {}
    if rows is None:
        vids, qids = source.video_ids, source.query_ids
        sentences = {qid: source.sentence(qid) for qid in qids}
    else:
        rows = require_fields(rows, ("qid", "vid", "query"))
        source.require(rows)
        vids = list(dict.fromkeys(row["vid"] for row in rows))
        sentences = {text_qid(row): row["query"] for row in rows}
        qids = list(sentences)
    unreadable: list[str] = []
    with FeatureWriter(out_dir, source.contract, dtype=dtype) as writer:
        for vid in tqdm([vid for vid in vids if vid not in writer.videos], desc="videos", disable=not progress):
            try:
                writer.add_video(vid, _kept(source.video(vid), dtype, f"video '{vid}'"))
            except (ValueError, FileNotFoundError) as error:
                unreadable.append(str(error))
        for qid in tqdm([qid for qid in qids if qid not in writer.queries], desc="queries", disable=not progress):
            try:
                # Uncut: the packed store then serves any number of tokens.
                text = _kept(source.source("text").read(qid), dtype, f"query '{qid}'")
                writer.add_text(qid, text, sentences[qid])
            except (ValueError, FileNotFoundError) as error:
                unreadable.append(str(error))
        if unreadable:
            raise ValueError(
                f"{len(unreadable)} arrays could not be packed; '{out_dir}' holds the others and stays unfinished:\n  "
                + "\n  ".join(unreadable)
            )
        writer.finish()
    return FeatureStore.from_packed(out_dir)


def _kept(features: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """The features, if a number type keeps them: float16 makes zeros of what is below 3e-8.

    Raises:
        ValueError: a hundredth of them, by size, would be lost.
    """
    with np.errstate(over="ignore"):  # what is too large is refused where it is written
        lost = np.abs(features - features.astype(dtype)).sum()
    if np.isfinite(lost) and lost > 0.01 * np.abs(features).sum():
        raise ValueError(f"the features of {name} hold values that are too small for {dtype}: pack them as float32")
    return features
