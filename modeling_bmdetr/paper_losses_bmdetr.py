"""The terms of the paper's loss: one function per equation (3.5, Eq. 14-17).

Every function takes plain tensors and explicit masks, so each can be used and tested alone. Rows that hold no moment
are marked by masks, never by Python control flow: with one moment per row nothing here waits for the device. A mean
may be given another divisor (`count`) where the batch is a part of a larger one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils.generic import maybe_autocast

from .matching_bmdetr import BACKGROUND, FOREGROUND, MatchedMoments
from .spans_bmdetr import generalized_temporal_iou, spans_cxw_to_se


def masked_mean(values: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean of `values` where `mask` holds; 0 when it holds nowhere. `count` takes the place of the divisor."""
    mask = mask.to(values.dtype)
    number = mask.sum() if count is None else count.to(values.dtype)
    return (values * mask).sum() / number.clamp(min=torch.finfo(values.dtype).eps)


def class_loss(
    logits: Tensor,
    matched: MatchedMoments,
    no_object_weight: float,
    rows: Tensor,
    count: Tensor | None = None,
) -> Tensor:
    """L_cls (3.5): cross entropy of foreground for matched spans and background for the rest.

    The plain mean over rows and spans of the weighted cross entropy, not divided by the sum of weights.

    Args:
        logits: `(batch, queries, 2)`.
        rows: `(batch,)` bool, rows that count.
    """
    matches = F.one_hot(matched.query_index, logits.shape[1]).bool() & matched.valid[..., None]
    is_foreground = matches.any(dim=1)  # (batch, queries)
    target = torch.where(is_foreground, FOREGROUND, BACKGROUND)
    weight = torch.where(is_foreground, 1.0, no_object_weight)
    entropy = F.cross_entropy(logits.float().transpose(1, 2), target, reduction="none")  # (batch, queries)
    return masked_mean((entropy * weight).mean(dim=1), rows, count)


def l1_loss(pred_spans: Tensor, labels_cxw: Tensor, matched: MatchedMoments, count: Tensor | None = None) -> Tensor:
    """First term of Eq. 14: the L1 norm of (centre, width) differences, averaged over matched moments."""
    difference = (matched.select(pred_spans) - labels_cxw).abs().sum(dim=-1)
    return masked_mean(difference.masked_fill(~matched.valid, 0.0), matched.valid, count)


def giou_loss(pred_spans: Tensor, labels_cxw: Tensor, matched: MatchedMoments, count: Tensor | None = None) -> Tensor:
    """L_iou in Eq. 14: one minus the generalised temporal IoU, averaged over matched moments."""
    labels_cxw = labels_cxw.masked_fill(~matched.valid[..., None], 0.5)  # any proper span keeps gradients finite
    giou = generalized_temporal_iou(spans_cxw_to_se(matched.select(pred_spans)), spans_cxw_to_se(labels_cxw))
    return masked_mean(1 - giou, matched.valid, count)


def frame_margin_loss(
    saliency_scores: Tensor, pairs: Tensor, margin: float, rows: Tensor, count: Tensor | None = None
) -> Tensor:
    """L_margin, Eq. 15: hinge that puts foreground clips `margin` above background clips.

    Args:
        saliency_scores: `(batch, video_len)`, f W of Eq. 15.
        pairs: `(batch, video_len, video_len)` weights of `margin_pairs`.
        rows: `(batch,)` bool; a row without pairs counts with 0.
    """
    hinge = F.relu(margin + saliency_scores[:, None, :] - saliency_scores[:, :, None])  # (batch, fore, back)
    return masked_mean((hinge * pairs).sum(dim=(1, 2)), rows, count)


def frame_probability_loss(
    probabilities: Tensor,
    foreground: Tensor,
    video_mask: Tensor,
    rows: Tensor,
    count: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """L_prob, Eq. 16: high probability inside the moment, low outside.

    A row without foreground has only the outside term; a row without background only the inside term.

    Args:
        probabilities: `(rows, video_len)`.
        foreground, video_mask: `(rows, video_len)` bool.
        rows: `(rows,)` bool, rows that count.
        weights: `(rows,)`, what the loss of a row is multiplied by.
    """
    background = ~foreground & video_mask
    inside, outside = (
        (probabilities * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1) for mask in (foreground, background)
    )
    has_foreground = foreground.any(dim=1).to(probabilities.dtype)
    value = has_foreground - inside + outside
    return masked_mean(value if weights is None else value * weights, rows, count)


def semantic_alignment_loss(
    video_embeds: Tensor,
    text_embeds: Tensor,
    temperature: float,
    denominator: str,
    rows: Tensor,
    columns: Tensor | None = None,
    offset: int = 0,
    count: Tensor | None = None,
) -> Tensor:
    """L_semantic, Eq. 17: a video's own query against the other queries of the batch, by cosine (Eq. 11).

    Args:
        video_embeds: `(batch, dim)`, of length one.
        text_embeds: `(texts, dim)`, of length one; the texts of other processes may stand beside the batch's own.
        denominator: `negatives` sums over the other queries as Eq. 17 does, `all` includes the own one (InfoNCE).
            With `negatives`, a video without any other query contributes 0.
        rows: `(batch,)` bool, videos that count.
        columns: `(texts,)` bool, texts that count; `rows` when left out.
        offset: Column of the first video's own query.
    """
    columns = rows if columns is None else columns
    with maybe_autocast(video_embeds.device.type, enabled=False):  # a small temperature needs all digits
        scores = video_embeds.float() @ text_embeds.float().T / temperature  # (batch, texts)
    own = torch.arange(len(scores), device=scores.device) + offset
    is_own = F.one_hot(own, scores.shape[1]).bool()
    excluded = ~columns[None] & ~is_own
    if denominator == "negatives":
        excluded = excluded | is_own
    # A finite floor instead of -inf keeps the gradient of an empty sum finite; such rows are masked out below.
    floor = torch.finfo(scores.dtype).min / 2
    log_sum = scores.masked_fill(excluded, floor).logsumexp(dim=1)
    value = log_sum - scores.gather(1, own[:, None]).squeeze(1)
    contrasted = ~excluded.all(dim=1)
    return masked_mean(value.masked_fill(~contrasted, 0.0), rows, count)
