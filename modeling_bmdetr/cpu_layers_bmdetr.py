"""Layers as they are trained on the CPU: the values of PyTorch's own, in fewer passes over memory and with less kept.

`layers_bmdetr.py` decides where they are used; `tests/test_cheap_layers.py` holds that they compute the same.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DRAWS = 2**16  # probabilities are rounded to the nearest 1/65536


def runs_eagerly_on_cpu(tensor: Tensor) -> bool:
    """Where a computation is made of single passes over memory, so that fewer of them are faster."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def draw_kept(shape: torch.Size, threshold: int) -> Tensor | None:
    """Which values dropout keeps, one byte each; None where it keeps all. A random integer serves four values."""
    if not threshold:
        return None
    integers = torch.empty((shape.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return integers.view(torch.int16)[: shape.numel()].view(shape) >= threshold - DRAWS // 2


def keep(values: Tensor, kept: Tensor | None, threshold: int) -> Tensor:
    """Dropout of values whose mask has been drawn."""
    if kept is None:
        return values
    return kept.to(values.dtype).mul_(DRAWS / (DRAWS - threshold)).mul_(values)


class Dropout(torch.autograd.Function):
    """Dropout whose mask is drawn by [`draw_kept`], with the share `threshold` / 65536."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, threshold: int) -> Tensor:
        kept = draw_kept(values.shape, threshold)
        ctx.save_for_backward(kept)
        ctx.threshold = threshold
        return keep(values, kept, threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return keep(gradients[0], ctx.saved_tensors[0], ctx.threshold), None


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
    """Linear, PReLU with one slope, dropout, Linear. What lies between the two matrices is kept once, before PReLU."""

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
    ) -> Tensor:
        inner = F.linear(states, up, up_bias)
        kept = draw_kept(inner.shape, threshold)
        ctx.save_for_backward(states, up, slope, down, inner, kept)
        ctx.threshold = threshold
        return F.linear(keep(F.prelu(inner, slope), kept, threshold), down, down_bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, up, slope, down, inner, kept = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2)
        active = keep(F.prelu(inner, slope), kept, ctx.threshold).flatten(0, -2)
        down_gradient = gradient.T @ active
        del active
        inner_gradient = keep((gradient @ down).view_as(inner), kept, ctx.threshold)
        inner_gradient, slope_gradient = prelu_gradients(inner, slope, inner_gradient)
        inner_gradient = inner_gradient.flatten(0, -2)
        return (
            (inner_gradient @ up).view_as(states),
            inner_gradient.T @ states.flatten(0, -2),
            inner_gradient.sum(0),
            slope_gradient,
            down_gradient,
            gradient.sum(0),
            None,
        )


class Attention(torch.autograd.Function):
    """Scaled dot-product attention with dropout, of which PyTorch has no kernel for the CPU. Weights are kept once."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, threshold: int
    ) -> Tensor:
        query, key, value = (query * scaling).contiguous(), key.contiguous(), value.contiguous()
        weights = torch.matmul(query, key.mT)
        if mask is not None and mask.dtype == torch.bool:
            weights.masked_fill_(~mask, torch.finfo(weights.dtype).min)
        elif mask is not None:
            weights += mask
        weights = weights.softmax(dim=-1)
        kept = draw_kept(weights.shape, threshold)
        ctx.save_for_backward(query, key, value, weights, kept)
        ctx.scaling, ctx.threshold = scaling, threshold
        return torch.matmul(keep(weights, kept, threshold), value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, kept = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        value_gradient = torch.matmul(keep(weights, kept, ctx.threshold).mT, gradient)
        weights_gradient = keep(torch.matmul(gradient, value.mT), kept, ctx.threshold)
        weights_gradient = torch._softmax_backward_data(weights_gradient, weights, -1, weights.dtype)
        query_gradient = torch.matmul(weights_gradient, key).mul_(ctx.scaling)
        return query_gradient, torch.matmul(weights_gradient.mT, query), value_gradient, None, None, None
