"""All loss terms of a batch together: against the loops, over processes, with parts missing, and weighted."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from factories import PAPER
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_by_hand import (
    COSTS,
    alignment_by_hand,
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
from torch import Tensor

from modeling_bmdetr import BMDetrConfig
from modeling_bmdetr.loss_bmdetr import COUNTS, BMDetrLoss, ViewTargets
from modeling_bmdetr.modeling_bmdetr import joint_probability
from modeling_bmdetr.spans_bmdetr import IGNORE

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)
seeds = st.integers(0, 10_000)
PAPER_TERMS = ("loss_cls", "loss_l1", "loss_iou", "loss_margin", "loss_semantic", "loss_prob", "loss_prob_positive",
               "loss_prob_negative")  # fmt: skip


def losses_of(
    outputs: dict[str, Tensor], labels: Tensor, mask: Tensor, rows: Tensor | None, counts=None, config=None, **targets
):
    negatives = outputs.get("negative_probabilities")
    negative_mask = None if negatives is None else targets.pop("negative_mask")
    target = ViewTargets.from_labels(labels, mask, rows=rows, **targets)
    return BMDetrLoss(config or BMDetrConfig(**PAPER)).view_terms(outputs, target, negative_mask, counts=counts)


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
    with_own = seed % 2 == 0
    config = BMDetrConfig(**PAPER, alignment_denominator="all" if with_own else "negatives")

    def sides(moments, b: int) -> tuple[list[int], list[int]]:
        n = int(lengths[b])
        fore = set()
        for centre, width in moments:
            inside = [i for i in range(n) if centre - width / 2 <= (i + 0.5) / n < centre + width / 2]
            fore.update(inside or [min(int(centre * n), n - 1)])
        return sorted(fore), [i for i in range(n) if i not in fore]

    expected: dict[str, list[float]] = {name: [] for name in PAPER_TERMS}
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
        if moments:
            expected["loss_margin"].append(margin_by_hand(scores, fore, back, 0.2))
        joint, positive = (outputs[f"{name}_probabilities"][b].tolist() for name in ("frame", "positive"))
        expected["loss_prob"].append(probability_by_hand(joint, fore, back))
        expected["loss_prob_positive"].append(probability_by_hand(positive, fore, back))
        for n in range(2):
            if negative_mask[b, n]:
                sides_n = sides(moments_of(negative_labels[b, n]), b)
                negative = outputs["negative_probabilities"][b, n].tolist()
                expected["loss_prob_negative"].append(probability_by_hand(negative, *sides_n))
    present = [b for b in kept if moments_of(labels[b])]
    videos, texts = ([outputs[name][b].tolist() for b in present] for name in ("video_embeds", "text_embeds"))
    expected["loss_semantic"] = alignment_by_hand(videos, texts, 0.07, with_own)

    losses = losses_of(
        outputs, labels, mask, rows, config=config, negative_labels_cxw=negative_labels, negative_mask=negative_mask
    )
    assert set(losses) == set(expected)
    for name, values in expected.items():
        assert losses[name].item() == pytest.approx(mean(values), rel=1e-4, abs=1e-4), name
    total = BMDetrLoss(config).weighted_sum(losses)
    weights = {"loss_cls": 8, "loss_l1": 0.5, "loss_iou": 8, "loss_margin": 8, "loss_semantic": 1, "loss_prob": 0}
    weights |= {"loss_prob_positive": 2, "loss_prob_negative": 2}
    assert total.item() == pytest.approx(sum(weights[name] * mean(v) for name, v in expected.items()), rel=1e-4)


def test_mean_counts_over_processes_make_the_mean_over_the_whole_batch():
    """Two halves of a batch, each divided by the mean count, average to the terms of the whole batch."""
    outputs, mask = random_outputs(11, batch=4, negatives=1), torch.ones(4, 8, dtype=torch.bool)
    _, _, labels = predictions(12, batch=4)
    labels[0, 0], labels[1], labels[2, 0] = torch.tensor([0.5, 0.4]), IGNORE, torch.tensor([0.3, 0.2])
    present = torch.tensor([[True], [True], [True], [False]])

    def part(rows: slice, counts=None) -> dict[str, Tensor]:
        chosen = {name: value[rows] for name, value in outputs.items()}
        return losses_of(
            chosen, labels[rows], mask[rows], None, counts,
            negative_labels_cxw=labels[rows, None], negative_mask=present[rows],
        )  # fmt: skip

    has = labels[..., 0] != IGNORE
    of_row = has.any(dim=1).sum()
    numbers = (of_row, of_row, has.sum(), (present[:, 0] & has.any(dim=1)).sum())
    counts = {name: number / 2 for name, number in zip(COUNTS, numbers, strict=True)}
    halves = [part(half, counts) for half in (slice(0, 2), slice(2, 4))]
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
    outputs.pop("negative_probabilities")
    assert set(losses_of(outputs, labels, mask, None)) == plain | {"loss_prob", "loss_prob_positive"}
    for name in ("frame_probabilities", "positive_probabilities"):
        outputs.pop(name)
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


def test_with_one_moment_a_row_nothing_waits_for_the_device():
    """Meta tensors have no values: whatever looks at one, as a branch or a boolean index does, raises."""
    outputs = {name: value.to("meta").requires_grad_() for name, value in random_outputs(16).items()}
    labels, mask = torch.zeros(4, 1, 2, device="meta"), torch.ones(4, 8, dtype=torch.bool, device="meta")
    present = torch.ones(4, 2, dtype=torch.bool, device="meta")
    for denominator in ("negatives", "all"):
        losses = losses_of(
            outputs, labels, mask, None, config=BMDetrConfig(alignment_denominator=denominator),
            negative_labels_cxw=labels[:, None].expand(-1, 2, -1, -1), negative_mask=present,
            saliency_labels=torch.zeros(4, 8, device="meta"),
        )  # fmt: skip
        torch.stack(list(losses.values())).sum().backward()
    several = torch.zeros(4, 2, 2, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):  # SciPy looks at the costs
        losses_of(outputs, several, mask, None, negative_mask=present)


def looks(function: Callable[[], Any]) -> int:
    """How often values are copied to Python, in forward or backward: on a device each is a wait."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return sum(event.count for event in profile.key_averages() if event.key == "aten::_local_scalar_dense")


def test_the_joint_probability_does_not_wait_for_the_device_in_backward():
    positive, negative = torch.rand(4, 5, requires_grad=True), torch.rand(4, 2, 5, requires_grad=True)
    present = torch.ones(4, 2, dtype=torch.bool)
    assert looks(lambda: joint_probability(positive, negative, present).sum().backward()) == 0
    assert looks(lambda: positive.sum().item()) == 1  # what the count is for


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
