"""Which videos of an index are worth asking the model about: those with a clip like the sentence.

Only where a video encoder and the text encoder are the two towers of one model, such as CLIP: its projected sentences
lie in the space of its projected images. BM-DETR itself reads other states of the text tower, one for each token.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .contract_bmdetr import FeatureContract

_PREFIXES = ("clip", "hf")


def shared_columns(contract: FeatureContract) -> slice:
    """The columns of a clip's row that lie in the space of projected sentences.

    Raises:
        ValueError: no video encoder is a tower of the model that the text encoder is the other tower of.
    """
    text, first = contract.text_encoder or {}, 0
    for video in contract.video_encoders:
        if _model_of(text) is not None and _model_of(video) == _model_of(text) and "pooling" not in video:
            return slice(first, first + video["dim"])
        first += video["dim"]
    videos = ", ".join(repr(video["name"]) for video in contract.video_encoders) or "none"
    raise ValueError(
        "`prefilter` needs the two towers of one model, such as CLIP, as video and text encoder; received "
        f"{videos} and {text.get('name')!r}, which share no space: search without it"
    )


def _model_of(encoder: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Which weights an encoder of transformers runs: `clip:` and `hf:` before the name mean the same."""
    prefix, _, model = str(encoder.get("name", "")).partition(":")
    return (model, encoder.get("revision")) if prefix in _PREFIXES and model else None


def best_similarities(videos: Iterable[np.ndarray], sentences: np.ndarray) -> np.ndarray:
    """Cosine of each sentence with the clip of each video that is most like it.

    Args:
        videos: `(clips, dim)` of each video.
        sentences: `(sentences, dim)`.

    Returns:
        `(sentences, videos)`.
    """
    sentences = _unit(sentences)
    return np.stack([(_unit(rows) @ sentences.T).max(axis=0) for rows in videos], axis=1)


def most_similar(names: Sequence[str], similarities: np.ndarray, number: int) -> list[list[str]]:
    """For each sentence the `number` names with the greatest similarity."""
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :number]
    return [[names[index] for index in indices] for indices in order]


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
