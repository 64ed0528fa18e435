"""How far probabilities can be trusted: AUROC, Brier score, expected calibration error, and the bins behind it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .metrics import BoolArray, FloatArray, IntArray

NUM_BINS = 10
MOST_BINS = 1_000_000


def auroc(scores: FloatArray, is_positive: BoolArray) -> float:
    """The chance that a positive scores higher than a negative, equal scores counting half: the area under the ROC.

    Args:
        scores: Shape (n,), finite.
        is_positive: Shape (n,).

    Raises:
        ValueError: One of the two classes is empty, so that there is nothing to tell apart; or see `checked_pairs`.
    """
    from scipy.stats import rankdata

    scores, is_positive = checked_pairs(scores, is_positive)
    num_positive = int(is_positive.sum())
    num_negative = len(is_positive) - num_positive
    if not num_positive or not num_negative:
        raise ValueError(
            f"AUROC needs both classes, received {num_positive} positives and {num_negative} negatives: for presence, "
            "add rows whose relevant_windows are empty, and rows that have a moment."
        )
    rank_sum = float(rankdata(scores)[is_positive].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def brier_score(probabilities: FloatArray, is_true: BoolArray) -> float:
    """Mean squared difference between probabilities `(n,)` and what came true `(n,)`: 0 is perfect, 0.25 a coin's.

    Raises:
        ValueError: There is nothing to judge, or a probability lies outside [0, 1].
    """
    probabilities, is_true = _checked_probabilities(probabilities, is_true)
    return float(((probabilities - is_true) ** 2).mean())


@dataclass(frozen=True)
class ReliabilityBins:
    """Probabilities in bins of equal width; the mean of an empty bin is NaN."""

    edges: FloatArray  # (bins + 1,)
    counts: IntArray  # (bins,)
    mean_probability: FloatArray  # (bins,)
    share_true: FloatArray  # (bins,)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: |mean probability - share that came true|, weighted by the bins' counts."""
        gaps = np.abs(self.mean_probability - self.share_true)
        return float(np.where(self.counts > 0, self.counts * np.nan_to_num(gaps), 0.0).sum() / self.counts.sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the means of empty bins are None."""
        means = {
            name: [None if np.isnan(value) else round(float(value), 4) for value in getattr(self, name)]
            for name in ("mean_probability", "share_true")
        }
        return {"edges": [round(float(edge), 4) for edge in self.edges], "counts": self.counts.tolist(), **means}


def reliability_bins(probabilities: FloatArray, is_true: BoolArray, num_bins: int = NUM_BINS) -> ReliabilityBins:
    """Probabilities `(n,)` and what came true `(n,)` in bins [0, 1/b), [1/b, 2/b), ..., the last of which is closed.

    Raises:
        ValueError: There is nothing to judge, or a probability lies outside [0, 1].
    """
    probabilities, is_true = _checked_probabilities(probabilities, is_true)
    if isinstance(num_bins, bool) or not isinstance(num_bins, int) or not 1 <= num_bins <= MOST_BINS:
        raise ValueError(f"num_bins must be a whole number from 1 to {MOST_BINS}, received {num_bins!r}.")
    index = np.minimum((probabilities * num_bins).astype(np.int64), num_bins - 1)
    counts = np.bincount(index, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        mean_probability = np.bincount(index, probabilities, num_bins) / counts
        share_true = np.bincount(index, is_true, num_bins) / counts
    return ReliabilityBins(np.linspace(0, 1, num_bins + 1), counts, mean_probability, share_true)


def expected_calibration_error(probabilities: FloatArray, is_true: BoolArray, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error of probabilities `(n,)` over `num_bins` bins of equal width (Naeini et al., 2015).

    Raises:
        ValueError: There is nothing to judge, or a probability lies outside [0, 1].
    """
    return reliability_bins(probabilities, is_true, num_bins).calibration_error


def are_probabilities(values: FloatArray) -> bool:
    """Whether there are values and all lie in [0, 1]."""
    return len(values) > 0 and bool(((values >= 0) & (values <= 1)).all())


def checked_pairs(scores: Any, truths: Any) -> tuple[FloatArray, BoolArray]:
    """Scores and what came true as two arrays `(n,)`; 0 and 1 are taken for False and True.

    Raises:
        ValueError: They are not finite numbers and truths, one of each for everything that is judged.
    """
    arrays = np.asarray(scores), np.asarray(truths)
    if any(array.ndim != 1 or array.dtype.kind not in "fiub" for array in arrays) or len(arrays[0]) != len(arrays[1]):
        received = " and ".join(f"{array.dtype} {array.shape}" for array in arrays)
        raise ValueError(f"expected numbers (n,) and truths (n,), received {received}.")
    if not np.isfinite(arrays[0]).all():
        raise ValueError("expected finite scores, received NaN or an infinity.")
    if not np.isin(arrays[1], (0, 1)).all():
        raise ValueError("expected True or False of everything that is judged, received other numbers.")
    return arrays[0].astype(np.float64), arrays[1].astype(bool)


def _checked_probabilities(probabilities: Any, truths: Any) -> tuple[FloatArray, BoolArray]:
    values, is_true = checked_pairs(probabilities, truths)
    if not len(values):
        raise ValueError("there are no probabilities to judge; expected at least one.")
    if not are_probabilities(values):
        raise ValueError(f"expected probabilities from 0 to 1, received values from {values.min()} to {values.max()}.")
    return values, is_true
