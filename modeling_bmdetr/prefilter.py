"""Which videos of an index are worth asking the whole model about: those with clips like the sentence.

The dual encoder of a checkpoint tells, which compares sentences with clips of many videos by inner products. For a
checkpoint without one, the encoders tell, where a video encoder and the text encoder are the two towers of one model,
such as CLIP: its projected sentences lie in the space of its projected images. (BM-DETR itself reads other states of
the text tower, one for each token.)
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .contract_bmdetr import FeatureContract, pad_rows, prepare_text_features, prepare_video_features
from .pipeline_bmdetr import EncodedVideo, MomentRetrievalPipeline

_PREFIXES = ("clip", "hf")
_WINDOWS_AT_ONCE = 64


@torch.inference_mode()
def dual_encoder_logits(
    pipe: MomentRetrievalPipeline, videos: Iterable[EncodedVideo], sentences: Sequence[str]
) -> np.ndarray:
    """How sure the dual encoder is that each video shows what each sentence says.

    Args:
        pipe: Its model has a dual encoder.
        videos: At least one; they are read one after the other.

    Returns:
        `(sentences, videos)` logits, of the window of each video that fits best.
    """
    texts = [prepare_text_features(rows, pipe.processor.contract) for rows in pipe.processor.encode_text(sentences)]
    text = [part.to(pipe.device) for part in pad_rows(texts)]
    parts = (pipe.preprocess({"video": video, "queries": []}) for video in videos)
    windows = ((i, window, part["prepared"]) for i, part in enumerate(parts) for window in part["windows"])
    owners: list[int] = []
    logits: list[np.ndarray] = []
    while some := list(itertools.islice(windows, _WINDOWS_AT_ONCE)):
        clips = pad_rows([prepare_video_features(window, contract) for _, window, contract in some])
        logits.append(pipe.model.model.match_videos(*(part.to(pipe.device) for part in clips), *text).cpu().numpy())
        owners += [i for i, _, _ in some]
    best = np.full((owners[-1] + 1, len(sentences)), -np.inf, dtype=np.float32)
    np.maximum.at(best, owners, np.concatenate(logits))
    return best.T


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
        "`prefilter` needs a model with a dual encoder, or the two towers of one model, such as CLIP, as video and "
        f"text encoder; received {videos} and {text.get('name')!r}, which share no space: search without it"
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
