"""Matching and losses against loops written from the equations, one number at a time."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_by_hand import (
    COSTS,
    alignment_by_hand,
    cost_by_hand,
    giou_by_hand,
    margin_by_hand,
    matching_by_hand,
    mean,
    moments_of,
    predictions,
    probability_by_hand,
    softmax_by_hand,
    unit_rows,
)
from scipy.optimize import linear_sum_assignment

from modeling_bmdetr.loss_bmdetr import (
    MatchedMoments,
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


def as_matched(query_index: list[list[int]], valid: list[list[bool]]) -> MatchedMoments:
    return MatchedMoments(torch.tensor(query_index), torch.tensor(valid))


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
    assert masked_mean(values, mask, count=torch.tensor(4)).item() == 1.75
