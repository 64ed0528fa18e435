"""From a row to an example: features, labels, negative queries and the shifted view, as arrays without padding."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers.utils import logging

from ...contract_bmdetr import FeatureContract, prepare_text_features, prepare_video_features, time_axis_s
from ...spans_bmdetr import IGNORE
from ..features.store import FeatureStore
from ..rows.checked import checked_rows
from ..rows.qids import text_qid
from .negative_sampling import NegativeSampler
from .shifting import shift_moment

logger = logging.get_logger(__name__)

SHIFTING_LIMIT_S = 60.0  # 3.4: only shorter videos are shifted
Example = dict[str, Any]


class MomentRetrievalDataset(Dataset):
    """The examples of rows, ready to be put into a batch by [`MomentRetrievalCollator`].

    An item is asked for by row, or by (epoch, row) as [`UniqueVideoBatchSampler`] does. Everything random in it
    (negative queries, the shifted view, a sample of the moments of a query that has more than the model has spans) is
    drawn from the seed, the epoch and the row alone, so that worker processes, neighbours in the batch and resuming
    change nothing.

    An example holds, as NumPy arrays:
        `video (clips, dim)`, `text (tokens, dim)`, `row_index`, `duration_s`;
        with labels, `labels (moments, 2)` (centre, width) on the time axis, and where the rows have ratings
        `saliency (clips,)`, -100 where a clip has none;
        with temporal shifting, `shifted_order (clips,)` and `shifted_labels (1 or 0, 2)`, empty where the row has no
        shifted view;
        with negatives, lists with one entry per negative query: `negative_texts (tokens, dim)`, `negative_labels
        (moments, 2)` and, where negatives are weighted, `negative_weights`.

    Args:
        rows: Canonical rows; those of Parquet, pandas and NumPy are turned into plain values.
        store: Features of their videos and queries.
        contract: The model's feature contract; the store must fit it.
        negatives: Where negative queries are drawn from; None gives none, as in evaluation.
        num_negatives: Negative queries per row.
        temporal_shifting: Adds a shifted view of rows with one moment and a video shorter than `shifting_limit_s`.
        shifting_limit_s: Seconds from which a video is not shifted.
        max_moments: Moments kept of a query, at most the number of spans the model predicts.
        seed: Seed of the draws.
        with_labels: False leaves labels out, for rows without moments.

    Raises:
        ValueError: rows with errors, by qid; the store does not fit the contract, or `negatives` was made from other
            rows.
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
        reads_negatives = negatives is not None and negatives.strategy.startswith("mined")
        rows = checked_rows(rows, "rows", contract, reads_negatives=reads_negatives)
        self.rows, self.store, self.contract = rows, store, contract
        draws_negatives = negatives is not None and negatives.strategy != "none" and num_negatives > 0
        self.negatives, self.num_negatives = negatives if draws_negatives else None, num_negatives
        self.shifting_limit_s = shifting_limit_s
        self.max_moments, self.seed, self.with_labels = max_moments, seed, with_labels
        self.has_saliency = with_labels and any(row.get("saliency_scores") for row in rows)
        self.temporal_shifting = temporal_shifting and with_labels and any(self.can_shift(row) for row in rows)
        if temporal_shifting and not self.temporal_shifting:
            logger.warning(
                f"temporal shifting is on, but none of {len(rows)} rows has exactly one moment in a video shorter than "
                f"{shifting_limit_s:g} s: no view is shifted"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> Example:
        epoch, index = key if isinstance(key, tuple) else (0, int(key))
        row, rng = self.rows[index], np.random.default_rng((self.seed, epoch, index))
        video = prepare_video_features(self.store.video(row["vid"]), self.contract)
        axis_s = time_axis_s(len(video), row["duration"], self.contract)
        example: Example = {
            "video": video,
            "text": self.text(index),
            "row_index": index,
            "duration_s": float(row["duration"]),
        }
        if self.with_labels:
            example["labels"] = self.spans(row, axis_s, rng)
            if self.has_saliency:
                example["saliency"] = self.saliency(row, len(video))
            if self.temporal_shifting:
                example.update(self.shifted_view(row, len(video), example["labels"], rng))
        if self.negatives is not None:
            example.update(self.negative_queries(self.negatives, index, axis_s, rng))
        return example

    def text(self, index: int) -> np.ndarray:
        """The prepared rows of a query."""
        return prepare_text_features(self.store.text(text_qid(self.rows[index])), self.contract)

    def spans(self, row: Mapping[str, Any], axis_s: float, rng: np.random.Generator) -> np.ndarray:
        """A row's moments on the time axis, `(moments, 2)` (centre, width).

        Windows are clipped to the axis; those wholly past it, as after truncation, are left out. Of more moments than
        the model predicts, a sample is drawn.
        """
        if not row.get("relevant_windows"):
            return np.zeros((0, 2))
        windows = np.asarray(row["relevant_windows"], dtype=np.float64).reshape(-1, 2)
        windows = np.clip(windows / axis_s, 0, 1)
        windows = windows[windows[:, 1] > windows[:, 0]]
        if len(windows) > self.max_moments:
            windows = windows[np.sort(rng.choice(len(windows), self.max_moments, replace=False))]
        return np.stack((windows.mean(axis=1), windows[:, 1] - windows[:, 0]), axis=1)

    def can_shift(self, row: Mapping[str, Any]) -> bool:
        """Whether a row may have a shifted view: one moment, and a video short enough."""
        return len(row.get("relevant_windows") or ()) == 1 and row["duration"] < self.shifting_limit_s

    def saliency(self, row: Mapping[str, Any], num_clips: int) -> np.ndarray:
        """Summed ratings of the annotated clips, `(clips,)`; -100 where there is none."""
        labels = np.full(num_clips, IGNORE, dtype=np.float32)
        if row.get("saliency_scores"):
            clips = np.asarray(row["relevant_clip_ids"])
            ratings = np.asarray(row["saliency_scores"], dtype=np.float32).sum(axis=1)
            labels[clips[clips < num_clips]] = ratings[clips < num_clips]
        return labels

    def shifted_view(
        self, row: Mapping[str, Any], num_clips: int, span: np.ndarray, rng: np.random.Generator
    ) -> Example:
        """Frame order and label of the shifted view; a row without one keeps its order and has no label."""
        shifted = None
        if self.can_shift(row) and len(span) == 1:
            shifted = shift_moment((span[0, 0], span[0, 1]), num_clips, rng)
        if shifted is None:
            return {"shifted_order": np.arange(num_clips), "shifted_labels": np.zeros((0, 2))}
        return {"shifted_order": shifted[0], "shifted_labels": np.array([shifted[1]])}

    def negative_queries(
        self, negatives: NegativeSampler, index: int, axis_s: float, rng: np.random.Generator
    ) -> Example:
        """Features, own moments and weights of the negative queries drawn for a row."""
        drawn = negatives.draw(index, rng, self.num_negatives)
        example: Example = {"negative_texts": [self.text(negative) for negative in drawn]}
        if self.with_labels:
            example["negative_labels"] = [
                self.spans(self.rows[negative], axis_s, rng)
                if negatives.is_same_video(index, negative)
                else np.zeros((0, 2))
                for negative in drawn
            ]
        if negatives.is_weighted:
            example["negative_weights"] = [negatives.weight(index, negative) for negative in drawn]
        return example
