"""Layers of BM-DETR's transformer: positions, attention, encoder and decoder layers.

The axis legend is in `modeling_bmdetr.py`.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_bmdetr import BMDetrConfig
from .cpu_layers_bmdetr import DRAWS, Attention, Dropout, FeedForward, Linear, PReLU, runs_eagerly_on_cpu

SMALL = 2**16  # values of an input below which how a layer is called costs more than its product


def sine_embedding(position: Tensor, num_features: int) -> Tensor:
    """Sinusoidal embedding of positions in [0, 1]: `(...)` to `(..., num_features)`, sine and cosine interleaved.

    The circle is walked once over [0, 1], and frequencies fall geometrically to 1/10000 (Vaswani et al., 2017).
    """
    index = torch.arange(num_features, dtype=torch.float32, device=position.device)
    frequency = 10000.0 ** (-2 * torch.div(index, 2, rounding_mode="floor") / num_features)
    angle = position.float()[..., None] * (2 * math.pi) * frequency
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2)


def embed_spans(spans_cxw: Tensor, hidden: int, dtype: torch.dtype) -> Tensor:
    """Sine embedding of spans, width first as in the release: `(..., 2)` to `(..., hidden)`."""
    centre, width = (sine_embedding(spans_cxw[..., i], hidden // 2) for i in (0, 1))
    return torch.cat((width, centre), dim=-1).to(dtype)


def video_positions(video_mask: Tensor, hidden: int) -> Tensor:
    """PE of Eq. 2: clip i of n sits at i/n (counted from 1). `(batch, video_len)` to `(batch, video_len, hidden)`."""
    running = video_mask.float().cumsum(dim=1)
    return sine_embedding(running / (running[:, -1:] + 1e-6), hidden)


def endpoint_features(video_mask: Tensor) -> Tensor:
    """Start i/n and end (i+1)/n of each of the n real clips: `(batch, video_len)` to `(batch, video_len, 2)`.

    Padding gets values too; they are masked wherever they are read.
    """
    num_clips = video_mask.sum(dim=1, keepdim=True).clamp(min=1)
    index = torch.arange(video_mask.shape[1], device=video_mask.device)
    return torch.stack((index / num_clips, (index + 1) / num_clips), dim=-1)


def split_things(clips: Tensor, video_mask: Tensor, things: int, endpoints: bool) -> Tensor:
    """Features of clips to what the projection reads: one row per thing (`BMDetrConfig.things_per_clip`).

    Args:
        clips: `(..., batch, video_len, video_dim)`.
        video_mask: `(batch, video_len)`, 1 = real.
        endpoints: Whether each row also has where its clip starts and ends.

    Returns:
        `(..., batch, video_len, things, video_dim / things)`, two values wider with endpoints.
    """
    rows = clips.unflatten(-1, (things, -1))
    if not endpoints:
        return rows
    places = endpoint_features(video_mask).to(rows.dtype)[:, :, None]
    return torch.cat((rows, places.expand(*rows.shape[:-1], 2)), dim=-1)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension in which padding has no share; 0 on padding."""
    mask = mask.bool()
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1).masked_fill(~mask, 0.0)


def drop_values(values: Tensor, p: float, training: bool) -> Tensor:
    """`F.dropout`; on the CPU with masks that cost a fraction to draw, for p to the nearest 1/65536."""
    if not training or p == 0:
        return values
    threshold = round(p * DRAWS)
    if threshold >= DRAWS or not runs_eagerly_on_cpu(values):
        return F.dropout(values, p, training)
    return Dropout.apply(values, threshold) if threshold else values


class BMDetrDropout(nn.Dropout):
    """[`drop_values`] as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return drop_values(input, self.p, self.training)


def is_plain(*tensors: Tensor) -> bool:
    """Whether everything is computed in float32."""
    return all(tensor.dtype == torch.float32 for tensor in tensors) and not torch.is_autocast_enabled("cpu")


class BMDetrLinear(nn.Linear):
    """`nn.Linear`, in training on the CPU by the product of matrices that is faster.

    Attributes:
        products: What matrices are rounded to there before and after they are multiplied; see [`products_in`].
    """

    products = torch.float32

    def __getstate__(self) -> dict[str, Any]:
        """What copies and files have: not what the training that goes on is done with."""
        return {name: value for name, value in self.__dict__.items() if name != "products"}

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() >= SMALL and is_plain(input, self.weight) and runs_eagerly_on_cpu(input):
            return Linear.apply(input, self.weight, self.bias, self.products)
        return super().forward(input)


@contextmanager
def products_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Trains a model on the CPU with products of large matrices of this type; all else stays in float32."""
    before = {module: module.products for module in model.modules() if isinstance(module, BMDetrLinear)}
    for layer in before:
        layer.products = dtype
    try:
        yield
    finally:
        for layer, products in before.items():
            layer.products = products


class BMDetrPReLU(nn.PReLU):
    """`nn.PReLU` with one slope."""

    def forward(self, input: Tensor) -> Tensor:
        if is_plain(input, self.weight) and runs_eagerly_on_cpu(input):
            return PReLU.apply(input, self.weight)
        return super().forward(input)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention on `(batch, heads, length, head_dim)`, with an additive mask or that of SDPA."""
    weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        weights = weights.masked_fill_(~attention_mask, torch.finfo(weights.dtype).min)
    elif attention_mask is not None:
        weights = weights + attention_mask
    weights = drop_values(weights.softmax(dim=-1), dropout, module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def attention_for_training(
    module: nn.Module,  # noqa: ARG001  (the library's signature)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float,
    **_,
) -> tuple[Tensor, None]:
    """Attention on the CPU in training: as [`eager_attention_forward`], with less memory and without the weights."""
    threshold = min(round(dropout * DRAWS), DRAWS - 1)
    output = Attention.apply(query, key, value, attention_mask, scaling, threshold)
    return output.transpose(1, 2).contiguous(), None


class BMDetrMLP(nn.Sequential):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int):
        layers: list[nn.Module] = []
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            layers += [nn.ReLU()] * (i > 0) + [BMDetrLinear(fan_in, fan_out)]
        super().__init__(*layers)


class BMDetrProjection(nn.Module):
    """Input projection (3.3.1): layers of LayerNorm, dropout and Linear, ReLU between them."""

    def __init__(self, config: BMDetrConfig, input_dim: int):
        super().__init__()
        widths = [input_dim, *[config.hidden_size] * config.projection_layers]
        self.norms = nn.ModuleList([nn.LayerNorm(width) for width in widths[:-1]])
        self.linears = nn.ModuleList([BMDetrLinear(a, b) for a, b in itertools.pairwise(widths)])
        self.dropout = BMDetrDropout(config.projection_dropout)

    def forward(self, features: Tensor) -> Tensor:
        for i, (norm, linear) in enumerate(zip(self.norms, self.linears, strict=True)):
            features = linear(self.dropout(norm(F.relu(features) if i else features)))
        return features


class BMDetrAttention(nn.Module):
    """Multi-head attention with the library's attention interface; subclasses make queries, keys and values."""

    def __init__(self, config: BMDetrConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.is_causal = False
        self.o_proj = BMDetrLinear(config.hidden_size, config.hidden_size)

    def heads(self, states: Tensor) -> Tensor:
        """`(batch, length, width)` to `(batch, heads, length, head_dim)`."""
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs):
        """Attention of per-head tensors; returns `(batch, length, hidden)` and the weights, if the kernel has any."""
        interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        if self.training and self.config._attn_implementation == "sdpa" and runs_eagerly_on_cpu(query):
            # PyTorch has a kernel for the CPU where nothing is dropped and values are as wide as keys.
            if is_plain(query) and (dropout or query.shape[-1] != value.shape[-1]):
                interface = attention_for_training
            elif dropout:
                interface = eager_attention_forward
        scaling = query.shape[-1] ** -0.5
        output, weights = interface(self, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
        return self.o_proj(output.flatten(-2)), weights


class BMDetrEncoderAttention(BMDetrAttention):
    """Self-attention over [video; text]; positions are added to queries and keys, not to values."""

    def __init__(self, config: BMDetrConfig):
        super().__init__(config)
        d = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj = BMDetrLinear(d, d), BMDetrLinear(d, d), BMDetrLinear(d, d)

    def forward(
        self, hidden_states: Tensor, positions: Tensor, mask: Tensor | None, outputs: int | None = None, **kwargs
    ):
        """`outputs`: how many positions, counted from the first, the result is wanted for; all when left out."""
        with_positions = hidden_states + positions
        query, key = self.heads(self.q_proj(with_positions[:, :outputs])), self.heads(self.k_proj(with_positions))
        mask = mask if mask is None or outputs is None else mask[:, :, :outputs]
        return self.attend(query, key, self.heads(self.v_proj(hidden_states)), mask, **kwargs)


class BMDetrDecoderSelfAttention(BMDetrAttention):
    """Self-attention among the spans; content and position are projected apart and added (DAB-DETR)."""

    def __init__(self, config: BMDetrConfig):
        super().__init__(config)
        d = config.hidden_size
        self.q_content_proj, self.q_position_proj = BMDetrLinear(d, d), BMDetrLinear(d, d)
        self.k_content_proj, self.k_position_proj = BMDetrLinear(d, d), BMDetrLinear(d, d)
        self.v_proj = BMDetrLinear(d, d)

    def forward(self, hidden_states: Tensor, query_positions: Tensor, **kwargs):
        query = self.q_content_proj(hidden_states) + self.q_position_proj(query_positions)
        key = self.k_content_proj(hidden_states) + self.k_position_proj(query_positions)
        value = self.v_proj(hidden_states)
        return self.attend(self.heads(query), self.heads(key), self.heads(value), None, **kwargs)


class BMDetrDecoderCrossAttention(BMDetrAttention):
    """Attention of the spans to the memory.

    With learnable spans, each head compares content with content and, concatenated to it, the embedded span with the
    position of the clip (Conditional DETR, DAB-DETR); only the first layer also adds positions to the content.
    Without, positions are added to the content in every layer (DETR).
    """

    def __init__(self, config: BMDetrConfig, is_first: bool):
        super().__init__(config)
        d = config.hidden_size
        self.adds_positions = is_first or not config.learnable_spans
        self.q_content_proj, self.k_content_proj = BMDetrLinear(d, d), BMDetrLinear(d, d)
        self.k_position_proj, self.v_proj = BMDetrLinear(d, d), BMDetrLinear(d, d)
        self.q_position_proj = BMDetrLinear(d, d) if self.adds_positions else None
        self.q_sine_proj = BMDetrLinear(d, d) if config.learnable_spans else None

    def forward(
        self,
        hidden_states: Tensor,
        query_positions: Tensor,
        span_embedding: Tensor | None,
        memory: Tensor,
        memory_positions: Tensor,
        mask: Tensor | None,
        **kwargs,
    ):
        query, key = self.q_content_proj(hidden_states), self.k_content_proj(memory)
        key_positions = self.k_position_proj(memory_positions)
        if memory_positions.shape[0] != memory.shape[0]:
            key_positions = key_positions.repeat(memory.shape[0] // memory_positions.shape[0], 1, 1)
        if self.q_position_proj is not None:
            query, key = query + self.q_position_proj(query_positions), key + key_positions
        query, key = self.heads(query), self.heads(key)
        if self.q_sine_proj is not None:
            query = torch.cat((query, self.heads(self.q_sine_proj(span_embedding))), dim=-1)
            key = torch.cat((key, self.heads(key_positions)), dim=-1)
        return self.attend(query, key, self.heads(self.v_proj(memory)), mask, **kwargs)


class BMDetrFeedForward(nn.Module):
    """Linear, activation, dropout, Linear."""

    def __init__(self, config: BMDetrConfig):
        super().__init__()
        self.up = BMDetrLinear(config.hidden_size, config.intermediate_size)
        self.down = BMDetrLinear(config.intermediate_size, config.hidden_size)
        self.activation = {"prelu": BMDetrPReLU, "relu": nn.ReLU, "gelu": nn.GELU}[config.activation]()
        self.dropout = BMDetrDropout(config.dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        up, down, slope, threshold = self.up, self.down, self.activation, round(self.dropout.p * DRAWS)
        # Layers that others have put in place of these (adapters, quantised ones) are called as they are.
        own = type(up) is type(down) is BMDetrLinear and type(slope) is BMDetrPReLU and threshold < DRAWS
        if self.training and own and is_plain(hidden_states, up.weight) and runs_eagerly_on_cpu(hidden_states):
            weights = up.weight, up.bias, slope.weight, down.weight, down.bias
            return FeedForward.apply(hidden_states, *weights, threshold, up.products)
        return down(self.dropout(slope(up(hidden_states))))


class BMDetrEncoderLayer(GradientCheckpointingLayer):
    """Post-norm transformer encoder layer."""

    def __init__(self, config: BMDetrConfig):
        super().__init__()
        self.self_attention = BMDetrEncoderAttention(config)
        self.feed_forward = BMDetrFeedForward(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = BMDetrDropout(config.dropout)

    def forward(
        self, hidden_states: Tensor, positions: Tensor, mask: Tensor | None, outputs: int | None = None, **kwargs
    ) -> Tensor:
        """`outputs`: how many positions, counted from the first, the result is wanted for; all when left out."""
        attended, _ = self.self_attention(hidden_states, positions, mask, outputs, **kwargs)
        hidden_states = self.attention_norm(hidden_states[:, :outputs] + self.dropout(attended))
        return self.output_norm(hidden_states + self.dropout(self.feed_forward(hidden_states)))


class BMDetrDecoderLayer(GradientCheckpointingLayer):
    """Post-norm decoder layer: spans attend to each other, then to the memory."""

    def __init__(self, config: BMDetrConfig, is_first: bool):
        super().__init__()
        self.self_attention = BMDetrDecoderSelfAttention(config)
        self.cross_attention = BMDetrDecoderCrossAttention(config, is_first)
        self.feed_forward = BMDetrFeedForward(config)
        self.self_attention_norm = nn.LayerNorm(config.hidden_size)
        self.cross_attention_norm = nn.LayerNorm(config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = BMDetrDropout(config.dropout)

    def forward(
        self,
        hidden_states: Tensor,
        query_positions: Tensor,
        span_embedding: Tensor | None,
        memory: Tensor,
        memory_positions: Tensor,
        mask: Tensor | None,
        **kwargs,
    ) -> Tensor:
        attended, _ = self.self_attention(hidden_states, query_positions, **kwargs)
        hidden_states = self.self_attention_norm(hidden_states + self.dropout(attended))
        attended, _ = self.cross_attention(
            hidden_states, query_positions, span_embedding, memory, memory_positions, mask, **kwargs
        )
        hidden_states = self.cross_attention_norm(hidden_states + self.dropout(attended))
        return self.output_norm(hidden_states + self.dropout(self.feed_forward(hidden_states)))
