"""Metrics of queries that the video may not answer at all: rejection, and one IoU for found and rightly empty sets."""

import numpy as np

from .metrics import BoolArray, FloatArray, greedy_matches, temporal_iou
from .reliability import are_probabilities, checked_pairs

SMALLEST_IOU = np.nextafter(0.0, 1.0)  # any overlap


def rejection_f1(presence: FloatArray, is_present: BoolArray, threshold: float = 0.5) -> float:
    """F1 of rejecting queries: a query is rejected if its presence is not above the threshold, rightly if it is absent.

    Args:
        presence: Shape (queries,), probability that the video shows what the query says.
        is_present: Shape (queries,).
        threshold: From 0 to 1.

    Returns:
        In [0, 1]; 0 if nothing is rejected.

    Raises:
        ValueError: No query is absent, so that there is nothing to reject; presence or the threshold is no probability;
            or see `checked_pairs`.
    """
    presence, is_present = checked_pairs(presence, is_present)
    for name, value in (("presence", presence), ("threshold", np.atleast_1d(threshold))):
        if len(value) and not are_probabilities(value):
            raise ValueError(f"expected a {name} from 0 to 1, received values from {value.min()} to {value.max()}.")
    if is_present.all():
        raise ValueError("all queries are present; rejection needs rows whose relevant_windows are empty.")
    is_rejected = presence <= threshold
    rightly = int((is_rejected & ~is_present).sum())
    return 2 * rightly / int(is_rejected.sum() + (~is_present).sum())


def set_iou(
    predicted_se: FloatArray, num_predicted: np.ndarray, windows_se: FloatArray, window_mask: BoolArray
) -> FloatArray:
    """IoU of the set of predictions with the set of moments, the value that G-mIoU is the mean of: `(queries,)`.

    Predictions take moments one after the other, each the free one it overlaps most. The IoUs of the pairs are added up
    and divided by the size of the union: predictions plus moments minus pairs. Two empty sets have 1, one empty set 0.

    Args:
        predicted_se: Shape (queries, ranks, 2), seconds, best first.
        num_predicted: Shape (queries,), how many of them count; 0 for a rejected query.
        windows_se: Shape (queries, windows, 2), seconds.
        window_mask: Shape (queries, windows); 1 = a moment.
    """
    counts = np.arange(predicted_se.shape[1]) < num_predicted[:, None]
    iou = temporal_iou(predicted_se, windows_se) * window_mask[:, None, :] * counts[:, :, None]
    pairs = greedy_matches(iou, np.array([SMALLEST_IOU]))[:, 0]
    union = num_predicted + window_mask.sum(axis=1) - (pairs > 0).sum(axis=1)
    return np.divide(pairs.sum(axis=1), union, out=np.ones(len(union)), where=union > 0)
