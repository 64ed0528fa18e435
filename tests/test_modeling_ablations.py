"""What runs how often, and switches that change what they name and nothing else."""

import functools
from typing import Any

import factories
import pytest
import torch
from factories import PAPER
from model_probes import VIEW_FIELDS, Calls, assert_same_view


@pytest.fixture
def tiny_model():
    """The paper's model; test_ranking.py has what the options for ranking add."""
    return functools.partial(factories.tiny_model, **PAPER)


# What runs how often


@pytest.mark.parametrize(("negatives", "shifted", "views"), [(2, True, 2), (3, False, 1), (0, True, 2), (0, False, 1)])
def test_one_encoder_pass_no_decoder_on_negatives_and_one_projection_each(
    tiny_model, tiny_batch, negatives, shifted, views
):
    model, batch = tiny_model(), tiny_batch(negatives=negatives, shifted=shifted)
    parts = model.model
    with (
        Calls(parts.video_projection) as video, Calls(parts.text_projection) as text,
        Calls(*parts.encoder.layers) as encoder, Calls(*parts.decoder.layers) as decoder,
        Calls(model.class_head) as heads,
    ):  # fmt: skip
        model(**batch)
    assert [call[0].shape[:2] for call in video.inputs] == [(views, 4)]
    assert [call[0].shape[:-2] for call in text.inputs] == [(1 + negatives, 4)]
    passes, positives = (1 + negatives) * views * 4, views * 4
    last = [passes - positives, positives] if negatives else [positives]  # of negatives, clips by themselves
    assert [len(call[0]) for call in encoder.inputs] == [passes, *last]
    assert [len(call[0]) for call in decoder.inputs] == [views * 4] * 2
    assert [len(call[0]) for call in heads.inputs] == [4] * views


@pytest.mark.parametrize("memory", ["attended", "encoder"])
def test_the_decoder_reads_the_memory_that_is_named(tiny_model, tiny_batch, memory):
    model, batch = tiny_model(decoder_memory=memory).model, tiny_batch(labels=False)
    with Calls(model.decoder) as decoder:
        output = model(**batch)
    name = "attended_hidden_state" if memory == "attended" else "encoder_last_hidden_state"
    expected = torch.cat((output[name], output.shifted[name]))
    assert torch.equal(decoder.inputs[0][1], expected)


# Ablations: each switch changes what it names and nothing else


def outputs_changed_by(tiny_model, tiny_batch, **fields: Any) -> set[str]:
    """Which outputs differ when a switch is turned, with all shared weights equal."""
    base, other = tiny_model(), tiny_model(**fields)
    with torch.no_grad():  # probabilities near 0 and 1, so that the frame attention is far from even
        base.model.frame_query_matcher.w2.weight *= 20
    known = other.state_dict()
    shared = {n: v for n, v in base.state_dict().items() if n in known and known[n].shape == v.shape}
    other.load_state_dict(shared, strict=False)
    one, two = base(**tiny_batch()), other(**tiny_batch())
    changed = set()
    for name in (*VIEW_FIELDS, "encoder_last_hidden_state"):
        a, b = one.get(name), two.get(name)
        if a is None or b is None or a.shape != b.shape or not torch.allclose(a, b, atol=1e-6):
            changed.add(name)
    terms = one.loss_dict.keys() | two.loss_dict.keys()
    return changed | {
        name
        for name in terms
        if not name.startswith("shifted_")
        and (name not in two.loss_dict or not torch.allclose(one.loss_dict[name], two.loss_dict[name], atol=1e-6))
    }


FROM_DECODER = {"logits", "pred_spans", "last_hidden_state", "loss_cls", "loss_l1", "loss_iou"}
FROM_ATTENDED = {"saliency_scores", "video_embeds", "loss_margin", "loss_semantic"}


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"learnable_spans": False}, FROM_DECODER),
        ({"decoder_memory": "attended"}, FROM_DECODER),
        ({"frame_attention_scale": "literal"}, FROM_ATTENDED),
        ({"alignment_pooling": "gated"}, {"video_embeds", "text_embeds", "loss_semantic"}),
        ({"alignment_denominator": "negatives"}, {"loss_semantic"}),
        ({"temperature": 0.1}, {"loss_semantic"}),
        ({"margin": 0.4}, {"loss_margin"}),
        ({"no_object_weight": 0.5}, {"loss_cls"}),
        ({"alignment_loss_weight": 0.0}, set()),
        ({"margin_loss_weight": 0.0, "probability_loss_weight": 0.0}, set()),
        ({"class_loss_weight": 0.0, "l1_loss_weight": 0.0, "giou_loss_weight": 0.0}, set()),
    ],
)
def test_a_switch_changes_what_it_names(tiny_model, tiny_batch, fields, changed):
    assert outputs_changed_by(tiny_model, tiny_batch, **fields) == changed


def test_without_background_awareness_there_is_no_matcher_and_no_negative_pass(tiny_model, tiny_batch):
    aware, plain, batch = tiny_model(), tiny_model(background_aware=False), tiny_batch()
    matcher = {name for name in aware.state_dict() if "frame_query_matcher" in name}
    assert aware.state_dict().keys() - plain.state_dict().keys() == matcher != set()
    plain.load_state_dict({n: v for n, v in aware.state_dict().items() if n not in matcher})
    with Calls(*plain.model.encoder.layers) as encoder:
        output = plain(**batch)
    assert [len(call[0]) for call in encoder.inputs] == [8, 8]  # two views of four rows, no negatives
    assert {name for name in output if "probabilities" in name or "frame_attention" in name} == set()
    assert not {name for name in output.loss_dict if "prob" in name}
    without = {name: value for name, value in batch.items() if not name.startswith("negative")}
    assert_same_view(output, plain(**without))
    base = plain.model(**{name: value for name, value in without.items() if "labels" not in name})
    assert torch.equal(base.attended_hidden_state, base.encoder_last_hidden_state)
    # The encoder, and with `decoder_memory="encoder"` the decoder, are those of the background-aware model.
    torch.testing.assert_close(output.pred_spans, aware(**without).pred_spans)
    attended = tiny_model(background_aware=False, decoder_memory="attended")
    attended.load_state_dict(plain.state_dict())
    torch.testing.assert_close(attended(**without).pred_spans, output.pred_spans)


def test_without_learnable_spans_queries_are_embeddings_in_the_same_decoder(tiny_model, tiny_batch):
    spans, learned = tiny_model(), tiny_model(learnable_spans=False)
    assert tuple(learned.model.query_embedding.weight.shape) == (4, 16)
    assert learned.model(**tiny_batch(labels=False)).anchors is None
    dropped = spans.state_dict().keys() - learned.state_dict().keys()
    assert {name.split(".")[2] if "layers" not in name else name.split(".")[5] for name in dropped} == {
        *("span_position", "span_width", "span_scale", "q_sine_proj")
    }
    added = learned.state_dict().keys() - spans.state_dict().keys()
    assert {name.split(".")[5] for name in added} == {"q_position_proj"}  # layers after the first
    offsets = learned.span_head(learned(**tiny_batch()).last_hidden_state)
    torch.testing.assert_close(learned(**tiny_batch()).pred_spans, offsets.sigmoid())


def test_a_loss_switched_off_leaves_the_sum_of_the_others(tiny_model, tiny_batch):
    batch = tiny_batch(shifted=False)
    terms = tiny_model()(**batch).loss_dict
    factors = dict.fromkeys(("positive_probability_loss_weight", "negative_probability_loss_weight"), 0.0)
    model = tiny_model(alignment_loss_weight=0.0, margin_loss_weight=0.0, **factors)
    output = model(**batch)
    expected = 8 * terms["loss_cls"] + 0.5 * terms["loss_l1"] + 8 * terms["loss_iou"]
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    for part in (model.saliency_head, model.video_pooling, model.text_pooling):
        assert all(parameter.grad.abs().max() == 0 for parameter in part.parameters())
