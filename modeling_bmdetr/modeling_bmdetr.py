"""BM-DETR: a background-aware moment detection transformer (arXiv:2306.02728), with its heads and its loss.

Shape comments use the axis legend of `base_model_bmdetr.py`.
"""

from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import can_return_tuple

from .background_bmdetr import BMDetrFrameQueryMatcher, attended_frames, joint_probability, stack_queries
from .base_model_bmdetr import BMDetrModel
from .calibration_bmdetr import Calibration, as_calibration
from .configuration_bmdetr import BMDetrConfig
from .layers_bmdetr import BMDetrLinear, BMDetrMLP, masked_softmax
from .loss_bmdetr import build_loss
from .outputs_bmdetr import BMDetrDecoderOutput, BMDetrModelOutput, BMDetrMomentRetrievalOutput
from .ranking_bmdetr import NARROWEST, BMDetrPresenceHead, BMDetrQualityHead
from .saving_bmdetr import SharingMixin
from .targets_bmdetr import MomentTargets
from .transformer_bmdetr import BMDetrDecoder, BMDetrEncoder, BMDetrPreTrainedModel

__all__ = [
    "BMDetrAttentivePooling",
    "BMDetrDecoder",
    "BMDetrDecoderOutput",
    "BMDetrEncoder",
    "BMDetrForMomentRetrieval",
    "BMDetrFrameQueryMatcher",
    "BMDetrModel",
    "BMDetrModelOutput",
    "BMDetrMomentRetrievalOutput",
    "BMDetrPreTrainedModel",
    "attended_frames",
    "joint_probability",
    "span_scores",
    "stack_queries",
]

# What the retrieval model hands on of the base model's outputs.
_HANDED_ON = tuple(
    field.name
    for field in fields(BMDetrModelOutput)
    if field.name in BMDetrMomentRetrievalOutput.__dataclass_fields__ and field.name not in ("shifted", "negative")
)


class BMDetrAttentivePooling(nn.Module):
    """Attentive pooling to one vector of length one, Eq. 9-10.

    `linear` scores by one matrix as written; `gated` puts a tanh layer before it and two projections after, as the
    release does.
    """

    def __init__(self, config: BMDetrConfig):
        super().__init__()
        d = config.hidden_size
        self.gate = self.output = None
        if config.alignment_pooling == "gated":
            self.gate = BMDetrLinear(d, d, bias=False)
            self.output = nn.Sequential(nn.Linear(d, d), nn.Linear(d, config.alignment_dim))
        self.score = nn.Linear(d, 1, bias=False)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """`(batch, length, hidden)` and `(batch, length)` to `(batch, dim)`."""
        gated = states if self.gate is None else torch.tanh(self.gate(states))
        weights = masked_softmax(self.score(gated).squeeze(-1), mask)  # (batch, length)
        pooled = (weights[..., None] * states).sum(dim=1)
        return F.normalize(pooled if self.output is None else self.output(pooled), dim=-1)


def span_scores(logits: Tensor, quality_logits: Tensor | None, score: str, **_: Tensor) -> Tensor:
    """What spans are ranked by: `(batch, queries)` in [0, 1]; see `BMDetrConfig.score`."""
    foreground = logits.float().softmax(dim=-1)[..., 0]
    if quality_logits is None or score == "class":
        return foreground
    quality = quality_logits.sigmoid()
    return quality if score == "quality" else quality * foreground


class BMDetrForMomentRetrieval(SharingMixin, BMDetrPreTrainedModel):  # type: ignore[misc]
    """BM-DETR with its heads and losses: moments and saliency of a video for a query."""

    _auto_class = "AutoModel"

    def __init__(self, config: BMDetrConfig):
        super().__init__(config)
        d = config.hidden_size
        self.model = BMDetrModel(config)
        self.class_head = nn.Linear(d, 2)
        refined = config.learnable_spans and config.span_refinement  # by the decoder
        self.span_head = None if refined else BMDetrMLP(d, d, d, 2)
        self.quality_head = BMDetrQualityHead(config) if config.quality_head else None
        self.presence_head = BMDetrPresenceHead(config) if config.presence_head else None
        self.saliency_head = nn.Linear(d, 1)
        self.video_pooling = BMDetrAttentivePooling(config)
        self.text_pooling = BMDetrAttentivePooling(config)
        self.criterion = build_loss(config)  # called by `forward` with labels, and by the Trainer
        # The configuration's calibration, known to fit the weights.
        self._fitting: tuple[Any, Calibration] | None = None
        as_calibration(config.calibration)  # raises if it is malformed
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        video_features: Tensor,
        video_mask: Tensor,
        text_features: Tensor,
        text_mask: Tensor,
        negative_text_features: Tensor | None = None,
        negative_text_mask: Tensor | None = None,
        shifted_frame_order: Tensor | None = None,
        labels: Tensor | None = None,
        shifted_labels: Tensor | None = None,
        negative_labels: Tensor | None = None,
        saliency_labels: Tensor | None = None,
        negative_weights: Tensor | None = None,
        **kwargs,
    ) -> BMDetrMomentRetrievalOutput:
        """Inputs as in [`BMDetrModel.forward`]; labels make a loss.

        Args:
            labels: `(batch, moments, 2)` (centre, width) in units of the time axis; -100 fills rows without a moment.
            shifted_labels: `(batch, 1, 2)`, the moment in the shifted view; -100 where a row has no shifted view.
            negative_labels: `(batch, negatives, moments, 2)`, the negative queries' own moments in this video; -100
                where there are none, as for queries of other videos. They belong to negative queries, unless
                `config.negative_probability_loss_weight` is 0.
            saliency_labels: `(batch, video_len)` ratings, -100 where unknown.
        """
        output = self.model(
            video_features,
            video_mask,
            text_features,
            text_mask,
            negative_text_features=negative_text_features,
            negative_text_mask=negative_text_mask,
            shifted_frame_order=shifted_frame_order,
            negative_weights=negative_weights,
            return_dict=True,
            **kwargs,
        )
        result = self.predict(output, video_mask, text_mask)
        if not self.training:
            result = BMDetrMomentRetrievalOutput(**{**result, **self.as_probabilities(result)})
        if output.shifted is not None:
            result.shifted = self.predict(output.shifted, video_mask, text_mask)
        if output.negative is not None and negative_text_mask is not None:
            answer = self.answer(output.negative, video_mask.repeat(negative_text_mask.shape[1], 1))
            proposals = {name: output.negative.get(name) for name in ("proposed_spans", "proposal_logits")}
            result.negative = BMDetrMomentRetrievalOutput(**answer, **proposals)
        if labels is not None:
            inputs = {
                "video_mask": video_mask,
                "negative_text_mask": negative_text_mask,
                "shifted_frame_order": shifted_frame_order,
                "labels": labels,
                "shifted_labels": shifted_labels,
                "negative_labels": negative_labels,
                "saliency_labels": saliency_labels,
                "negative_weights": negative_weights,
            }
            loss, loss_dict = self.criterion(result, MomentTargets.from_inputs(self.config, inputs))
            # Rebuilt so that `loss` comes first in `to_tuple()`.
            result = BMDetrMomentRetrievalOutput(loss=loss, loss_dict=loss_dict, **result)
        return result

    def predict(self, output: BMDetrModelOutput, video_mask: Tensor, text_mask: Tensor) -> BMDetrMomentRetrievalOutput:
        """The heads, on one view."""
        video_len = video_mask.shape[1]
        attended = output["attended_hidden_state"]
        frames, words = attended[:, :video_len], attended[:, video_len : video_len + text_mask.shape[1]]
        return BMDetrMomentRetrievalOutput(
            **self.answer(output, video_mask),
            saliency_scores=self.saliency_head(frames).squeeze(-1).masked_fill(~video_mask.bool(), 0.0),
            video_embeds=self.video_pooling(frames, video_mask),
            text_embeds=self.text_pooling(words, text_mask),
            **{name: output.get(name) for name in _HANDED_ON},
        )

    def answer(self, output: BMDetrModelOutput, video_mask: Tensor) -> dict[str, Any]:
        """Spans with their class, quality and score, after every layer that has some, and presence."""
        memory, probabilities = output["encoder_last_hidden_state"], output.get("positive_probabilities")
        frames, clip_logits = memory[:, : video_mask.shape[1]], output.get("clip_logits")
        states, spans = output.get("layer_states"), output.get("layer_spans")
        if states is None:
            states = output["last_hidden_state"][:, None]
        if spans is None:
            assert self.span_head is not None  # it is the decoder that refines
            spans = self.span_head(states).float()
            if (anchors := output.get("anchors")) is not None:
                spans = spans + torch.logit(anchors, eps=NARROWEST).unsqueeze(-3)
            spans = spans.sigmoid()
        layers = []
        for layer_states, layer_spans in zip(states.unbind(dim=1), spans.unbind(dim=1), strict=True):
            logits, quality = self.class_head(layer_states), None
            if self.quality_head is not None:
                quality = self.quality_head(layer_states, layer_spans, frames, probabilities, video_mask, clip_logits)
            layers.append({"logits": logits, "pred_spans": layer_spans, "quality_logits": quality})
        answer: dict[str, Any] = {**layers[-1], "scores": span_scores(**layers[-1], score=self.config.score)}
        if self.presence_head is not None:
            foreground, background = layers[-1]["logits"].float().unbind(dim=-1)
            sure = foreground - background if layers[-1]["quality_logits"] is None else layers[-1]["quality_logits"]
            answer["presence_logits"] = self.presence_head(sure, spans[:, -1], probabilities, video_mask, clip_logits)
        if len(layers) > 1:
            answer["layers"] = tuple(BMDetrMomentRetrievalOutput(**layer) for layer in layers[:-1])
        return answer

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of the configuration, once it is known to be that of these weights.

        Raises:
            ValueError: it was fitted for other weights.
        """
        values = self.config.calibration
        if values is None:
            return None
        if self._fitting is None or self._fitting[0] is not values:
            calibration = Calibration.from_dict(values)
            if not torch.compiler.is_compiling():
                calibration.require_weights(self)
            self._fitting = values, calibration
        return self._fitting[1]

    def train(self, mode: bool = True) -> "BMDetrForMomentRetrieval":
        if mode:
            self._fitting = None  # the weights may become others
        return super().train(mode)

    def as_probabilities(self, output: BMDetrMomentRetrievalOutput) -> dict[str, Tensor | None]:
        """`scores` and `presence` of an output, calibrated where the model is."""
        logits, calibration = output.get("presence_logits"), self.calibration
        if calibration is not None:
            scores, presence = calibration.apply(output["scores"], logits)
            return {"scores": scores, "presence": presence}
        return {} if logits is None else {"presence": logits.float().sigmoid()}
