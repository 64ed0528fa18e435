"""Small configurations, models and batches for the whole suite. Offline, on one thread, with nothing automatic."""

import logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval

torch.set_num_threads(1)

TINY: dict[str, Any] = {
    "video_dim": 6,
    "text_dim": 5,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_queries": 4,
    "alignment_dim": 8,
    "projection_dropout": 0.0,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def _config(**fields: Any) -> BMDetrConfig:
    return BMDetrConfig(**{**TINY, **fields})


def _model(seed: int = 0, **fields: Any) -> BMDetrForMomentRetrieval:
    torch.manual_seed(seed)
    return BMDetrForMomentRetrieval(_config(**fields)).eval()


def _batch(
    negatives: int = 2, shifted: bool = True, labels: bool = True, seed: int = 0, moments: int = 2
) -> dict[str, Tensor]:
    """Four rows of unequal lengths, for the sizes of `TINY`.

    Rows: 0 has every part; 1 is shorter and has both negatives; 2 has two moments (with `moments=2`), so no shifted
    view, and lacks its last negative; 3 has no negative and a moment as long as its video. Negative sentences are
    longer than positive ones.
    """
    generator = torch.Generator().manual_seed(seed)
    video_lengths, text_lengths = torch.tensor([9, 6, 9, 4]), torch.tensor([4, 3, 2, 4])
    batch = {
        "video_features": torch.randn(4, 9, 6, generator=generator),
        "video_mask": (torch.arange(9) < video_lengths[:, None]).long(),
        "text_features": torch.randn(4, 4, 5, generator=generator),
        "text_mask": (torch.arange(4) < text_lengths[:, None]).long(),
    }
    if negatives:
        lengths = torch.tensor([6, 2, 5, 3])[:, None, None]
        mask = (torch.arange(6) < lengths).long().repeat(1, negatives, 1)
        mask[2, -1] = mask[3] = 0
        batch["negative_text_features"] = torch.randn(4, negatives, 6, 5, generator=generator)
        batch["negative_text_mask"] = mask
    if shifted:
        order = torch.arange(9).repeat(4, 1)
        order[0] = torch.tensor([3, 4, 5, 6, 0, 1, 2, 7, 8])  # the moment moves from clips 3-5 to the front
        order[1, :6] = torch.tensor([0, 3, 4, 5, 1, 2])
        batch["shifted_frame_order"] = order
    if not labels:
        return batch
    batch["labels"] = torch.full((4, moments, 2), -100.0)
    batch["labels"][:, 0] = torch.tensor([[0.5, 0.34], [0.5, 0.33], [0.2, 0.3], [0.5, 1.0]])
    if moments > 1:
        batch["labels"][2, 1] = torch.tensor([0.8, 0.12])
    if shifted:
        batch["shifted_labels"] = torch.full((4, 1, 2), -100.0)
        batch["shifted_labels"][:2, 0] = torch.tensor([[0.17, 0.34], [0.83, 0.33]])
    if negatives:
        batch["negative_labels"] = torch.full((4, negatives, 2, 2), -100.0)
        batch["negative_labels"][0, 0, 0] = torch.tensor([0.9, 0.2])
        batch["negative_labels"][1, 0] = torch.tensor([[0.1, 0.2], [0.9, 0.1]])
    return batch


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., BMDetrConfig]:
    """`tiny_config(**fields)`: a configuration that runs in milliseconds, without dropout."""
    return _config


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., BMDetrForMomentRetrieval]:
    """`tiny_model(seed=0, **fields)`: a model of that configuration, in eval mode."""
    return _model


@pytest.fixture(scope="session")
def tiny_batch() -> Callable[..., dict[str, Tensor]]:
    """`tiny_batch(negatives=2, shifted=True, labels=True)`: keyword arguments of the model's forward."""
    return _batch


@pytest.fixture
def package_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """`caplog` of what the package logs, whatever other tests and the libraries did to the loggers above it."""
    logger = logging.getLogger("modeling_bmdetr")
    propagate, level = logger.propagate, logger.level
    logger.addHandler(caplog.handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.propagate = propagate
    logger.setLevel(level)
