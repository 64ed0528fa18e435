"""The loss of BM-DETR (3.5): the table of its terms, and their weighted sum over the views of a batch.

A new loss is one function of an equation, one line in `LOSS_TERMS` and one weight in `BMDetrConfig`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .configuration_bmdetr import BMDetrConfig
from .dual_encoder_bmdetr import pair_logits, video_logits
from .matching_bmdetr import BACKGROUND, FOREGROUND, MatchedMoments, match_moments, matching_cost
from .paper_losses_bmdetr import (
    class_loss,
    frame_margin_loss,
    frame_probability_loss,
    giou_loss,
    l1_loss,
    masked_mean,
    semantic_alignment_loss,
)
from .plugins_bmdetr import registered_loss
from .ranking_losses_bmdetr import (
    best_overlap,
    contrast_loss,
    fit_loss,
    presence_loss,
    proposal_loss,
    proposal_quality_loss,
    quality_loss,
    retrieval_loss,
)
from .spans_bmdetr import has_moment
from .targets_bmdetr import COUNTS, VIEWS, GatheredTexts, MomentTargets, ViewTargets, margin_pairs

__all__ = [
    "BACKGROUND",
    "COUNTS",
    "FOREGROUND",
    "LOSS_TERMS",
    "VIEWS",
    "BMDetrLoss",
    "GatheredTexts",
    "LossInputs",
    "LossTerm",
    "MatchedMoments",
    "MomentTargets",
    "ViewTargets",
    "build_loss",
    "class_loss",
    "frame_margin_loss",
    "frame_probability_loss",
    "giou_loss",
    "l1_loss",
    "margin_pairs",
    "masked_mean",
    "match_moments",
    "matching_cost",
    "semantic_alignment_loss",
]


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

    @cached_property
    def pairs(self) -> Tensor:
        """[`pair_logits`] of the batch, which two terms read."""
        return pair_logits(self.outputs["clip_embeds"], self.outputs["query_embeds"])

    def contrast_loss(self) -> Tensor:
        """The dual encoder's clips against the queries of the batch, or of all processes."""
        targets, texts = self.targets, self.targets.texts
        return contrast_loss(
            self.pairs if texts is None else pair_logits(self.outputs["clip_embeds"], texts.queries),
            targets.foreground,
            targets.video_mask,
            targets.rows,
            0 if texts is None else texts.offset,
            self.counts.get("rows"),
        )

    def retrieval_loss(self) -> Tensor:
        """The dual encoder's videos against the queries of the batch, or all against all of all processes."""
        targets, texts = self.targets, self.targets.texts
        if texts is not None:
            return retrieval_loss(texts.video_logits, targets.present, texts.offset, self.counts.get("present"))
        of_videos = video_logits(self.pairs, targets.video_mask[:, None])
        return retrieval_loss(of_videos, targets.present, 0, self.counts.get("present"))

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
    "loss_contrast": LossTerm("contrast_loss_weight", LossInputs.contrast_loss, needs="clip_embeds", per="batch"),
    "loss_retrieval": LossTerm("retrieval_loss_weight", LossInputs.retrieval_loss, needs="clip_embeds", per="batch"),
}
_VIEW_OUTPUTS = dict(zip(VIEWS[1:], ("shifted", "negative"), strict=True))


class BMDetrLoss:
    """The overall loss (3.5): the weighted sum of every term of every view, averaged over the rows of the views.

    A term whose weight is 0 is computed and logged, and stays in the sum with weight 0, so that every parameter has a
    gradient on every process.

    A loss of your own adds terms to the table of a subclass. It has a name by which configurations ask for it, or
    belongs to one model (`model.criterion`) or Trainer (`BMDetrTrainer(..., criterion=)`):

    ```python
    class MyLoss(BMDetrLoss):
        terms = {**BMDetrLoss.terms, "loss_width": LossTerm(0.5, lambda x: x.outputs["pred_spans"][..., 1].mean())}

    register_loss("mine", MyLoss)  # BMDetrConfig(loss="mine")
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


def build_loss(config: BMDetrConfig) -> Any:
    """The loss that a configuration asks for by name, or BM-DETR's."""
    return BMDetrLoss(config) if config.loss is None else registered_loss(config.loss, config)
