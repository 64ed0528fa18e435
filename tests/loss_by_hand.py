"""The losses written from the equations, one number at a time, in plain Python; and random batches to try them on."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from modeling_bmdetr.spans_bmdetr import IGNORE

COSTS = (8.0, 1.0, 8.0)  # class, L1, GIoU


def giou_by_hand(a_cxw: Sequence[float], b_cxw: Sequence[float]) -> float:
    (a0, a1), (b0, b1) = [(c - w / 2, c + w / 2) for c, w in (a_cxw, b_cxw)]
    shared = max(0.0, min(a1, b1) - max(a0, b0))
    union, hull = (a1 - a0) + (b1 - b0) - shared, max(a1, b1) - min(a0, b0)
    return shared / union - (hull - union) / hull


def softmax_by_hand(logits: Sequence[float]) -> list[float]:
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def cost_by_hand(logits, span, moment, class_cost: float, l1_cost: float, giou_cost: float) -> float:
    """Eq. 12 with Eq. 14; the constant 1 of L_iou moves every cost alike and is left out."""
    l1 = abs(span[0] - moment[0]) + abs(span[1] - moment[1])
    return -class_cost * softmax_by_hand(logits)[0] + l1_cost * l1 - giou_cost * giou_by_hand(span, moment)


def matching_by_hand(logits, spans, moments, costs) -> tuple[dict[int, int], float]:
    """Eq. 13 by trying everything: {moment: span} and its cost."""
    cost = [[cost_by_hand(x, s, m, *costs) for m in moments] for x, s in zip(logits, spans, strict=True)]
    best: tuple[dict[int, int], float] = ({}, math.inf)
    if len(moments) <= len(spans):
        choices = (dict(enumerate(p)) for p in itertools.permutations(range(len(spans)), len(moments)))
    else:
        choices = ({m: s for s, m in enumerate(p)} for p in itertools.permutations(range(len(moments)), len(spans)))
    for choice in choices:
        total = sum(cost[s][m] for m, s in choice.items())
        if total < best[1]:
            best = (choice, total)
    return best


def margin_by_hand(scores, foreground, background, margin: float) -> float:
    """Eq. 15 for one video, expected over a random pair."""
    hinges = [max(0.0, margin + scores[j] - scores[i]) for i in foreground for j in background]
    return sum(hinges) / len(hinges) if hinges else 0.0


def probability_by_hand(probabilities, foreground, background) -> float:
    """Eq. 16 for one video; a side without a frame has no term."""
    inside = 1 - sum(probabilities[i] for i in foreground) / len(foreground) if foreground else 0.0
    outside = sum(probabilities[j] for j in background) / len(background) if background else 0.0
    return inside + outside


def alignment_by_hand(videos, texts, tau: float, with_own: bool) -> list[float]:
    """Eq. 17 for each video; `with_own` adds the own pair to the denominator."""
    result = []
    for i, video in enumerate(videos):
        scores = [sum(a * b for a, b in zip(video, text, strict=True)) / tau for text in texts]
        others = [math.exp(s) for j, s in enumerate(scores) if j != i or with_own]
        result.append(-(scores[i] - math.log(sum(others))) if others else 0.0)
    return result


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


# Predictions and labels


def predictions(seed: int, batch: int = 3, queries: int = 4, moments: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, predicted spans, and labels of which each row holds 0 to `moments`."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, queries, 2, generator=g)
    spans = torch.rand(batch, queries, 2, generator=g) * 0.8 + 0.1
    widths = torch.rand(batch, moments, generator=g) * 0.6 + 0.05
    centres = widths / 2 + torch.rand(batch, moments, generator=g) * (1 - widths)
    labels = torch.stack((centres, widths), dim=-1)
    held = torch.randint(0, moments + 1, (batch,), generator=g)
    labels[torch.arange(moments) >= held[:, None]] = IGNORE
    return logits, spans, labels


def unit_rows(seed: int, rows: int, dim: int = 5) -> Tensor:
    values = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    return values / values.norm(dim=1, keepdim=True)


def moments_of(labels_row: Tensor) -> list[list[float]]:
    return [moment for moment in labels_row.tolist() if moment != [IGNORE, IGNORE]]
