"""From examples to a batch: padding and masks."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...contract_bmdetr import pad_rows
from ...spans_bmdetr import IGNORE
from .examples import MomentRetrievalDataset

# Entries of a batch that the model does not read: the trainer's, and the labels, which the loss reads.
NOT_THE_MODELS = ("row_index", "durations_s", "labels", "shifted_labels", "negative_labels", "saliency_labels")


class MomentRetrievalCollator:
    """Makes the model's inputs and labels of a list of examples of a [`MomentRetrievalDataset`].

    Every batch of a data set has the same entries: a batch in which no row has a negative query, or none a shifted
    view, has them with nothing but padding, so that all processes run the same collectives (no deadlock).

    Returns (when called with a list of examples):
        The arguments of [`BMDetrForMomentRetrieval.forward`], and `row_index (batch,)` and `durations_s (batch,)`,
        which the trainer takes out before the model sees them.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self._dataset = None
        if args or kwargs:
            warnings.warn(
                "MomentRetrievalCollator(rows, store, contract, ...) is now MomentRetrievalDataset(rows, store, "
                "contract, ...), whose examples MomentRetrievalCollator() puts into a batch",
                FutureWarning,
                stacklevel=2,
            )
            self._dataset = MomentRetrievalDataset(*args, **kwargs)

    def __call__(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        if self._dataset is not None:
            examples = [self._dataset[item] for item in examples]
        first: Mapping[str, Any] = examples[0]
        columns = {name: [example[name] for example in examples] for name in first}
        batch: dict[str, Tensor] = {}
        batch["video_features"], batch["video_mask"] = pad_rows(columns["video"])
        batch["text_features"], batch["text_mask"] = pad_rows(columns["text"])
        batch["row_index"] = torch.tensor(columns["row_index"])
        batch["durations_s"] = torch.tensor(columns["duration_s"])
        video_len = batch["video_mask"].shape[1]
        if "labels" in first:
            batch["labels"] = pad_spans(columns["labels"])
        if "saliency" in first:
            batch["saliency_labels"] = torch.full((len(examples), video_len), IGNORE)
            for i, ratings in enumerate(columns["saliency"]):
                batch["saliency_labels"][i, : len(ratings)] = torch.from_numpy(ratings)
        if "shifted_order" in first:
            batch["shifted_frame_order"] = torch.arange(video_len).repeat(len(examples), 1)
            for i, order in enumerate(columns["shifted_order"]):
                batch["shifted_frame_order"][i, : len(order)] = torch.from_numpy(order)
            batch["shifted_labels"] = pad_spans(columns["shifted_labels"])
        if "negative_texts" in first:
            batch.update(pad_negatives(columns, batch["text_features"].shape[2]))
        return batch


def pad_negatives(columns: Mapping[str, Sequence[Any]], text_dim: int) -> dict[str, Tensor]:
    """Features, masks, own moments and weights of the negative queries; an all-zero mask where a row has none."""
    texts = columns["negative_texts"]
    number, grid = max(1, *map(len, texts)), (len(texts), max(1, *map(len, texts)))

    def filled_up(values: Sequence[Any], filler: Any) -> list[Any]:
        return [value for row in values for value in [*row, *[filler] * (number - len(row))]]

    flat = filled_up(texts, np.zeros((0, text_dim), dtype=np.float32))
    features, mask = pad_rows(flat, length=max(1, *map(len, flat)))
    batch = {"negative_text_features": features.unflatten(0, grid), "negative_text_mask": mask.unflatten(0, grid)}
    if "negative_weights" in columns:
        batch["negative_weights"] = torch.tensor(filled_up(columns["negative_weights"], 0.0)).float().view(grid)
    if "negative_labels" in columns:
        batch["negative_labels"] = pad_spans(filled_up(columns["negative_labels"], np.zeros((0, 2)))).unflatten(0, grid)
    return batch


def pad_spans(spans: Sequence[np.ndarray]) -> Tensor:
    """Arrays `(n_i, 2)` as one tensor `(rows, max(n_i, 1), 2)`, filled up with -100."""
    labels = torch.full((len(spans), max(1, *map(len, spans)) if spans else 1, 2), IGNORE)
    for i, row in enumerate(spans):
        labels[i, : len(row)] = torch.from_numpy(row)
    return labels
