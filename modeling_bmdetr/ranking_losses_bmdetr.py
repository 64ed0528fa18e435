"""The losses of `ranking_bmdetr.py`: of clip proposals, of the quality of a span, of the presence of a moment.

Like those of `loss_bmdetr.py`, they take plain tensors and explicit masks, and means may be given another divisor.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .spans_bmdetr import generalized_temporal_iou, has_moment, spans_cxw_to_se, temporal_iou

ELSEWHERE = -5.0  # start and end of a label row without a moment: overlaps with nothing
BACKGROUND_WEIGHT = 0.5  # of clips outside every moment, in the quality of proposals


def moments_se(labels_cxw: Tensor) -> Tensor:
    """Labels as (start, end); rows without a moment lie outside the video."""
    return spans_cxw_to_se(labels_cxw).masked_fill(~has_moment(labels_cxw)[..., None], ELSEWHERE)


def best_overlap(spans_cxw: Tensor, labels_cxw: Tensor) -> Tensor:
    """IoU of each span with the described moment that it overlaps most: `(batch, queries)`, without gradient.

    Args:
        spans_cxw: `(batch, queries, 2)`.
        labels_cxw: `(batch, moments, 2)`, -100 in rows without a moment; all zero where a query has none.
    """
    spans_se = spans_cxw_to_se(spans_cxw.detach().float())
    return temporal_iou(spans_se[:, :, None], moments_se(labels_cxw)[:, None])[0].amax(dim=2)


def quality_loss(logits: Tensor, overlap: Tensor, rows: Tensor, count: Tensor | None = None) -> Tensor:
    """Cross entropy of the predicted and the real IoU of every span, matched or not.

    Args:
        logits, overlap: `(batch, queries)`.
        rows: `(batch,)` bool, rows that count; those without a moment do.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, overlap, reduction="none")
    return _mean_over_rows(entropy.mean(dim=1), rows, count)


def presence_loss(logits: Tensor, present: Tensor, rows: Tensor, count: Tensor | None = None) -> Tensor:
    """Cross entropy of presence: whether the row has a moment at all.

    Args:
        logits: `(batch,)`.
        present, rows: `(batch,)` bool.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, present.to(logits.dtype), reduction="none")
    return _mean_over_rows(entropy, rows, count)


def proposal_losses(
    spans_se: Tensor,
    logits: Tensor,
    labels_cxw: Tensor,
    foreground: Tensor,
    video_mask: Tensor,
    rows: Tensor,
    l1_weight: float,
    giou_weight: float,
    count: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Losses of the spans that clips propose: Eq. 14 of the clips inside a moment, and the quality of all.

    A clip is held against the moment it lies in, of several the first. Each row counts the same, however many clips lie
    in its moments.

    Args:
        spans_se: `(batch, video_len, 2)` (start, end).
        logits: `(batch, video_len)`.
        labels_cxw: `(batch, moments, 2)`.
        foreground, video_mask: `(batch, video_len)` bool.
        rows: `(batch,)` bool.

    Returns:
        The localisation and the quality loss.
    """
    clips = video_mask.float().sum(dim=1).clamp(min=1)
    centres = (torch.arange(video_mask.shape[1], device=logits.device) + 0.5) / clips[:, None]
    wanted = moments_se(labels_cxw)
    apart = torch.maximum(wanted[:, None, :, 0] - centres[..., None], centres[..., None] - wanted[:, None, :, 1])
    own = wanted.gather(1, apart.argmin(dim=2)[..., None].expand(-1, -1, 2))  # (batch, video_len, 2)
    misfit = l1_weight * (spans_se - own).abs().sum(dim=-1)
    misfit = misfit + giou_weight * (1 - generalized_temporal_iou(spans_se, own))
    inside = foreground.to(misfit.dtype)
    localisation = (misfit * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)

    overlap = temporal_iou(spans_se.detach().clamp(0, 1), own)[0] * inside
    entropy = F.binary_cross_entropy_with_logits(logits, overlap, reduction="none")
    weight = torch.where(foreground, 1.0, BACKGROUND_WEIGHT) * video_mask
    return (
        _mean_over_rows(localisation, rows, count),
        _mean_over_rows((entropy * weight).sum(dim=1) / clips, rows, count),
    )


def _mean_over_rows(values: Tensor, rows: Tensor, count: Tensor | None) -> Tensor:
    number = rows.sum() if count is None else count
    return (values * rows).sum() / number.clamp(min=1e-6)
