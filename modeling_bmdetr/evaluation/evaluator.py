"""From rows to figures: `evaluate_submission`, and its result as text."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..tables import markdown_table, markdown_text, plain_table
from .arrays import MomentArrays, SaliencyArrays, is_absent, moment_arrays, presence_scores, saliency_arrays
from .highlights import highlight_average_precision, highlight_hit
from .metrics import AVERAGE_PRECISION_IOU_THRESHOLDS, BoolArray, FloatArray, average_precision, best_iou, moment_recall
from .presence import rejection_f1, set_iou
from .reliability import (
    ReliabilityBins,
    are_probabilities,
    auroc,
    brier_score,
    expected_calibration_error,
    reliability_bins,
)
from .submission import RowsOrPath, load_rows, match_by_qid

logger = logging.getLogger(__name__)

RECALL_RANKS = (1, 5)
RECALL_IOU_THRESHOLDS = (0.3, 0.5, 0.7)
# (shorter bound, longer bound] in seconds, as in Moment-DETR.
MOMENT_LENGTH_RANGES_S: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, 150.0)}
)
# The lowest rating, of 0 to 4, with which a clip counts as a highlight, as in QVHighlights.
MIN_HIGHLIGHT_RATINGS: Mapping[str, int] = MappingProxyType({"Fair": 2, "Good": 3, "VeryGood": 4})
SET_SIZES = (1, 3, 5)  # predictions that count in mR@k and G-mIoU@k, as in GMR
CALIBRATION_IOU = 0.5  # a score is right if its window reaches this IoU with a moment
METRIC_FORMATS = ("table", "json", "markdown")


def evaluate_submission(
    predictions: RowsOrPath,
    ground_truth: RowsOrPath,
    *,
    length_ranges_s: Mapping[str, tuple[float, float]] = MOMENT_LENGTH_RANGES_S,
    clip_length_s: float = 2.0,
    presence_threshold: float = 0.5,
) -> dict[str, float]:
    """Evaluate predicted moments and highlights against annotations, as Moment-DETR's released evaluator does.

    Keys, in this order; every value is a mean over queries:

    - `MR-full-R{1,5}@{0.3,0.5,0.7}`: share of queries one of whose first 1 or 5 predictions reaches this temporal IoU
      (or more) with one of the query's windows. Predictions count in the order listed.
    - `MR-full-mIoU`: IoU of the first prediction with the window that it fits best.
    - `MR-full-mAP`: average precision of the first ten predictions in the order of their scores, averaged over the
      IoU thresholds 0.5, 0.55, ..., 0.95; see `metrics.average_precision` for matching, ties and duplicates.
    - `MR-full-mAP@{0.5,0.75}`: the same at one IoU threshold.
    - `MR-{short,middle,long}-mAP`: `MR-full-mAP` over moments of 0 to 10, 10 to 30 and 30 to 150 s (the upper bound
      belongs to the range). Only windows of such a length are to be found and only queries that have one count: a
      query with windows of several lengths counts in each of their ranges, and a prediction that fits a window of
      another range is a false positive.
    - `HL-min-{Fair,Good,VeryGood}-mAP`: average precision of the clips ranked by predicted saliency, mean over
      annotators, where a clip is relevant if the annotator rated it at least 2, 3 or 4 (the highest rating); see
      `highlights.highlight_average_precision` for ties.
    - `HL-min-{Fair,Good,VeryGood}-Hit1`: share of queries whose highest-scored clip (the first of equals) at least
      one annotator rated that high.
    - `MR-full-Rn@{0.5,0.7}`, `MR-full-mR@{1,3,5}`, `MR-multi-mR+@{3,5}`, `MR-multi-mAP`, if a query has several
      moments: share of a query's n moments that its first n predictions find at this IoU, each prediction at most one;
      that its first 1, 3 or 5 find, mean over the IoU thresholds of mAP; the same over queries with several moments,
      without the first one found; `MR-full-mAP` of these queries. See `metrics.moment_recall`.
    - `CAL-ECE`, `CAL-Brier`, `CAL-AUC`, if scores are probabilities: whether the score of the first prediction is the
      probability that it reaches an IoU of 0.5 with a moment (expected calibration error over ten bins, mean squared
      error), and whether it is higher where it does; over all queries that have a prediction, absent ones included.
    - `PR-AUROC`, `PR-{kind}-AUROC`, `PR-Rej-F1`, `PR-ECE`, `PR-Brier`, `G-mIoU@{1,3,5}`, if predictions have
      `pred_exist_score` and the ground truth both present and absent queries: how well presence tells the two apart
      (each `absent_kind` against all present queries), F1 of rejecting queries whose presence is not above
      `presence_threshold`, whether presence is the probability of being present, and the mean IoU of the sets of the
      first 1, 3 or 5 predictions, empty for rejected queries, with the sets of moments; see `presence.set_iou`.

    A query whose `relevant_windows` are empty is absent: the video does not show what it says. `MR` and `HL` keys are
    means over present queries.

    A key is present where it is defined: `MR` keys if predictions have windows, a length range if a window is in it,
    `HL` keys if predictions have saliency and the ground truth has ratings (of the rated queries). A query without
    predictions counts with 0. A prediction that does not end after it starts overlaps nothing, but holds its rank.
    Windows are taken as they are, also beyond the end of the video.

    The figures equal those of the released evaluator wherever it gives one, with two exceptions: it leaves queries
    without predictions out of mAP (and fails at their recall), and it merges rows with the same `qid` (here an error).

    Args:
        predictions: Rows, or the path of a JSON lines file. A row has `qid` and `pred_relevant_windows`
            [[start s, end s, score], ...] best first (may be empty), `pred_saliency_scores` (one per clip), or
            both, and optionally `pred_exist_score`, the probability that the video shows what the query says.
        ground_truth: Rows, or the path of a JSON lines file. A row has `qid`, `relevant_windows`
            [[start s, end s], ...] (empty: absent, optionally with `absent_kind`) and, for highlights, `duration` (s),
            `relevant_clip_ids` and `saliency_scores` (clips x annotators). Rows are matched by `qid`, in any order; 7
            and "7" are the same `qid`.
        length_ranges_s: Bounds (above, up to) of the moment lengths of the keys `MR-{name}-mAP`.
        clip_length_s: Seconds per clip of the saliency annotation.
        presence_threshold: Queries whose `pred_exist_score` is not above it count as rejected.

    Returns:
        Percent, rounded to two digits.

    Raises:
        ValueError: The two sides do not hold the same queries, a row is malformed (the message names it), there is
            nothing to evaluate, or an option is out of range.
        TypeError: The rows are not dictionaries, or a `qid` is neither a string nor an integer.
        FileNotFoundError: A path leads to no file.
    """
    _check_options(length_ranges_s, clip_length_s, presence_threshold)
    truth_rows = load_rows(ground_truth, "ground_truth")
    predicted_rows = match_by_qid(load_rows(predictions, "predictions"), truth_rows)
    rated = [
        index
        for index, row in enumerate(truth_rows.rows)
        if row.get("saliency_scores") is not None and not is_absent(truth_rows, index)
    ]
    shares: dict[str, float] = {}
    judged: dict[str, float] = {}
    if predicted_rows.has("pred_relevant_windows"):
        if not truth_rows.has("relevant_windows"):
            raise ValueError(
                f"{truth_rows.source} has no relevant_windows: a split without labels cannot be evaluated."
            )
        arrays = moment_arrays(predicted_rows, truth_rows)
        if arrays.is_present.any():
            shares |= _moment_metrics(arrays.take(arrays.is_present), length_ranges_s)
        kinds = [row.get("absent_kind") for row in truth_rows.rows]
        judged = _score_metrics(arrays) | _presence_metrics(
            arrays, presence_scores(predicted_rows), kinds, presence_threshold
        )
    if predicted_rows.has("pred_saliency_scores") and rated:
        saliency = saliency_arrays(predicted_rows.take(rated), truth_rows.take(rated), clip_length_s)
        shares |= _highlight_metrics(saliency)
    shares |= judged
    if not shares:
        raise ValueError(
            f"nothing to evaluate: expected pred_relevant_windows in {predicted_rows.source}, or pred_saliency_scores "
            f"there and saliency_scores in {truth_rows.source}."
        )
    return {name: round(100 * share, 2) for name, share in shares.items()}


def _check_options(
    length_ranges_s: Mapping[str, tuple[float, float]], clip_length_s: float, presence_threshold: float
) -> None:
    if not 0 <= presence_threshold <= 1:
        raise ValueError(f"presence_threshold must lie in [0, 1], received {presence_threshold!r}.")
    if not clip_length_s > 0:
        raise ValueError(f"clip_length_s must be a positive number of seconds, received {clip_length_s!r}.")
    for name, (above_s, up_to_s) in length_ranges_s.items():
        if name in ("full", "multi") or not above_s < up_to_s:
            raise ValueError(
                f"length_ranges_s has {name!r}: ({above_s}, {up_to_s}]; expected increasing bounds and a name other "
                "than 'full', which stands for all moments, and 'multi', for queries with several."
            )


def _moment_metrics(arrays: MomentArrays, length_ranges_s: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    iou = {rank: best_iou(arrays.predicted_se, arrays.windows_se, max_rank=rank) for rank in RECALL_RANKS}
    shares: dict[str, float] = {}
    for rank in RECALL_RANKS:
        for threshold in RECALL_IOU_THRESHOLDS:
            shares[f"MR-full-R{rank}@{threshold}"] = float((iou[rank] >= threshold).mean())
    shares["MR-full-mIoU"] = float(iou[1].mean())

    by_threshold = _mean_average_precision(arrays, arrays.window_mask)
    shares["MR-full-mAP"] = float(by_threshold.mean())
    for threshold in (0.5, 0.75):
        shares[f"MR-full-mAP@{threshold}"] = float(by_threshold[AVERAGE_PRECISION_IOU_THRESHOLDS.index(threshold)])
    length_s = arrays.windows_se[..., 1] - arrays.windows_se[..., 0]
    for name, (above_s, up_to_s) in length_ranges_s.items():
        is_in_range = arrays.window_mask & (length_s > above_s) & (length_s <= up_to_s)
        if is_in_range.any():
            shares[f"MR-{name}-mAP"] = float(_mean_average_precision(arrays, is_in_range).mean())
    return shares | _multi_moment_metrics(arrays)


def _multi_moment_metrics(arrays: MomentArrays) -> dict[str, float]:
    num_moments = arrays.window_mask.sum(axis=1)
    is_multi = num_moments > 1
    if not is_multi.any():
        return {}
    shares: dict[str, float] = {}
    windows = arrays.windows_se, arrays.window_mask
    by_threshold = moment_recall(arrays.predicted_se, *windows, num_moments, (0.5, 0.7)).mean(axis=0)
    shares |= {f"MR-full-Rn@{name}": float(share) for name, share in zip((0.5, 0.7), by_threshold, strict=True)}
    for size in SET_SIZES:
        recall = moment_recall(arrays.predicted_se, *windows, size, AVERAGE_PRECISION_IOU_THRESHOLDS)
        shares[f"MR-full-mR@{size}"] = float(recall.mean())
    multi = arrays.take(is_multi)
    windows = multi.windows_se, multi.window_mask
    for size in SET_SIZES[1:]:
        recall = moment_recall(multi.predicted_se, *windows, size, AVERAGE_PRECISION_IOU_THRESHOLDS, beyond_first=True)
        shares[f"MR-multi-mR+@{size}"] = float(recall.mean())
    shares["MR-multi-mAP"] = float(_mean_average_precision(multi, multi.window_mask).mean())
    return shares


def _score_metrics(arrays: MomentArrays) -> dict[str, float]:
    """Whether the first prediction's score is the probability that it is right."""
    scores, is_right = _first_scores(arrays)
    if not are_probabilities(scores):
        return {}
    shares = {"CAL-ECE": expected_calibration_error(scores, is_right), "CAL-Brier": brier_score(scores, is_right)}
    if is_right.any() and not is_right.all():
        shares["CAL-AUC"] = auroc(scores, is_right)
    return shares


def submission_reliability(predictions: RowsOrPath, ground_truth: RowsOrPath) -> dict[str, ReliabilityBins]:
    """The bins behind `CAL-ECE` ("score") and `PR-ECE` ("presence") of [`evaluate_submission`], for `plot_reliability`.

    A name is there where the key is. The arguments are those of [`evaluate_submission`], with labels for every query.
    """
    truth_rows = load_rows(ground_truth, "ground_truth")
    predicted_rows = match_by_qid(load_rows(predictions, "predictions"), truth_rows)
    arrays, presence = moment_arrays(predicted_rows, truth_rows), presence_scores(predicted_rows)
    scores, is_right = _first_scores(arrays)
    bins = {"score": reliability_bins(scores, is_right)} if are_probabilities(scores) else {}
    if presence is not None and arrays.is_present.any() and not arrays.is_present.all():
        bins["presence"] = reliability_bins(presence, arrays.is_present)
    return bins


def _first_scores(arrays: MomentArrays) -> tuple[FloatArray, BoolArray]:
    """The score of the first prediction of every query that has one, and whether it is right."""
    judged = arrays.take(arrays.num_predicted > 0)
    is_right = best_iou(judged.predicted_se, judged.windows_se, max_rank=1) >= CALIBRATION_IOU
    return judged.scores[:, 0], is_right


def _presence_metrics(
    arrays: MomentArrays, presence: FloatArray | None, kinds: Sequence[Any], threshold: float
) -> dict[str, float]:
    """Empty unless there are presence scores, and present as well as absent queries."""
    is_present = arrays.is_present
    if presence is None or is_present.all() or not is_present.any():
        if not is_present.all():
            logger.warning(
                f"{int((~is_present).sum())} queries have no moment, and presence is not measured: that needs "
                "pred_exist_score in the predictions, and queries that have a moment."
            )
        return {}
    shares = {"PR-AUROC": auroc(presence, is_present)}
    named = [kind for kind, present in zip(kinds, is_present, strict=True) if not present and _is_named(kind)]
    for kind in sorted(set(map(str, named))):
        among = is_present | np.array([str(other) == kind for other in kinds])
        shares[f"PR-{kind}-AUROC"] = auroc(presence[among], is_present[among])
    shares["PR-Rej-F1"] = rejection_f1(presence, is_present, threshold)
    shares["PR-ECE"] = expected_calibration_error(presence, is_present)
    shares["PR-Brier"] = brier_score(presence, is_present)
    kept = np.where(presence > threshold, arrays.num_predicted, 0)
    for size in SET_SIZES:
        of_sets = set_iou(arrays.predicted_se, np.minimum(kept, size), arrays.windows_se, arrays.window_mask)
        shares[f"G-mIoU@{size}"] = float(of_sets.mean())
    return shares


def _is_named(kind: Any) -> bool:
    """Whether there is a kind: no field, an empty text and a table's NaN are none, 0 is one."""
    return kind is not None and kind != "" and kind == kind


def _mean_average_precision(arrays: MomentArrays, window_mask: np.ndarray) -> FloatArray:
    """Mean over the queries that have a window in the mask: (thresholds,)."""
    counts = window_mask.any(axis=1)
    return average_precision(
        arrays.predicted_se[counts], arrays.scores[counts], arrays.windows_se[counts], window_mask[counts]
    ).mean(axis=0)


def _highlight_metrics(arrays: SaliencyArrays) -> dict[str, float]:
    shares: dict[str, float] = {}
    for name, min_rating in MIN_HIGHLIGHT_RATINGS.items():
        is_highlight = arrays.ratings >= min_rating
        precision = highlight_average_precision(arrays.scores, is_highlight, arrays.clip_mask)
        shares[f"HL-min-{name}-mAP"] = float(precision.mean())
        shares[f"HL-min-{name}-Hit1"] = float(highlight_hit(arrays.top_clip, is_highlight).mean())
    return shares


def format_metrics(metrics: Mapping[str, float], style: str = "table") -> str:
    """The result of `evaluate_submission` as text, in its order and without a final line break.

    Args:
        metrics: Values in percent by name.
        style: `table` (aligned plain text), `json` (null for what is not finite) or `markdown`.

    Raises:
        ValueError: `style` is none of these.
    """
    if style == "json":
        return json.dumps({name: x if math.isfinite(x) else None for name, x in metrics.items()}, indent=2)
    # The kinds in names are what annotations say: they stay text on one line.
    rows = [("Metric", "%"), *((" ".join(name.split()), f"{value:.2f}") for name, value in metrics.items())]
    if style == "table":
        return plain_table(rows)
    if style == "markdown":
        return markdown_table(rows[0], [(markdown_text(name), value) for name, value in rows[1:]])
    raise ValueError(f"style must be one of {', '.join(METRIC_FORMATS)}, received {style!r}.")


def evaluate_module_path() -> str:
    """The folder that `evaluate.load` reads these metrics from: `evaluate.load(evaluate_module_path())`."""
    return str(Path(__file__).parent / "moment_retrieval")
