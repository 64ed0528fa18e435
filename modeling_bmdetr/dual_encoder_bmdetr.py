"""Clips and queries embedded apart, where each clip lies near the queries that describe it.

The paper's model sees a query together with one video, and so learns from one pair of them at a time. A dual encoder
compares every query of a batch with every clip of every video of the batch, as CLIP does with captions and images. What
it finds enters BM-DETR as one number per clip. An option of [`BMDetrConfig`]; docs/ablations.md says what it is worth.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import maybe_autocast

from .configuration_bmdetr import BMDetrConfig
from .layers_bmdetr import BMDetrMLP

FACETS = 4  # embeddings of a clip described as a whole: several things may happen in it at once
START_SCALE, START_BIAS = 10.0, -4.0  # of a cosine: most clips show nothing of most queries


class BMDetrDualEncoder(nn.Module):
    """Embeds clips and queries, whose inner product is the logit that the clip shows what the query says."""

    def __init__(self, config: BMDetrConfig):
        super().__init__()
        d = config.hidden_size
        self.neighbours = nn.Conv1d(d, d, 3, padding=1)
        self.facets_of_a_thing = FACETS if config.things_per_clip == 1 else 1
        self.facets = nn.Linear(d, self.facets_of_a_thing * d)
        self.query = BMDetrMLP(d, d, d)
        self.log_scale = nn.Parameter(torch.tensor([math.log(START_SCALE)]))  # no scalars: FSDP shards none
        self.bias = nn.Parameter(torch.tensor([START_BIAS]))
        self.evidence = nn.Linear(1, d)

    def forward(self, things: Tensor, video_mask: Tensor, texts: Tensor, texts_mask: Tensor) -> dict[str, Tensor]:
        """What [`BMDetrModelOutput`] has of it, of several frame orders and queries.

        Args:
            things: `(views, batch, video_len, things, hidden)`, projected.
            video_mask: `(batch, video_len)`.
            texts: `(queries, batch, text_len, hidden)`, projected.
            texts_mask: `(queries, batch, text_len)`.

        Returns:
            `clip_embeds (views, batch, video_len, facets, dim)`, `query_embeds (queries, batch, dim)` and
            `clip_logits (queries, views, batch, video_len)`, 0 on padding.
        """
        clips, queries = self.embed_clips(things, video_mask), self.embed_queries(texts, texts_mask)
        logits = clip_logits(clips, queries) * video_mask
        return {"clip_embeds": clips, "query_embeds": queries, "clip_logits": logits}

    def embed_clips(self, things: Tensor, video_mask: Tensor) -> Tensor:
        """Projected clips, `(..., video_len, things, hidden)`, embedded thing by thing beside what is near the clip.

        Returns:
            `(..., video_len, facets, hidden + 1)`, the last value 1.
        """
        real = things.sum(dim=-2, dtype=things.dtype) * video_mask[..., None].to(things.dtype)
        near = self.neighbours(real.flatten(0, -3).transpose(1, 2)).transpose(1, 2).view_as(real)
        facets = self.facets(things + F.relu(near)[..., None, :])
        facets = facets.unflatten(-1, (self.facets_of_a_thing, -1)).flatten(-3, -2).float()
        return F.pad(F.normalize(facets, dim=-1), (0, 1), value=1.0)

    def embed_queries(self, texts: Tensor, text_mask: Tensor) -> Tensor:
        """`(..., text_len, hidden)` projected tokens to `(..., hidden + 1)`, the last value the bias."""
        weights = text_mask[..., None].to(texts.dtype)
        pooled = (self.query(texts) * weights).sum(dim=-2) / weights.sum(dim=-2).clamp(min=1)
        directions = F.normalize(pooled.float(), dim=-1) * self.log_scale.float().exp()
        return torch.cat((directions, self.bias.float().expand(*directions.shape[:-1], 1)), dim=-1)


def clip_logits(clip_embeds: Tensor, query_embeds: Tensor) -> Tensor:
    """Logits that clips show what the query says, by the facet that fits best.

    Args:
        clip_embeds: `(..., video_len, facets, dim)`.
        query_embeds: `(queries, ..., dim)`, several queries of each video.

    Returns:
        `(queries, ..., video_len)` float32.
    """
    with maybe_autocast(clip_embeds.device.type, enabled=False):
        logits = clip_embeds.flatten(-3, -2) @ query_embeds.movedim(0, -1)  # (..., video_len x facets, queries)
        return logits.unflatten(-2, (-1, clip_embeds.shape[-2])).amax(dim=-2).movedim(-1, 0)


def pair_logits(clip_embeds: Tensor, query_embeds: Tensor) -> Tensor:
    """The same of every video and query: `(videos, queries, video_len)`."""
    with maybe_autocast(clip_embeds.device.type, enabled=False):
        return torch.einsum("vlkd,qd->vqlk", clip_embeds, query_embeds).amax(dim=-1)


def video_logits(logits: Tensor, video_mask: Tensor, width: int = 5) -> Tensor:
    """The largest mean logit of `width` neighbouring clips, `(..., video_len)` to `(...)`: an event lasts a while.

    At the ends, and in shorter videos, the mean is over the clips that there are.
    """
    mask = video_mask.to(logits.dtype).expand_as(logits)

    def window_sums(values: Tensor) -> Tensor:
        flat = values.reshape(-1, 1, values.shape[-1])
        return F.avg_pool1d(flat, width, 1, width // 2).view_as(values)

    means = window_sums(logits * mask) / window_sums(mask).clamp(min=0.5 / width)
    return means.masked_fill(mask == 0, -1e4).amax(dim=-1)
