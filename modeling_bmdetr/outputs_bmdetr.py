"""What the model returns, and its decoder: the fields, their shapes, and who reads them.

Axes are those of the legend in `base_model_bmdetr.py`.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions
from transformers.utils import ModelOutput


@dataclass
class BMDetrModelOutput(ModelOutput):
    """What [`BMDetrModel`] returns for one view of the video.

    Args:
        last_hidden_state: `(batch, queries, hidden)`, decoder output; read by the class and span heads.
        anchors: `(queries, 2)`, learnable spans (centre, width) in (0, 1), or `(batch, queries, 2)` where clips propose
            them; None without learnable spans.
        layer_states: `(batch, layers, queries, hidden)`, the decoder's output after every layer, and
        layer_spans: `(batch, layers, queries, 2)`, the spans (centre, width) refined there; None without
            `span_refinement`.
        proposed_spans: `(batch, video_len, 2)`, the span (start, end) that each clip proposes, and
        proposal_logits: `(batch, video_len)`, the logit of its IoU; None without `clip_proposals`.
        encoder_last_hidden_state: `(batch, video_len + text_len, hidden)`, X+ of Eq. 3; `text_len` is that of the
            negatives where they are padded longer.
        attended_hidden_state: Same shape, X'+ of Eq. 8; read by saliency and alignment. X+ when not background-aware.
        frame_probabilities: `(batch, video_len)`, p of Eq. 6; 0 on padding. None when not background-aware.
        frame_attention: `(batch, video_len)`, o of Eq. 7; sums to one over real clips. None when not background-aware.
        positive_probabilities: `(batch, video_len)`, P(f|Q+) of Eq. 4. None when not background-aware.
        negative_probabilities: `(batch, negatives, video_len)`, P(f|Q-) of Eq. 4, 0 for absent negatives. None
            without negatives.
        clip_logits: `(batch, video_len)`, the dual encoder's logits that clips show what the query says; 0 on padding.
        clip_embeds: `(batch, video_len, facets, dim)`, four of a clip or one of each thing, and
        query_embeds: `(batch, dim)`, whose inner products they are; None without `dual_encoder`.
        shifted: The same outputs for the temporally shifted view, when a frame order was given.
        negative: The same outputs for the negative queries, `(negatives x batch, ...)`, with
            `answer_negatives`; their `positive_probabilities` are P(f|Q-).
        encoder_hidden_states, encoder_attentions, decoder_hidden_states, decoder_attentions, cross_attentions: One
            tensor per layer, when asked for by `output_hidden_states` (what enters the first layer comes before) and
            `output_attentions` (`eager` attention only).
    """

    last_hidden_state: Tensor | None = None
    anchors: Tensor | None = None
    layer_states: Tensor | None = None
    layer_spans: Tensor | None = None
    proposed_spans: Tensor | None = None
    proposal_logits: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    attended_hidden_state: Tensor | None = None
    frame_probabilities: Tensor | None = None
    frame_attention: Tensor | None = None
    positive_probabilities: Tensor | None = None
    negative_probabilities: Tensor | None = None
    clip_logits: Tensor | None = None
    clip_embeds: Tensor | None = None
    query_embeds: Tensor | None = None
    shifted: "BMDetrModelOutput | None" = None
    negative: "BMDetrModelOutput | None" = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class BMDetrMomentRetrievalOutput(ModelOutput):
    """What [`BMDetrForMomentRetrieval`] returns.

    Args:
        loss: Scalar, mean of the weighted sums over the rows of every view; with `labels` only.
        loss_dict: Every unweighted term by the paper's name, those of the shifted view prefixed `shifted_`.
        logits: `(batch, queries, 2)`, class 0 is foreground.
        pred_spans: `(batch, queries, 2)`, (centre, width) in (0, 1) of the time axis.
        scores: `(batch, queries)` in [0, 1], what spans are ranked by, see `config.score`. In evaluation of a
            calibrated model they are probabilities that a span overlaps a described moment with an IoU of at least 0.5.
        quality_logits: `(batch, queries)`, whose sigmoid is the predicted IoU of a span with the best described moment.
            None without a quality head.
        presence_logits: `(batch,)`, whose sigmoid says whether the video shows what the query says at all. None without
            a presence head.
        presence: `(batch,)` in [0, 1]: the probability that the video shows what the query says, in evaluation. Without
            a calibration it is the sigmoid of the logits; None where a calibration could not fit it.
        frame_probabilities, frame_attention, positive_probabilities, negative_probabilities: Eq. 4-7, as in
            [`BMDetrModelOutput`].
        saliency_scores: `(batch, video_len)`, f W of Eq. 15; unbounded, 0 on padding.
        video_embeds, text_embeds: `(batch, dim)` of length one, Eq. 9-11.
        last_hidden_state, encoder_last_hidden_state: Decoder output and X+.
        layers: The outputs of the decoder's earlier layers, of `span_refinement`; read by the losses.
        proposed_spans, proposal_logits, clip_logits, clip_embeds, query_embeds: As in [`BMDetrModelOutput`].
        shifted: The same outputs for the temporally shifted view.
        negative: The same outputs for the negative queries, see [`BMDetrModelOutput`].
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_spans: Tensor | None = None
    scores: Tensor | None = None
    quality_logits: Tensor | None = None
    presence_logits: Tensor | None = None
    presence: Tensor | None = None
    frame_probabilities: Tensor | None = None
    frame_attention: Tensor | None = None
    positive_probabilities: Tensor | None = None
    negative_probabilities: Tensor | None = None
    saliency_scores: Tensor | None = None
    video_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    last_hidden_state: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    layers: "tuple[BMDetrMomentRetrievalOutput, ...] | None" = None
    proposed_spans: Tensor | None = None
    proposal_logits: Tensor | None = None
    clip_logits: Tensor | None = None
    clip_embeds: Tensor | None = None
    query_embeds: Tensor | None = None
    shifted: "BMDetrMomentRetrievalOutput | None" = None
    negative: "BMDetrMomentRetrievalOutput | None" = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class BMDetrDecoderOutput(BaseModelOutputWithCrossAttentions):
    """What [`BMDetrDecoder`] returns: `last_hidden_state` and, with `span_refinement`, of every layer the normalised
    output and the spans (centre, width) refined there, as `layer_states` and `layer_spans` in [`BMDetrModelOutput`]."""

    layer_states: Tensor | None = None
    layer_spans: Tensor | None = None
