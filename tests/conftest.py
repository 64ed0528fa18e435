"""Fixtures of the whole suite, from `factories`. Offline, on one thread, from one seed, with nothing automatic."""

import logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

from collections.abc import Callable, Iterator

import factories
import pytest
import torch
from torch import Tensor

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., BMDetrConfig]:
    """`tiny_config(**fields)`: a configuration that runs in milliseconds, without dropout."""
    return factories.tiny_config


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., BMDetrForMomentRetrieval]:
    """`tiny_model(seed=0, **fields)`: a model of that configuration, in eval mode."""
    return factories.tiny_model


@pytest.fixture(scope="session")
def tiny_batch() -> Callable[..., dict[str, Tensor]]:
    """`tiny_batch(negatives=2, shifted=True, labels=True)`: keyword arguments of the model's forward."""
    return factories.tiny_batch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws from the same seed, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Files are not made durable: no test can tell, and a slow disk would take minutes of the suite."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


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
