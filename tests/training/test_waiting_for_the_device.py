"""An update on a GPU is handed to it as a whole: nothing in it waits for a value to come back.

Tensors of the `meta` device have no values, so that whatever looks at one fails; on a CPU values are looked at freely,
and elsewhere the code takes the same way as on `meta`.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from factories import PAPER, tiny_batch, tiny_config
from torch import Tensor

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval
from modeling_bmdetr.training.finite import all_finite

FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "dropout": {"dropout": 0.1, "attention_dropout": 0.1, "projection_dropout": 0.5},
    "things": {"things_per_clip": 2},
    "paper": PAPER,
    "no background": {"background_aware": False},
    "attended, literal": {"decoder_memory": "attended", "frame_attention_scale": "literal"},
    "gated": {"alignment_pooling": "gated", "alignment_denominator": "negatives"},
    "eager": {"attn_implementation": "eager"},
}


def batch_on(device: str) -> dict[str, Tensor]:
    """Queries of one moment each; SciPy matches several, on the CPU."""
    batch = tiny_batch(moments=1)
    batch["negative_labels"] = batch["negative_labels"][:, :, :1]
    batch["saliency_labels"] = torch.rand(4, 9) * 4
    return {name: value.to(device) for name, value in batch.items()}


def update(model: BMDetrForMomentRetrieval, batch: dict[str, Tensor], autocast: bool) -> Tensor:
    optimizer = torch.optim.AdamW(model.parameters())
    with torch.autocast("cuda", dtype=torch.bfloat16) if autocast else nullcontext():
        loss = model(**batch).loss
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    return all_finite(gradients)


def config_of(form: str) -> BMDetrConfig:
    return tiny_config(**FORMS[form])


@pytest.mark.parametrize("form", FORMS)
def test_an_update_looks_at_no_value(form):
    with torch.device("meta"):
        model = BMDetrForMomentRetrieval(config_of(form)).train()
    assert update(model, batch_on("meta"), autocast=False).device.type == "meta"


def test_what_looks_at_a_value_is_found():
    with torch.device("meta"):
        model = BMDetrForMomentRetrieval(config_of("default")).train()
    several = {**batch_on("meta"), "labels": torch.rand(4, 2, 2, device="meta")}
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        model(**several)


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_an_update_waits_for_no_device(form, autocast):
    model, batch = BMDetrForMomentRetrieval(config_of(form)).train().cuda(), batch_on("cuda")
    update(model, batch, autocast)  # kernels are chosen
    torch.cuda.set_sync_debug_mode("error")
    try:
        finite = update(model, batch, autocast)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(finite)
