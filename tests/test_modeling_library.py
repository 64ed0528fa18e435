"""The model as the library and a training loop use it: gradients, initialisation, files, attention, compilation."""

import functools
import itertools
import shutil
from pathlib import Path
from typing import Any

import factories
import pytest
import torch
from factories import PAPER
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval, BMDetrModel
from modeling_bmdetr.layers_bmdetr import BMDetrEncoderAttention


@pytest.fixture
def tiny_model():
    """The paper's model; test_ranking.py has what the options for ranking add."""
    return functools.partial(factories.tiny_model, **PAPER)


SITUATIONS = {
    "plain": {"negatives": 0, "shifted": False},
    "negatives": {"negatives": 2, "shifted": False},
    "shifted": {"negatives": 0, "shifted": True},
    "both": {"negatives": 1, "shifted": True},
}


def gradients(model: nn.Module) -> dict[str, Any]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# Gradients


BOTH = (True, False)
SWITCHES = list(itertools.product(BOTH, BOTH, ("linear", "gated"), ("attended", "encoder"), (1, 2), BOTH))


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_parameter_has_a_finite_gradient_under_every_switch(tiny_model, tiny_batch, situation):
    """Needed for distributed training without a search for unused parameters."""
    batch = tiny_batch(**SITUATIONS[situation])
    for aware, spans, pooling, memory, layers, endpoints in SWITCHES:
        model = tiny_model(
            background_aware=aware, learnable_spans=spans, alignment_pooling=pooling, decoder_memory=memory,
            encoder_layers=layers, decoder_layers=layers, projection_layers=layers, endpoint_features=endpoints,
        ).train()  # fmt: skip
        model(**batch).loss.backward()
        for name, gradient in gradients(model).items():
            assert gradient is not None, (name, aware, spans, pooling, memory)
            assert gradient.isfinite().all(), (name, aware, spans, pooling, memory)


def zero_weights() -> dict[str, float]:
    return {name: 0.0 for name in BMDetrConfig.__annotations__ if name.endswith("_loss_weight")}


def odd_batches(tiny_batch) -> dict[str, dict[str, Tensor]]:
    batch = tiny_batch()
    masked = {**batch, "negative_text_mask": torch.zeros_like(batch["negative_text_mask"])}
    still = {**batch, "shifted_labels": torch.full((4, 1, 2), -100.0)}
    nothing = {**still, "labels": torch.full((4, 2, 2), -100.0)}
    single = {name: value[3:] for name, value in batch.items()}  # no background, no negative, nothing to contrast
    return {"masked": masked, "still": still, "nothing": nothing, "single": single}


@pytest.mark.parametrize("name", ["masked", "still", "nothing", "single"])
@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_every_parameter_has_a_finite_gradient_on_odd_batches(tiny_model, tiny_batch, name, denominator):
    model = tiny_model(alignment_denominator=denominator, negative_probability_loss_weight=1.0).train()
    model(**odd_batches(tiny_batch)[name]).loss.backward()
    for parameter, gradient in gradients(model).items():
        assert gradient is not None, parameter
        assert gradient.isfinite().all(), parameter


def test_every_parameter_has_a_gradient_with_every_loss_off(tiny_model, tiny_batch):
    model = tiny_model(**zero_weights()).train()
    model(**tiny_batch()).loss.backward()
    for parameter, gradient in gradients(model).items():
        assert gradient is not None, parameter
        assert gradient.abs().max() == 0, parameter


def test_no_parameter_is_idle(tiny_model, tiny_batch):
    """Each parameter moves the loss, but those that cannot by construction."""
    model = tiny_model(alignment_pooling="gated", decoder_layers=3).train()
    model(**tiny_batch()).loss.backward()
    idle = {name for name, gradient in gradients(model).items() if gradient.abs().max() < 1e-6}
    # A bias of keys moves all scores of a query alike, and one of saliency both sides of a pair alike. The spans enter
    # the first decoder layer with content zero, so its self-attention gives every span the bias of its values.
    alike = ("k_proj.bias", "k_content_proj.bias", "k_position_proj.bias", "saliency_head.bias")
    first = "model.decoder.layers.0.self_attention."
    expected = {name for name in gradients(model) if name.endswith(alike) or name.startswith(first)}
    assert idle == expected - {first + name for name in ("v_proj.bias", "o_proj.weight", "o_proj.bias")}


@pytest.mark.parametrize(
    "name",
    [
        *("logits", "pred_spans", "frame_probabilities", "positive_probabilities", "negative_probabilities"),
        *("saliency_scores", "video_embeds", "text_embeds"),
    ],
)
@pytest.mark.parametrize("view", ["own", "shifted"])
def test_every_output_teaches_encoder_and_projections(tiny_model, tiny_batch, name, view):
    model = tiny_model()
    captured: list[Tensor] = []
    model.model.encoder.register_forward_hook(lambda module, args, output: captured.append(output.last_hidden_state))
    output = model(**tiny_batch(labels=False))
    values = (output if view == "own" else output.shifted)[name]
    inputs = [captured[0], *(p.linears[0].weight for p in (model.model.video_projection, model.model.text_projection))]
    found = torch.autograd.grad((values * torch.randn_like(values)).sum(), inputs)
    assert all(gradient.abs().max() > 0 for gradient in found)
    own, shifted = found[0].unflatten(0, (3, 2, 4)).unbind(1)  # of X+ and the two X-, by view
    assert (shifted if view == "own" else own).abs().max() == 0
    reads_negatives = name in ("frame_probabilities", "negative_probabilities", "saliency_scores", "video_embeds")
    assert ((own if view == "own" else shifted)[1:].abs().max() > 0) == reads_negatives


@pytest.mark.parametrize("situation", SITUATIONS)
def test_gradients_are_finite_under_bf16_autocast(tiny_model, tiny_batch, situation):
    model, batch = tiny_model(alignment_pooling="gated").train(), tiny_batch(**SITUATIONS[situation])
    exact = model(**batch).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    output.loss.backward()
    assert output.loss.dtype == output.pred_spans.dtype == torch.float32
    assert output.loss.item() == pytest.approx(exact, rel=0.05)
    for name, gradient in gradients(model).items():
        assert gradient is not None, name
        assert gradient.dtype == torch.float32, name
        assert gradient.isfinite().all(), name


def test_confident_frames_keep_a_gradient_under_bf16_autocast(tiny_model):
    matcher = tiny_model().model.frame_query_matcher
    with torch.no_grad():  # sigmoid(7) is 0.9991, which bfloat16 rounds to one
        matcher.w1.weight.fill_(10.0)
        matcher.w2.weight.fill_(7 / 8)
    frames = torch.full((2, 3, 16), 0.1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        probabilities = matcher(frames)
    probabilities.sum().backward()
    assert probabilities.dtype == torch.float32
    assert (probabilities < 1).all()
    assert matcher.w2.weight.grad.abs().min() > 0


def test_gradient_checkpointing_gives_the_same_gradients(tiny_model, tiny_batch):
    plain, checkpointed, batch = tiny_model().train(), tiny_model().train(), tiny_batch()
    checkpointed.activation_checkpointing_enable()
    runs: list[int] = []
    layer = checkpointed.model.encoder.layers[0].feed_forward
    layer.register_forward_hook(lambda *_: runs.append(1))
    for model in (plain, checkpointed):
        model(**batch).loss.backward()
    assert len(runs) == 2  # once forward, once more in backward
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(dict(checkpointed.named_parameters())[name].grad, gradient)


# Initialisation


SIZES: dict[str, Any] = {
    "video_dim": 20,
    "text_dim": 30,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


@pytest.fixture(scope="module")
def fresh() -> BMDetrForMomentRetrieval:
    torch.manual_seed(0)
    return BMDetrForMomentRetrieval(BMDetrConfig(**PAPER, **SIZES, num_queries=400, alignment_pooling="gated"))


def is_uniform(values: Tensor, bound: float) -> bool:
    """Looks uniform on [-bound, bound] at the precision that so many values allow."""
    count = values.numel()
    spread = values.std().item() / (bound / 3**0.5)
    reach = values.abs().max().item() / bound
    return reach <= 1 + 1e-6 and reach > 1 - 20 / count and abs(spread - 1) < 3 / count**0.5


def test_matrices_of_encoder_and_decoder_are_xavier(fresh):
    seen = 0
    for part in (fresh.model.encoder, fresh.model.decoder):
        for name, module in part.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            fan_out, fan_in = module.weight.shape
            # Query, key and value of the encoder are one matrix of three times the rows in torch's own attention.
            fused = part is fresh.model.encoder and name.split(".")[-1] in ("q_proj", "k_proj", "v_proj")
            bound = (6 / (fan_in + fan_out * (3 if fused else 1))) ** 0.5
            assert is_uniform(module.weight, bound), name
            seen += 1
    assert seen == 3 * 6 + 2 + 3 * (6 + 6 + 2) + 1 + 6  # one q_position_proj; two layers each of position, width, scale


def test_everything_else_has_the_defaults_of_torch(fresh):
    marked = {id(m) for part in (fresh.model.encoder, fresh.model.decoder) for m in part.modules()}
    for name, module in fresh.named_modules():
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            if id(module) not in marked:
                assert is_uniform(module.weight, bound), name
            if module.bias is None:
                continue
            if name.endswith("o_proj") or ("encoder" in name and name.endswith(("q_proj", "k_proj", "v_proj"))):
                assert module.bias.abs().max() == 0, name
            else:
                assert 0 < module.bias.abs().max() <= bound, name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert (module.bias == 0).all(), name
        elif isinstance(module, nn.PReLU):
            assert module.weight.tolist() == [0.25], name
    assert isinstance(fresh.model.encoder.layers[0].self_attention, BMDetrEncoderAttention)


def test_learnable_spans_are_standard_normal_before_the_sigmoid(fresh):
    weight = fresh.model.query_embedding.weight
    assert weight.shape == (400, 2)
    assert abs(weight.mean().item()) < 0.15
    assert abs(weight.std().item() - 1) < 0.1


def test_initialisation_follows_the_seed(tiny_model):
    one, two, other = tiny_model(seed=3), tiny_model(seed=3), tiny_model(seed=4)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
    assert not torch.equal(one.class_head.weight, other.class_head.weight)


# Files


def load_with_info(folder: Path) -> tuple[BMDetrForMomentRetrieval, dict[str, Any]]:
    result: Any = BMDetrForMomentRetrieval.from_pretrained(folder, output_loading_info=True)
    return result


@pytest.mark.parametrize("fields", [{}, {"background_aware": False, "learnable_spans": False}])
def test_a_saved_model_computes_the_same(tiny_model, tiny_batch, tmp_path: Path, fields):
    model, batch = tiny_model(**fields), tiny_batch()
    with torch.no_grad():
        for parameter in model.parameters():  # values that no initialisation would give
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    torch.manual_seed(99)
    loaded, info = load_with_info(tmp_path)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not loaded.training
    assert loaded.config.to_json_string() == model.config.to_json_string()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    expected, actual = model(**batch), loaded(**batch)
    assert torch.equal(expected.loss, actual.loss)
    assert torch.equal(expected.pred_spans, actual.pred_spans)
    base = BMDetrModel.from_pretrained(tmp_path)
    inputs = {name: value for name, value in batch.items() if "labels" not in name}
    assert torch.equal(base(**inputs).last_hidden_state, expected.last_hidden_state)


def test_weights_that_a_file_lacks_are_initialised_and_the_others_left_alone(tmp_path: Path):
    torch.manual_seed(0)
    model = BMDetrForMomentRetrieval(
        BMDetrConfig(**PAPER, **SIZES, encoder_layers=2, decoder_layers=2, num_queries=200)
    )
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = ("encoder.layers.1", "saliency_head", "query_embedding", "frame_query_matcher", "decoder.norm")
    kept = {name: value for name, value in weights.items() if not any(part in name for part in lost)}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = load_with_info(tmp_path)
    assert set(info["missing_keys"]) == weights.keys() - kept.keys()
    for name, value in kept.items():
        assert torch.equal(loaded.state_dict()[name], value), name
    attention = loaded.model.encoder.layers[1].self_attention
    assert is_uniform(attention.q_proj.weight, (6 / (4 * 64)) ** 0.5)
    assert is_uniform(attention.o_proj.weight, (6 / (2 * 64)) ** 0.5)
    assert attention.q_proj.bias.abs().max() == attention.o_proj.bias.abs().max() == 0
    assert is_uniform(loaded.saliency_head.weight, 64**-0.5)
    assert is_uniform(loaded.model.frame_query_matcher.w1.weight, 64**-0.5)
    assert abs(loaded.model.query_embedding.weight.std().item() - 1) < 0.15
    assert (loaded.model.decoder.norm.weight == 1).all()


def test_nothing_lives_outside_the_state_dict(tiny_model):
    """A buffer that is not saved is garbage after loading."""
    model = tiny_model()
    assert not dict(model.named_buffers())


def test_a_loaded_model_can_run_in_half_precision(tiny_model, tiny_batch, tmp_path: Path):
    model, batch = tiny_model(), tiny_batch()
    model.save_pretrained(tmp_path)
    half = BMDetrForMomentRetrieval.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.model.query_embedding.weight.dtype == torch.bfloat16
    expected, output = model(**batch), half(**batch)  # features stay float32, as a collator makes them
    torch.testing.assert_close(output.pred_spans, expected.pred_spans, atol=0.05, rtol=0)
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_another_float_type_are_taken(tiny_model, tiny_batch, dtype):
    model, batch = tiny_model(), tiny_batch()
    typed = {name: value.to(dtype) if name.endswith("features") else value for name, value in batch.items()}
    output = model(**typed)
    assert output.logits.dtype == torch.float32
    torch.testing.assert_close(output.pred_spans, model(**batch).pred_spans, atol=0.02, rtol=0)


# The library's calling conventions


def test_tuples_on_request(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch()
    output = model(**batch)
    as_tuple = model(**batch, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], output.loss)
    by_config = tiny_model(return_dict=False)
    assert isinstance(by_config(**batch), tuple)
    inputs = {name: value for name, value in batch.items() if "labels" not in name}
    assert isinstance(by_config.model(**inputs), tuple)


def test_training_declarations(tiny_model):
    model = tiny_model()
    assert model.accepts_loss_kwargs is False  # the loss is a mean over the batch
    assert model.main_input_name == "video_features"
    assert {"loss_dict", "shifted"} <= set(model.config.keys_to_ignore_at_inference)
    with pytest.raises(ValueError, match=r"[Ff]lash"):
        model.set_attn_implementation("flash_attention_2")


def test_without_labels_there_is_no_loss(tiny_model, tiny_batch):
    output = tiny_model()(**tiny_batch(labels=False))
    assert output.loss is None
    assert output.loss_dict is None


def test_dropout_is_for_training_only(tiny_model, tiny_batch):
    batch = tiny_batch(labels=False)
    for name in ("projection_dropout", "dropout", "attention_dropout"):
        model = tiny_model(**{name: 0.5})
        assert torch.equal(model(**batch).pred_spans, model(**batch).pred_spans)
        model.train()
        assert not torch.equal(model(**batch).pred_spans, model(**batch).pred_spans), name


# Learning


def test_a_few_samples_are_learned_by_heart():
    torch.manual_seed(0)
    config = BMDetrConfig(
        video_dim=16, text_dim=16, hidden_size=32, num_attention_heads=4, intermediate_size=64, encoder_layers=1,
        decoder_layers=1, num_queries=4, projection_dropout=0.0, dropout=0.0, attention_dropout=0.0,
        probability_loss_weight=4.0, positive_probability_loss_weight=4.0, negative_probability_loss_weight=4.0,
    )  # fmt: skip
    model = BMDetrForMomentRetrieval(config).train()
    labels = torch.full((4, 2, 2), -100.0)
    labels[:, 0] = torch.tensor([[0.25, 0.3], [0.7, 0.4], [0.45, 0.2], [0.2, 0.2]])
    labels[3, 1] = torch.tensor([0.75, 0.3])
    negative = torch.full((4, 1, 1, 2), -100.0)
    negative[:2, 0, 0] = torch.tensor([[0.7, 0.2], [0.2, 0.2]])
    batch = {
        "video_features": torch.randn(4, 20, 16),
        "video_mask": torch.ones(4, 20),
        "text_features": torch.randn(4, 3, 16),
        "text_mask": torch.ones(4, 3),
        "negative_text_features": torch.randn(4, 1, 3, 16),
        "negative_text_mask": torch.ones(4, 1, 3),
        "labels": labels,
        "negative_labels": negative,
    }
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    steps = 400
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimiser.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        output = model(**batch)
        # Without the negative queries, as at inference, the same moments come first.
        alone = model(**{name: batch[name] for name in ("video_features", "video_mask", "text_features", "text_mask")})
    terms = {name: round(value.item(), 4) for name, value in output.loss_dict.items()}
    for name in ("loss_cls", "loss_l1", "loss_iou", "loss_margin", "loss_semantic"):
        assert terms[name] < 0.05, terms
    for name in ("loss_prob", "loss_prob_positive", "loss_prob_negative"):
        assert terms[name] < 0.4, terms  # about one at the start, and slow where a sigmoid has settled wrongly
    for result in (output, alone):
        scores = result.logits.softmax(dim=-1)[..., 0]
        for row, moments in enumerate(labels):
            wanted = moments[moments[:, 0] >= 0]
            best = result.pred_spans[row, scores[row].topk(len(wanted)).indices]
            distance = (best[:, None] - wanted[None]).abs().amax(dim=-1)
            assert distance.amin(dim=0).max() < 0.01
            if result is output:
                assert (scores[row].topk(len(wanted)).values > 0.8).all()
                assert scores[row].sort(descending=True).values[len(wanted) :].max() < 0.2


# Compilation


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
def test_compiles_into_one_graph(tiny_model, tiny_batch):
    model, batch = tiny_model(encoder_layers=1, decoder_layers=1), tiny_batch(moments=1)
    with torch.no_grad():
        expected, actual = model(**batch), torch.compile(model, fullgraph=True)(**batch)
    torch.testing.assert_close(actual.loss, expected.loss, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual.pred_spans, expected.pred_spans, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(actual.shifted.logits, expected.shifted.logits, atol=1e-4, rtol=1e-4)
