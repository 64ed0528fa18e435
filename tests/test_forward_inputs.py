"""Whatever is handed to `forward`, it answers with finite numbers, or with a ValueError or TypeError of the product."""

import random
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import NO_DROPOUT, TEXT_DIM, VIDEO_DIM, make_model
from torch import Tensor

DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int8, torch.uint8),
    *(torch.bool, torch.complex64),
)
OTHERS = ("text", 3, 2.5, True, {}, (), [], object())

Change = Callable[[Tensor, random.Random], Any]
CHANGES: list[Change] = [
    lambda x, rng: None,
    lambda x, rng: x.to(rng.choice(DTYPES)),
    lambda x, rng: x.tolist(),
    lambda x, rng: x.numpy(),
    lambda x, rng: x.to("meta"),
    lambda x, rng: x.to_sparse(),
    lambda x, rng: x[..., :0],
    lambda x, rng: x[:0],
    lambda x, rng: x[0],
    lambda x, rng: x[None],
    lambda x, rng: x.transpose(0, -1),
    lambda x, rng: x[..., :-1],
    lambda x, rng: torch.cat((x, x), dim=rng.randrange(x.dim())),
    lambda x, rng: x * float("nan"),
    lambda x, rng: x.float() * 1e30,
    lambda x, rng: torch.full_like(x.float(), float("inf")),
    lambda x, rng: -x,
    lambda x, rng: x.float().mul(3).add(1),
    lambda x, rng: x.flip(-1),
    lambda x, rng: torch.zeros_like(x),
    lambda x, rng: torch.tensor(1.0),
    lambda x, rng: rng.choice(OTHERS),
]
NAMES = (
    *("video_features", "video_mask", "text_features", "text_mask", "negative_text_features", "negative_text_mask"),
    *("negative_weights", "shifted_frame_order", "labels", "shifted_labels", "negative_labels", "saliency_labels"),
)


def good_inputs(rng: random.Random) -> dict[str, Any]:
    """Inputs that the model takes, with any of the optional ones."""
    draw = torch.Generator().manual_seed(rng.randrange(10**6))
    batch, clips, tokens = rng.randint(1, 3), rng.randint(1, 5), rng.randint(1, 3)
    negatives, moments = rng.randint(1, 2), rng.randint(1, 2)
    video_mask = torch.arange(clips).expand(batch, -1) < torch.randint(1, clips + 1, (batch, 1), generator=draw)
    inputs: dict[str, Any] = {
        "video_features": torch.randn(batch, clips, VIDEO_DIM, generator=draw),
        "video_mask": video_mask.float(),
        "text_features": torch.randn(batch, tokens, TEXT_DIM, generator=draw),
        "text_mask": torch.ones(batch, tokens),
    }
    has_negatives, is_shifted, has_labels = (rng.random() < 0.6 for _ in range(3))
    if has_negatives:
        inputs["negative_text_features"] = torch.randn(batch, negatives, tokens, TEXT_DIM, generator=draw)
        inputs["negative_text_mask"] = torch.ones(batch, negatives, tokens)
        inputs["negative_weights"] = torch.rand(batch, negatives, generator=draw)
    if is_shifted:
        inputs["shifted_frame_order"] = torch.arange(clips).repeat(batch, 1)
    if has_labels:
        span = torch.tensor([0.5, 0.4])
        inputs["labels"] = torch.full((batch, moments, 2), -100.0)
        inputs["labels"][:, 0] = span
        inputs["saliency_labels"] = torch.full((batch, clips), -100.0)
        if is_shifted:
            inputs["shifted_labels"] = span.repeat(batch, 1, 1)
        if has_negatives:
            inputs["negative_labels"] = torch.full((batch, negatives, moments, 2), -100.0)
    return inputs


def spoilt_inputs(rng: random.Random) -> dict[str, Any]:
    """Good inputs with one to three of them changed, left out or made up."""
    inputs = good_inputs(rng)
    for name in rng.sample(NAMES, rng.choice((1, 1, 1, 2, 3))):
        if rng.random() < 0.15:
            inputs.pop(name, None)
        elif isinstance(inputs.get(name), Tensor):
            inputs[name] = rng.choice(CHANGES)(inputs[name], rng)
        else:
            inputs[name] = rng.choice((*OTHERS, torch.zeros(2, 2), torch.zeros(1)))
    return inputs


def is_finite(value: Tensor | None) -> bool:
    return value is None or value.device.type == "meta" or bool(value.isfinite().all())


def assert_answered_or_refused(model: Any, inputs: dict[str, Any]) -> None:
    try:
        output = model(**inputs)
    except (ValueError, TypeError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).name
        if raised_in == "input_checks_bmdetr.py" or "missing" in str(error):  # Python names a left-out argument itself
            return
        raise
    assert is_finite(output.loss)
    assert is_finite(output.logits)
    assert is_finite(output.pred_spans)


@pytest.fixture(scope="module")
def model():
    return make_model(**NO_DROPOUT).eval()


def run(model: Any, seeds: range) -> None:
    for seed in seeds:
        rng = random.Random(seed)
        inputs = spoilt_inputs(rng)
        try:
            assert_answered_or_refused(model, inputs)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error


@torch.no_grad()
def test_good_inputs_are_answered(model):
    for seed in range(20):
        output = model(**good_inputs(random.Random(seed)))
        assert is_finite(output.loss)
        assert is_finite(output.logits)


@torch.no_grad()
def test_any_input_is_answered_or_refused(model):
    run(model, range(500))


@pytest.mark.slow
@torch.no_grad()
def test_many_inputs_are_answered_or_refused(model):
    run(model, range(500, 4_500))
