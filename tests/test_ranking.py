"""Proposals, refinement, quality and presence: each part against numbers worked out by hand or loops."""

import json
import math

import pytest
import torch
from factories import PAPER, tiny_batch, tiny_model
from loss_by_hand import giou_by_hand, mean, moments_of, predictions
from torch import Tensor, nn

from modeling_bmdetr import BMDetrForMomentRetrieval
from modeling_bmdetr.modeling_bmdetr import span_scores
from modeling_bmdetr.ranking_bmdetr import (
    BMDetrClipProposals,
    clip_shares,
    expected_overlap,
    select_apart,
    surroundings,
)
from modeling_bmdetr.ranking_losses_bmdetr import (
    best_overlap,
    fit_loss,
    nearest_moment,
    presence_loss,
    proposal_loss,
    proposal_quality_loss,
    quality_loss,
)
from modeling_bmdetr.spans_bmdetr import IGNORE, spans_cxw_to_se

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
ALL = torch.tensor([True, True])


def iou_by_hand(a, b) -> float:
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / ((a[1] - a[0]) + (b[1] - b[0]) - shared)


def se(span_cxw) -> tuple[float, float]:
    return span_cxw[0] - span_cxw[1] / 2, span_cxw[0] + span_cxw[1] / 2


def entropy(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


# Evidence


def test_shares_of_clips_in_a_span():
    # Five clips of 0.2 each; four clips of 0.25 each.
    spans = torch.tensor([[[0.1, 0.5]], [[0.25, 0.375]]])
    expected = torch.tensor([[[0.5, 1, 0.5, 0, 0]], [[0, 0.5, 0, 0, 0]]])
    torch.testing.assert_close(clip_shares(spans, MASK), expected)


def test_expected_overlap_of_certain_clips_is_the_iou():
    spans = torch.tensor([[[0.2, 0.8], [0.2, 0.4], [0.6, 1.0]]])
    probabilities = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0]])  # the moment is [0.2, 0.6]
    found = expected_overlap(clip_shares(spans, MASK[:1]), probabilities)
    torch.testing.assert_close(found, torch.tensor([[2 / 3, 1 / 2, 0.0]]))


def test_expected_overlap_weighs_uncertain_clips():
    spans = torch.tensor([[[0.0, 0.4]]])
    found = expected_overlap(clip_shares(spans, MASK[:1]), torch.tensor([[0.8, 0.6, 0.5, 0.1, 0.0]]))
    assert found.item() == pytest.approx(1.4 / (2 + 0.6))


def test_surroundings_are_half_as_long_as_the_span_and_a_clip():
    before, after = surroundings(torch.tensor([[[0.4, 0.6]]]), MASK[:1])
    torch.testing.assert_close(before, torch.tensor([[[0.1, 0.4]]]))
    torch.testing.assert_close(after, torch.tensor([[[0.6, 0.9]]]))


# Proposals


def test_chosen_spans_lie_apart_before_they_come_close():
    spans = torch.tensor([[[0.0, 0.5], [0.02, 0.5], [0.6, 1.0], [0.0, 0.1]]])
    scores = torch.tensor([[2.0, 1.9, -1.0, -4.0]])
    assert select_apart(spans, scores, 4).tolist() == [[0, 2, 1, 3]]  # 1 overlaps 0: 1.9 - 5 is above -4


def test_with_fewer_clips_than_queries_the_best_come_again_and_never_padding():
    spans = torch.tensor([[[0.0, 0.5], [0.6, 1.0], [0.0, 1.0]]])
    scores = torch.tensor([[0.0, 1.0, -1e9]])
    assert select_apart(spans, scores, 4).tolist() == [[1, 0, 1, 0]]


def test_proposals_reach_from_the_centre_of_their_clip(tiny_config):
    torch.manual_seed(0)
    proposals = BMDetrClipProposals(tiny_config())
    nn.init.zeros_(proposals.distances[-1].weight)
    nn.init.zeros_(proposals.distances[-1].bias)
    spans, logits = proposals(torch.randn(2, 5, 16), MASK)
    reach = 4 * math.log(2)  # softplus(0), in clips
    torch.testing.assert_close(spans[0, 1], torch.tensor([(1.5 - reach) / 5, (1.5 + reach) / 5]))
    torch.testing.assert_close(spans[1, 3], torch.tensor([(3.5 - reach) / 4, (3.5 + reach) / 4]))
    assert logits.shape == (2, 5)
    index, chosen = proposals.select(spans, logits, MASK)
    assert index.shape == (2, 4)
    assert (index[1] < 4).all()
    assert ((chosen > 0) & (chosen <= 1)).all()


# Losses


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    logits, spans, labels = predictions(seed, batch=2, moments=2)
    return logits[..., 0], spans, labels


@pytest.mark.parametrize("seed", range(6))
def test_losses_of_spans_against_the_loops(seed):
    logits, spans, labels = random_case(seed)
    overlaps, fits, entropies = [], [], []
    for b in range(2):
        moments = moments_of(labels[b])
        best = [max(((iou_by_hand(se(s), se(m)), m) for m in moments), default=(0.0, None)) for s in spans[b].tolist()]
        overlaps.append([overlap for overlap, _ in best])
        near = [(s, m) for s, (overlap, m) in zip(spans[b].tolist(), best, strict=True) if overlap > 0.5]
        fits.append(mean([0.5 * (abs(s[0] - m[0]) + abs(s[1] - m[1])) + 8 * (1 - giou_by_hand(s, m)) for s, m in near]))
        entropies.append(mean([entropy(x, o) for x, o in zip(logits[b].tolist(), overlaps[b], strict=True)]))
    found = best_overlap(spans, labels)
    torch.testing.assert_close(found, torch.tensor(overlaps), atol=1e-5, rtol=1e-4)
    assert quality_loss(logits, found, ALL).item() == pytest.approx(mean(entropies), rel=1e-4)
    assert fit_loss(spans, labels, ALL, 0.5, 8.0).item() == pytest.approx(mean(fits), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_losses_of_proposals_against_the_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    _, _, labels = random_case(seed)
    proposed = spans_cxw_to_se(torch.rand(2, 5, 2, generator=generator) * 0.5 + 0.2)
    logits = torch.randn(2, 5, generator=generator)
    foreground = torch.rand(2, 5, generator=generator) < 0.5
    foreground[labels[..., 0].eq(IGNORE).all(dim=1)] = False
    foreground &= MASK.bool()
    misfits, qualities = [], []
    for b in range(2):
        n, moments = int(MASK[b].sum()), [se(m) for m in moments_of(labels[b])]
        of_row, entropies = [], []
        for i in range(n):
            centre, target = (i + 0.5) / n, 0.0
            if foreground[b, i]:
                own = min(moments, key=lambda m, c=centre: max(m[0] - c, c - m[1]))
                span = proposed[b, i].tolist()
                cxw = [[(s + e) / 2, e - s] for s, e in (span, own)]
                of_row.append(
                    0.5 * sum(abs(x - y) for x, y in zip(span, own, strict=True)) + 8 * (1 - giou_by_hand(*cxw))
                )
                target = iou_by_hand([min(max(t, 0), 1) for t in span], own)
            entropies.append((1.0 if foreground[b, i] else 0.5) * entropy(logits[b, i].item(), target))
        misfits.append(mean(of_row))
        qualities.append(mean(entropies))
    found = proposal_loss(proposed, labels, foreground, ALL, 0.5, 8.0, MASK.bool())
    assert found.item() == pytest.approx(mean(misfits), rel=1e-4, abs=1e-6)
    found = proposal_quality_loss(proposed, logits, labels, foreground, MASK.bool(), ALL)
    assert found.item() == pytest.approx(mean(qualities), rel=1e-4)


def test_a_clip_between_two_moments_belongs_to_the_nearer_one():
    labels = torch.tensor([[[0.1, 0.2], [0.8, 0.2]]])
    found = nearest_moment(labels, MASK[:1])
    torch.testing.assert_close(found[0, 2], torch.tensor([0.7, 0.9]))  # 0.5 is 0.3 from the first, 0.2 from the other
    torch.testing.assert_close(found[0, 1], torch.tensor([0.0, 0.2]))


def test_losses_divide_by_the_count_that_is_given():
    logits, present = torch.tensor([0.3, -1.0]), torch.tensor([True, False])
    entropies = [entropy(0.3, 1.0), entropy(-1.0, 0.0)]
    assert presence_loss(logits, present, ALL).item() == pytest.approx(mean(entropies))
    assert presence_loss(logits, present, ALL, torch.tensor(4.0)).item() == pytest.approx(sum(entropies) / 4)
    assert presence_loss(logits, present, present).item() == pytest.approx(entropies[0])


# The model


def test_scores_are_class_quality_or_their_product():
    logits, quality = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[1.0]])
    p, q = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    for score, expected in (("class", p), ("quality", q), ("product", p * q)):
        assert span_scores(logits, quality, score).item() == pytest.approx(expected)
    assert span_scores(logits, None, "quality").item() == pytest.approx(p)


def test_refined_spans_go_on_from_those_of_the_layer_before():
    model = tiny_model(clip_proposals=False)
    batch = tiny_batch(labels=False)
    output = model.model(**batch)
    before = output.anchors.expand(4, -1, -1)
    for layer, update in enumerate(model.model.decoder.span_updates):
        expected = (update(output.layer_states[:, layer]) + torch.log(before / (1 - before))).sigmoid()
        torch.testing.assert_close(output.layer_spans[:, layer], expected, atol=1e-5, rtol=1e-4)
        before = expected
    answer = model(**batch)
    torch.testing.assert_close(answer.pred_spans, before, atol=1e-5, rtol=1e-4)
    assert len(answer.layers) == 1
    torch.testing.assert_close(answer.layers[0].pred_spans, output.layer_spans[:, 0])


def test_spans_stay_at_their_proposals_before_training():
    output = tiny_model().model(**tiny_batch(labels=False))
    for layer in range(2):
        torch.testing.assert_close(output.layer_spans[:, layer], output.anchors.clamp(1e-3, 1 - 1e-3))


def test_negative_queries_are_answered_as_if_they_were_the_query():
    model, batch = tiny_model(), tiny_batch(shifted=False, labels=False)
    output = model(**batch)
    for number in range(2):
        asked = {
            "video_features": batch["video_features"],
            "video_mask": batch["video_mask"],
            "text_features": batch["negative_text_features"][:, number],
            "text_mask": batch["negative_text_mask"][:, number],
        }
        rows = batch["negative_text_mask"][:, number].any(dim=-1)
        expected = model(**{name: value[rows] for name, value in asked.items()})
        for name in ("logits", "pred_spans", "quality_logits", "presence_logits", "proposal_logits"):
            found = output.negative[name].unflatten(0, (2, 4))[number][rows]
            torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=1e-4)


def test_an_absent_row_teaches_class_probability_quality_and_presence_alone():
    """Its other terms do not move when it is left out; presence says 0."""
    model, batch = tiny_model(), tiny_batch(negatives=0, shifted=False)
    batch["labels"] = batch["labels"].clone()
    batch["labels"][1] = IGNORE
    whole = model(**batch).loss_dict
    others = model(**{name: value[[0, 2, 3]] for name, value in batch.items()}).loss_dict
    for name in ("loss_l1", "loss_iou", "loss_margin", "loss_semantic", "loss_fit", "loss_proposals"):
        torch.testing.assert_close(whole[name], others[name], atol=1e-5, rtol=1e-4)
    logits = model(**batch).presence_logits
    expected = nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([1.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(whole["loss_presence"], expected)
    for name in ("loss_cls", "loss_prob_positive", "loss_quality", "loss_proposal_quality"):
        assert abs(whole[name] - others[name]) > 1e-6, name


def test_every_parameter_has_a_gradient_with_every_option_and_with_none():
    for fields in ({}, PAPER, {"learnable_spans": False}, {"background_aware": False}):
        model = tiny_model(**fields).train()
        model(**tiny_batch()).loss.backward()
        without = [name for name, value in model.named_parameters() if value.grad is None]
        assert not without, fields


def test_the_paper_model_has_no_parameter_of_ranking():
    names = {name for name, _ in tiny_model(**PAPER).named_parameters()}
    of_ranking = ("quality_head", "presence_head", "clip_proposals", "span_updates")
    assert not [name for name in names if any(part in name for part in of_ranking)]


def test_a_model_in_half_precision_answers():
    output = tiny_model().bfloat16()(**tiny_batch(negatives=0, shifted=False, labels=False))
    for name in ("scores", "pred_spans", "presence_logits", "proposed_spans"):
        assert output[name].isfinite().all()
    assert output.scores.dtype == output.presence_logits.dtype == torch.float32


def test_weights_of_another_number_of_spans_are_refused(tmp_path):
    tiny_model(clip_proposals=True).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_queries": 3}))
    with pytest.raises(ValueError, match=r"another shape \(model.clip_proposals.ranks\)"):
        BMDetrForMomentRetrieval.from_pretrained(tmp_path)
