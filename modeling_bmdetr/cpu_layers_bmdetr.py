"""Layers as they are trained on the CPU: the values of PyTorch's own, in fewer passes over memory and with less kept.

`layers_bmdetr.py` decides where they are used; `tests/test_cheap_layers.py` holds that they compute the same.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

DRAWS = 2**16  # probabilities are rounded to the nearest 1/65536
BLOCK = 2**20  # values that lie between matrix products at once, so that they fit into the processor's cache
ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # None in builds of PyTorch without oneDNN


def runs_eagerly_on_cpu(tensor: Tensor) -> bool:
    """Where a computation is made of single passes over memory, so that fewer of them are faster."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def multiplies_bfloat16() -> bool:
    """Whether the processor has products of bfloat16 numbers: twice as many a second as of float32 ones."""
    asked = (torch.cpu, "_is_avx512_bf16_supported"), (torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    return ONEDNN_LINEAR is not None and all(getattr(*each, bool)() for each in asked)


def draw_kept(shape: torch.Size, threshold: int) -> Tensor | None:
    """Which values dropout keeps, as 0 and 1; None where it keeps all. A random integer serves four values.

    They are integers, since PyTorch computes truth values, and converts them, one by one, which is ten times as slow.
    """
    if not threshold:
        return None
    integers = torch.empty((shape.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return integers.view(torch.int16)[: shape.numel()].view(shape).ge_(threshold - DRAWS // 2).to(torch.int8)


def keep(values: Tensor, kept: Tensor | None) -> Tensor:
    """The values that are kept, and 0; not scaled."""
    return values if kept is None else kept.to(values.dtype).mul_(values)


def scaled(values: Tensor, factor: float) -> Tensor:
    """The values times a number, one after the other in memory."""
    return torch.mul(values, factor, out=values.new_empty(values.shape))


def kept_scale(threshold: int) -> float:
    """What dropout multiplies the values with that it keeps."""
    return DRAWS / (DRAWS - threshold)


def product(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` in the type of `states`, by oneDNN's product of matrices where there is one; float32."""
    weight, bias = weight.to(states.dtype), bias if bias is None else bias.to(states.dtype)
    if ONEDNN_LINEAR is None:
        return F.linear(states, weight, bias).float()
    return ONEDNN_LINEAR(states, weight, bias, "none", [], "").float()


def weight_gradient(gradient: Tensor, rows: Tensor) -> Tensor:
    """Of a product, `(outputs, inputs)`, from `(rows, outputs)` and `(rows, inputs)` of one type; float32."""
    return (gradient.T @ rows).float()


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices that cover `rows` rows of `width` values, of at most `BLOCK` values each where a row has fewer."""
    step = max(1, BLOCK // max(1, width))
    return (slice(first, first + step) for first in range(0, rows, step))


class Dropout(torch.autograd.Function):
    """Dropout whose mask is drawn by [`draw_kept`], with the share `threshold` / 65536."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, threshold: int) -> Tensor:
        kept = draw_kept(values.shape, threshold)
        ctx.save_for_backward(kept)
        ctx.threshold = threshold
        return keep(values, kept).mul_(kept_scale(threshold))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return keep(gradients[0], ctx.saved_tensors[0]).mul_(kept_scale(ctx.threshold)), None


class Linear(torch.autograd.Function):
    """`F.linear` whose products are those of [`product`], rounded to `dtype` before and after."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        states = states.to(dtype)
        ctx.save_for_backward(states, weight)
        return product(states, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        gradient = gradients[0].to(states.dtype)
        of_states, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            product(gradient, weight.T) if of_states else None,
            weight_gradient(gradient.flatten(0, -2), states.flatten(0, -2)) if of_weight else None,
            gradients[0].flatten(0, -2).sum(0) if of_bias else None,
            None,
        )


def prelu_gradients(values: Tensor, slope: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of PReLU with one slope; that of the slope is one product of vectors, not a tensor that is summed."""
    slope_gradient = torch.dot(values.clamp(max=0).flatten(), gradient.flatten()).view_as(slope)
    return torch.ops.aten.leaky_relu_backward(gradient, values, float(slope), False), slope_gradient


class PReLU(torch.autograd.Function):
    """PReLU with one slope."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(values, slope)
        return F.prelu(values, slope)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        values, slope = ctx.saved_tensors
        return prelu_gradients(values, slope, gradients[0])


class FeedForward(torch.autograd.Function):
    """Linear, PReLU with one slope, dropout, Linear. What lies between the two matrices is kept once, before PReLU.

    Rows are computed in blocks, so that what else is as wide as the layer stays small, and in the processor's cache.
    Matrices are rounded to `dtype` before and after they are multiplied.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        up: Tensor,
        up_bias: Tensor,
        slope: Tensor,
        down: Tensor,
        down_bias: Tensor,
        threshold: int,
        dtype: torch.dtype,
    ) -> Tensor:
        rows = states.flatten(0, -2).to(dtype)
        inner, output = up.new_empty(len(rows), len(up)), up.new_empty(len(rows), len(down))
        masks, down = [], down * kept_scale(threshold)
        for block in blocks(len(rows), len(up)):
            inner[block] = product(rows[block], up, up_bias)
            masks.append(draw_kept(inner[block].shape, threshold))
            output[block] = product(keep(F.prelu(inner[block], slope), masks[-1]).to(dtype), down, down_bias)
        ctx.save_for_backward(rows, up, slope, down, inner, *masks)
        ctx.threshold = threshold
        return output.unflatten(0, states.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, up, slope, down, inner, *masks = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2)
        rounded = gradient.to(rows.dtype)
        to_rows, to_up, to_down = torch.empty_like(gradient), torch.zeros_like(up), torch.zeros_like(down)
        to_slope, to_bias = torch.zeros_like(slope), up.new_zeros(len(up))
        for block, kept in zip(blocks(len(rows), len(up)), masks, strict=True):
            to_down += weight_gradient(rounded[block], keep(F.prelu(inner[block], slope), kept).to(rows.dtype))
            to_inner = keep(product(rounded[block], down.T), kept)
            to_inner, of_block = prelu_gradients(inner[block], slope, to_inner)
            to_slope += of_block
            to_bias += to_inner.sum(0)
            to_inner = to_inner.to(rows.dtype)
            to_up += weight_gradient(to_inner, rows[block])
            to_rows[block] = product(to_inner, up.T)
        to_down *= kept_scale(ctx.threshold)
        return to_rows.view_as(gradients[0]), to_up, to_bias, to_slope, to_down, gradient.sum(0), None, None


class Attention(torch.autograd.Function):
    """Scaled dot-product attention with dropout, of which PyTorch has no kernel for the CPU. Weights are kept once.

    Rows of the batch are computed in blocks, for the reason that [`FeedForward`] has.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, threshold: int
    ) -> Tensor:
        query, key, value = scaled(query, scaling), key.contiguous(), scaled(value, kept_scale(threshold))
        weights = query.new_empty(*query.shape[:-1], key.shape[-2])
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        mask = mask if mask is None else mask.expand(len(query), -1, -1, -1)
        masks = []
        for block in blocks(len(query), weights[0].numel()):
            scores = torch.matmul(query[block], key[block].mT)
            if mask is not None and mask.dtype == torch.bool:
                scores.masked_fill_(~mask[block], torch.finfo(scores.dtype).min)
            elif mask is not None:
                scores += mask[block]
            torch.softmax(scores, -1, out=weights[block])
            masks.append(draw_kept(scores.shape, threshold))
            torch.matmul(keep(weights[block], masks[-1]), value[block], out=output[block])
        ctx.save_for_backward(query, key, value, weights, *masks)
        ctx.scaling, ctx.threshold = scaling, threshold
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, *masks = ctx.saved_tensors
        to_query, to_key, to_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        for block, kept in zip(blocks(len(query), weights[0].numel()), masks, strict=True):
            gradient = gradients[0][block].contiguous()
            torch.matmul(keep(weights[block], kept).mT, gradient, out=to_value[block])
            to_weights = keep(torch.matmul(gradient, value[block].mT), kept)
            to_scores = torch._softmax_backward_data(to_weights, weights[block], -1, weights.dtype)
            torch.matmul(to_scores, key[block], out=to_query[block])
            torch.matmul(to_scores.mT, query[block], out=to_key[block])
        return to_query.mul_(ctx.scaling), to_key, to_value.mul_(kept_scale(ctx.threshold)), None, None, None
