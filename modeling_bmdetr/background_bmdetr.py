"""Background awareness: a query beside its negative queries, and the clips that belong to it alone (Eq. 1, 4-8)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_bmdetr import BMDetrConfig
from .layers_bmdetr import BMDetrLinear


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


def present_negatives(negative_text_mask: Tensor) -> Tensor:
    """Which negative queries there are: `(..., text_len)` to bool `(...)`; an all-zero mask means none."""
    return negative_text_mask.any(dim=-1)


class BMDetrFrameQueryMatcher(nn.Module):
    """Probabilistic frame-query matcher, Eq. 5: sigmoid(tanh(f W1) W2)."""

    def __init__(self, config: BMDetrConfig):
        super().__init__()
        self.w1 = BMDetrLinear(config.hidden_size, config.hidden_size // 2, bias=False)
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
