"""Every bad input gives one error that names the argument, what was expected, what came, and what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_bmdetr import BMDetrForMomentRetrieval, input_checks_bmdetr
from modeling_bmdetr.input_checks_bmdetr import check_model_inputs

NAN, INF = float("nan"), float("inf")


def filled(value: float, *index: Any) -> Callable[[Tensor], Tensor]:
    """A copy with one part replaced."""

    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[index] = value
        return tensor

    return change


def missing(_: Tensor) -> None:
    return None


def listed(tensor: Tensor) -> list:
    return tensor.tolist()


# (argument, change, parts of the message)
BAD_INPUTS = [
    # widths and kinds
    ("video_features", lambda x: x[..., :4], ["`video_features` must be 6 values wide", "(4, 9, 4)"]),
    ("text_features", lambda x: x[..., :4], ["`text_features` must be 5 values wide", "(4, 4, 4)"]),
    ("negative_text_features", lambda x: x[..., :4], ["`negative_text_features` must be 5 values", "(4, 2, 6, 4)"]),
    ("video_features", lambda x: torch.cat((x, x[..., :2]), -1), ["two endpoint columns out", "model appends them"]),
    ("video_features", lambda x: x[0], ["`video_features`", "(batch, length, 6)", "received (9, 6)"]),
    ("text_features", lambda x: x.long(), ["`text_features`", "float tensor", "torch.int64"]),
    ("text_features", listed, ["`text_features`", "float tensor", "received list"]),
    ("video_features", missing, ["`video_features`", "float tensor", "received NoneType"]),
    ("negative_text_features", lambda x: x[:, 0], ["`negative_text_features`", "(batch, negatives, length, 5)"]),
    # masks
    ("video_mask", missing, ["`video_mask` is missing", "(4, 9)", "1 = real and 0 = padding", "torch.ones(4, 9)"]),
    ("text_mask", missing, ["`text_mask` is missing", "(4, 4)", "torch.ones(4, 4)"]),
    ("video_mask", lambda x: x[:, :8], ["`video_mask` must have shape (4, 9)", "received (4, 8)"]),
    ("text_mask", listed, ["`text_mask` must have shape (4, 4)", "received list"]),
    ("video_mask", filled(2, 0, 0), ["`video_mask` must hold 1 for real and 0 for padded positions"]),
    ("text_mask", lambda x: x.float().masked_fill(x == 0, -INF), ["`text_mask` must hold 1 for real"]),
    ("video_mask", filled(0, 1), ["`video_mask` is all zero in batch rows [1]", "video has no clip", "leave these"]),
    ("text_mask", filled(0, 2), ["`text_mask` is all zero in batch rows [2]", "query has no token", "not inverted"]),
    ("video_mask", lambda x: x.flip(1), ["`video_mask` has padding before a real position", "[1, 3]", "pad at the"]),
    ("negative_text_mask", lambda x: x[:, :1], ["`negative_text_mask` must have shape (4, 2, 6)", "(4, 1, 6)"]),
    ("negative_text_mask", missing, ["`negative_text_features` and `negative_text_mask`", "pass both or neither"]),
    ("negative_text_features", missing, ["`negative_text_features` and `negative_text_mask`", "both or neither"]),
    # nothing in it
    ("video_features", lambda x: x[:, :0], ["`video_features` is empty", "(4, 0, 6)", "length at least 1"]),
    ("text_features", lambda x: x[:, :0], ["`text_features` is empty", "(4, 0, 5)", "length at least 1"]),
    ("negative_text_features", lambda x: x[:, :0], ["`negative_text_features` is empty", "(4, 0, 6, 5)"]),
    # values
    ("video_features", filled(NAN, 2, 3, 1), ["`video_features` holds NaN or infinite", "[2]", "extract them again"]),
    ("text_features", filled(INF, 0), ["`text_features` holds NaN or infinite", "[0]", "extract them again"]),
    ("negative_text_features", filled(NAN, 3, 0, 0, 0), ["`negative_text_features` holds NaN", "[3]"]),
    # the frame order
    ("shifted_frame_order", lambda x: x[:, :5], ["`shifted_frame_order`", "long tensor of shape (4, 9)", "(4, 5)"]),
    ("shifted_frame_order", lambda x: x.float(), ["`shifted_frame_order`", "long tensor", "torch.float32"]),
    ("shifted_frame_order", listed, ["`shifted_frame_order`", "long tensor", "received list"]),
    ("shifted_frame_order", filled(0, 0, 8), ["`shifted_frame_order` must be a permutation", "0, 1, 2, ..."]),
    ("shifted_frame_order", lambda x: x.flip(1), ["`shifted_frame_order`", "leaves padding in place"]),
    # labels
    ("labels", lambda x: x[..., :1], ["`labels` must have shape (4, moments, 2)", "(4, 2, 1)", "-100"]),
    ("labels", lambda x: x[:, 0], ["`labels` must have shape (4, moments, 2)", "(4, 2)"]),
    ("labels", lambda x: x[:3], ["`labels` must have shape (4, moments, 2)", "(3, 2, 2)"]),
    ("labels", listed, ["`labels` must have shape (4, moments, 2)", "received list"]),
    ("labels", filled(1.2, 0, 0, 0), ["`labels` holds spans outside [0, 1]", "[1.2, 0.34]", "divide seconds by"]),
    ("labels", filled(0.1, 1, 0, 0), ["`labels` holds spans outside [0, 1]", "[0.1, 0.33]", "clip windows"]),
    ("labels", filled(0.0, 2, 1, 1), ["`labels`", "without a positive width", "[0.8, 0.0]", "drop empty ones"]),
    ("labels", filled(-0.3, 2, 1, 1), ["`labels`", "without a positive width", "[0.8, -0.3]"]),
    ("labels", filled(NAN, 0, 0, 0), ["`labels` holds spans outside [0, 1]", "nan"]),
    ("labels", filled(-100.0, 0, 0, 0), ["`labels` holds spans outside [0, 1]", "[-100.0, 0.34]"]),
    ("shifted_labels", missing, ["`shifted_frame_order` and `shifted_labels` belong together", "both or neither"]),
    ("shifted_frame_order", missing, ["`shifted_frame_order` and `shifted_labels` belong together"]),
    ("shifted_labels", filled(3.0, 0, 0, 0), ["`shifted_labels` holds spans outside [0, 1]", "[3.0, 0.34]"]),
    ("negative_labels", lambda x: x[:, :1], ["`negative_labels` must have shape (4, 2, moments, 2)", "(4, 1, 2, 2)"]),
    ("negative_labels", lambda x: x[:, 0, 0], ["`negative_labels` must have shape (4, 2, moments, 2)", "(4, 2)"]),
    ("negative_labels", filled(2.0, 0, 0, 0), ["`negative_labels` holds spans outside [0, 1]"]),
    ("saliency_labels", lambda x: x[:, :3], ["`saliency_labels` must have shape (4, 9)", "-100", "(4, 3)"]),
    ("saliency_labels", listed, ["`saliency_labels` must have shape (4, 9)", "received list"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def good(tiny_model, tiny_batch) -> tuple[BMDetrForMomentRetrieval, dict[str, Tensor]]:
    """A model and a batch of everything that it takes, which it takes."""
    model, batch = tiny_model(), {**tiny_batch(), "saliency_labels": torch.full((4, 9), -100.0)}
    assert model(**batch).loss.isfinite()
    return model, batch


@pytest.mark.parametrize(("name", "change", "parts"), BAD_INPUTS)
def test_a_bad_input_is_named_with_what_was_expected_and_received(good, name, change, parts):
    model, batch = good
    with pytest.raises(ValueError, match=name) as error:
        model(**{**batch, name: change(batch[name])})
    for part in parts:
        assert part in str(error.value)


def test_rows_of_videos_and_queries_must_pair(tiny_config, tiny_batch):
    batch = tiny_batch(shifted=False, labels=False)
    videos = {name: value[:3] for name, value in batch.items() if name.startswith("video")}
    with pytest.raises(ValueError, match=r"`video_features` has 3 rows and `text_features` 4.*repeat the video"):
        check_model_inputs(tiny_config(), **{**batch, **videos})
    negatives = {name: value[:2] for name, value in batch.items() if name.startswith("negative")}
    with pytest.raises(ValueError, match=r"`negative_text_features` has 2 rows, expected 4.*all-zero mask"):
        check_model_inputs(tiny_config(), **{**batch, **negatives})


def test_a_missing_feature_is_guessed_from_the_width(tiny_model, tiny_batch):
    encoders = [{"name": "slowfast", "dim": 3}, {"name": "clip", "dim": 2}, {"name": "audio", "dim": 1}]
    model, batch = tiny_model(video_encoders=encoders), tiny_batch()
    message = r"expects slowfast \(3\) \+ clip \(2\) \+ audio \(1\), and the features of \['clip'\] seem to be missing"
    with pytest.raises(ValueError, match=message):
        model(**{**batch, "video_features": batch["video_features"][..., :4]})
    with pytest.raises(ValueError, match=r"the model expects slowfast \(3\) \+ clip \(2\) \+ audio \(1\)$"):
        model(**{**batch, "video_features": batch["video_features"].repeat(1, 1, 2)})


def test_a_weight_that_needs_negative_labels_asks_for_them(tiny_model, tiny_batch):
    batch = tiny_batch()
    batch.pop("negative_labels")
    model = tiny_model(negative_probability_loss_weight=1.0)
    with pytest.raises(ValueError, match=r"`negative_labels` is missing.*is 1.0.*set the weight to 0"):
        model(**batch)
    tiny_model(negative_probability_loss_weight=0.0)(**batch)  # not read
    model(**tiny_batch(negatives=0))  # nor without negatives


def test_bad_weights_of_negative_queries(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch()
    with pytest.raises(ValueError, match=r"shape \(batch, negatives\) = \(4, 2\), received .*\(4, 1\)"):
        model(**batch, negative_weights=torch.ones(4, 1))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], received values from 0 to 2"):
        model(**batch, negative_weights=torch.tensor([[0.0, 2.0]] * 4))
    with pytest.raises(ValueError, match="`negative_text_features` is missing"):
        model(**tiny_batch(negatives=0), negative_weights=torch.ones(4, 2))


def test_what_looks_odd_but_is_allowed(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch()
    without = {**batch, "negative_text_mask": torch.zeros_like(batch["negative_text_mask"])}
    assert model(**without).loss.isfinite()  # all-zero negative masks mean that there is none
    for kind in (torch.bool, torch.float32, torch.int32, torch.uint8):
        masks = {name: value.to(kind) for name, value in batch.items() if name.endswith("mask")}
        assert model(**{**batch, **masks}).loss.item() == pytest.approx(model(**batch).loss.item())
    nothing = {**batch, "labels": torch.full((4, 2, 2), -100.0)}  # every moment lies past a truncated video
    assert model(**nothing).loss.isfinite()
    assert model(**{**batch, "labels": torch.zeros(4, 0, 2)}).loss.item() == model(**nothing).loss.item()
    rounded = {**batch, "labels": filled(1.00005, 3, 0, 1)(batch["labels"])}  # rounding of seconds to fractions
    assert model(**rounded).loss.isfinite()
    single = {name: value[:1] for name, value in batch.items()}
    assert model(**single).loss.isfinite()


def test_values_are_not_looked_at_where_that_would_cost(monkeypatch, tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch()
    monkeypatch.setattr(input_checks_bmdetr, "reads_values", lambda tensor: False)
    bad = {**batch, "video_features": filled(NAN, 0, 0)(batch["video_features"])}
    model(**bad)
    with pytest.raises(ValueError, match="`video_features` must be 6 values wide"):  # shapes are always checked
        model(**{**batch, "video_features": batch["video_features"][..., :3]})
    assert not input_checks_bmdetr.reads_values(torch.zeros(1, device="meta"))


def test_a_misspelt_input_is_named(tiny_model, tiny_batch):
    batch = tiny_batch()
    batch["negatve_labels"] = batch.pop("negative_labels")
    with pytest.raises(TypeError, match=r"unknown model inputs \['negatve_labels'\]"):
        tiny_model()(**batch)
