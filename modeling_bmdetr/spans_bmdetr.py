"""Temporal spans: conversions, overlap, suppression, and the clips a span covers. Pure tensor functions.

Two formats, both normalised to the video's time axis unless a name says `_s` (seconds):
`cxw` is (centre, width), `se` is (start, end). The last dimension is always the two coordinates.
"""

import torch
from torch import Tensor

IGNORE = -100.0  # fills the rows of a label tensor that hold no moment


def spans_cxw_to_se(spans_cxw: Tensor) -> Tensor:
    """(centre, width) to (start, end): `[0.5, 0.2] -> [0.4, 0.6]`. Shape `(..., 2)` in and out."""
    centre, width = spans_cxw.unbind(-1)
    return torch.stack((centre - 0.5 * width, centre + 0.5 * width), dim=-1)


def spans_se_to_cxw(spans_se: Tensor) -> Tensor:
    """(start, end) to (centre, width): `[0.4, 0.6] -> [0.5, 0.2]`. Shape `(..., 2)` in and out."""
    start, end = spans_se.unbind(-1)
    return torch.stack((0.5 * (start + end), end - start), dim=-1)


def temporal_iou(a_se: Tensor, b_se: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union of spans, element by element with broadcasting.

    Pairwise overlaps of `(n, 2)` and `(m, 2)` come from `temporal_iou(a[:, None], b[None])`.

    Args:
        a_se, b_se: `(..., 2)` with start <= end.

    Returns:
        IoU and union, both `(...)`; the IoU of two spans without length is 0.
    """
    (a_start, a_end), (b_start, b_end) = a_se.unbind(-1), b_se.unbind(-1)
    intersection = (torch.minimum(a_end, b_end) - torch.maximum(a_start, b_start)).clamp(min=0)
    union = (a_end - a_start) + (b_end - b_start) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny), union


def generalized_temporal_iou(a_se: Tensor, b_se: Tensor) -> Tensor:
    """Generalised IoU in one dimension (Rezatofighi et al., 2019): IoU minus the share of the hull that is empty.

    Worked example: [0, 0.2] and [0.8, 1] do not touch; IoU 0, hull 1, union 0.4, so the result is -0.6.

    Args:
        a_se, b_se: `(..., 2)` with start <= end; broadcast against each other.

    Returns:
        `(...)` in (-1, 1].
    """
    iou, union = temporal_iou(a_se, b_se)
    (a_start, a_end), (b_start, b_end) = a_se.unbind(-1), b_se.unbind(-1)
    hull = torch.maximum(a_end, b_end) - torch.minimum(a_start, b_start)
    return iou - (hull - union) / hull.clamp(min=torch.finfo(hull.dtype).tiny)


def temporal_nms(moments: Tensor, iou_threshold: float, most: int | None = None) -> Tensor:
    """Greedy suppression: keeps a moment unless a better one overlaps it by more than `iou_threshold`.

    Args:
        moments: `(n, 3)` rows (start, end, score), in any order and unit.
        iou_threshold: In [0, 1]; 1 keeps everything.
        most: Keeps no more than the best so many.

    Returns:
        The rows kept, best first, ties in the order given.
    """
    moments = moments[torch.argsort(moments[:, 2], descending=True, stable=True)]
    kept: list[int] = []
    apart = torch.ones(len(moments), dtype=torch.bool, device=moments.device)  # from all that are kept
    for i in range(len(moments)):
        if len(kept) == most:
            break
        if apart[i]:
            kept.append(i)
            overlaps, _ = temporal_iou(moments[i, :2], moments[:, :2])
            apart &= overlaps <= iou_threshold
    return moments[kept]


def has_moment(labels_cxw: Tensor) -> Tensor:
    """Which rows of a label tensor hold a moment: `(..., moments, 2)` to bool `(..., moments)`."""
    return labels_cxw[..., 0] != IGNORE


def foreground_clips(labels_cxw: Tensor, video_mask: Tensor) -> Tensor:
    """The clips that moments cover, the one rule for every loss and plot.

    A clip is foreground when its centre lies in a moment. A moment so short that it holds no centre takes the clip
    nearest to its own centre, so every moment has foreground.

    Args:
        labels_cxw: `(batch, moments, 2)` on a time axis on which the n real clips fill [0, 1]; rows without a
            moment hold -100.
        video_mask: `(batch, video_len)`, 1 = real.

    Returns:
        bool `(batch, video_len)`; False on padding.
    """
    video_len = video_mask.shape[1]
    num_clips = video_mask.sum(dim=1).to(labels_cxw.dtype)[:, None]  # (batch, 1)
    index = torch.arange(video_len, device=video_mask.device)
    valid = has_moment(labels_cxw)  # (batch, moments)
    spans_se = spans_cxw_to_se(labels_cxw)

    centres = (index[None] + 0.5) / num_clips.clamp(min=1)  # (batch, video_len)
    inside = (centres[:, None] >= spans_se[..., :1]) & (centres[:, None] < spans_se[..., 1:])  # (batch, moments, len)
    nearest = (labels_cxw[..., 0] * num_clips).floor().clamp(min=0)
    nearest = torch.minimum(nearest, num_clips - 1)  # (batch, moments)
    short = ~(inside & video_mask.bool()[:, None]).any(dim=-1, keepdim=True)
    inside = inside | (short & (index == nearest[..., None]))
    return (inside & valid[..., None]).any(dim=1) & video_mask.bool()


def mean_inside(values: Tensor, spans_cxw: Tensor, video_mask: Tensor) -> Tensor:
    """Mean of per-clip values over the clips that each span covers, see `foreground_clips`.

    Args:
        values: `(batch, video_len)`.
        spans_cxw: `(batch, spans, 2)`.
        video_mask: `(batch, video_len)`, 1 = real.

    Returns:
        `(batch, spans)`.
    """
    spans = spans_cxw.shape[1]
    covered = foreground_clips(spans_cxw.flatten(0, 1)[:, None], video_mask.repeat_interleave(spans, dim=0))
    covered = covered.unflatten(0, (-1, spans))
    return (covered * values[:, None]).sum(dim=-1) / covered.sum(dim=-1)
