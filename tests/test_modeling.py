"""The model against the equations, and the shapes and invariances it promises."""

import math
from typing import Any

import pytest
import torch
from factories import PAPER
from hypothesis import given, settings
from hypothesis import strategies as st
from model_probes import FORMS, VIEW_FIELDS, Calls, assert_same_view
from torch import Tensor, nn

from modeling_bmdetr.modeling_bmdetr import joint_probability

# The equations


@pytest.mark.parametrize("endpoints", [True, False])
def test_equation_2_video_and_text_are_projected_and_only_the_video_has_positions(tiny_model, tiny_batch, endpoints):
    model = tiny_model(endpoint_features=endpoints, dual_encoder=False)
    batch = tiny_batch(negatives=0, shifted=False, labels=False)
    with Calls(model.model.encoder) as encoder, Calls(model.model.encoder.layers[0]) as layer:
        model(**batch)
    embeds, mask, positions = encoder.inputs[0][:3]
    scaled = layer.inputs[0][1]
    assert scaled[:, :9].abs().min() > 0
    assert scaled[:, 9:].abs().max() == 0
    assert mask.tolist() == torch.cat((batch["video_mask"], batch["text_mask"]), dim=1).tolist()
    assert positions.shape[1] == 9
    for row in range(4):
        n = int(batch["video_mask"][row].sum())
        for clip in range(n):
            value = batch["video_features"][row, clip]
            if endpoints:
                value = torch.cat((value, torch.tensor([clip / n, (clip + 1) / n])))
            assert_projected(value, model.model.video_projection, embeds[row, clip])
            at = 2 * math.pi * (clip + 1) / n
            for pair in range(8):  # 16 features: sine and cosine of 8 frequencies
                angle = at / 10000 ** (2 * pair / 16)
                expected = torch.tensor([math.sin(angle), math.cos(angle)])
                torch.testing.assert_close(positions[row, clip, 2 * pair : 2 * pair + 2], expected, atol=1e-5, rtol=0)
        for token in range(int(batch["text_mask"][row].sum())):
            value = batch["text_features"][row, token]
            assert_projected(value, model.model.text_projection, embeds[row, 9 + token])


def assert_projected(value: Tensor, projection: Any, result: Tensor) -> None:
    """Layers of LayerNorm and Linear, with ReLU between them."""
    for layer, (norm, linear) in enumerate(zip(projection.norms, projection.linears, strict=True)):
        value = value.clamp(min=0) if layer else value
        value = (value - value.mean()) / (value.var(unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias
        value = linear.weight @ value + linear.bias
    torch.testing.assert_close(result, value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", ["literal", "mean_one"])
def test_equations_4_to_8_frame_by_frame(tiny_model, tiny_batch, scale):
    model, batch = tiny_model(frame_attention_scale=scale).model, tiny_batch(labels=False)
    with Calls(model.frame_query_matcher) as matcher:
        output = model(**batch)
    frames = matcher.inputs[0][0]  # (1 + negatives, views, batch, video_len, hidden): the frames of X+ and every X-
    torch.testing.assert_close(frames[0, 0], output.encoder_last_hidden_state[:, :9])
    w1, w2 = model.frame_query_matcher.w1.weight.T, model.frame_query_matcher.w2.weight.T
    assert (w1.shape, w2.shape) == ((16, 8), (8, 1))
    for view, out in enumerate((output, output.shifted)):
        for row in range(4):
            n = int(batch["video_mask"][row].sum())
            joint = []
            for i in range(n):
                # Eq. 4-5 for each query, Eq. 6 over the negatives that there are
                likelihood = [torch.sigmoid(torch.tanh(f @ w1) @ w2).item() for f in frames[:, view, row, i]]
                present = [bool(mask.any()) for mask in batch["negative_text_mask"][row]]
                assert out.positive_probabilities[row, i].item() == pytest.approx(likelihood[0], abs=1e-6)
                p = likelihood[0]
                for k in range(2):
                    expected = likelihood[1 + k] if present[k] else 0.0
                    assert out.negative_probabilities[row, k, i].item() == pytest.approx(expected, abs=1e-6)
                    p *= 1 - expected
                joint.append(p)
            total = sum(math.exp(p) for p in joint)
            attention = [math.exp(p) / total for p in joint]  # Eq. 7
            assert out.frame_probabilities[row, :n].tolist() == pytest.approx(joint, abs=1e-6)
            assert out.frame_attention[row, :n].tolist() == pytest.approx(attention, abs=1e-6)
            for name in ("frame_probabilities", "frame_attention", "positive_probabilities"):
                assert out[name][row, n:].abs().sum() == 0
            for i in range(n):  # Eq. 8; words stay as they are
                factor = attention[i] * (n if scale == "mean_one" else 1)
                expected = out.encoder_last_hidden_state[row, i] * factor
                torch.testing.assert_close(out.attended_hidden_state[row, i], expected, atol=1e-6, rtol=1e-4)
            assert torch.equal(out.attended_hidden_state[row, 9:], out.encoder_last_hidden_state[row, 9:])


def test_a_negative_query_is_matched_as_if_it_were_the_query(tiny_model, tiny_batch):
    """P(f|Q-) is the same function of the video and the sentence as P(f|Q+)."""
    model, batch = tiny_model().model, tiny_batch(labels=False, shifted=False)
    negative = model(**batch).negative_probabilities
    for k in range(2):
        as_query = {
            **{name: batch[name] for name in ("video_features", "video_mask")},
            "text_features": batch["negative_text_features"][:2, k],
            "text_mask": batch["negative_text_mask"][:2, k],
        }
        as_query = {name: value[:2] for name, value in as_query.items()}
        torch.testing.assert_close(negative[:2, k], model(**as_query).positive_probabilities, atol=1e-6, rtol=1e-5)


def test_joint_probability_is_a_product_over_the_negatives_present():
    positive, negative = torch.rand(3, 5), torch.rand(3, 4, 5)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]]).bool()
    joint = joint_probability(positive, negative, mask)
    for row in range(3):
        expected = positive[row].clone()
        for k in range(4):
            if mask[row, k]:
                expected = expected * (1 - negative[row, k])
        torch.testing.assert_close(joint[row], expected)
    torch.testing.assert_close(joint_probability(positive, negative[:, :0], mask[:, :0]), positive)


@pytest.mark.parametrize("pooling", ["linear", "gated"])
def test_equations_9_to_11_and_the_saliency_scores_word_by_word(tiny_model, tiny_batch, pooling):
    model, batch = tiny_model(alignment_pooling=pooling), tiny_batch(labels=False)
    output, states = model(**batch), model.model(**batch).attended_hidden_state
    for row in range(4):
        n, words = int(batch["video_mask"][row].sum()), int(batch["text_mask"][row].sum())
        frames = states[row, :n]
        for layer, values, result in (
            (model.video_pooling, frames, output.video_embeds[row]),
            (model.text_pooling, states[row, 9 : 9 + words], output.text_embeds[row]),
        ):
            scored = values if pooling == "linear" else torch.tanh(values @ layer.gate.weight.T)
            scores = (scored @ layer.score.weight.T).squeeze(-1)
            weights = scores.exp() / scores.exp().sum()
            pooled = sum(weight * value for weight, value in zip(weights, values, strict=True))
            if pooling == "gated":
                for linear in layer.output:
                    pooled = linear.weight @ pooled + linear.bias
            torch.testing.assert_close(result, pooled / pooled.norm(), atol=1e-5, rtol=1e-4)
        saliency = frames @ model.saliency_head.weight[0] + model.saliency_head.bias
        torch.testing.assert_close(output.saliency_scores[row, :n], saliency, atol=1e-6, rtol=1e-4)
        assert output.saliency_scores[row, n:].abs().sum() == 0


def test_spans_are_offsets_from_the_learnable_spans(tiny_model, tiny_batch):
    model, batch = tiny_model(**PAPER), tiny_batch(labels=False)
    anchors = model.model(**batch).anchors
    torch.testing.assert_close(anchors, 1 / (1 + (-model.model.query_embedding.weight).exp()))
    output = model(**batch)
    offsets = model.span_head(output.last_hidden_state)
    expected = torch.sigmoid(offsets + torch.log(anchors / (1 - anchors)))
    torch.testing.assert_close(output.pred_spans, expected, atol=1e-6, rtol=1e-5)
    nn.init.zeros_(model.span_head[-1].weight)
    nn.init.zeros_(model.span_head[-1].bias)
    torch.testing.assert_close(model(**batch).pred_spans[0], anchors, atol=1e-6, rtol=1e-5)


# Shapes


@pytest.mark.parametrize("fields", FORMS)
@pytest.mark.parametrize(("negatives", "shifted"), [(2, True), (0, False)])
def test_every_documented_shape(tiny_model, tiny_batch, fields, negatives, shifted):
    model = tiny_model(**PAPER, **fields, num_queries=3)
    batch = tiny_batch(negatives=negatives, shifted=shifted)
    aware, spans = model.config.background_aware, model.config.learnable_spans
    tokens = 6 if negatives and aware else 4
    model.set_attn_implementation("eager")
    output = model(**batch, output_attentions=True, output_hidden_states=True)
    base = model.model(**{name: value for name, value in batch.items() if "labels" not in name})
    shared = {
        "last_hidden_state": (4, 3, 16),
        "encoder_last_hidden_state": (4, 9 + tokens, 16),
        **({name: (4, 9) for name in VIEW_FIELDS if name.startswith(("frame_", "positive_")) and aware}),
        **({"negative_probabilities": (4, 2, 9)} if negatives and aware else {}),
    }
    layers = {
        "encoder_hidden_states": (3, (4, 9 + tokens, 16)),
        "encoder_attentions": (2, (4, 2, 9 + tokens, 9 + tokens)),
        "decoder_hidden_states": (3, (4, 3, 16)),
        "decoder_attentions": (2, (4, 2, 3, 3)),
        "cross_attentions": (2, (4, 2, 3, 9 + tokens)),
    }
    of_base = {**shared, "attended_hidden_state": (4, 9 + tokens, 16), **({"anchors": (3, 2)} if spans else {})}
    width = 8 if model.config.alignment_pooling == "gated" else 16
    of_heads = {
        **shared,
        "logits": (4, 3, 2),
        "pred_spans": (4, 3, 2),
        "scores": (4, 3),
        "saliency_scores": (4, 9),
        "video_embeds": (4, width),
        "text_embeds": (4, width),
    }
    for out, shapes in ((base, of_base), (output, of_heads)):
        for view in (out, out.shifted) if shifted else (out,):
            found = {name: tuple(v.shape) for name, v in view.items() if isinstance(v, Tensor) and name != "loss"}
            assert found == shapes
    for name, (count, shape) in layers.items():
        assert [tuple(layer.shape) for layer in output[name]] == [shape] * count
    assert torch.equal(output.encoder_hidden_states[-1], output.encoder_last_hidden_state)
    assert output.loss.shape == ()
    assert (output.shifted is None) == (not shifted)
    assert all(term.shape == () and not term.requires_grad for term in output.loss_dict.values())
    assert ((output.pred_spans > 0) & (output.pred_spans < 1)).all()
    if aware:
        torch.testing.assert_close(output.frame_attention.sum(dim=1), torch.ones(4))
        assert ((output.frame_probabilities >= 0) & (output.frame_probabilities <= 1)).all()
    torch.testing.assert_close(output.video_embeds.norm(dim=1), torch.ones(4))


# Invariances


@settings(deadline=None, derandomize=True, max_examples=12)
@given(st.integers(0, 5), st.integers(0, 3), st.integers(0, 4), st.sampled_from([0.0, 1.0, 1e3]), st.integers(0, 3))
def test_padding_changes_nothing(tiny_model, tiny_batch, clips, tokens, negative_tokens, content, form):
    model, batch = tiny_model(**FORMS[form]), tiny_batch()
    expected = model(**batch)

    def pad(value: Tensor, dim: int, size: int) -> Tensor:
        shape = list(value.shape)
        shape[dim] = size
        return torch.cat((value, torch.zeros(shape, dtype=value.dtype)), dim)

    padded = dict(batch)
    for name, dim, size in (
        *(("video_features", 1, clips), ("video_mask", 1, clips), ("text_features", 1, tokens)),
        *(("text_mask", 1, tokens), ("negative_text_features", 2, negative_tokens)),
        ("negative_text_mask", 2, negative_tokens),
    ):
        padded[name] = pad(batch[name], dim, size)
    index = torch.arange(9 + clips).repeat(4, 1)
    index[:, :9] = batch["shifted_frame_order"]
    padded["shifted_frame_order"] = index
    for name in ("video", "text", "negative_text"):  # padding holds anything
        mask = padded[f"{name}_mask"].bool()[..., None]
        noise = content * torch.randn(padded[f"{name}_features"].shape, generator=torch.Generator().manual_seed(1))
        padded[f"{name}_features"] = torch.where(mask, padded[f"{name}_features"], noise)
    actual = model(**padded)
    assert_same_view(actual, expected, video_len=9)
    assert_same_view(actual.shifted, expected.shifted, video_len=9)
    assert actual.saliency_scores[:, 9:].abs().sum() == 0
    for name, term in expected.loss_dict.items():
        torch.testing.assert_close(actual.loss_dict[name], term, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(actual.loss, expected.loss, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fields", FORMS)
def test_a_batch_equals_its_rows_without_their_padding(tiny_model, tiny_batch, fields):
    model, batch = tiny_model(**fields), tiny_batch()
    together = model(**batch)
    for row in range(4):
        clips, tokens = (int(batch[name][row].sum()) for name in ("video_mask", "text_mask"))
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        for name in ("video_features", "video_mask", "shifted_frame_order"):
            alone[name] = alone[name][:, :clips]
        for name in ("text_features", "text_mask"):
            alone[name] = alone[name][:, :tokens]
        single = model(**alone)
        assert_same_view(single, together, rows=slice(row, row + 1), video_len=clips)
        assert_same_view(single.shifted, together.shifted, rows=slice(row, row + 1), video_len=clips)


@pytest.mark.parametrize("fields", FORMS)
def test_eager_and_sdpa_attention_agree(tiny_model, tiny_batch, fields):
    outputs, gradients = [], []
    for implementation in ("eager", "sdpa"):
        model = tiny_model(seed=2, **fields)  # no two proposals that are equally good, of which rounding chooses
        model.set_attn_implementation(implementation)
        outputs.append(model(**tiny_batch()))
        outputs[-1].loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert_same_view(outputs[0], outputs[1])
    assert_same_view(outputs[0].shifted, outputs[1].shifted)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-3)


def test_weights_of_negative_queries_scale_their_part_of_eq_6(tiny_model, tiny_batch):
    model, batch = tiny_model().eval(), tiny_batch()
    present = batch["negative_text_mask"].any(dim=-1)
    with torch.no_grad():
        plain = model(**batch)
        full = model(**batch, negative_weights=torch.ones(present.shape))
        none = model(**batch, negative_weights=torch.zeros(present.shape))
        half = model(**batch, negative_weights=torch.full(present.shape, 0.5))
    torch.testing.assert_close(full.frame_probabilities, plain.frame_probabilities)
    torch.testing.assert_close(none.frame_probabilities, plain.positive_probabilities)
    by_hand = plain.positive_probabilities * (1 - 0.5 * plain.negative_probabilities).prod(dim=1)
    torch.testing.assert_close(half.frame_probabilities, by_hand)
    torch.testing.assert_close(half.negative_probabilities, plain.negative_probabilities)
    of_negatives = {name: out.loss_dict["loss_prob_negative"] for name, out in (("plain", plain), ("half", half))}
    assert full.loss_dict["loss_prob_negative"] == of_negatives["plain"] > 0
    torch.testing.assert_close(of_negatives["half"], of_negatives["plain"] / 2)
    assert none.loss_dict["loss_prob_negative"] == 0


def test_an_absent_negative_equals_a_masked_one(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch()
    masked = {**batch, "negative_text_mask": torch.zeros_like(batch["negative_text_mask"])}
    absent = {name: value for name, value in batch.items() if not name.startswith("negative")}
    of_masked, of_absent = model(**masked), model(**absent)
    for view in ("", "shifted"):
        a, b = (out[view] if view else out for out in (of_masked, of_absent))
        assert a.negative_probabilities.abs().sum() == 0
        assert_same_view(a, b, without="negative_probabilities")
        torch.testing.assert_close(a.frame_probabilities, a.positive_probabilities)
    torch.testing.assert_close(of_masked.loss, of_absent.loss)
    assert of_masked.loss_dict["loss_prob_negative"] == 0  # every row lacks a negative
    assert of_masked.loss_dict["loss_prob_positive"] == of_masked.loss_dict["loss_prob"] > 0
    # One masked negative beside a real one counts as the real one alone.
    both, first = dict(batch), dict(batch)
    both["negative_text_mask"] = batch["negative_text_mask"].clone()
    both["negative_text_mask"][:, 1] = 0
    for name in ("negative_text_features", "negative_text_mask", "negative_labels"):
        first[name] = batch[name][:, :1]
    of_both, of_first = model(**both), model(**first)
    torch.testing.assert_close(of_both.frame_probabilities, of_first.frame_probabilities)
    torch.testing.assert_close(of_both.loss, of_first.loss)
    torch.testing.assert_close(of_both.loss_dict["loss_prob_negative"], of_first.loss_dict["loss_prob_negative"])


def test_the_order_of_negatives_does_not_matter(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch()
    turned = {name: value.flip(1) if name.startswith("negative") else value for name, value in batch.items()}
    one, two = model(**batch), model(**turned)
    torch.testing.assert_close(one.loss, two.loss)
    torch.testing.assert_close(one.negative_probabilities, two.negative_probabilities.flip(1))


@pytest.mark.parametrize("training", [True, False])
def test_negatives_and_the_shifted_view_are_used_in_either_mode(tiny_model, tiny_batch, training):
    model, batch = tiny_model().train(training), tiny_batch()
    plain = model(**{name: batch[name] for name in ("video_features", "video_mask", "text_features", "text_mask")})
    output = model(**batch)
    assert (output.frame_probabilities[:3] < plain.frame_probabilities[:3])[batch["video_mask"][:3].bool()].all()
    torch.testing.assert_close(output.frame_probabilities[3], plain.frame_probabilities[3])
    assert output.shifted is not None
    assert plain.shifted is None
    assert_same_view(output, model.train(not training)(**batch))


@pytest.mark.parametrize("fields", FORMS)
def test_the_shifted_view_is_the_reordered_video_with_endpoints_in_place(tiny_model, tiny_batch, fields):
    model, batch = tiny_model(**fields), tiny_batch(labels=False)
    order = batch.pop("shifted_frame_order")
    features = torch.stack([batch["video_features"][row, order[row]] for row in range(4)])
    with Calls(model.model.video_projection) as projection:
        shifted = model(**batch, shifted_frame_order=order).shifted
        reordered = model(**{**batch, "video_features": features})
    assert_same_view(shifted, reordered)
    if model.config.endpoint_features:
        original, moved = projection.inputs[0][0]
        assert torch.equal(original[..., 6:], moved[..., 6:])  # the model's own columns describe places
        assert torch.equal(moved[..., 0, :6], features)  # one thing per clip
    rows = slice(2, 4)  # rows that keep their order have two equal views
    assert_same_view(shifted.__class__(**{k: v[rows] for k, v in shifted.items()}), model(**batch), rows=rows)


def test_the_loss_is_the_mean_over_the_rows_of_every_view(tiny_model, tiny_batch):
    model, batch = tiny_model(**PAPER, negative_probability_loss_weight=0.7), tiny_batch()
    output = model(**batch)
    weights = {name: model.criterion.weights[name] for name in output.loss_dict if "shifted" not in name}
    sums = {
        prefix: sum(weight * output.loss_dict[prefix + name] for name, weight in weights.items())
        for prefix in ("", "shifted_")
    }
    torch.testing.assert_close(output.loss, (4 * sums[""] + 2 * sums["shifted_"]) / 6)  # two of four rows shift
    assert len(output.loss_dict) == 16
    # The shifted terms are those of the two rows alone, as a batch of their own on the reordered video.
    order = batch["shifted_frame_order"]
    moved = {**batch, "video_features": batch["video_features"].gather(1, order[..., None].expand(-1, -1, 6))}
    moved["labels"] = batch["shifted_labels"]
    for name in ("shifted_frame_order", "shifted_labels"):
        moved.pop(name)
    alone = model(**{name: value[:2] for name, value in moved.items()})
    for name in weights.keys() - {"loss_prob_negative"}:
        torch.testing.assert_close(output.loss_dict["shifted_" + name], alone.loss_dict[name], atol=1e-5, rtol=1e-4)


def test_the_moments_of_negative_queries_move_with_their_clips(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch()
    output = model(**batch)
    # Negative 0 of row 0 covers [0.8, 1]: clips 7 and 8 (centres 0.83 and 0.94); row 1's first covers clip 0 and,
    # with [0.85, 0.95], clip 5 (centre 0.917); the other negatives of the shifted rows have no moment.
    covered = {(0, 0): {7, 8}, (0, 1): set(), (1, 0): {0, 5}, (1, 1): set()}
    terms = []
    for (row, k), clips in covered.items():
        n = int(batch["video_mask"][row].sum())
        order = batch["shifted_frame_order"][row].tolist()
        probabilities = output.shifted.negative_probabilities[row, k].tolist()
        inside = [probabilities[i] for i in range(n) if order[i] in clips]
        outside = [probabilities[i] for i in range(n) if order[i] not in clips]
        terms.append((1 - sum(inside) / len(inside) if inside else 0.0) + sum(outside) / len(outside))
    assert output.loss_dict["shifted_loss_prob_negative"].item() == pytest.approx(sum(terms) / 4, abs=1e-5)
