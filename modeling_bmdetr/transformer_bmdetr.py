"""The transformer of BM-DETR: its encoder (Eq. 2-3), its decoder (3.3.4), and how weights are initialised."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_bmdetr import BMDetrConfig
from .layers_bmdetr import (
    BMDetrAttention,
    BMDetrDecoderCrossAttention,
    BMDetrDecoderLayer,
    BMDetrDecoderSelfAttention,
    BMDetrEncoderAttention,
    BMDetrEncoderLayer,
    BMDetrMLP,
    embed_spans,
)
from .outputs_bmdetr import BMDetrDecoderOutput
from .ranking_bmdetr import NARROWEST, BMDetrClipProposals


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
        elif isinstance(module, BMDetrClipProposals):
            init.copy_(module.ranks, torch.arange(len(module.ranks)))
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


def mask_of_attention(
    config: BMDetrConfig, states: Tensor, padding_mask: Tensor, memory: Tensor | None = None
) -> Tensor | None:
    """The mask of attention to `states`, or to `memory`; None where nothing is padded.

    Whether anything is padded is looked up on the CPU alone: on another device the look would wait for it.
    """
    may_skip = states.device.type == "cpu"
    mask: Any = create_bidirectional_mask(
        config, states, padding_mask, encoder_hidden_states=memory, allow_is_bidirectional_skip=may_skip
    )
    return mask  # a tensor: of the interfaces only flex attention has another kind


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
        mask = mask_of_attention(self.config, inputs_embeds, attention_mask)
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
            self.span_width = BMDetrMLP(d, d, 2)  # content -> width of the attention; the release's second is idle
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
            encoder_hidden_states: `(batch, video_len + text_len, hidden)`.
            memory_positions: The same, or of fewer rows, for memories that are several copies of them, one after the
                other.
            encoder_attention_mask: `(batch, video_len + text_len)`.
            contents: `(batch, queries, hidden)`, what the queries start from; zero when left out.
        """
        memory = encoder_hidden_states
        batch, hidden = memory.shape[0], memory.shape[-1]
        hidden_states = memory.new_zeros(batch, queries.shape[-2], hidden) if contents is None else contents
        mask = mask_of_attention(self.config, hidden_states, encoder_attention_mask, memory)
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
