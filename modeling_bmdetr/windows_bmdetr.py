"""A long video as windows that overlap by half, and the answers of its windows as one.

All that windows decide is here: where they lie (`window_starts`), in which order their moments stand and which of
them are the same one (`merge_windows`), how likely the whole video shows what is asked for (`presence_over_windows`),
and the values of clips that several windows saw (`mean_over_windows`). docs/apps.md has the figures behind the rules.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .spans_bmdetr import temporal_nms

WINDOW_NMS_IOU = 0.7  # moments that two windows found both
ODDS_EXPONENT = 0.8  # of presence over windows; docs/apps.md compares others


def window_starts(clips: int, window: int) -> list[int]:
    """First clips of windows that overlap by half and cover all clips; the last one ends with the video."""
    if clips <= window:
        return [0]
    return [*range(0, clips - window, max(1, window // 2)), clips - window]


def merge_windows(
    moments: Sequence[Tensor],
    offsets_s: Sequence[float],
    iou_threshold: float | None = None,
    most: int | None = None,
) -> Tensor:
    """All windows' moments in one ranking, by score; what several windows found is kept once, where it scores best.

    Scores are taken as they are. A calibrated one is the probability that its span is right, whichever window it comes
    from; products with presence or with the p of the clips inside (Eq. 6) rank no better.

    Args:
        moments: Of each window, `(n, 3)` rows (start s, end s, score), in seconds from the window's start.
        offsets_s: Where each window starts.
        iou_threshold: Temporal IoU above which two moments count as one; `WINDOW_NMS_IOU` where left out, and then all
            moments of a single window are kept.
        most: Returns no more than the best so many.

    Returns:
        `(n, 3)`, best first, in seconds of the video.
    """
    moved = [rows + rows.new_tensor([start, start, 0.0]) for rows, start in zip(moments, offsets_s, strict=True)]
    ranked = torch.cat(moved)
    ranked = ranked[ranked[:, 2].argsort(descending=True, stable=True)]
    if iou_threshold is None:
        if len(moved) == 1:
            return ranked[:most]
        iou_threshold = WINDOW_NMS_IOU
    return temporal_nms(ranked, iou_threshold, most)


def presence_over_windows(presence: Tensor) -> Tensor:
    """How likely a video shows what is asked for, from the presence in each of its windows: `(windows,)` to a number.

    The power mean over windows of the odds p / (1 - p), with the exponent `ODDS_EXPONENT`. One window keeps its
    presence. The highest presence rises with the number of windows, also for sentences that no window shows; the mean
    of the odds (exponent 1) is what the rule of Bayes gives where one unknown window holds the moment and presence is
    exact; a smaller exponent keeps single windows that are sure without reason from deciding.
    """
    probabilities = presence.double().clamp(1e-6, 1 - 1e-6)
    odds = (probabilities / (1 - probabilities)).pow(ODDS_EXPONENT).mean().pow(1 / ODDS_EXPONENT)
    return odds / (1 + odds)


def mean_over_windows(values: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    """Per-clip values of overlapping windows, averaged where several cover a clip."""
    total = torch.zeros(starts[-1] + len(values[-1]))
    count = torch.zeros_like(total)
    for value, start in zip(values, starts, strict=True):
        total[start : start + len(value)] += value
        count[start : start + len(value)] += 1
    return total / count
