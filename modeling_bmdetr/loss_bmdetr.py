"""Matching and losses of BM-DETR: one function an equation (Eq. 12-17), and their weighted sum.

Every function takes plain tensors and explicit masks, so each can be used and tested alone. Rows that hold no moment
are marked by masks, never by Python control flow: with one moment per row nothing here waits for the device.

A new loss is one function of an equation, one line in `LOSS_TERMS` and one weight in `BMDetrConfig`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import is_scipy_available
from transformers.utils.generic import maybe_autocast

from .configuration_bmdetr import BMDetrConfig
from .input_checks_bmdetr import check_labels
from .ranking_losses_bmdetr import (
    best_overlap,
    fit_loss,
    presence_loss,
    proposal_loss,
    proposal_quality_loss,
    quality_loss,
)
from .spans_bmdetr import (
    IGNORE,
    foreground_clips,
    generalized_temporal_iou,
    has_moment,
    spans_cxw_to_se,
)

FOREGROUND, BACKGROUND = 0, 1  # class indices of `logits`

# Log prefixes: the query in both views of a video, and the negative queries where they are answered as well.
VIEWS = ("", "shifted_", "negative_")
COUNTS = ("rows", "present", "moments", "negatives")  # what losses are averaged over


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
class ViewTargets:
    """What one view of a batch is compared with.

    Attributes:
        spans_cxw: `(batch, moments, 2)`, -100 in label rows without a moment.
        foreground: `(batch, video_len)` bool, the clips that the moments cover.
        video_mask: `(batch, video_len)` bool, real clips.
        margin_pairs: `(batch, video_len, video_len)`, the weight of (foreground clip, background clip) in Eq. 15;
            sums to one in a row that has pairs, to zero in one that has none.
        rows: `(batch,)` bool, rows that take part in this view.
        present: `(batch,)` bool, those of them that have a moment: the others are absent, the video does not show what
            they say.
        negative_foreground: `(batch, negatives, video_len)` bool, the clips of the negative queries' own moments.
        texts: The queries of all processes, which Eq. 17 contrasts with; None contrasts with those of the batch.
    """

    spans_cxw: Tensor
    foreground: Tensor
    video_mask: Tensor
    margin_pairs: Tensor
    rows: Tensor
    present: Tensor
    negative_foreground: Tensor | None = None
    texts: "GatheredTexts | None" = None

    @classmethod
    def from_labels(
        cls,
        labels_cxw: Tensor,
        video_mask: Tensor,
        saliency_labels: Tensor | None = None,
        negative_labels_cxw: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> "ViewTargets":
        """Targets from the model's label tensors; the shapes are those of `BMDetrForMomentRetrieval.forward`."""
        video_mask = video_mask.bool()
        if not labels_cxw.shape[1]:  # no moment in any row
            labels_cxw = labels_cxw.new_full((len(labels_cxw), 1, 2), IGNORE)
        foreground = foreground_clips(labels_cxw, video_mask)
        negative_foreground = None
        if negative_labels_cxw is not None:
            batch, negatives = negative_labels_cxw.shape[:2]
            masks = video_mask[:, None].expand(-1, negatives, -1).flatten(0, 1)
            flat = foreground_clips(negative_labels_cxw.flatten(0, 1), masks)
            negative_foreground = flat.view(batch, negatives, -1)
        present = has_moment(labels_cxw).any(dim=1)
        return cls(
            spans_cxw=labels_cxw,
            foreground=foreground,
            video_mask=video_mask,
            margin_pairs=margin_pairs(foreground, foreground.logical_not() & video_mask, saliency_labels),
            rows=present if rows is None else rows,
            present=present if rows is None else present & rows,
            negative_foreground=negative_foreground,
        )


class GatheredTexts(NamedTuple):
    """Text embeddings of all processes: `embeds (texts, dim)`, `rows (texts,)` bool, those that count, and the
    `offset` of this process's first one."""

    embeds: Tensor
    rows: Tensor
    offset: int


@dataclass
class MomentTargets:
    """What a batch is compared with, made once from its labels.

    Attributes:
        views: The targets of each view that has labels, by its prefix in `VIEWS`.
        negative_mask: `(batch, negatives)` bool, negatives that are present; None without negatives.
        negative_weights: `(batch, negatives)`, how much each negative counts; fully when None.
    """

    views: dict[str, ViewTargets]
    negative_mask: Tensor | None = None
    negative_weights: Tensor | None = None

    @classmethod
    def from_inputs(cls, config: BMDetrConfig, inputs: Mapping[str, Any]) -> "MomentTargets":
        """Targets from the arguments of [`BMDetrForMomentRetrieval.forward`].

        Raises:
            ValueError: labels that cannot be right, by name.
        """
        negative_text_mask = inputs.get("negative_text_mask") if config.background_aware else None
        negative_labels = None if negative_text_mask is None else inputs.get("negative_labels")
        labels, video_mask = inputs["labels"], inputs["video_mask"]
        order, shifted_labels = inputs.get("shifted_frame_order"), inputs.get("shifted_labels")
        saliency_labels = inputs.get("saliency_labels")
        num_negatives = 0 if negative_text_mask is None else negative_text_mask.shape[1]
        check_labels(config, labels, video_mask, order, shifted_labels, negative_labels, saliency_labels, num_negatives)
        every_row = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        original = ViewTargets.from_labels(labels, video_mask, saliency_labels, negative_labels, every_row)
        views = {VIEWS[0]: original}
        if order is not None and shifted_labels is not None:
            shifted = views[VIEWS[1]] = ViewTargets.from_labels(shifted_labels, video_mask)
            if original.negative_foreground is not None:  # the clips of the negatives' moments moved as well
                order = order[:, None].expand_as(original.negative_foreground)
                shifted.negative_foreground = original.negative_foreground.gather(2, order)
        if config.answer_negatives and negative_text_mask is not None and negative_labels is not None:
            views[VIEWS[2]] = ViewTargets.from_labels(
                negative_labels.transpose(0, 1).flatten(0, 1),
                video_mask.repeat(num_negatives, 1),
                rows=negative_text_mask.any(dim=-1).T.flatten(),
            )
        return cls(
            views,
            negative_mask=None if negative_text_mask is None else negative_text_mask.any(dim=-1),
            negative_weights=inputs.get("negative_weights"),
        )


def masked_mean(values: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean of `values` where `mask` holds; 0 when it holds nowhere. `count` takes the place of the divisor."""
    mask = mask.to(values.dtype)
    number = mask.sum() if count is None else count.to(values.dtype)
    return (values * mask).sum() / number.clamp(min=torch.finfo(values.dtype).eps)


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
        raise ImportError("matching several moments per query needs SciPy: pip install scipy")

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


@dataclass
class LossInputs:
    """What the terms of one view are computed from.

    Attributes:
        config: Costs, margin and temperature.
        outputs: The fields of `BMDetrMomentRetrievalOutput` of this view.
        targets: What they are compared with.
        matched: Eq. 13, the span assigned to each moment.
        negative_mask, negative_weights: As in [`MomentTargets`].
        counts: The number of rows, moments and negatives (`COUNTS`) that means divide by; empty for the batch's own.
    """

    config: BMDetrConfig
    outputs: Mapping[str, Any]
    targets: ViewTargets
    matched: MatchedMoments
    negative_mask: Tensor | None = None
    negative_weights: Tensor | None = None
    counts: dict[str, Tensor] = field(default_factory=dict)

    def probability_loss(self, name: str) -> Tensor:
        """Eq. 16 on the probabilities of this name."""
        targets = self.targets
        return frame_probability_loss(
            self.outputs[name], targets.foreground, targets.video_mask, targets.rows, self.counts.get("rows")
        )

    def negative_probability_loss(self) -> Tensor | None:
        """Eq. 16 on P(f|Q-), each negative query against its own moments."""
        targets, mask = self.targets, self.negative_mask
        if mask is None or targets.negative_foreground is None:
            return None
        return frame_probability_loss(
            self.outputs["negative_probabilities"].flatten(0, 1),
            targets.negative_foreground.flatten(0, 1),
            targets.video_mask[:, None].expand_as(targets.negative_foreground).flatten(0, 1),
            (mask & targets.rows[:, None]).flatten(),
            self.counts.get("negatives"),
            weights=None if self.negative_weights is None else self.negative_weights.flatten(),
        )

    def alignment_loss(self) -> Tensor:
        """Eq. 17 against the queries of the batch, or of all processes."""
        rows = self.targets.present
        texts = self.targets.texts or GatheredTexts(self.outputs["text_embeds"], rows, 0)
        return semantic_alignment_loss(
            self.outputs["video_embeds"],
            texts.embeds,
            self.config.temperature,
            self.config.alignment_denominator,
            rows,
            columns=texts.rows,
            offset=texts.offset,
            count=self.counts.get("present"),
        )

    def proposal_loss(self) -> Tensor:
        """Eq. 14 on the spans that clips propose."""
        targets, cfg = self.targets, self.config
        return proposal_loss(
            self.outputs["proposed_spans"],
            targets.spans_cxw,
            targets.foreground,
            targets.present,
            cfg.l1_loss_weight,
            cfg.giou_loss_weight,
            targets.video_mask,
            self.counts.get("present"),
        )

    def proposal_quality_loss(self) -> Tensor:
        """The quality of the spans that clips propose."""
        targets = self.targets
        return proposal_quality_loss(
            self.outputs["proposed_spans"],
            self.outputs["proposal_logits"],
            targets.spans_cxw,
            targets.foreground,
            targets.video_mask,
            targets.rows,
            self.counts.get("rows"),
        )


class LossTerm(NamedTuple):
    """One term of the loss of a view.

    Attributes:
        weight: The field of [`BMDetrConfig`] that holds its weight, or the weight itself.
        compute: The term of a view; None where there is nothing to compute it from.
        needs: The output without which there is no such term.
        of_spans: Whether it compares spans, of which every layer of the decoder may have its own.
        per: What the term is a mean over, one of `COUNTS`; "batch" where it depends on the other rows of a batch, so
            that the loss of an evaluation leaves it out.
    """

    weight: str | float
    compute: Callable[[LossInputs], Tensor | None]
    needs: str = "logits"
    of_spans: bool = False
    per: str = "rows"


LOSS_TERMS: dict[str, LossTerm] = {
    "loss_cls": LossTerm(
        "class_loss_weight",
        lambda x: class_loss(
            x.outputs["logits"], x.matched, x.config.no_object_weight, x.targets.rows, x.counts.get("rows")
        ),
        of_spans=True,
    ),
    "loss_l1": LossTerm(  # Eq. 14, first term
        "l1_loss_weight",
        lambda x: l1_loss(x.outputs["pred_spans"], x.targets.spans_cxw, x.matched, x.counts.get("moments")),
        per="moments",
        of_spans=True,
    ),
    "loss_iou": LossTerm(  # Eq. 14, second term
        "giou_loss_weight",
        lambda x: giou_loss(x.outputs["pred_spans"], x.targets.spans_cxw, x.matched, x.counts.get("moments")),
        per="moments",
        of_spans=True,
    ),
    "loss_margin": LossTerm(  # Eq. 15
        "margin_loss_weight",
        lambda x: frame_margin_loss(
            x.outputs["saliency_scores"],
            x.targets.margin_pairs,
            x.config.margin,
            x.targets.present,
            x.counts.get("present"),
        ),
        needs="saliency_scores",
        per="present",
    ),
    "loss_semantic": LossTerm(  # Eq. 17
        "alignment_loss_weight", LossInputs.alignment_loss, needs="video_embeds", per="batch"
    ),
    "loss_prob": LossTerm(  # Eq. 16 on the joint probability
        "probability_loss_weight", lambda x: x.probability_loss("frame_probabilities"), needs="frame_probabilities"
    ),
    "loss_prob_positive": LossTerm(  # Eq. 16 on each factor of Eq. 6
        "positive_probability_loss_weight",
        lambda x: x.probability_loss("positive_probabilities"),
        needs="positive_probabilities",
    ),
    "loss_prob_negative": LossTerm(
        "negative_probability_loss_weight",
        LossInputs.negative_probability_loss,
        needs="negative_probabilities",
        per="negatives",
    ),
    "loss_fit": LossTerm(
        "fit_loss_weight",
        lambda x: (
            fit_loss(
                x.outputs["pred_spans"],
                x.targets.spans_cxw,
                x.targets.present,
                x.config.l1_loss_weight,
                x.config.giou_loss_weight,
                x.counts.get("present"),
            )
            if x.config.fit_loss_weight
            else None
        ),
        per="present",
        of_spans=True,
    ),
    "loss_quality": LossTerm(
        "quality_loss_weight",
        lambda x: quality_loss(
            x.outputs["quality_logits"],
            best_overlap(x.outputs["pred_spans"], x.targets.spans_cxw),
            x.targets.rows,
            x.counts.get("rows"),
        ),
        needs="quality_logits",
        of_spans=True,
    ),
    "loss_presence": LossTerm(
        "presence_loss_weight",
        lambda x: presence_loss(x.outputs["presence_logits"], x.targets.present, x.targets.rows, x.counts.get("rows")),
        needs="presence_logits",
    ),
    "loss_proposals": LossTerm("proposal_loss_weight", LossInputs.proposal_loss, needs="proposed_spans", per="present"),
    "loss_proposal_quality": LossTerm("quality_loss_weight", LossInputs.proposal_quality_loss, needs="proposed_spans"),
}
_VIEW_OUTPUTS = dict(zip(VIEWS[1:], ("shifted", "negative"), strict=True))


class BMDetrLoss:
    """The overall loss (3.5): the weighted sum of every term of every view, averaged over the rows of the views.

    A term whose weight is 0 is computed and logged, and stays in the sum with weight 0, so that every parameter has a
    gradient on every process.

    A loss of your own adds terms to the table of a subclass; it belongs to the model (`model.criterion`) or to the
    Trainer (`BMDetrTrainer(..., criterion=)`):

    ```python
    class MyLoss(BMDetrLoss):
        terms = {**BMDetrLoss.terms, "loss_width": LossTerm(0.5, lambda x: x.outputs["pred_spans"][..., 1].mean())}
    ```

    Args:
        config: Weights, costs, margin and temperature.

    Attributes:
        terms: The terms, by the names under which they are logged.
        weights: The weight of each, by the same name.
    """

    terms: Mapping[str, LossTerm] = LOSS_TERMS

    def __init__(self, config: BMDetrConfig):
        self.config = config
        self.weights: dict[str, float] = {
            name: getattr(config, term.weight) if isinstance(term.weight, str) else term.weight
            for name, term in self.terms.items()
        }

    def __call__(
        self, outputs: Mapping[str, Any], targets: MomentTargets, counts: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The overall loss, and every unweighted term without gradient, those of the shifted view under `shifted_`.

        Args:
            outputs: A `BMDetrMomentRetrievalOutput`.
            targets: What it is compared with.
            counts: `(views, counts)` in the order of `VIEWS` and `COUNTS`, what the terms are means over, where the
                batch is a part of a larger one: the *mean* numbers of all parts, so that the mean of the parts' losses
                (and gradients) is that of the whole. The batch's own numbers when left out.
        """
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=outputs["logits"].device))
        shares: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=outputs["logits"].device))
        logged = {}
        for prefix, view_targets in targets.views.items():
            view = outputs[_VIEW_OUTPUTS[prefix]] if prefix else outputs
            if view is None:
                continue
            numbers = {} if counts is None else dict(zip(COUNTS, counts[VIEWS.index(prefix)], strict=True))
            terms = self.view_terms(view, view_targets, targets.negative_mask, targets.negative_weights, numbers)
            whole = len(outputs["logits"]) if counts is None else counts[0, 0]
            share = numbers.get("rows", view_targets.rows.float().sum()) / whole
            for name, term in terms.items():
                sums[name] = sums[name] + share * term
                shares[name] = shares[name] + share
                logged[prefix + name] = term.detach()
        means = {name: total / shares[name].clamp(min=torch.finfo().tiny) for name, total in sums.items()}
        return self.weighted_sum(means), logged

    def view_terms(
        self,
        outputs: Mapping[str, Any],
        targets: ViewTargets,
        negative_mask: Tensor | None = None,
        negative_weights: Tensor | None = None,
        counts: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Every unweighted term of one view; the arguments are the fields of [`LossInputs`].

        Terms of spans (`LossTerm.of_spans`) are sums over the decoder's layers where these have spans of their own.
        """
        values: dict[str, Tensor] = {}
        for layer in (*(outputs.get("layers") or ()), outputs):
            matched = self.match(layer["logits"], layer["pred_spans"], targets.spans_cxw)
            inputs = LossInputs(self.config, layer, targets, matched, negative_mask, negative_weights, counts or {})
            for name, term in self.terms.items():
                if (layer is not outputs and not term.of_spans) or layer.get(term.needs) is None:
                    continue
                if (value := term.compute(inputs)) is not None:
                    values[name] = values[name] + value if name in values else value
        return values

    def match(self, logits: Tensor, pred_spans: Tensor, labels_cxw: Tensor) -> MatchedMoments:
        """Eq. 12-13 with the configured costs."""
        cfg = self.config
        cost = matching_cost(logits, pred_spans, labels_cxw, cfg.class_cost, cfg.l1_cost, cfg.giou_cost)
        return match_moments(cost, has_moment(labels_cxw))

    def weighted_sum(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss of one view from its terms."""
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
