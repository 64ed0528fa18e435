"""Matching and losses of BM-DETR: one function an equation (Eq. 12-17), and their weighted sum.

Every function takes plain tensors and explicit masks, so each can be used and tested alone. Rows that hold no moment
are marked by masks, never by Python control flow: with one moment a row nothing here waits for the device.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import is_scipy_available
from transformers.utils.generic import maybe_autocast

from .configuration_bmdetr import BMDetrConfig
from .spans_bmdetr import (
    IGNORE,
    foreground_clips,
    generalized_temporal_iou,
    has_moment,
    spans_cxw_to_se,
)

FOREGROUND, BACKGROUND = 0, 1  # class indices of `logits`

# Turns a count of rows or moments on this process into the divisor of a mean; see `BMDetrLoss`.
CountReduction = Callable[[Tensor], Tensor]
# The views of a video, by the prefix of their terms, and what the terms of each are means over.
VIEWS = ("", "shifted_")
COUNTS = ("rows", "moments", "negatives")


@dataclass
class MatchedMoments:
    """The assignment of predicted spans to moments.

    Attributes:
        query_index: `(batch, moments)` long, the span assigned to each moment; 0 where `valid` is False.
        valid: `(batch, moments)` bool, False for label rows without a moment or left over by the assignment.
    """

    query_index: Tensor
    valid: Tensor

    def select(self, values: Tensor) -> Tensor:
        """The assigned spans' values: `(batch, queries, k)` to `(batch, moments, k)`."""
        return values.gather(1, self.query_index[..., None].expand(-1, -1, values.shape[-1]))


@dataclass
class MomentTargets:
    """What one view of a batch is held against.

    Attributes:
        spans_cxw: `(batch, moments, 2)`, -100 in rows without a moment.
        foreground: `(batch, video_len)` bool, the clips that the moments cover.
        video_mask: `(batch, video_len)` bool, real clips.
        margin_pairs: `(batch, video_len, video_len)`, the weight of (foreground clip, background clip) in Eq. 15;
            sums to one in a row that has pairs, to zero in one that has none.
        rows: `(batch,)` bool, rows that take part in this view.
        negative_foreground: `(batch, negatives, video_len)` bool, the clips of the negative queries' own moments.
    """

    spans_cxw: Tensor
    foreground: Tensor
    video_mask: Tensor
    margin_pairs: Tensor
    rows: Tensor
    negative_foreground: Tensor | None = None

    @classmethod
    def from_labels(
        cls,
        labels_cxw: Tensor,
        video_mask: Tensor,
        saliency_labels: Tensor | None = None,
        negative_labels_cxw: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> "MomentTargets":
        """Targets from the model's label tensors; the shapes are those of `BMDetrForMomentRetrieval.forward`."""
        video_mask = video_mask.bool()
        foreground = foreground_clips(labels_cxw, video_mask)
        negative_foreground = None
        if negative_labels_cxw is not None:
            batch, negatives = negative_labels_cxw.shape[:2]
            masks = video_mask[:, None].expand(-1, negatives, -1).flatten(0, 1)
            flat = foreground_clips(negative_labels_cxw.flatten(0, 1), masks)
            negative_foreground = flat.view(batch, negatives, -1)
        return cls(
            spans_cxw=labels_cxw,
            foreground=foreground,
            video_mask=video_mask,
            margin_pairs=margin_pairs(foreground, foreground.logical_not() & video_mask, saliency_labels),
            rows=has_moment(labels_cxw).any(dim=1) if rows is None else rows,
            negative_foreground=negative_foreground,
        )


def masked_mean(values: Tensor, mask: Tensor, count: CountReduction | None = None) -> Tensor:
    """Mean of `values` where `mask` holds; 0 when it holds nowhere. `count` may replace the divisor."""
    mask = mask.to(values.dtype)
    total = (values * mask).sum()
    number = mask.sum()
    return total / (count(number) if count else number).clamp(min=torch.finfo(values.dtype).eps)


def matching_cost(
    logits: Tensor, pred_spans: Tensor, labels_cxw: Tensor, class_cost: float, l1_cost: float, giou_cost: float
) -> Tensor:
    """Eq. 12: minus the foreground probability plus the moment localisation cost of Eq. 14.

    Args:
        logits: `(batch, queries, 2)`.
        pred_spans: `(batch, queries, 2)` (centre, width).
        labels_cxw: `(batch, moments, 2)`.

    Returns:
        `(batch, queries, moments)`; meaningless where a label row holds no moment.
    """
    probability = logits.softmax(dim=-1)[..., FOREGROUND]  # (batch, queries)
    predicted, wanted = pred_spans[:, :, None], labels_cxw[:, None]  # (batch, queries, 1, 2), (batch, 1, moments, 2)
    l1 = (predicted - wanted).abs().sum(dim=-1)
    giou = generalized_temporal_iou(spans_cxw_to_se(predicted), spans_cxw_to_se(wanted))
    return -class_cost * probability[..., None] + l1_cost * l1 - giou_cost * giou


@torch.no_grad()
def match_moments(cost: Tensor, valid: Tensor) -> MatchedMoments:
    """Eq. 13: the one-to-one assignment of spans to moments with the least total cost.

    With one label row a sample, the optimum is an argmin and stays on the device. With several, SciPy's
    `linear_sum_assignment` solves each sample on the CPU. A cost that is not a number counts as very large, so a
    diverged model shows in its loss, not as an error of the solver.

    Args:
        cost: `(batch, queries, moments)` of `matching_cost`.
        valid: `(batch, moments)` bool.

    Raises:
        ImportError: several moments a sample, and SciPy is not installed.
    """
    cost = torch.nan_to_num(cost.float(), nan=1e6, posinf=1e6, neginf=-1e6)
    if cost.shape[2] == 1:
        return MatchedMoments(cost.argmin(dim=1), valid)
    if is_scipy_available():  # where code is loaded from the Hub, an import outside such a block is demanded at once
        from scipy.optimize import linear_sum_assignment
    else:
        raise ImportError("matching several moments a query needs SciPy: pip install scipy")

    costs, valid_rows = cost.cpu().numpy(), valid.cpu().numpy()
    query_index = torch.zeros(valid.shape, dtype=torch.long)
    assigned = torch.zeros(valid.shape, dtype=torch.bool)
    for i in range(len(costs)):
        moments = valid_rows[i].nonzero()[0]
        queries, columns = linear_sum_assignment(costs[i][:, moments])
        query_index[i, moments[columns]] = torch.from_numpy(queries)
        assigned[i, moments[columns]] = True
    return MatchedMoments(query_index.to(valid.device), assigned.to(valid.device))


def class_loss(
    logits: Tensor,
    matched: MatchedMoments,
    no_object_weight: float,
    rows: Tensor,
    count: CountReduction | None = None,
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


def l1_loss(
    pred_spans: Tensor, labels_cxw: Tensor, matched: MatchedMoments, count: CountReduction | None = None
) -> Tensor:
    """First term of Eq. 14: the L1 norm of (centre, width) differences, averaged over matched moments."""
    difference = (matched.select(pred_spans) - labels_cxw).abs().sum(dim=-1)
    return masked_mean(difference.masked_fill(~matched.valid, 0.0), matched.valid, count)


def giou_loss(
    pred_spans: Tensor, labels_cxw: Tensor, matched: MatchedMoments, count: CountReduction | None = None
) -> Tensor:
    """L_iou in Eq. 14: one minus the generalised temporal IoU, averaged over matched moments."""
    labels_cxw = labels_cxw.masked_fill(~matched.valid[..., None], 0.5)  # any proper span keeps gradients finite
    giou = generalized_temporal_iou(spans_cxw_to_se(matched.select(pred_spans)), spans_cxw_to_se(labels_cxw))
    return masked_mean(1 - giou, matched.valid, count)


def margin_pairs(foreground: Tensor, background: Tensor, saliency_labels: Tensor | None = None) -> Tensor:
    """The pairs of clips that Eq. 15 compares, as weights.

    Every (foreground, background) pair of a row weighs the same: the expectation of drawing pairs at random, without
    its noise. Where clips carry saliency ratings that differ, half of the weight goes to the pair of the highest and
    the lowest rated clip, as QVHighlights' annotations are used since Moment-DETR.

    Args:
        foreground, background: `(batch, video_len)` bool.
        saliency_labels: `(batch, video_len)`, -100 where unknown.

    Returns:
        `(batch, video_len, video_len)`, indexed by (foreground clip, background clip); a row sums to one, or to zero
        when it has no pair.
    """
    pairs = (foreground[:, :, None] & background[:, None, :]).float()
    pairs = pairs / pairs.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    if saliency_labels is None:
        return pairs
    known = (saliency_labels != IGNORE) & (foreground | background)  # never padding
    ratings = saliency_labels.float()
    highest = ratings.masked_fill(~known, -torch.inf).argmax(dim=1)
    lowest = ratings.masked_fill(~known, torch.inf).argmin(dim=1)
    row = torch.arange(len(pairs), device=pairs.device)
    differs = known.any(dim=1) & (ratings[row, highest] > ratings[row, lowest])
    rated = torch.zeros_like(pairs)
    rated[row, highest, lowest] = differs.float()
    return torch.where((differs & (pairs.sum(dim=(1, 2)) > 0))[:, None, None], 0.5 * (pairs + rated), pairs + rated)


def frame_margin_loss(
    saliency_scores: Tensor, pairs: Tensor, margin: float, rows: Tensor, count: CountReduction | None = None
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
    count: CountReduction | None = None,
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
    count: CountReduction | None = None,
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


class BMDetrLoss:
    """The overall loss of one view: every term by the paper's name, and their weighted sum.

    Terms: `loss_cls`, `loss_l1`, `loss_iou` (Eq. 14), `loss_margin` (Eq. 15), `loss_prob` (Eq. 16 on the joint
    probability), `loss_prob_positive` and `loss_prob_negative` (Eq. 16 on each factor of Eq. 6), `loss_semantic`
    (Eq. 17). A term whose weight is 0 is computed and logged, and stays in the sum with weight 0, so that every
    parameter has a gradient on every process.

    Args:
        config: Weights, costs, margin and temperature.
        count: Turns the number of rows or moments on this process into the divisor of a mean. Across processes whose
            gradients are averaged, it must return the mean count over the processes.
    """

    def __init__(self, config: BMDetrConfig, count: CountReduction | None = None):
        self.config = config
        self.count = count
        self.weights: dict[str, float] = {
            "loss_cls": config.class_loss_weight,
            "loss_l1": config.l1_loss_weight,
            "loss_iou": config.giou_loss_weight,
            "loss_margin": config.margin_loss_weight,
            "loss_prob": config.probability_loss_weight,
            "loss_prob_positive": config.positive_probability_loss_weight,
            "loss_prob_negative": config.negative_probability_loss_weight,
            "loss_semantic": config.alignment_loss_weight,
        }

    def match(self, logits: Tensor, pred_spans: Tensor, labels_cxw: Tensor) -> MatchedMoments:
        """Eq. 12-13 with the configured costs."""
        cfg = self.config
        cost = matching_cost(logits, pred_spans, labels_cxw, cfg.class_cost, cfg.l1_cost, cfg.giou_cost)
        return match_moments(cost, has_moment(labels_cxw))

    def divisor(self, view: str, what: str) -> CountReduction | None:  # noqa: ARG002 - for subclasses
        """What turns the number of `what`, one of `COUNTS`, in a view into the divisor of its means; None leaves it."""
        return self.count

    def view_weight(self, rows: Tensor, view: str) -> Tensor:  # noqa: ARG002 - for subclasses
        """Weight of a view in the overall loss: the share of rows `(batch,)` bool that take part in it."""
        return rows.float().mean()

    def terms(
        self,
        targets: MomentTargets,
        outputs: Mapping[str, Any],
        negative_mask: Tensor | None = None,
        view: str = "",
        negative_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Every unweighted term of one view.

        Args:
            outputs: The fields of `BMDetrMomentRetrievalOutput`, those of Eq. 4-6 only where the model is
                background-aware and negatives were given.
            negative_mask: `(batch, negatives)` bool, negatives that are present.
            view: One of `VIEWS`.
            negative_weights: `(batch, negatives)`, how much each negative counts; fully when left out.
        """
        cfg, rows = self.config, targets.rows
        count, moment_count = self.divisor(view, "rows"), self.divisor(view, "moments")
        spans, labels = outputs["pred_spans"], targets.spans_cxw
        matched = self.match(outputs["logits"], spans, labels)
        losses = {
            "loss_cls": class_loss(outputs["logits"], matched, cfg.no_object_weight, rows, count),
            "loss_l1": l1_loss(spans, labels, matched, moment_count),
            "loss_iou": giou_loss(spans, labels, matched, moment_count),
            "loss_margin": frame_margin_loss(outputs["saliency_scores"], targets.margin_pairs, cfg.margin, rows, count),
            "loss_semantic": self.alignment(outputs["video_embeds"], outputs["text_embeds"], rows, view),
        }
        if "frame_probabilities" in outputs:
            for name, p in (("loss_prob", "frame_probabilities"), ("loss_prob_positive", "positive_probabilities")):
                losses[name] = frame_probability_loss(outputs[p], targets.foreground, targets.video_mask, rows, count)
        if negative_mask is not None and targets.negative_foreground is not None:
            losses["loss_prob_negative"] = frame_probability_loss(
                outputs["negative_probabilities"].flatten(0, 1),
                targets.negative_foreground.flatten(0, 1),
                targets.video_mask[:, None].expand_as(targets.negative_foreground).flatten(0, 1),
                (negative_mask & rows[:, None]).flatten(),
                self.divisor(view, "negatives"),
                weights=None if negative_weights is None else negative_weights.flatten(),
            )
        return losses

    def alignment(self, video_embeds: Tensor, text_embeds: Tensor, rows: Tensor, view: str = "") -> Tensor:
        """Eq. 17 within this process's batch."""
        cfg, count = self.config, self.divisor(view, "rows")
        return semantic_alignment_loss(
            video_embeds, text_embeds, cfg.temperature, cfg.alignment_denominator, rows, count=count
        )

    def weighted_sum(self, losses: dict[str, Tensor]) -> Tensor:
        """The overall loss (3.5) of one view."""
        return torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
