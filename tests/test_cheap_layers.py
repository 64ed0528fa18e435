"""What is faster on the CPU computes the same: PReLU and its gradients, attention; dropout drops as it should."""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from factories import NO_DROPOUT, make_model
from torch import nn

from modeling_bmdetr import BMDetrConfig
from modeling_bmdetr.cpu_layers_bmdetr import BLOCK, DRAWS, Attention, multiplies_bfloat16
from modeling_bmdetr.layers_bmdetr import (
    SMALL,
    BMDetrDropout,
    BMDetrFeedForward,
    BMDetrLinear,
    BMDetrPReLU,
    drop_values,
    eager_attention_forward,
    products_in,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3,), (2, 5), (4, 7, 9)])
@pytest.mark.parametrize("slope", [0.25, -0.5, 0.0, 1.5])
def test_prelu_and_its_gradients_are_those_of_pytorch(shape, slope):
    own, plain = BMDetrPReLU(init=slope), nn.PReLU(init=slope)
    upstream, results = drawn(*shape, seed=1), []
    for layer in (own, plain):
        values = drawn(*shape).requires_grad_()
        output = layer(values)
        output.backward(upstream)
        results.append((output, values.grad, layer.weight.grad))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected)
    assert torch.equal(results[0][0], results[1][0])


def test_prelu_takes_zero_and_other_types():
    layer = BMDetrPReLU()
    values = torch.zeros(4, requires_grad=True)
    layer(values).sum().backward()
    plain = torch.zeros(4, requires_grad=True)
    F.prelu(plain, layer.weight).sum().backward()
    assert torch.equal(values.grad, plain.grad)
    assert layer.double()(drawn(3).double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert BMDetrPReLU()(drawn(3).bfloat16()).dtype in (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_the_share_it_should_and_scales_the_rest(p, dtype):
    torch.manual_seed(0)
    values = torch.ones(1000, 401, dtype=dtype, requires_grad=True)
    output = drop_values(values, p, True)
    kept = output != 0
    share = 1 - p
    assert kept.float().mean().item() == pytest.approx(share, abs=5 * (p * share / values.numel()) ** 0.5)
    torch.testing.assert_close(output[kept].unique(), torch.tensor([1 / share], dtype=dtype), rtol=1e-4, atol=1e-4)
    upstream = drawn(1000, 401).to(dtype)
    output.backward(upstream)
    torch.testing.assert_close(values.grad, torch.where(kept, upstream * output.detach(), 0))
    # Values that share a random integer are dropped independently of each other.
    columns = kept[:, :400].float().view(-1, 4)
    correlation = torch.corrcoef(columns.T) - torch.eye(4)
    assert correlation.abs().max() < 0.02
    assert not torch.equal(drop_values(values, p, True) != 0, kept)


def test_dropout_follows_the_seed_and_is_nothing_where_it_is_off():
    values = drawn(5, 7)
    masks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        masks.append(drop_values(values, 0.5, True))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert drop_values(values, 0.5, False) is values
    assert drop_values(values, 0.0, True) is values
    assert not drop_values(values, 1.0, True).any()
    layer = BMDetrDropout(0.5)
    assert layer.eval()(values) is values
    assert drop_values(torch.ones(0, 3), 0.5, True).shape == (0, 3)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_for_training_is_that_of_pytorch(masked):
    query, key, value = (drawn(2, 4, 6, 8, seed=seed) for seed in range(3))
    mask = (torch.arange(6) < torch.tensor([6, 3])[:, None])[:, None, None] if masked else None
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    output, _ = eager_attention_forward(nn.Identity(), query, key, value, mask, scaling=8**-0.5)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("block", [BLOCK, 1])
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("masked", [None, "bool", "added"])
def test_attention_with_dropout_and_its_gradients_are_those_of_pytorch(p, masked, block, monkeypatch):
    """With the weights that were kept known from a product with the identity."""
    monkeypatch.setattr("modeling_bmdetr.cpu_layers_bmdetr.BLOCK", block)
    heads = [drawn(2, 4, 6, 8, seed=seed).transpose(1, 2).contiguous().transpose(1, 2) for seed in range(3)]
    mask = (torch.arange(6) < torch.tensor([6, 3])[:, None])[:, None, None].expand(2, 1, 6, 6) if masked else None
    if masked == "added":
        mask = torch.zeros(mask.shape).masked_fill(~mask, -1e9)
    threshold = round(p * DRAWS)
    torch.manual_seed(1)
    kept = Attention.apply(heads[0], heads[1], torch.eye(6).expand(2, 4, 6, 6), mask, 8**-0.5, threshold) != 0
    upstream, results = drawn(2, 4, 6, 8, seed=5), []
    for own in (True, False):
        query, key, value = (tensor.detach().requires_grad_() for tensor in heads)
        if own:
            torch.manual_seed(1)
            output = Attention.apply(query, key, value, mask, 8**-0.5, threshold)
        else:
            scores = query @ key.mT * 8**-0.5
            if masked:
                scores = scores.masked_fill(~mask, -torch.inf) if masked == "bool" else scores + mask
            output = (scores.softmax(dim=-1) * kept * (DRAWS / (DRAWS - threshold))) @ value
        output.backward(upstream)
        results.append((output, query.grad, key.grad, value.grad))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("rows_at_once", [None, 4, 1])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_feed_forward_and_its_gradients_are_those_of_the_layers_in_turn(p, rows_at_once, monkeypatch):
    layer = BMDetrFeedForward(BMDetrConfig(video_dim=4, text_dim=4, dropout=p, activation="prelu")).train()
    width, results = layer.up.in_features, []
    if rows_at_once is not None:
        monkeypatch.setattr("modeling_bmdetr.cpu_layers_bmdetr.BLOCK", rows_at_once * layer.up.out_features)
    for own in (True, False):
        if not own:
            monkeypatch.setattr("modeling_bmdetr.layers_bmdetr.FeedForward", None)
            layer.up.__class__ = type("Replaced", (BMDetrLinear,), {})
        states = drawn(3, 5, width).requires_grad_()
        torch.manual_seed(2)
        output = layer(states)
        layer.zero_grad()
        output.backward(drawn(3, 5, width, seed=7))
        results.append([output, states.grad, *(parameter.grad.clone() for parameter in layer.parameters())])
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("length", [SMALL // 32, 2])
@pytest.mark.parametrize("build", ["with oneDNN", "without"])
def test_linear_layers_and_their_gradients_are_those_of_pytorch(build, length, bias, monkeypatch):
    """On inputs above and below the size at which they are computed in another way, that are parts of larger ones."""
    if build == "without":
        monkeypatch.setattr("modeling_bmdetr.cpu_layers_bmdetr.ONEDNN_LINEAR", None)
    own, plain = BMDetrLinear(16, 7, bias=bias).train(), nn.Linear(16, 7, bias=bias)
    plain.load_state_dict(own.state_dict())
    upstream, results = drawn(2, length, 7, seed=1), []
    for layer in (own, plain):
        states = drawn(2, length + 3, 16).requires_grad_()
        output = layer(states[:, :length])
        output.backward(upstream)
        results.append((output, states.grad, *(parameter.grad for parameter in layer.parameters())))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_linear_layers_compute_the_gradients_that_are_asked_for():
    layer = BMDetrLinear(SMALL, 2).train().requires_grad_(False)
    states = drawn(1, SMALL).requires_grad_()
    layer(states).sum().backward()
    torch.testing.assert_close(states.grad, layer.weight.sum(0)[None])
    assert layer.weight.grad is None
    layer.requires_grad_(True)
    layer(states.detach()).sum().backward()
    torch.testing.assert_close(layer.weight.grad, states.detach().expand(2, -1))


@pytest.mark.skipif(not multiplies_bfloat16(), reason="no products of bfloat16 numbers")
@pytest.mark.parametrize("build", ["with oneDNN", "without"])
def test_products_of_bfloat16_round_matrices_and_nothing_else(build, monkeypatch):
    """Against the same layer in float64: off by the eight bits of the products, and indeed off."""
    if build == "without":
        monkeypatch.setattr("modeling_bmdetr.cpu_layers_bmdetr.ONEDNN_LINEAR", None)
    config = BMDetrConfig(video_dim=4, text_dim=4, activation="prelu", hidden_size=64, dropout=0.0)
    for own, rows in ((BMDetrLinear(64, 48), SMALL // 64), (BMDetrFeedForward(config), 300)):
        exact, results = copy.deepcopy(own).double(), []
        for layer, dtype in ((own.train(), torch.float32), (exact, torch.float64)):
            states = drawn(rows, 64).to(dtype).requires_grad_()
            with products_in(layer, torch.bfloat16 if layer is own else torch.float32):
                output = layer(states)
            output.backward(drawn(*output.shape, seed=1).to(dtype))
            assert output.dtype == states.grad.dtype == dtype
            results.append((output, states.grad, *(parameter.grad for parameter in layer.parameters())))
        for mine, expected in zip(*results, strict=True):
            assert (mine - expected).norm() <= 5e-2 * expected.norm()
        assert (results[0][0] - results[1][0]).norm() > 1e-4 * results[1][0].norm()
        assert {layer.products for layer in own.modules() if isinstance(layer, BMDetrLinear)} == {torch.float32}


def test_the_type_of_products_is_given_back_and_is_not_copied():
    layer = BMDetrLinear(2, 2)
    with products_in(layer, torch.bfloat16):
        with contextlib.suppress(FloatingPointError), products_in(layer, torch.float32):
            assert layer.products == torch.float32
            raise FloatingPointError
        assert layer.products == torch.bfloat16
        assert copy.deepcopy(layer).products == torch.float32
    assert layer.products == torch.float32


def test_gradients_of_gradients_are_refused():
    """Where layers are computed in another way than PyTorch's, they would be wrong."""
    layer = BMDetrLinear(SMALL, 2).train()
    states = drawn(1, SMALL).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(states).square().sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_layers_put_in_place_of_those_of_a_feed_forward_are_called():
    layer = BMDetrFeedForward(BMDetrConfig(video_dim=4, text_dim=4, activation="prelu")).train()
    layer.down = nn.Sequential(nn.Linear(layer.up.out_features, 3))
    assert layer(drawn(2, layer.up.in_features)).shape == (2, 3)


def test_a_model_without_dropout_trains_the_same_with_the_plain_layers(tiny_batch, monkeypatch):
    batch = tiny_batch()
    results = []
    for plain in (False, True):
        model = make_model(**NO_DROPOUT).train()
        if plain:
            monkeypatch.setattr("modeling_bmdetr.layers_bmdetr.runs_eagerly_on_cpu", lambda tensor: False)
        monkeypatch.setattr("modeling_bmdetr.layers_bmdetr.SMALL", 0)
        loss = model(**batch).loss
        loss.backward()
        results.append((loss, {name: parameter.grad for name, parameter in model.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], rtol=1e-4, atol=1e-6)


def test_a_model_with_dropout_has_the_mean_of_the_plain_one(tiny_batch, monkeypatch):
    """Over many draws, the outputs in training have the same mean with either kind of layer."""
    batch = tiny_batch(labels=False)
    torch.manual_seed(0)
    model = make_model(dropout=0.3, attention_dropout=0.3, projection_dropout=0.3).train()

    def draws():
        with torch.no_grad():
            return torch.stack([model(**batch).saliency_scores for _ in range(200)])

    mine = draws()
    monkeypatch.setattr("modeling_bmdetr.layers_bmdetr.runs_eagerly_on_cpu", lambda tensor: False)
    plain = draws()
    spread = (mine.var(dim=0) + plain.var(dim=0)).div(200).sqrt()
    assert ((mine.mean(dim=0) - plain.mean(dim=0)).abs() <= 5 * spread + 1e-6).all()
    torch.testing.assert_close(mine.std(dim=0).mean(), plain.std(dim=0).mean(), rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("shifted", [False, True])
def test_words_of_negative_queries_are_left_out_of_the_last_layer_without_a_difference(
    tiny_batch, implementation, shifted, answered
):
    """With all layers recorded, every pass is computed whole."""
    batch, results = tiny_batch(shifted=shifted), []
    for whole in (False, True):
        model = make_model(**NO_DROPOUT, answer_negatives=answered).train()
        model.set_attn_implementation(implementation)
        output = model(**batch, output_hidden_states=whole)
        output.loss.backward()
        results.append((output, {name: parameter.grad for name, parameter in model.named_parameters()}))
    torch.testing.assert_close(results[0][0].loss, results[1][0].loss)
    torch.testing.assert_close(results[0][0].negative_probabilities, results[1][0].negative_probabilities)
    torch.testing.assert_close(results[0][0].loss_dict, results[1][0].loss_dict)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], rtol=1e-4, atol=1e-6)


def test_the_last_layer_sees_only_the_clips_of_negative_queries(tiny_batch):
    batch, model = tiny_batch(), make_model(**NO_DROPOUT, answer_negatives=False).eval()
    lengths = []
    layer = model.model.encoder.layers[-1]
    layer.feed_forward.register_forward_hook(lambda module, inputs, output: lengths.append(tuple(inputs[0].shape[:2])))
    model(**batch)
    clips, words = batch["video_mask"].shape[1], batch["negative_text_mask"].shape[2]
    assert sorted(lengths) == [(8, clips + words), (16, clips)]  # two views of four rows; two negatives of each
