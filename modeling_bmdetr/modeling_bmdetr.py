"""BM-DETR: a background-aware moment detection transformer (arXiv:2306.02728).

Axis legend, used by every shape comment below:
    batch      video-query pairs            video_len  clips, padded       text_len  tokens, padded
    negatives  negative queries a pair      queries    learnable spans M   hidden    model width d
    passes     what one encoder call sees: (1 + negatives) x views x batch
    views      1, or 2 with temporal shifting: the video as it is, and with its frames in another order

Masks are 1 = real everywhere; they are turned into attention masks in one place, by transformers' mask functions.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithCrossAttentions
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .calibration_bmdetr import Calibration, as_calibration
from .configuration_bmdetr import BMDetrConfig
from .input_checks_bmdetr import check_model_inputs, check_no_stray_tensors
from .layers_bmdetr import (
    BMDetrAttention,
    BMDetrDecoderCrossAttention,
    BMDetrDecoderLayer,
    BMDetrDecoderSelfAttention,
    BMDetrEncoderAttention,
    BMDetrEncoderLayer,
    BMDetrMLP,
    BMDetrProjection,
    embed_spans,
    endpoint_features,
    masked_softmax,
    video_positions,
)
from .loss_bmdetr import BMDetrLoss, MomentTargets
from .ranking_bmdetr import NARROWEST, BMDetrClipProposals, BMDetrPresenceHead, BMDetrQualityHead
from .saving_bmdetr import SharingMixin


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
        shifted: The same outputs for the temporally shifted view, when a frame order was given.
        negative: The same outputs for the negative queries, `(negatives x batch, ...)`, with
            `answer_negatives`; their `positive_probabilities` are P(f|Q-).
        encoder_hidden_states, encoder_attentions, decoder_hidden_states, decoder_attentions, cross_attentions: One
            tensor a layer, when asked for by `output_hidden_states` (what enters the first layer comes before) and
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
        proposed_spans, proposal_logits: As in [`BMDetrModelOutput`].
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


class BMDetrPreTrainedModel(PreTrainedModel):
    """Weight initialisation, and what the library may do with the model."""

    config: BMDetrConfig
    base_model_prefix = "model"
    main_input_name = "video_features"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BMDetrEncoderLayer", "BMDetrDecoderLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True
    # The loss is a mean over a batch; without this the Trainer takes it for a sum over accumulated batches.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Xavier for every matrix of encoder and decoder, N(0, 1) for anchors, torch's defaults elsewhere."""
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            gain = getattr(module, "xavier_gain", None)
            if gain is None:
                init.uniform_(module.weight, -bound, bound)
            else:
                init.xavier_uniform_(module.weight, gain=gain)
            if (start := getattr(module, "start_bias", None)) is not None:
                init.constant_(module.bias, start)
            elif module.bias is not None and getattr(module, "zero_bias", False):
                init.zeros_(module.bias)
            elif module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, nn.PReLU):
            init.constant_(module.weight, 0.25)
        else:
            super()._init_weights(module)

    def mark_for_xavier(self) -> None:
        """Tags the matrices below this module for `_init_weights`, which sees single layers, not where they stand."""
        for module in self.modules():
            if isinstance(module, nn.Linear) and not hasattr(module, "xavier_gain"):
                module.xavier_gain = 1.0  # type: ignore[assignment]
            if isinstance(module, BMDetrAttention):
                module.o_proj.zero_bias = True  # type: ignore[assignment]
            if isinstance(module, BMDetrEncoderAttention):
                for linear in (module.q_proj, module.k_proj, module.v_proj):
                    # The release draws the three as one matrix of three times the rows.
                    linear.xavier_gain, linear.zero_bias = 2**-0.5, True  # type: ignore[assignment]


class BMDetrEncoder(BMDetrPreTrainedModel):
    """E of Eq. 2-3: encoder over [video; text] whose positions are scaled, layer by layer, by the content."""

    _can_record_outputs = {
        "hidden_states": BMDetrEncoderLayer,
        "attentions": OutputRecorder(BMDetrEncoderAttention, index=1),
    }

    def __init__(self, config: BMDetrConfig):
        super().__init__(config)
        self.layers = nn.ModuleList([BMDetrEncoderLayer(config) for _ in range(config.encoder_layers)])
        self.position_scale = BMDetrMLP(*[config.hidden_size] * 3)
        self.mark_for_xavier()
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        positions: Tensor,
        whole_passes: int | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """
        Args:
            inputs_embeds: `(passes, video_len + text_len, hidden)`.
            attention_mask: `(passes, video_len + text_len)`.
            positions: `(passes, video_len, hidden)`; text has none.
            whole_passes: How many passes, counted from the first, are read whole; all when left out. Of the others only
                the clips are, so that the last layer computes nothing else of them, and 0 stands for their text.
        """
        hidden_states, video_len = inputs_embeds, positions.shape[1]
        no_positions = (0, 0, 0, inputs_embeds.shape[1] - video_len)
        mask = create_bidirectional_mask(self.config, inputs_embeds, attention_mask)
        for i, layer in enumerate(self.layers):
            scaled = positions * self.position_scale(hidden_states[:, :video_len])
            scaled = F.pad(scaled, no_positions)
            if whole_passes is None or i + 1 < len(self.layers):
                hidden_states = layer(hidden_states, scaled, mask, **kwargs)
                continue
            whole, rest = slice(whole_passes), slice(whole_passes, None)
            masks = (None, None) if mask is None else (mask[whole], mask[rest])
            clips = layer(hidden_states[rest], scaled[rest], masks[1], outputs=video_len, **kwargs)
            hidden_states = layer(hidden_states[whole], scaled[whole], masks[0], **kwargs)
            hidden_states = torch.cat((hidden_states, F.pad(clips, no_positions)))
        return BaseModelOutput(last_hidden_state=hidden_states)


class BMDetrDecoder(BMDetrPreTrainedModel):
    """Decoder (3.3.4). Its queries are spans whose width modulates the attention, or learned embeddings."""

    _can_record_outputs = {
        "hidden_states": BMDetrDecoderLayer,
        "attentions": OutputRecorder(BMDetrDecoderSelfAttention, index=1),
        "cross_attentions": OutputRecorder(BMDetrDecoderCrossAttention, index=1),
    }

    def __init__(self, config: BMDetrConfig):
        super().__init__(config)
        d = config.hidden_size
        self.layers = nn.ModuleList([BMDetrDecoderLayer(config, is_first=i == 0) for i in range(config.decoder_layers)])
        self.norm = nn.LayerNorm(d)
        self.spans = config.learnable_spans
        if self.spans:
            self.span_position = BMDetrMLP(d, d, d)  # embedded span -> query position
            self.span_width = BMDetrMLP(
                d, d, 2
            )  # content -> width of the attention; the release's second value is idle
            if config.decoder_layers > 1:
                self.span_scale = BMDetrMLP(d, d, d)  # content -> scale of each feature, from the second layer on
        self.span_updates = None
        if config.learnable_spans and config.span_refinement:
            self.span_updates = nn.ModuleList([BMDetrMLP(d, d, d, 2) for _ in self.layers])
            for update in self.span_updates:  # at first, spans stay where they start
                last: Any = list(update.children())[-1]
                last.xavier_gain, last.zero_bias = 0.0, True
        self.mark_for_xavier()
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        queries: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        memory_positions: Tensor,
        contents: Tensor | None = None,
        **kwargs,
    ) -> BMDetrDecoderOutput:
        """
        Args:
            queries: `([batch,] queries, 2)` spans (centre, width) in (0, 1), or `(queries, hidden)` embeddings.
            encoder_hidden_states, memory_positions: `(batch, video_len + text_len, hidden)`.
            encoder_attention_mask: `(batch, video_len + text_len)`.
            contents: `(batch, queries, hidden)`, what the queries start from; zero when left out.
        """
        memory = encoder_hidden_states
        batch, hidden = memory.shape[0], memory.shape[-1]
        hidden_states = memory.new_zeros(batch, queries.shape[-2], hidden) if contents is None else contents
        mask = create_bidirectional_mask(
            self.config,
            inputs_embeds=hidden_states,
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=memory,
        )
        queries = queries.expand(batch, -1, -1)
        query_positions = self.span_position(embed_spans(queries, hidden, memory.dtype)) if self.spans else queries
        states, spans = [], []
        for i, layer in enumerate(self.layers):
            span_embedding = self.modulated_spans(queries, hidden_states, is_first=i == 0) if self.spans else None
            hidden_states = layer(
                hidden_states, query_positions, span_embedding, memory, memory_positions, mask, **kwargs
            )
            if self.span_updates is not None:
                states.append(self.norm(hidden_states))
                spans.append((self.span_updates[i](states[-1]).float() + torch.logit(queries, eps=NARROWEST)).sigmoid())
                queries = spans[-1].detach().clamp(min=NARROWEST)
                query_positions = self.span_position(embed_spans(queries, hidden, memory.dtype))
        if not states:
            return BMDetrDecoderOutput(last_hidden_state=self.norm(hidden_states))
        return BMDetrDecoderOutput(
            last_hidden_state=states[-1], layer_states=torch.stack(states, dim=1), layer_spans=torch.stack(spans, dim=1)
        )

    def modulated_spans(self, spans: Tensor, hidden_states: Tensor, is_first: bool) -> Tensor:
        """The embedded spans, scaled by the content and by the ratio of a predicted to the span's own width."""
        ratio = self.span_width(hidden_states)[..., :1].sigmoid() / spans[..., 1:].to(hidden_states.dtype)
        embedding = embed_spans(spans, hidden_states.shape[-1], hidden_states.dtype) * ratio
        return embedding if is_first else embedding * self.span_scale(hidden_states)


class BMDetrFrameQueryMatcher(nn.Module):
    """Probabilistic frame-query matcher, Eq. 5: sigmoid(tanh(f W1) W2)."""

    def __init__(self, config: BMDetrConfig):
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.hidden_size // 2, bias=False)
        self.w2 = nn.Linear(config.hidden_size // 2, 1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        """`(..., video_len, hidden)` to probabilities `(..., video_len)`."""
        # A sigmoid rounded to bfloat16 is one, without gradient, from 0.998 on.
        return self.w2(torch.tanh(self.w1(frames))).squeeze(-1).float().sigmoid()


def joint_probability(positive: Tensor, negative: Tensor, weights: Tensor) -> Tensor:
    """Eq. 1 and 6: P(f|Q+) times the complement of P(f|Q-), over all negatives.

    Args:
        positive: `(..., video_len)`.
        negative: `(..., negatives, video_len)`.
        weights: `(..., negatives)`, how much each negative counts: 1 fully, 0 (or False) where there is none.
    """
    joint = positive
    for i in range(negative.shape[-2]):  # the gradient of `prod` waits for the device; `unbind` of none cannot be saved
        joint = joint * (1 - negative[..., i, :] * weights[..., i, None])
    return joint


def attended_frames(frames: Tensor, attention: Tensor, video_mask: Tensor, scale: str) -> Tensor:
    """Eq. 8: frames `(..., batch, video_len, hidden)` times o, or times o x n (`scale="mean_one"`)."""
    if scale == "mean_one":
        attention = attention * video_mask.sum(dim=1, keepdim=True)
    return frames * attention[..., None].to(frames.dtype)


class BMDetrModel(BMDetrPreTrainedModel):
    """Projections, encoder, frame-query matcher and decoder; no heads."""

    def __init__(self, config: BMDetrConfig):
        super().__init__(config)
        endpoints = 2 if config.endpoint_features else 0
        self.video_projection = BMDetrProjection(config, config.video_dim + endpoints)
        self.text_projection = BMDetrProjection(config, config.text_dim)
        self.encoder = BMDetrEncoder(config)
        self.frame_query_matcher = BMDetrFrameQueryMatcher(config) if config.background_aware else None
        self.clip_proposals = self.query_embedding = None
        if config.learnable_spans and config.clip_proposals:
            self.clip_proposals = BMDetrClipProposals(config)
        else:
            self.query_embedding = nn.Embedding(config.num_queries, 2 if config.learnable_spans else config.hidden_size)
        self.decoder = BMDetrDecoder(config)
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
        negative_weights: Tensor | None = None,
        **kwargs,
    ) -> BMDetrModelOutput:
        """One encoder pass over the positive and negative queries of every view; the decoder sees positives only.

        Args:
            video_features: `(batch, video_len, video_dim)`, without endpoint columns (they are appended here).
            video_mask: `(batch, video_len)`, 1 = real.
            text_features: `(batch, text_len, text_dim)`.
            text_mask: `(batch, text_len)`, 1 = real.
            negative_text_features: `(batch, negatives, any length, text_dim)`.
            negative_text_mask: `(batch, negatives, same length)`; all zero means that there is no such negative.
            shifted_frame_order: `(batch, video_len)` long, the clips of the shifted view; a permutation of the row's
                clips that leaves padding in place. Endpoint features describe places, so they do not move.
            negative_weights: `(batch, negatives)` in [0, 1], how much P(f|Q-) of each negative query counts, in Eq. 6
                and in Eq. 16; fully when left out. Less for one that is close to the query in meaning.

        Raises:
            ValueError: shapes, widths, masks or (on the CPU) values that cannot be right, by name.
        """
        cfg = self.config
        check_no_stray_tensors(kwargs)
        check_model_inputs(
            cfg,
            video_features,
            video_mask,
            text_features,
            text_mask,
            negative_text_features,
            negative_text_mask,
            shifted_frame_order,
            negative_weights,
        )
        batch = video_mask.shape[0]  # `len` would fix it in an exported model
        video_features, text_features = video_features.to(self.dtype), text_features.to(self.dtype)
        if not cfg.background_aware:
            negative_text_features = negative_text_mask = None

        # Each frame order and each query is projected once, however many passes use it.
        frames = video_features[None]  # (views, batch, video_len, video_dim)
        if shifted_frame_order is not None:
            shifted = video_features.gather(1, shifted_frame_order[..., None].expand_as(video_features))
            frames = torch.stack((video_features, shifted))
        if cfg.endpoint_features:
            endpoints = endpoint_features(video_mask).to(frames.dtype)
            frames = torch.cat((frames, endpoints.expand(len(frames), -1, -1, -1)), dim=-1)
        frames = self.video_projection(frames)  # (views, batch, video_len, hidden)
        texts, texts_mask = stack_queries(text_features, text_mask, negative_text_features, negative_text_mask)
        texts = self.text_projection(texts)  # (1 + negatives, batch, text_len, hidden)

        # (1 + negatives, views, batch, video_len + text_len, hidden), positives of every view first
        views, queries = len(frames), len(texts)
        grid = (queries, views, batch)
        embeds = torch.cat((frames.expand(*grid, -1, -1), texts[:, None].expand(*grid, -1, -1)), dim=3)
        mask = torch.cat((video_mask.expand(*grid, -1), texts_mask[:, None].expand(*grid, -1)), dim=3)
        positions = video_positions(video_mask, cfg.hidden_size).to(embeds.dtype)
        answers_negatives = cfg.answer_negatives and queries > 1
        recorded = any(kwargs.get(name, getattr(cfg, name)) for name in ("output_hidden_states", "output_attentions"))
        encoded = self.encoder(
            embeds.flatten(0, 2),
            mask.flatten(0, 2),
            positions.expand(queries * views, -1, -1, -1).flatten(0, 1),
            # Of negatives that are not answered, only clips are read.
            whole_passes=None if recorded or answers_negatives or queries == 1 else views * batch,
            return_dict=True,
            **kwargs,
        )
        memory = encoded.last_hidden_state.view(*grid, -1, cfg.hidden_size)

        outputs = {"encoder_last_hidden_state": memory[0], "attended_hidden_state": memory[0]}
        if self.frame_query_matcher is not None:
            matched = self.frame_query_matcher(memory[..., : video_mask.shape[1], :]) * video_mask.to(memory.dtype)
            present = texts_mask[1:].any(dim=-1).T  # (batch, negatives)
            weights = present if negative_weights is None else present * negative_weights
            outputs.update(self.attend_frames(memory[0], matched, video_mask, present, weights))
        # What the decoder answers: the query in every view and, where they are answered too, the negative queries.
        read = outputs["attended_hidden_state" if cfg.decoder_memory == "attended" else "encoder_last_hidden_state"]
        read, read_mask = read.flatten(0, 1), mask[0].flatten(0, 1)
        copies = views + (queries - 1 if answers_negatives else 0)
        if answers_negatives:
            read = torch.cat((read, memory[1:, 0].flatten(0, 1)))
            read_mask = torch.cat((read_mask, mask[1:, 0].flatten(0, 1)))
        anchors, contents, proposals = self.start_spans(read, video_mask.repeat(copies, 1))
        decoded = self.decoder(
            anchors,
            read,
            read_mask,
            F.pad(positions, (0, 0, 0, texts.shape[2])).repeat(copies, 1, 1),
            contents,
            return_dict=True,
            **kwargs,
        )
        answers: dict[str, Any] = {
            name: decoded.get(name) for name in ("last_hidden_state", "layer_states", "layer_spans")
        }
        answers |= proposals
        if anchors.dim() == 3:
            answers["anchors"] = anchors
        answers = {name: value for name, value in answers.items() if value is not None}
        outputs |= {name: value[: views * batch].unflatten(0, (views, batch)) for name, value in answers.items()}

        shared: dict[str, Any] = {"anchors": anchors} if cfg.learnable_spans and anchors.dim() == 2 else {}
        view_outputs = [
            BMDetrModelOutput(**{name: value[view] for name, value in outputs.items()}, **shared)
            for view in range(views)
        ]
        output = view_outputs[0]
        output.shifted = view_outputs[1] if views > 1 else None
        if answers_negatives:
            output.negative = BMDetrModelOutput(
                **{name: value[views * batch :] for name, value in answers.items()},
                **shared,
                encoder_last_hidden_state=memory[1:, 0].flatten(0, 1),
                positive_probabilities=None if self.frame_query_matcher is None else matched[1:, 0].flatten(0, 1),
            )
        for source, name in ((encoded, "encoder"), (decoded, "decoder")):
            for kind in ("hidden_states", "attentions"):
                if (layers := source.get(kind)) is not None:
                    output[f"{name}_{kind}"] = tuple(layer[:batch] for layer in layers)
        if decoded.get("cross_attentions") is not None:
            output.cross_attentions = tuple(layer[:batch] for layer in decoded.cross_attentions)
        return output

    def start_spans(self, memory: Tensor, video_mask: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """What the decoder's queries start from: spans that clips propose, spans that are learned, or embeddings.

        Args:
            memory: `(rows, video_len + text_len, hidden)`.
            video_mask: `(rows, video_len)`.

        Returns:
            The queries of [`BMDetrDecoder.forward`], their contents, and the outputs that proposals add.
        """
        if self.clip_proposals is None:
            assert self.query_embedding is not None  # there is one or the other
            anchors = self.query_embedding.weight
            return anchors.float().sigmoid() if self.config.learnable_spans else anchors, None, {}
        frames = memory[:, : video_mask.shape[1]]
        proposed_se, logits = self.clip_proposals(frames, video_mask)
        index, anchors = self.clip_proposals.select(proposed_se, logits, video_mask)
        chosen = frames.gather(1, index[..., None].expand(-1, -1, frames.shape[-1]))
        return anchors, self.clip_proposals.content(chosen), {"proposed_spans": proposed_se, "proposal_logits": logits}

    def attend_frames(
        self, memory: Tensor, matched: Tensor, video_mask: Tensor, negative_mask: Tensor, negative_weights: Tensor
    ) -> dict[str, Tensor]:
        """Eq. 6-8 on the positive passes.

        Args:
            memory: `(views, batch, video_len + text_len, hidden)`, X+ of every view.
            matched: `(1 + negatives, views, batch, video_len)`, Eq. 4 of every query, 0 on padding.
            negative_mask: `(batch, negatives)` bool, negatives that are present.
            negative_weights: `(batch, negatives)`, how much each counts in Eq. 6; 0 where there is none.

        Returns:
            The fields of [`BMDetrModelOutput`] with a leading `views` dimension.
        """
        video_len = video_mask.shape[1]
        frames, words = memory[..., :video_len, :], memory[..., video_len:, :]
        positive, negative = matched[0], matched[1:].movedim(0, 2)  # (views, batch, [negatives,] video_len)
        joint = joint_probability(positive, negative, negative_weights)
        attention = masked_softmax(joint.float(), video_mask.expand_as(joint))
        attended = attended_frames(frames, attention, video_mask, self.config.frame_attention_scale)
        outputs = {
            "attended_hidden_state": torch.cat((attended, words), dim=2),
            "frame_probabilities": joint,
            "frame_attention": attention,
            "positive_probabilities": positive,
        }
        if negative_mask.shape[1]:
            outputs["negative_probabilities"] = negative * negative_mask[..., None]
        return outputs


def stack_queries(
    text_features: Tensor, text_mask: Tensor, negative_features: Tensor | None, negative_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Positive and negative queries on a new first axis, padded to a common length.

    Returns:
        Features `(1 + negatives, batch, text_len, text_dim)` and mask `(1 + negatives, batch, text_len)`.
    """
    if negative_features is None or negative_mask is None:
        return text_features[None], text_mask[None]
    text_len = max(text_features.shape[1], negative_features.shape[2])
    features = [text_features[:, None], negative_features.to(text_features.dtype)]
    masks = [text_mask[:, None], negative_mask.to(text_mask.dtype)]
    features = [F.pad(value, (0, 0, 0, text_len - value.shape[2])) for value in features]
    masks = [F.pad(value, (0, text_len - value.shape[2])) for value in masks]
    return torch.cat(features, dim=1).transpose(0, 1), torch.cat(masks, dim=1).transpose(0, 1)


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
            self.gate = nn.Linear(d, d, bias=False)
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
        self.criterion = BMDetrLoss(config)  # called by `forward` with labels, and by the Trainer
        self._fitting: tuple[Any, Calibration] | None = (
            None  # the configuration's calibration, known to fit the weights
        )
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
            negative_text_features,
            negative_text_mask,
            shifted_frame_order,
            negative_weights,
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
            **{name: output.get(name) for name in _SHARED_FIELDS},
        )

    def answer(self, output: BMDetrModelOutput, video_mask: Tensor) -> dict[str, Any]:
        """Spans with their class, quality and score, after every layer that has some, and presence."""
        memory, probabilities = output["encoder_last_hidden_state"], output.get("positive_probabilities")
        frames = memory[:, : video_mask.shape[1]]
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
                quality = self.quality_head(layer_states, layer_spans, frames, probabilities, video_mask)
            layers.append({"logits": logits, "pred_spans": layer_spans, "quality_logits": quality})
        answer: dict[str, Any] = {**layers[-1], "scores": span_scores(**layers[-1], score=self.config.score)}
        if self.presence_head is not None:
            foreground, background = layers[-1]["logits"].float().unbind(dim=-1)
            sure = foreground - background if layers[-1]["quality_logits"] is None else layers[-1]["quality_logits"]
            answer["presence_logits"] = self.presence_head(sure, spans[:, -1], probabilities, video_mask)
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


_SHARED_FIELDS = (
    "frame_probabilities",
    "frame_attention",
    "positive_probabilities",
    "negative_probabilities",
    "proposed_spans",
    "proposal_logits",
    "last_hidden_state",
    "encoder_last_hidden_state",
    "encoder_hidden_states",
    "encoder_attentions",
    "decoder_hidden_states",
    "decoder_attentions",
    "cross_attentions",
)
