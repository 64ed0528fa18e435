"""The losses of `ranking_bmdetr.py`: of clip proposals, of the quality of a span, of the presence of a moment.

Like those of `paper_losses_bmdetr.py`, they take plain tensors and explicit masks, and a mean may be given another
divisor.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .paper_losses_bmdetr import masked_mean
from .spans_bmdetr import generalized_temporal_iou, has_moment, spans_cxw_to_se, temporal_iou

ELSEWHERE = -5.0  # start and end of a label row without a moment: overlaps with nothing
NEAR = 0.5  # IoU above which a span learns to fit a moment
OTHERS_WEIGHT = 3.0  # of the clips of other videos, of which few are hard
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


def fit_loss(
    spans_cxw: Tensor,
    labels_cxw: Tensor,
    rows: Tensor,
    l1_weight: float,
    giou_weight: float,
    count: Tensor | None = None,
) -> Tensor:
    """Eq. 14, with the weights of its terms, of every span that overlaps a moment by more than half, matched or not.

    Eq. 13 lets one span learn from a moment, and ranking then chooses among spans that learned nothing of it. Each row
    counts the same, however many of its spans overlap.

    Args:
        spans_cxw: `(batch, queries, 2)`.
        labels_cxw: `(batch, moments, 2)`.
        rows: `(batch,)` bool, rows that count.
    """
    spans_se, moments = spans_cxw_to_se(spans_cxw), moments_se(labels_cxw)
    overlap, best = temporal_iou(spans_se.detach()[:, :, None], moments[:, None])[0].max(dim=2)
    near = overlap > NEAR
    wanted = labels_cxw.gather(1, best[..., None].expand(-1, -1, 2)).masked_fill(~near[..., None], 0.5)
    misfit = l1_weight * (spans_cxw - wanted).abs().sum(dim=-1)
    misfit = misfit + giou_weight * (1 - generalized_temporal_iou(spans_se, spans_cxw_to_se(wanted)))
    misfit = misfit.masked_fill(~near, 0.0).sum(dim=1) / near.sum(dim=1).clamp(min=1)
    return masked_mean(misfit, rows, count)


def quality_loss(logits: Tensor, overlap: Tensor, rows: Tensor, count: Tensor | None = None) -> Tensor:
    """Cross entropy of the predicted and the real IoU of every span, matched or not.

    Args:
        logits, overlap: `(batch, queries)`.
        rows: `(batch,)` bool, rows that count; those without a moment do.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, overlap, reduction="none")
    return masked_mean(entropy.mean(dim=1), rows, count)


def presence_loss(logits: Tensor, present: Tensor, rows: Tensor, count: Tensor | None = None) -> Tensor:
    """Cross entropy of presence: whether the row has a moment at all.

    Args:
        logits: `(batch,)`.
        present, rows: `(batch,)` bool.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, present.to(logits.dtype), reduction="none")
    return masked_mean(entropy, rows, count)


def proposal_loss(
    spans_se: Tensor,
    labels_cxw: Tensor,
    foreground: Tensor,
    rows: Tensor,
    l1_weight: float,
    giou_weight: float,
    video_mask: Tensor,
    count: Tensor | None = None,
) -> Tensor:
    """Eq. 14, with the weights of its terms, of the span that each clip in a moment proposes and that moment.

    Each row counts the same, however many clips lie in its moments.

    Args:
        spans_se: `(batch, video_len, 2)` (start, end).
        labels_cxw: `(batch, moments, 2)`.
        foreground, video_mask: `(batch, video_len)` bool.
        rows: `(batch,)` bool, rows that count.
    """
    wanted = nearest_moment(labels_cxw, video_mask)
    misfit = l1_weight * (spans_se - wanted).abs().sum(dim=-1)
    misfit = misfit + giou_weight * (1 - generalized_temporal_iou(spans_se, wanted))
    misfit = misfit.masked_fill(~foreground, 0.0).sum(dim=1) / foreground.sum(dim=1).clamp(min=1)
    return masked_mean(misfit, rows, count)


def proposal_quality_loss(
    spans_se: Tensor,
    logits: Tensor,
    labels_cxw: Tensor,
    foreground: Tensor,
    video_mask: Tensor,
    rows: Tensor,
    count: Tensor | None = None,
) -> Tensor:
    """Cross entropy of the predicted and the real IoU of every clip's proposal; 0 is real for clips in no moment.

    Args:
        spans_se: `(batch, video_len, 2)` (start, end).
        logits, foreground, video_mask: `(batch, video_len)`.
        labels_cxw: `(batch, moments, 2)`.
        rows: `(batch,)` bool, rows that count.
    """
    wanted = nearest_moment(labels_cxw, video_mask)
    overlap = temporal_iou(spans_se.detach().clamp(0, 1), wanted)[0].masked_fill(~foreground, 0.0)
    entropy = F.binary_cross_entropy_with_logits(logits, overlap, reduction="none")
    weight = torch.where(foreground, 1.0, BACKGROUND_WEIGHT) * video_mask
    return masked_mean((entropy * weight).sum(dim=1) / video_mask.sum(dim=1).clamp(min=1), rows, count)


def nearest_moment(labels_cxw: Tensor, video_mask: Tensor) -> Tensor:
    """The moment (start, end) that each clip's centre lies in or is nearest to: `(batch, video_len, 2)`."""
    clips = video_mask.float().sum(dim=1).clamp(min=1)[:, None]
    centres = (torch.arange(video_mask.shape[1], device=video_mask.device) + 0.5) / clips
    moments = moments_se(labels_cxw)
    distance = torch.maximum(moments[:, None, :, 0] - centres[..., None], centres[..., None] - moments[:, None, :, 1])
    return moments.gather(1, distance.argmin(dim=2)[..., None].expand(-1, -1, 2))


def contrast_loss(
    logits: Tensor,
    foreground: Tensor,
    video_mask: Tensor,
    rows: Tensor,
    offset: int = 0,
    count: Tensor | None = None,
) -> Tensor:
    """Cross entropy of every clip and every query: shown in the query's own moments, and nowhere in other videos.

    Clips of other videos are weighted by how likely they are taken for what the query says (a focal weight, Lin et al.
    2017), since most are told apart at once.

    Args:
        logits: `(batch, queries, video_len)`, each video against each query.
        foreground: `(batch, video_len)` bool, the clips of the moments of each video's own query.
        video_mask: `(batch, video_len)` bool.
        rows: `(batch,)` bool, rows that count.
        offset: the first video's own query; the others' follow.
    """
    clips = video_mask.sum(dim=1)
    own = logits.diagonal(offset).T  # (batch, video_len)
    matched = F.binary_cross_entropy_with_logits(own, foreground.to(own.dtype), reduction="none") * video_mask
    mistaken = F.softplus(logits) * logits.detach().sigmoid() * video_mask[:, None]
    mistaken = mistaken.sum(dim=1) - mistaken.diagonal(offset).T
    mistaken = OTHERS_WEIGHT * mistaken / max(1, logits.shape[1] - 1)
    return masked_mean((matched + mistaken).sum(dim=1) / clips, rows, count)


def retrieval_loss(logits: Tensor, rows: Tensor, offset: int = 0, count: Tensor | None = None) -> Tensor:
    """Cross entropy of finding a video's query among all queries, and a query's video among all videos (InfoNCE).

    Args:
        logits: `(videos, queries)`, each video against each query; the n-th query is that of the n-th video.
        rows: `(batch,)` bool, rows that have a moment.
        offset: the video and the query of the first row; those of the others follow.
    """
    own = slice(offset, offset + len(rows))
    of_video, of_query = (-logits.log_softmax(dim=dim).diagonal()[own] for dim in (1, 0))
    return masked_mean((of_video + of_query) / 2, rows, count)
