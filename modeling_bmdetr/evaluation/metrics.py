"""Moment retrieval metrics over padded NumPy arrays: temporal IoU, recall at a rank, average precision.

Axes: `queries`; `ranks` of the predicted windows, best first; `windows` of the ground truth; `thresholds` of IoU.
Windows are (start, end) in seconds. Rows shorter than their axis are padded with the empty window (0, 0), which
overlaps nothing, so that predictions need no mask.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

# 0.5, 0.55, ..., 0.95 as decimal literals: arithmetic steps would move some thresholds by a rounding error.
AVERAGE_PRECISION_IOU_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
AVERAGE_PRECISION_MAX_PREDICTIONS = 10


def temporal_iou(
    predicted_se: FloatArray, windows_se: FloatArray, union: Literal["hull", "lengths"] = "hull"
) -> FloatArray:
    """Intersection over union of every predicted window with every window of the same query.

    A window whose end does not lie after its start has IoU 0 with everything, itself included. Windows that only touch
    have IoU 0.

    Args:
        predicted_se: Shape (queries, ranks, 2), seconds.
        windows_se: Shape (queries, windows, 2), seconds.
        union: How the union of two overlapping windows is added up: `hull` is the last end minus the first start,
            `lengths` is the sum of both lengths minus the intersection. They are equal but for the last bit, which
            decides whether an IoU that equals a threshold reaches it. The released evaluator uses `hull` for recall
            and `lengths` for average precision, and so do we: on Charades-STA, whose times have one decimal, one
            query in 3,000 depends on it.

    Returns:
        Shape (queries, ranks, windows), in [0, 1].
    """
    predicted_start, predicted_end = predicted_se[:, :, None, 0], predicted_se[:, :, None, 1]
    window_start, window_end = windows_se[:, None, :, 0], windows_se[:, None, :, 1]
    intersection = np.minimum(predicted_end, window_end) - np.maximum(predicted_start, window_start)
    if union == "hull":
        denominator = np.maximum(predicted_end, window_end) - np.minimum(predicted_start, window_start)
    else:
        denominator = (predicted_end - predicted_start) + (window_end - window_start) - intersection
    # A positive intersection implies two windows of positive length, hence a positive denominator.
    return np.divide(intersection, denominator, out=np.zeros_like(intersection), where=intersection > 0)


def best_iou(predicted_se: FloatArray, windows_se: FloatArray, max_rank: int) -> FloatArray:
    """The best IoU `(queries,)` that each query reaches within its first `max_rank` predictions, over all windows.

    Predictions count in the order given, whatever their scores. A query without predictions has 0.

    Args:
        predicted_se: Shape (queries, ranks, 2), seconds, best first.
        windows_se: Shape (queries, windows, 2), seconds.
        max_rank: How many predictions of each query count.
    """
    return temporal_iou(predicted_se[:, :max_rank], windows_se).max(axis=(1, 2), initial=0.0)


def average_precision(
    predicted_se: FloatArray,
    scores: FloatArray,
    windows_se: FloatArray,
    window_mask: BoolArray,
    iou_thresholds: tuple[float, ...] = AVERAGE_PRECISION_IOU_THRESHOLDS,
) -> FloatArray:
    """Interpolated average precision of each query at each IoU threshold, as ActivityNet and Moment-DETR define it.

    The first ten predictions are ordered by score (equal scores keep their order). In that order each one
    takes the window with the highest IoU among those not yet taken whose IoU reaches the threshold (of equally good
    windows the one listed last), and is a true positive; it is a false positive if there is none. A repeated prediction
    therefore is a false positive, and a repeated window has to be found twice. The average precision is the sum over
    true positives of the interpolated precision (the highest one at this rank or a later one), divided by the number
    of windows.

    Args:
        predicted_se: Shape (queries, ranks, 2), seconds.
        scores: Shape (queries, ranks); -inf where padded.
        windows_se: Shape (queries, windows, 2), seconds.
        window_mask: Shape (queries, windows); 1 = the window is to be found.
        iou_thresholds: Thresholds in (0, 1].

    Returns:
        Shape (queries, thresholds), in [0, 1]; 0 for a query without predictions, NaN for one without windows.
    """
    order = np.argsort(-scores[:, :AVERAGE_PRECISION_MAX_PREDICTIONS], axis=1, kind="stable")
    ranked_se = np.take_along_axis(predicted_se[:, :AVERAGE_PRECISION_MAX_PREDICTIONS], order[:, :, None], axis=1)
    iou = temporal_iou(ranked_se, windows_se, union="lengths") * window_mask[:, None, :]
    is_match = greedy_matches(iou, np.asarray(iou_thresholds)) > 0  # (queries, thresholds, ranks)

    rank = np.arange(1, is_match.shape[2] + 1)
    precision = np.cumsum(is_match, axis=2) / rank
    interpolated = np.maximum.accumulate(precision[:, :, ::-1], axis=2)[:, :, ::-1]
    with np.errstate(invalid="ignore"):
        return (interpolated * is_match).sum(axis=2) / window_mask.sum(axis=1)[:, None]


def greedy_matches(iou: FloatArray, iou_thresholds: FloatArray) -> FloatArray:
    """The IoU of each prediction with the window it takes, in the order of the ranks, 0 where it takes none.

    Each prediction takes the window with the highest IoU among those not yet taken whose IoU reaches the threshold; of
    equally good windows the one listed last.

    Args:
        iou: Shape (queries, ranks, windows).
        iou_thresholds: Shape (thresholds,), above 0.

    Returns:
        Shape (queries, thresholds, ranks).
    """
    num_queries, num_ranks, num_windows = iou.shape
    matched_iou = np.zeros((num_queries, len(iou_thresholds), num_ranks))
    if num_windows == 0:
        return matched_iou
    is_taken = np.zeros((num_queries, len(iou_thresholds), num_windows), dtype=bool)
    last_first = iou[:, :, ::-1]  # argmax returns the first of equal values: the window listed last
    for rank in range(num_ranks):
        candidates = last_first[:, None, rank, :]  # (queries, 1, windows)
        is_free = (candidates >= iou_thresholds[:, None]) & ~is_taken
        free_iou = np.where(is_free, candidates, 0.0)
        best = free_iou.argmax(axis=2)[:, :, None]
        matched = np.take_along_axis(is_free, best, axis=2)  # (queries, thresholds, 1)
        np.put_along_axis(is_taken, best, np.take_along_axis(is_taken, best, axis=2) | matched, axis=2)
        matched_iou[:, :, rank] = np.take_along_axis(free_iou, best, axis=2)[:, :, 0]
    return matched_iou


def moment_recall(
    predicted_se: FloatArray,
    windows_se: FloatArray,
    window_mask: BoolArray,
    num_predictions: int | IntArray,
    iou_thresholds: tuple[float, ...],
    beyond_first: bool = False,
) -> FloatArray:
    """Share of each query's moments that its first predictions find, one prediction per moment, at each IoU threshold.

    Args:
        predicted_se: Shape (queries, ranks, 2), seconds, best first.
        windows_se: Shape (queries, windows, 2), seconds.
        window_mask: Shape (queries, windows); 1 = the window is to be found.
        num_predictions: How many predictions of a query count: a number, or one per query.
        iou_thresholds: Thresholds in (0, 1].
        beyond_first: Leave the first moment found out of the count, and one moment out of those to be found: what is
            found beyond the easiest moment.

    Returns:
        Shape (queries, thresholds), in [0, 1]; NaN where nothing is to be found.
    """
    counts = np.arange(predicted_se.shape[1]) < np.reshape(num_predictions, (-1, 1))
    iou = temporal_iou(predicted_se, windows_se) * window_mask[:, None, :] * counts[:, :, None]
    found = (greedy_matches(iou, np.asarray(iou_thresholds)) > 0).sum(axis=2)
    wanted = window_mask.sum(axis=1)[:, None]
    with np.errstate(invalid="ignore"):
        return np.maximum(found - 1, 0) / (wanted - 1) if beyond_first else found / wanted
