"""Matching and losses against loops written from the equations, one number at a time."""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from modeling_bmdetr import BMDetrConfig
from modeling_bmdetr.loss_bmdetr import (
    BMDetrLoss,
    MatchedMoments,
    MomentTargets,
    class_loss,
    frame_margin_loss,
    frame_probability_loss,
    giou_loss,
    l1_loss,
    margin_pairs,
    masked_mean,
    match_moments,
    matching_cost,
    semantic_alignment_loss,
)
from modeling_bmdetr.spans_bmdetr import IGNORE

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)
seeds = st.integers(0, 10_000)


# The equations, one number at a time. Everything below this line is plain Python.


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


def moments_of(labels_row: Tensor) -> list[list[float]]:
    return [moment for moment in labels_row.tolist() if moment != [IGNORE, IGNORE]]


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


# A batch of predictions and labels.


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


def as_matched(query_index: list[list[int]], valid: list[list[bool]]) -> MatchedMoments:
    return MatchedMoments(torch.tensor(query_index), torch.tensor(valid))


COSTS = (8.0, 1.0, 8.0)


@PROPERTY
@given(seeds)
def test_matching_cost_is_equation_12(seed):
    logits, spans, labels = predictions(seed)
    cost = matching_cost(logits, spans, labels, 3.0, 2.0, 5.0)
    assert cost.shape == (3, 4, 3)
    for b, q, m in itertools.product(range(3), range(4), range(3)):
        if labels[b, m, 0] != IGNORE:
            expected = cost_by_hand(logits[b, q].tolist(), spans[b, q].tolist(), labels[b, m].tolist(), 3.0, 2.0, 5.0)
            assert cost[b, q, m].item() == pytest.approx(expected, abs=1e-4)


@PROPERTY
@given(seeds, st.integers(1, 4), st.integers(2, 4))
def test_matching_is_the_best_of_all_permutations(seed, queries, moments):
    logits, spans, labels = predictions(seed, queries=queries, moments=moments)
    matched = match_moments(matching_cost(logits, spans, labels, *COSTS), labels[..., 0] != IGNORE)
    assert matched.query_index.shape == matched.valid.shape == (3, moments)
    for b in range(3):
        wanted = moments_of(labels[b])
        expected, least = matching_by_hand(logits[b].tolist(), spans[b].tolist(), wanted, COSTS)
        got = {m: int(matched.query_index[b, m]) for m in range(moments) if matched.valid[b, m]}
        assert len(set(got.values())) == len(got) == min(queries, len(wanted))
        pairs = [(logits[b, s].tolist(), spans[b, s].tolist(), labels[b, m].tolist()) for m, s in got.items()]
        assert sum(cost_by_hand(*pair, *COSTS) for pair in pairs) == pytest.approx(least if expected else 0, abs=1e-4)


@PROPERTY
@given(seeds, st.integers(1, 12))
def test_one_moment_takes_the_argmin_that_scipy_finds(seed, queries):
    logits, spans, labels = predictions(seed, queries=queries, moments=1)
    cost = matching_cost(logits, spans, labels.masked_fill(labels == IGNORE, 0.5), *COSTS)
    matched = match_moments(cost, torch.ones(3, 1, dtype=torch.bool))
    for b in range(3):
        rows, columns = linear_sum_assignment(cost[b].numpy())
        assert columns.tolist() == [0]
        assert matched.query_index[b].tolist() == rows.tolist()
    # The same moment beside an empty label row goes through SciPy, with the same result.
    wide = torch.cat((cost, torch.zeros_like(cost)), dim=2)
    both = match_moments(wide, torch.tensor([[True, False]] * 3))
    assert torch.equal(both.query_index[:, :1], matched.query_index)
    assert both.valid.tolist() == [[True, False]] * 3


def test_matching_of_a_batch_is_that_of_its_rows():
    logits, spans, labels = predictions(7, batch=5)
    cost, valid = matching_cost(logits, spans, labels, *COSTS), labels[..., 0] != IGNORE
    together = match_moments(cost, valid)
    for b in range(5):
        alone = match_moments(cost[b : b + 1], valid[b : b + 1])
        assert torch.equal(alone.query_index[0], together.query_index[b])
        assert torch.equal(alone.valid[0], together.valid[b])


@pytest.mark.parametrize("moments", [1, 3])
def test_matching_survives_a_diverged_model(moments):
    cost = torch.full((2, 4, moments), float("nan"))
    cost[1] = torch.inf
    matched = match_moments(cost, torch.ones(2, moments, dtype=torch.bool))
    assert matched.valid.all()
    assert (matched.query_index < 4).all()


def test_class_loss_is_the_plain_mean_of_weighted_cross_entropy():
    logits, _, _ = predictions(1)
    matched = as_matched([[2, 0], [3, 0], [1, 1]], [[True, True], [True, False], [False, False]])
    foreground = [{2, 0}, {3}, set()]
    rows = torch.tensor([True, True, True])
    per_row = [
        mean(
            [
                -math.log(softmax_by_hand(logits[b, q].tolist())[0]) if q in foreground[b]
                else -0.1 * math.log(softmax_by_hand(logits[b, q].tolist())[1])
                for q in range(4)
            ]
        )
        for b in range(3)
    ]  # fmt: skip
    assert class_loss(logits, matched, 0.1, rows).item() == pytest.approx(mean(per_row), rel=1e-5)
    two = torch.tensor([True, False, True])
    assert class_loss(logits, matched, 0.1, two).item() == pytest.approx(mean([per_row[0], per_row[2]]), rel=1e-5)
    assert class_loss(logits, matched, 0.1, torch.zeros(3, dtype=torch.bool)).item() == 0


def test_l1_and_giou_are_means_over_matched_moments():
    _, spans, labels = predictions(2, moments=2)
    labels[0], labels[1, 1], labels[2] = torch.tensor([[0.3, 0.2], [0.7, 0.4]]), IGNORE, IGNORE
    labels[1, 0] = torch.tensor([0.5, 0.9])
    matched = as_matched([[3, 1], [2, 0], [0, 0]], [[True, True], [True, False], [False, False]])
    pairs = [(spans[0, 3], labels[0, 0]), (spans[0, 1], labels[0, 1]), (spans[1, 2], labels[1, 0])]
    l1 = mean([sum(abs(a - b) for a, b in zip(p.tolist(), m.tolist(), strict=True)) for p, m in pairs])
    iou = mean([1 - giou_by_hand(p.tolist(), m.tolist()) for p, m in pairs])
    assert l1_loss(spans, labels, matched).item() == pytest.approx(l1, rel=1e-5)
    assert giou_loss(spans, labels, matched).item() == pytest.approx(iou, rel=1e-5)


def test_span_losses_of_the_moments_themselves_are_zero():
    labels = torch.tensor([[[0.3, 0.2]], [[0.5, 1.0]]])
    matched = as_matched([[0], [0]], [[True], [True]])
    assert l1_loss(labels, labels, matched).item() == 0
    assert giou_loss(labels, labels, matched).item() == pytest.approx(0, abs=1e-6)


@PROPERTY
@given(seeds)
def test_margin_loss_is_equation_15_over_all_pairs(seed):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, 7, generator=g)
    mask = torch.arange(7) < torch.randint(1, 8, (3, 1), generator=g)
    foreground = (torch.rand(3, 7, generator=g) < 0.4) & mask
    pairs = margin_pairs(foreground, ~foreground & mask)
    expected = []
    for b in range(3):
        fore = [i for i in range(7) if foreground[b, i]]
        back = [i for i in range(7) if mask[b, i] and not foreground[b, i]]
        expected.append(margin_by_hand(scores[b].tolist(), fore, back, 0.2))
        assert pairs[b].sum().item() == pytest.approx(1.0 if fore and back else 0.0, abs=1e-5)
    every = torch.ones(3, dtype=torch.bool)
    loss = frame_margin_loss(scores, pairs, 0.2, every)
    assert loss.item() == pytest.approx(mean(expected), rel=1e-4, abs=1e-6)
    one = torch.tensor([False, True, False])
    assert frame_margin_loss(scores, pairs, 0.2, one).item() == pytest.approx(expected[1], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.long])
def test_rated_clips_take_half_of_the_margin_pairs(dtype):
    foreground = torch.tensor([[1, 1, 0, 0, 0, 0]] * 5).bool()
    background = torch.tensor([[0, 0, 1, 1, 1, 0]] * 5).bool()
    background[4], foreground[4, 2:5] = False, True  # a moment as long as its video
    ignore = int(IGNORE)
    ratings = torch.tensor(
        [
            [3, 1, ignore, 2, ignore, ignore],  # best 0, worst 1: both in the moment, as rated
            [2, 2, ignore, ignore, ignore, ignore],  # no difference
            [ignore] * 6,
            [ignore, 4, ignore, ignore, 0, -5],  # the last clip is padding: whatever stands there is not a rating
            [1, ignore, 3, ignore, ignore, ignore],
        ]
    ).to(dtype)
    pairs = margin_pairs(foreground, background, ratings)
    plain = margin_pairs(foreground, background)
    rated = torch.zeros(5, 6, 6)
    rated[0, 0, 1] = rated[3, 1, 4] = rated[4, 2, 0] = 1
    for b, (of_plain, of_rated) in enumerate([(0.5, 0.5), (1, 0), (1, 0), (0.5, 0.5), (0, 1)]):
        torch.testing.assert_close(pairs[b], of_plain * plain[b] + of_rated * rated[b])
    assert pairs.sum(dim=(1, 2)).tolist() == pytest.approx([1.0] * 5)


@PROPERTY
@given(seeds)
def test_probability_loss_is_equation_16(seed):
    g = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(4, 6, generator=g)
    mask = torch.arange(6) < torch.randint(1, 7, (4, 1), generator=g)
    foreground = (torch.rand(4, 6, generator=g) < 0.5) & mask
    rows = torch.rand(4, generator=g) < 0.7
    expected = [
        probability_by_hand(
            probabilities[b].tolist(),
            [i for i in range(6) if foreground[b, i]],
            [i for i in range(6) if mask[b, i] and not foreground[b, i]],
        )
        for b in range(4)
    ]
    loss = frame_probability_loss(probabilities, foreground, mask, rows)
    assert loss.item() == pytest.approx(mean([e for e, r in zip(expected, rows, strict=True) if r]), abs=1e-5)


@PROPERTY
@given(seeds, st.integers(1, 5), st.booleans())
def test_alignment_loss_is_equation_17(seed, batch, with_own):
    videos, texts = unit_rows(seed, batch), unit_rows(seed + 1, batch)
    expected = mean(alignment_by_hand(videos.tolist(), texts.tolist(), 0.07, with_own))
    every = torch.ones(batch, dtype=torch.bool)
    loss = semantic_alignment_loss(videos, texts, 0.07, "all" if with_own else "negatives", every)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_alignment_loss_of_some_rows_is_that_of_the_smaller_batch(denominator):
    videos, texts = unit_rows(3, 5), unit_rows(4, 5)
    rows = torch.tensor([True, False, True, True, False])
    some = semantic_alignment_loss(videos, texts, 0.07, denominator, rows)
    alone = semantic_alignment_loss(videos[rows], texts[rows], 0.07, denominator, torch.ones(3, dtype=torch.bool))
    assert some.item() == pytest.approx(alone.item(), rel=1e-5)


@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_alignment_loss_over_texts_of_other_processes_is_that_of_the_whole_batch(denominator):
    videos, texts = unit_rows(5, 6), unit_rows(6, 6)
    every = torch.ones(6, dtype=torch.bool)
    whole = semantic_alignment_loss(videos, texts, 0.07, denominator, every)
    parts = [
        semantic_alignment_loss(videos[i : i + 2], texts, 0.07, denominator, every[:2], columns=every, offset=i)
        for i in (0, 2, 4)
    ]
    assert mean([part.item() for part in parts]) == pytest.approx(whole.item(), rel=1e-5)


def test_alignment_loss_falls_with_the_own_score_and_rises_with_another():
    videos = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    every = torch.ones(2, dtype=torch.bool)
    for denominator in ("negatives", "all"):
        aligned, swapped = (
            semantic_alignment_loss(videos, texts, 0.07, denominator, every) for texts in (videos, videos.flip(0))
        )
        assert aligned < 0.01 < 10 < swapped
    alone = semantic_alignment_loss(videos[:1], videos[:1], 0.07, "negatives", every[:1])
    assert alone.item() == 0  # a batch of one has no negative pair


def test_alignment_loss_keeps_its_digits_under_autocast():
    videos, texts = unit_rows(8, 6, dim=64), unit_rows(9, 6, dim=64)
    every = torch.ones(6, dtype=torch.bool)
    exact = semantic_alignment_loss(videos, texts, 0.07, "all", every)
    with torch.autocast("cpu", torch.bfloat16):
        assert semantic_alignment_loss(videos, texts, 0.07, "all", every).item() == exact.item()


def test_masked_mean_and_the_count_that_may_replace_its_divisor():
    values, mask = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, False, True])
    assert masked_mean(values, mask).item() == 3.5
    assert masked_mean(values, ~mask).item() == 2
    assert masked_mean(values, torch.zeros(3, dtype=torch.bool)).item() == 0
    assert masked_mean(values, mask, count=lambda number: 2 * number).item() == 1.75


def losses_of(outputs: dict[str, Tensor], labels: Tensor, mask: Tensor, rows: Tensor | None, count=None, **targets):
    negatives = outputs.get("negative_probabilities")
    negative_mask = None if negatives is None else targets.pop("negative_mask")
    target = MomentTargets.from_labels(labels, mask, rows=rows, **targets)
    return BMDetrLoss(BMDetrConfig(), count).terms(target, outputs, negative_mask)


def random_outputs(seed: int, batch: int = 4, clips: int = 8, negatives: int = 2) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits, spans, _ = predictions(seed, batch=batch)
    return {
        "logits": logits,
        "pred_spans": spans,
        "saliency_scores": torch.randn(batch, clips, generator=g),
        "frame_probabilities": torch.rand(batch, clips, generator=g),
        "positive_probabilities": torch.rand(batch, clips, generator=g),
        "negative_probabilities": torch.rand(batch, negatives, clips, generator=g),
        "video_embeds": unit_rows(seed, batch),
        "text_embeds": unit_rows(seed + 1, batch),
    }


@PROPERTY
@given(seeds)
def test_every_term_of_a_batch_against_the_loops(seed):
    outputs = random_outputs(seed)
    _, _, labels = predictions(seed + 1, batch=4, moments=2)
    _, _, negative_labels = predictions(seed + 2, batch=8, moments=2)
    negative_labels = negative_labels.view(4, 2, 2, 2)
    g = torch.Generator().manual_seed(seed + 3)
    lengths = torch.randint(2, 9, (4,), generator=g)
    mask = torch.arange(8) < lengths[:, None]
    negative_mask = torch.rand(4, 2, generator=g) < 0.7
    rows = torch.tensor([True, True, False, True])
    config = BMDetrConfig()

    def sides(moments, b: int) -> tuple[list[int], list[int]]:
        n = int(lengths[b])
        fore = set()
        for centre, width in moments:
            inside = [i for i in range(n) if centre - width / 2 <= (i + 0.5) / n < centre + width / 2]
            fore.update(inside or [min(int(centre * n), n - 1)])
        return sorted(fore), [i for i in range(n) if i not in fore]

    expected: dict[str, list[float]] = {name: [] for name in BMDetrLoss(config).weights}
    kept = [b for b in range(4) if rows[b]]
    for b in range(4):
        moments = moments_of(labels[b])
        logits, spans = outputs["logits"][b].tolist(), outputs["pred_spans"][b].tolist()
        matched, _ = matching_by_hand(logits, spans, moments, COSTS)
        for m, s in matched.items():  # rows that do not count hold no moment in practice; span terms follow matches
            expected["loss_l1"].append(abs(spans[s][0] - moments[m][0]) + abs(spans[s][1] - moments[m][1]))
            expected["loss_iou"].append(1 - giou_by_hand(spans[s], moments[m]))
        if b not in kept:
            continue
        entropies = [
            -math.log(softmax_by_hand(x)[0]) if q in matched.values() else -0.1 * math.log(softmax_by_hand(x)[1])
            for q, x in enumerate(logits)
        ]
        expected["loss_cls"].append(mean(entropies))
        fore, back = sides(moments, b)
        scores = outputs["saliency_scores"][b].tolist()
        expected["loss_margin"].append(margin_by_hand(scores, fore, back, 0.2))
        joint, positive = (outputs[f"{name}_probabilities"][b].tolist() for name in ("frame", "positive"))
        expected["loss_prob"].append(probability_by_hand(joint, fore, back))
        if negative_mask[b].any():
            expected["loss_prob_positive"].append(probability_by_hand(positive, fore, back))
        for n in range(2):
            if negative_mask[b, n]:
                sides_n = sides(moments_of(negative_labels[b, n]), b)
                negative = outputs["negative_probabilities"][b, n].tolist()
                expected["loss_prob_negative"].append(probability_by_hand(negative, *sides_n))
    videos, texts = ([outputs[name][b].tolist() for b in kept] for name in ("video_embeds", "text_embeds"))
    expected["loss_semantic"] = alignment_by_hand(videos, texts, 0.07, with_own=False)

    losses = losses_of(outputs, labels, mask, rows, negative_labels_cxw=negative_labels, negative_mask=negative_mask)
    assert set(losses) == set(expected)
    for name, values in expected.items():
        assert losses[name].item() == pytest.approx(mean(values), rel=1e-4, abs=1e-4), name
    total = BMDetrLoss(config).weighted_sum(losses)
    weights = {"loss_cls": 8, "loss_l1": 0.5, "loss_iou": 8, "loss_margin": 8, "loss_semantic": 1, "loss_prob": 2}
    weights |= {"loss_prob_positive": 2, "loss_prob_negative": 0}
    assert total.item() == pytest.approx(sum(weights[name] * mean(v) for name, v in expected.items()), rel=1e-4)


def test_mean_counts_over_processes_make_the_mean_over_the_whole_batch():
    """Two halves of a batch, each divided by the mean count, average to the terms of the whole batch."""
    outputs, mask = random_outputs(11, batch=4, negatives=1), torch.ones(4, 8, dtype=torch.bool)
    _, _, labels = predictions(12, batch=4)
    labels[0, 0], labels[1], labels[2, 0] = torch.tensor([0.5, 0.4]), IGNORE, torch.tensor([0.3, 0.2])
    present = torch.tensor([[True], [True], [True], [False]])

    def part(rows: slice, count=None) -> dict[str, Tensor]:
        chosen = {name: value[rows] for name, value in outputs.items()}
        return losses_of(
            chosen, labels[rows], mask[rows], None, count,
            negative_labels_cxw=labels[rows, None], negative_mask=present[rows],
        )  # fmt: skip

    counts: list[list[Tensor]] = [[], []]

    def recorded(number: Tensor, counts: list[Tensor]) -> Tensor:
        counts.append(number)
        return number

    for half, into in zip((slice(0, 2), slice(2, 4)), counts, strict=True):
        part(half, count=partial(recorded, counts=into))
    means = [(a + b) / 2 for a, b in zip(*counts, strict=True)]
    halves = []
    for half in (slice(0, 2), slice(2, 4)):
        reduced = iter(means)
        halves.append(part(half, count=lambda number, reduced=reduced: next(reduced)))
    whole = part(slice(0, 4))
    for name in whole:
        if name != "loss_semantic":  # contrasts within a process; over all of them with the texts gathered
            averaged = (halves[0][name] + halves[1][name]) / 2
            assert averaged.item() == pytest.approx(whole[name].item(), rel=1e-5), name


def test_terms_follow_what_the_outputs_hold():
    outputs, mask = random_outputs(13), torch.ones(4, 8, dtype=torch.bool)
    _, _, labels = predictions(14, batch=4)
    plain = {"loss_cls", "loss_l1", "loss_iou", "loss_margin", "loss_semantic"}
    present = torch.ones(4, 2, dtype=torch.bool)
    assert set(losses_of(outputs, labels, mask, None, negative_mask=present)) == plain | {
        "loss_prob",
        "loss_prob_positive",
    }
    for name in ("negative_probabilities", "positive_probabilities"):
        outputs.pop(name)
    assert set(losses_of(outputs, labels, mask, None)) == plain | {"loss_prob"}
    outputs.pop("frame_probabilities")
    assert set(losses_of(outputs, labels, mask, None)) == plain


@pytest.mark.parametrize("rows", [[True, True, True, True], [False, True, False, False], [False] * 4])
def test_gradients_are_finite_whatever_is_missing(rows):
    outputs = {name: value.requires_grad_() for name, value in random_outputs(15).items()}
    labels = torch.full((4, 2, 2), IGNORE)
    labels[0, 0] = torch.tensor([0.5, 1.0])  # no background
    labels[1, 0] = torch.tensor([0.5, 0.001])  # no clip's centre
    mask = torch.arange(8) < torch.tensor([8, 8, 1, 5])[:, None]
    present = torch.tensor([[True, True], [True, False], [False, False], [False, False]])
    losses = losses_of(
        outputs, labels, mask, torch.tensor(rows), negative_labels_cxw=labels[:, None].repeat(1, 2, 1, 1),
        negative_mask=present,
    )  # fmt: skip
    torch.stack(list(losses.values())).sum().backward()
    for name, value in outputs.items():
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name


def test_every_weight_scales_its_own_term():
    names = {
        "class_loss_weight": "loss_cls",
        "l1_loss_weight": "loss_l1",
        "giou_loss_weight": "loss_iou",
        "margin_loss_weight": "loss_margin",
        "probability_loss_weight": "loss_prob",
        "positive_probability_loss_weight": "loss_prob_positive",
        "negative_probability_loss_weight": "loss_prob_negative",
        "alignment_loss_weight": "loss_semantic",
    }
    losses = {name: torch.tensor(10.0**i) for i, name in enumerate(names.values())}
    for i, field in enumerate(names):
        fields: dict[str, Any] = {**dict.fromkeys(names, 0.0), field: 3.0}
        config = BMDetrConfig(**fields)
        assert BMDetrLoss(config).weighted_sum(losses).item() == 3 * 10.0**i


def test_costs_and_loss_weights_are_independent():
    logits = torch.zeros(1, 2, 2)
    logits[0, 1, 0] = 2.0  # confident, but far from the moment
    spans, labels = torch.tensor([[[0.2, 0.2], [0.9, 0.1]]]), torch.tensor([[[0.2, 0.2]]])

    def choice(**costs: Any) -> int:
        fields: dict[str, Any] = {"class_cost": 0.0, "l1_cost": 0.0, "giou_cost": 0.0, **costs}
        return int(BMDetrLoss(BMDetrConfig(**fields)).match(logits, spans, labels).query_index)

    assert (choice(class_cost=1.0), choice(l1_cost=1.0), choice(giou_cost=1.0)) == (1, 0, 0)
