"""With `BMDetrConfig.released()`, the model computes what the authors' released code computes."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from released_case import FIXTURE, OUTPUTS, ReleasedCase

from modeling_bmdetr import BMDetrForMomentRetrieval
from modeling_bmdetr.loss_bmdetr import ViewTargets
from modeling_bmdetr.released.conversion import convert_released_checkpoint
from modeling_bmdetr.released.names import RELEASED_LOSSES, released_layout

OUTPUT_TOLERANCE, LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-5, 1e-4


def whole_case() -> Path:
    return Path(os.environ.get("BMDETR_SHARED", "")) / "reference" / "official_case_a.safetensors"


@pytest.fixture(
    scope="module",
    params=[
        "slice",
        pytest.param(
            "whole",
            marks=pytest.mark.skipif("BMDETR_SHARED" not in os.environ, reason="BMDETR_SHARED is not set"),
        ),
    ],
)
def case(request) -> ReleasedCase:
    return ReleasedCase.load(FIXTURE if request.param == "slice" else whole_case())


@pytest.fixture(scope="module")
def converted(case) -> BMDetrForMomentRetrieval:
    # The options of the case are the released defaults, but for the sizes, which the weights tell.
    return convert_released_checkpoint(case.state_dict())


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request, converted) -> BMDetrForMomentRetrieval:
    converted.set_attn_implementation(request.param)
    assert converted.model.encoder.config._attn_implementation == request.param
    return converted


def assert_outputs(case, outputs, prefix, rows=slice(None)):
    """Every output of one view against the file; padding of `outputs` is cut, the file may hold leading parts only."""
    for released, own in OUTPUTS.items():
        golden = case.tensors[f"{prefix}.{released}"][rows]
        value = outputs[own][tuple(slice(size) for size in golden.shape)]
        assert value.shape == golden.shape, own
        assert (value - golden).abs().max() <= OUTPUT_TOLERANCE, own


def pad(inputs: dict[str, torch.Tensor], video: int, text: int, negative: int) -> dict[str, torch.Tensor]:
    """The same rows with so many positions of noise added, masked out."""
    extra = {"video": video, "text": text, "negative_text": negative}
    padded = {}
    for name, value in inputs.items():
        if name == "shifted_frame_order":
            places = torch.arange(value.shape[1], value.shape[1] + video).expand(len(value), -1)
            padded[name] = torch.cat((value, places), dim=1)
        elif name.endswith("_mask"):
            padded[name] = F.pad(value, (0, extra[name.removesuffix("_mask")]))
        else:
            shape = (*value.shape[:-2], extra[name.removesuffix("_features")], value.shape[-1])
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))
            padded[name] = torch.cat((value, noise), dim=-2)
    return padded


@pytest.mark.parametrize(
    ("negatives", "shifted"), [(False, False), (True, False), (False, True), (True, True)], ids=str
)
@torch.no_grad()
def test_outputs(case, model, negatives, shifted):
    outputs = model(**case.inputs(negatives, shifted))
    assert_outputs(case, outputs, "with_negative" if negatives else "positive_only")
    assert (outputs.shifted is not None) == shifted
    if negatives and shifted:
        assert_outputs(case, outputs.shifted, "shifted")


@torch.no_grad()
def test_negative_and_shifted_view_change_outputs(case, model):
    """Guards the comparisons above: the three sets of golden outputs differ by far more than the tolerance."""
    outputs = model(**case.inputs(negatives=True, shifted=True))
    with pytest.raises(AssertionError):
        assert_outputs(case, outputs, "positive_only")
    with pytest.raises(AssertionError):
        assert_outputs(case, outputs, "shifted")


@pytest.mark.parametrize(
    ("form", "changed"),
    [({"decoder_memory": "attended"}, "pred_spans"), ({"frame_attention_scale": "mean_one"}, "saliency_scores")],
    ids=str,
)
@torch.no_grad()
def test_other_forms_are_not_the_release(case, form, changed):
    outputs = convert_released_checkpoint(case.state_dict(), **form)(**case.inputs(negatives=True))
    difference = (outputs[changed] - case.tensors[f"with_negative.{changed}"]).abs().max()
    assert difference > 100 * OUTPUT_TOLERANCE


@pytest.mark.parametrize("lengths", [(1, 0, 0), (0, 3, 0), (5, 2, 6), (20, 30, 1)], ids=str)
@torch.no_grad()
def test_padded_rows_agree(case, model, lengths):
    """The released code lets padding share a softmax; here a padded row gives what the row alone gives there."""
    outputs = model(**pad(case.inputs(negatives=True, shifted=True), *lengths))
    assert_outputs(case, outputs, "with_negative")
    assert_outputs(case, outputs.shifted, "shifted")
    for view in (outputs, outputs.shifted):
        real = case.inputs()["video_mask"].shape[1]
        assert not view.frame_probabilities[:, real:].any()
        assert not view.frame_attention[:, real:].any()


@pytest.mark.parametrize("row", [0, 1, 2])
@torch.no_grad()
def test_rows_of_other_lengths_in_a_batch(case, model, row):
    """A golden row between a shorter and a longer video and sentence."""
    golden = {name: value[row : row + 1] for name, value in case.inputs(negatives=True, shifted=True).items()}
    longer = pad(golden, 6, 4, 3)
    wide = {name: value.expand(3, *[-1] * (value.ndim - 1)).clone() for name, value in longer.items()}
    for name in ("video_mask", "text_mask", "negative_text_mask"):
        wide[name][0] = 1
        wide[name][2, ..., 2:] = 0
    wide["shifted_frame_order"][2] = torch.arange(wide["shifted_frame_order"].shape[1])
    outputs = model(**wide)
    rows = slice(row, row + 1)
    middle = {name: outputs[name][1:2] for name in OUTPUTS.values()}
    assert_outputs(case, middle, "with_negative", rows)
    assert_outputs(case, {name: outputs.shifted[name][1:2] for name in OUTPUTS.values()}, "shifted", rows)


def released_targets(case: ReleasedCase, prefix: str, video_mask: torch.Tensor) -> ViewTargets:
    """Targets as the released data set made them: its foreground clips, and its two drawn pairs of clips a row."""
    targets = ViewTargets.from_labels(case.labels(prefix), video_mask)
    labels = case.tensors[f"{prefix}match_labels"].bool()
    targets.foreground = F.pad(labels, (0, video_mask.shape[1] - labels.shape[1]))
    positive, negative = case.tensors[f"{prefix}saliency_pos"], case.tensors[f"{prefix}saliency_neg"]
    targets.margin_pairs = torch.zeros_like(targets.margin_pairs)
    for row in range(len(positive)):
        for fore, back in zip(positive[row], negative[row], strict=True):
            targets.margin_pairs[row, fore, back] += 1 / positive.shape[1]
    return targets


def loss_of_views(case: ReleasedCase, model, inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The mean over both views of the weighted sums, and every term by its released name, on the released scale."""
    outputs = model(**inputs)
    total, terms = torch.zeros(()), {}
    for prefix, view in (("", outputs), ("shifted_", outputs.shifted)):
        own = model.criterion.view_terms(view, released_targets(case, prefix, inputs["video_mask"]))
        terms |= {f"{prefix}loss.{name}": own[mine] * unit for name, (mine, unit) in RELEASED_LOSSES.items()}
        total = total + model.criterion.weighted_sum(own) / 2
    return total, terms


@pytest.mark.parametrize("lengths", [(0, 0, 0), (5, 2, 6)], ids=str)
@torch.no_grad()
def test_losses(case, model, lengths):
    total, terms = loss_of_views(case, model, pad(case.inputs(negatives=True, shifted=True), *lengths))
    assert len(terms) == 2 * len(RELEASED_LOSSES)
    for name, value in terms.items():
        golden = case.tensors[name].item()
        assert golden != 0
        assert value.item() == pytest.approx(golden, rel=LOSS_TOLERANCE), name
    # The release adds 100 - accuracy without a gradient; at this point of the parameters it is 0.
    assert case.tensors["loss.loss_class"].item() == case.tensors["shifted_loss.loss_class"].item() == 0
    assert total.item() == pytest.approx(case.tensors["loss.total"].item(), rel=LOSS_TOLERANCE)


@pytest.mark.parametrize("lengths", [(0, 0, 0), (5, 2, 6)], ids=str)
def test_gradients(case, model, lengths):
    model.zero_grad()
    loss_of_views(case, model, pad(case.inputs(negatives=True, shifted=True), *lengths))[0].backward()
    own = dict(model.named_parameters())
    released = {name: torch.cat([own[part].grad for part in parts]) for name, parts in released_layout(own).items()}
    names = [name.removeprefix("grad.") for name in case.tensors if name.startswith("grad.")]
    assert len(names) == 5
    for name in names:
        golden = case.tensors[f"grad.{name}"]
        difference = (released[name][: len(golden)] - golden).abs().max()
        assert difference <= GRADIENT_TOLERANCE * golden.abs().max(), name
        assert golden.abs().max() > 0
    model.zero_grad()
