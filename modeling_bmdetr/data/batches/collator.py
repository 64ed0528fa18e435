"""From rows to a batch: features, labels, negative queries and the shifted view."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers.utils import logging

from ...contract_bmdetr import FeatureContract, pad_rows, prepare_text_features, prepare_video_features, time_axis_s
from ...spans_bmdetr import IGNORE
from ..features.store import FeatureStore
from .negative_sampling import NegativeSampler
from .shifting import shift_moment

logger = logging.get_logger(__name__)

SHIFTING_LIMIT_S = 60.0  # 3.4: only shorter videos are shifted


class MomentRetrievalDataset(Dataset):
    """Rows by index. An item is the (epoch, row) pair that [`MomentRetrievalCollator`] turns into tensors.

    A batch sampler may ask for `(epoch, row)`; a plain row index means epoch 0, as in evaluation.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[int, int]:
        return key if isinstance(key, tuple) else (0, int(key))


class MomentRetrievalCollator:
    """Makes the model's inputs and labels for a batch of rows.

    Everything random (negative queries, shifted views, a sample of the moments of a query that has more than the
    model has spans) is drawn from the seed, the epoch and the row alone.

    Every batch has the same entries: a batch in which no row has a negative query, or none a shifted view, has them
    with nothing but padding. Processes that train together therefore never wait for each other in vain.

    Args:
        rows: Canonical rows; the items of a batch index them.
        store: Features of their videos and queries.
        contract: The model's feature contract; the store must fit it.
        negatives: Where negative queries are drawn from; None gives none, as in evaluation.
        num_negatives: Negative queries a row.
        temporal_shifting: Adds a shifted view of rows with one moment and a video shorter than 60 s.
        shifting_limit_s: Seconds from which a video is not shifted.
        max_moments: Moments kept of a query, at most the number of spans the model predicts.
        seed: Seed of the draws.
        with_labels: False leaves labels out, for rows without moments.

    Returns (when called with a list of (epoch, row) pairs):
        The arguments of [`BMDetrForMomentRetrieval.forward`], and `row_index (batch,)` and `durations_s (batch,)`,
        which the trainer takes out before the model sees them.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        store: FeatureStore,
        contract: FeatureContract,
        *,
        negatives: NegativeSampler | None = None,
        num_negatives: int = 1,
        temporal_shifting: bool = False,
        shifting_limit_s: float = SHIFTING_LIMIT_S,
        max_moments: int = 10,
        seed: int = 0,
        with_labels: bool = True,
    ):
        contract.require_match(store.contract, "the model", "the feature store")
        if negatives is not None and len(negatives) != len(rows):
            raise ValueError(
                f"`negatives` was made for {len(negatives)} rows, but there are {len(rows)}: make it from the same rows"
            )
        self.rows, self.store, self.contract = rows, store, contract
        draws_negatives = negatives is not None and negatives.strategy != "none" and num_negatives > 0
        self.negatives, self.num_negatives = negatives if draws_negatives else None, num_negatives
        self.shifting_limit_s = shifting_limit_s
        self.max_moments, self.seed, self.with_labels = max_moments, seed, with_labels
        self.temporal_shifting = temporal_shifting and with_labels and any(self.can_shift(row) for row in rows)
        if temporal_shifting and not self.temporal_shifting:
            logger.warning(
                f"temporal shifting is on, but none of {len(rows)} rows has exactly one moment in a video shorter than "
                f"{shifting_limit_s:g} s: no view is shifted"
            )

    def __call__(self, items: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        rows = [self.rows[index] for _, index in items]
        generators = [np.random.default_rng((self.seed, epoch, index)) for epoch, index in items]
        videos = [prepare_video_features(self.store.video(row["vid"]), self.contract) for row in rows]
        axes_s = [
            time_axis_s(len(video), row["duration"], self.contract) for video, row in zip(videos, rows, strict=True)
        ]
        batch: dict[str, Tensor] = {}
        batch["video_features"], batch["video_mask"] = pad_rows(videos)
        batch["text_features"], batch["text_mask"] = pad_rows([self.text(index) for _, index in items])
        batch["row_index"] = torch.tensor([index for _, index in items])
        batch["durations_s"] = torch.tensor([float(row["duration"]) for row in rows])
        if self.with_labels:
            spans = [self.spans(row, axis, rng) for row, axis, rng in zip(rows, axes_s, generators, strict=True)]
            batch["labels"] = pad_spans(spans)
            if any(row.get("saliency_scores") for row in rows):
                batch["saliency_labels"] = self.saliency(rows, batch["video_mask"])
            if self.temporal_shifting:
                batch.update(self.shifted_view(rows, videos, spans, generators, batch["video_mask"].shape[1]))
        if self.negatives is not None:
            batch.update(self.negative_queries([index for _, index in items], axes_s, generators))
        return batch

    def text(self, index: int) -> np.ndarray:
        """The prepared rows of a query."""
        return prepare_text_features(self.store.text(str(self.rows[index]["qid"])), self.contract)

    def spans(self, row: Mapping[str, Any], axis_s: float, rng: np.random.Generator) -> np.ndarray:
        """A row's moments on the time axis, `(moments, 2)` (centre, width).

        Windows are clipped to the axis; those wholly past it, as after truncation, are left out. Of more moments than
        the model predicts, a sample is drawn.
        """
        windows = np.asarray(row["relevant_windows"], dtype=np.float64).reshape(-1, 2)
        windows = np.clip(windows / axis_s, 0, 1)
        windows = windows[windows[:, 1] > windows[:, 0]]
        if len(windows) > self.max_moments:
            windows = windows[np.sort(rng.choice(len(windows), self.max_moments, replace=False))]
        return np.stack((windows.mean(axis=1), windows[:, 1] - windows[:, 0]), axis=1)

    def can_shift(self, row: Mapping[str, Any]) -> bool:
        """Whether a row may have a shifted view: one moment, and a video short enough."""
        return len(row["relevant_windows"]) == 1 and row["duration"] < self.shifting_limit_s

    def saliency(self, rows: Sequence[Mapping[str, Any]], video_mask: Tensor) -> Tensor:
        """Summed ratings of the annotated clips, `(batch, video_len)`; -100 where there is none."""
        labels = torch.full(video_mask.shape, IGNORE)
        for i, row in enumerate(rows):
            if not row.get("saliency_scores"):
                continue
            clips = np.asarray(row["relevant_clip_ids"])
            ratings = np.asarray(row["saliency_scores"], dtype=np.float32).sum(axis=1)
            inside = clips < int(video_mask[i].sum())
            labels[i, torch.from_numpy(clips[inside])] = torch.from_numpy(ratings[inside])
        return labels

    def shifted_view(
        self,
        rows: Sequence[Mapping[str, Any]],
        videos: Sequence[np.ndarray],
        spans: Sequence[np.ndarray],
        generators: Sequence[np.random.Generator],
        video_len: int,
    ) -> dict[str, Tensor]:
        """Frame orders and labels of the shifted view; a row without one keeps its order and has no label."""
        orders = torch.arange(video_len).repeat(len(rows), 1)
        labels = torch.full((len(rows), 1, 2), IGNORE)
        for i, (row, video, span, rng) in enumerate(zip(rows, videos, spans, generators, strict=True)):
            if not self.can_shift(row) or len(span) != 1:
                continue
            if (shifted := shift_moment((span[0, 0], span[0, 1]), len(video), rng)) is not None:
                orders[i, : len(video)] = torch.from_numpy(shifted[0])
                labels[i, 0] = torch.tensor(shifted[1])
        return {"shifted_frame_order": orders, "shifted_labels": labels}

    def negative_queries(
        self, indices: Sequence[int], axes_s: Sequence[float], generators: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """Features, masks and own moments of the negative queries; an all-zero mask where a row has none."""
        assert self.negatives is not None
        drawn = [self.negatives.draw(i, rng, self.num_negatives) for i, rng in zip(indices, generators, strict=True)]
        width = max(1, *map(len, drawn))
        texts, spans = [], []
        nothing = np.zeros((0, self.store.contract.text_dim), dtype=np.float32)
        for index, axis, rng, negatives in zip(indices, axes_s, generators, drawn, strict=True):
            for negative in negatives:
                own = self.negatives.is_same_video(index, negative)
                texts.append(self.text(negative))
                spans.append(self.spans(self.rows[negative], axis, rng) if own else np.zeros((0, 2)))
            texts += [nothing] * (width - len(negatives))
            spans += [np.zeros((0, 2))] * (width - len(negatives))
        features, mask = pad_rows(texts, length=max(1, *map(len, texts)))
        batch = {
            "negative_text_features": features.unflatten(0, (len(indices), width)),
            "negative_text_mask": mask.unflatten(0, (len(indices), width)),
        }
        if self.negatives.is_weighted:
            weights = torch.zeros(len(indices), width)
            for i, (index, negatives) in enumerate(zip(indices, drawn, strict=True)):
                for k, negative in enumerate(negatives):
                    weights[i, k] = self.negatives.weight(index, negative)
            batch["negative_weights"] = weights
        if self.with_labels:
            batch["negative_labels"] = pad_spans(spans).unflatten(0, (len(indices), width))
        return batch


def pad_spans(spans: Sequence[np.ndarray]) -> Tensor:
    """Arrays `(n_i, 2)` as one tensor `(rows, max(n_i, 1), 2)`, filled up with -100."""
    labels = torch.full((len(spans), max(1, *map(len, spans)) if spans else 1, 2), IGNORE)
    for i, row in enumerate(spans):
        labels[i, : len(row)] = torch.from_numpy(row)
    return labels
