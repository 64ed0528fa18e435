"""`examples/onnx_answer.py`: the pipeline's answers, in a process that can import neither torch nor transformers."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from app_world import make_checkpoint, make_pipeline, make_video

from modeling_bmdetr.export import export_model
from modeling_bmdetr.frames_bmdetr import FrameConverter

SCRIPT = Path(__file__).parents[2] / "examples" / "onnx_answer.py"
WITHOUT = """
import runpy, sys
for name in ("torch", "transformers", "modeling_bmdetr"):
    sys.modules[name] = None  # importing it fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
QUERY = "the red star slides to the left"


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WITHOUT, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=SCRIPT.parent)


@pytest.mark.slow
def test_an_mp4_and_features_are_answered_as_by_the_pipeline(tmp_path):
    pytest.importorskip("onnxruntime")
    pipe = make_pipeline(make_checkpoint(tmp_path / "model"))
    film = make_video(tmp_path / "film.mp4", 7.3, side=100)
    export_model(pipe.model, tmp_path / "exported", int8=True)
    expected = pipe(film, QUERY, top_k=3)

    done = run(tmp_path / "exported", film, QUERY)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["duration"] == pytest.approx(expected["duration"], abs=1e-3)
    for found, wanted in zip(answer["moments"], expected["moments"], strict=True):
        assert [found[key] for key in ("start", "end")] == pytest.approx([wanted["start"], wanted["end"]], abs=0.02)
        assert found["score"] == pytest.approx(wanted["score"], abs=1e-3)

    np.save(tmp_path / "film.npy", pipe.encode_video(film).features)
    from_features = json.loads(run(tmp_path / "exported", tmp_path / "film.npy", QUERY).stdout)
    assert [m["score"] for m in from_features["moments"]] == pytest.approx(
        [m["score"] for m in expected["moments"]], abs=1e-4
    )
    assert json.loads(run(tmp_path / "exported", film, QUERY, "--int8").stdout)["moments"]
    refused = run(tmp_path / "exported", film, "?!")
    assert refused.returncode == 1
    assert "holds no word" in refused.stderr


@pytest.mark.parametrize(("sides", "size"), [((100, 76), (48, 48)), ((36, 50), (16, 24)), ((48, 48), (48, 48))])
def test_pictures_are_resized_as_by_the_package(sides, size):
    """Sides that are no multiple of the wanted size share pixels between means."""
    pytest.importorskip("onnxruntime")
    script = runpy.run_path(str(SCRIPT))
    picture = np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8)
    expected = FrameConverter(size, "area").resized(picture, sides[1], sides[0])
    found = script["area_resized"](picture, *size)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1  # of 255, where a mean lies between two
    assert np.mean(found != expected) < 0.01
