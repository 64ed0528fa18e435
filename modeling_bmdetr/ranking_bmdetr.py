"""What tells a good answer from a bad one: spans proposed by clips, the quality of a span, the presence of a moment.

The paper ranks spans by their class alone (3.5), which says nothing of how well a span fits. The parts here are options
of [`BMDetrConfig`]; docs/ablations.md says what each is worth. The axis legend is in `modeling_bmdetr.py`; `rows` are
pairs of a video (one view of it) and a query.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_bmdetr import BMDetrConfig
from .dual_encoder_bmdetr import video_logits
from .layers_bmdetr import BMDetrMLP
from .spans_bmdetr import spans_cxw_to_se, spans_se_to_cxw, temporal_iou

NARROWEST = 1e-3  # of the time axis, so that the logit of a width stays finite
UNLIKELY = -2.0  # logit at which quality starts: most spans overlap with nothing


def clip_shares(spans_se: Tensor, video_mask: Tensor) -> Tensor:
    """How much of each clip lies in each span, `(rows, queries, video_len)` in [0, 1]; 0 on padding.

    Args:
        spans_se: `(rows, queries, 2)` (start, end) on the time axis, which the n real clips fill.
        video_mask: `(rows, video_len)`, 1 = real.
    """
    clips = video_mask.to(spans_se.dtype).sum(dim=1)[:, None, None]
    left = torch.arange(video_mask.shape[1], device=spans_se.device, dtype=spans_se.dtype)  # in units of clips
    inside = torch.minimum(spans_se[..., 1:] * clips, left + 1) - torch.maximum(spans_se[..., :1] * clips, left)
    return inside.clamp(min=0) * video_mask[:, None].to(spans_se.dtype)


def expected_overlap(shares: Tensor, probabilities: Tensor) -> Tensor:
    """The IoU `(rows, queries)` of span and moment, were every clip described with its probability P(f|Q+) of Eq. 4.

    The probability inside the span, over the span's length plus the probability outside.

    Args:
        shares: `(rows, queries, video_len)` of `clip_shares`.
        probabilities: `(rows, video_len)`, 0 on padding.
    """
    inside = (shares @ probabilities[..., None]).squeeze(-1)
    union = shares.sum(dim=-1) + probabilities.sum(dim=1, keepdim=True) - inside
    return inside / union.clamp(min=1e-3)


def surroundings(spans_se: Tensor, video_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The time right before and right after each span, half as long as the span plus one clip: two `(..., 2)`."""
    clip = 1 / video_mask.to(spans_se.dtype).sum(dim=1).clamp(min=1)[:, None, None]
    reach = 0.5 * (spans_se[..., 1:] - spans_se[..., :1]) + clip
    before = torch.cat((spans_se[..., :1] - reach, spans_se[..., :1]), dim=-1)
    after = torch.cat((spans_se[..., 1:], spans_se[..., 1:] + reach), dim=-1)
    return before, after


class BMDetrQualityHead(nn.Module):
    """Predicts the IoU of a span with the best described moment (as BAM-DETR and Sim-DETR do, from other evidence).

    It sees the decoder's state of the span, and what the encoder says of the clips inside, right before and right after
    it: their mean state and P(f|Q+), the span's `expected_overlap` and its width.
    """

    def __init__(self, config: BMDetrConfig):
        super().__init__()
        d = config.hidden_size
        numbers = 1 + 4 * config.background_aware + 3 * config.dual_encoder
        self.mlp = BMDetrMLP(4 * d + numbers, d, 1)
        self.mlp[-1].start_bias = UNLIKELY  # type: ignore[assignment]

    def forward(
        self,
        states: Tensor,
        spans_cxw: Tensor,
        frames: Tensor,
        probabilities: Tensor | None,
        video_mask: Tensor,
        clip_logits: Tensor | None = None,
    ) -> Tensor:
        """Logits of the IoU, `(rows, queries)` float32.

        Args:
            states: `(rows, queries, hidden)`, decoder output.
            spans_cxw: `(rows, queries, 2)`; taken as given, without gradient.
            frames: `(rows, video_len, hidden)`, the clips' part of X+.
            probabilities: `(rows, video_len)`, P(f|Q+); None when not background-aware.
            video_mask: `(rows, video_len)`.
            clip_logits: `(rows, video_len)`, of the dual encoder; None without it.
        """
        queries = spans_cxw.shape[1]
        spans_se = spans_cxw_to_se(spans_cxw.detach()).clamp(0, 1)
        # The clips inside, right before and right after each span: (rows, 3 * queries, video_len).
        shares = clip_shares(torch.cat((spans_se, *surroundings(spans_se, video_mask)), dim=1), video_mask)
        evidence = [spans_se[..., 1:] - spans_se[..., :1]]
        if probabilities is not None:
            evidence.append(expected_overlap(shares[:, :queries], probabilities)[..., None])
        shares = shares / shares.sum(dim=-1, keepdim=True).clamp(min=0.1)

        def means(values: Tensor) -> Tensor:
            """`(rows, video_len, width)` to `(rows, queries, 3 * width)`."""
            return (shares.to(values.dtype) @ values).unflatten(1, (3, queries)).transpose(1, 2).flatten(2)

        numbers = [] if probabilities is None else [probabilities]
        numbers += [] if clip_logits is None else [clip_logits / 4]
        if numbers:
            evidence.append(means(torch.stack(numbers, dim=-1)))
        evidence = [value.to(states.dtype) for value in evidence]
        return self.mlp(torch.cat((states, means(frames), *evidence), dim=-1)).squeeze(-1).float()


class BMDetrPresenceHead(nn.Module):
    """Predicts whether the video shows what the query says at all.

    It sees a few numbers only, how sure the model is of its best spans and clips: a head on hidden states, a hundred
    times as large, was no better (docs/ablations.md).
    """

    WIDTH = 32

    def __init__(self, config: BMDetrConfig):
        super().__init__()
        self.mlp = BMDetrMLP(2 + 4 * config.background_aware + config.dual_encoder, self.WIDTH, 1)

    def forward(
        self,
        span_logits: Tensor,
        spans_cxw: Tensor,
        probabilities: Tensor | None,
        video_mask: Tensor,
        clip_logits: Tensor | None = None,
    ) -> Tensor:
        """Logits of presence, `(rows,)` float32.

        Args:
            span_logits: `(rows, queries)`, of the quality of the spans, or of their class.
            spans_cxw: `(rows, queries, 2)`; taken as given, without gradient.
            probabilities: `(rows, video_len)`, P(f|Q+), 0 on padding; None when not background-aware.
            video_mask: `(rows, video_len)`.
            clip_logits: `(rows, video_len)`, of the dual encoder; None without it.
        """
        span_logits = span_logits.float()
        evidence = [span_logits.amax(dim=1), span_logits.logsumexp(dim=1)]
        if probabilities is not None:
            probabilities, mask = probabilities.float(), video_mask.float()
            logits = torch.logit(probabilities, eps=1e-4) / 3  # to the order of one
            shares = clip_shares(spans_cxw_to_se(spans_cxw.detach().float()).clamp(0, 1), video_mask)
            evidence += [
                logits.masked_fill(~video_mask.bool(), -torch.inf).amax(dim=1),
                logits.masked_fill(~video_mask.bool(), -torch.inf).logsumexp(dim=1) - mask.sum(dim=1).log(),
                probabilities.sum(dim=1) / mask.sum(dim=1),
                expected_overlap(shares, probabilities).amax(dim=1),
            ]
        if clip_logits is not None:
            evidence.append(video_logits(clip_logits, video_mask) / 4)
        dtype = next(self.parameters()).dtype
        return self.mlp(torch.stack(evidence, dim=-1).to(dtype)).squeeze(-1).float()


class BMDetrClipProposals(nn.Module):
    """Every clip proposes the moment that it lies in: start and end as distances from it, and the span's quality.

    The best proposals are where the decoder's spans start, instead of places learned once for all videos (two-stage
    Deformable DETR; per-clip boundaries as in UniVTG).
    """

    ranks: Tensor

    def __init__(self, config: BMDetrConfig):
        super().__init__()
        d = config.hidden_size
        # Kept with the weights: no other tensor tells for how many spans they were trained.
        self.register_buffer("ranks", torch.arange(config.num_queries))
        self.distances = BMDetrMLP(d, d, 2)
        self.quality = BMDetrMLP(d, d, 1)
        self.quality[-1].start_bias = UNLIKELY  # type: ignore[assignment]
        self.content = nn.Linear(d, d)

    def forward(self, frames: Tensor, video_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Proposed spans `(rows, video_len, 2)` (start, end), which may reach past the video, and the logits of their
        quality `(rows, video_len)`, float32.

        Args:
            frames: `(rows, video_len, hidden)`, the clips' part of X+.
            video_mask: `(rows, video_len)`.
        """
        clips = video_mask.float().sum(dim=1).clamp(min=1)[:, None]
        centres = (torch.arange(video_mask.shape[1], device=frames.device) + 0.5) / clips
        reach = 4 * F.softplus(self.distances(frames).float()) / clips[..., None]  # four clips: of a common moment
        spans_se = torch.stack((centres - reach[..., 0], centres + reach[..., 1]), dim=-1)
        return spans_se, self.quality(frames).squeeze(-1).float()

    def select(self, spans_se: Tensor, logits: Tensor, video_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The best proposals, those apart from better ones first: indices and spans (centre, width), without gradient.

        Returns:
            `(rows, queries)` long and `(rows, queries, 2)`.
        """
        spans_se = spans_se.detach().clamp(0, 1)
        index = select_apart(spans_se, logits.detach().masked_fill(~video_mask.bool(), -1e9), len(self.ranks))
        spans_cxw = spans_se_to_cxw(spans_se.gather(1, index[..., None].expand(-1, -1, 2)))
        return index, torch.stack((spans_cxw[..., 0], spans_cxw[..., 1].clamp(min=NARROWEST)), dim=-1)


def select_apart(spans_se: Tensor, scores: Tensor, number: int, iou_threshold: float = 0.7) -> Tensor:
    """Indices of the best spans, one after the other; one that overlaps a chosen one loses 5 of its score for each.

    Where there are fewer spans than `number`, the best ones come again.

    Args:
        spans_se: `(rows, spans, 2)`.
        scores: `(rows, spans)`, logits.

    Returns:
        `(rows, number)` long.
    """
    overlaps, _ = temporal_iou(spans_se[:, :, None], spans_se[:, None])
    places = torch.arange(scores.shape[1], device=scores.device)
    chosen = []
    for _ in range(number):
        best = scores.argmax(dim=1)
        chosen.append(best)
        overlap = overlaps.gather(1, best[:, None, None].expand(-1, 1, scores.shape[1])).squeeze(1)
        scores = scores - 5.0 * (overlap > iou_threshold) - 1e5 * (places == best[:, None])
    return torch.stack(chosen, dim=1)
