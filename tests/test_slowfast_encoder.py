"""SlowFast: the frames of the published features, real layers of the library, and a converted checkpoint's answer."""

import importlib
import importlib.util
import json
import math
import os
import sys
import types
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval
from modeling_bmdetr.cli import main
from modeling_bmdetr.encoders_bmdetr import build_video_encoder
from modeling_bmdetr.released import export_released
from modeling_bmdetr.slowfast_encoder_bmdetr import published_frame_times

needs_shared = pytest.mark.skipif("BMDETR_SHARED" not in os.environ, reason="BMDETR_SHARED is not set")


def published_frames(frames: int, rate: Fraction, clip_length_s: int) -> np.ndarray:
    """Frame numbers by the published steps one after the other: to 30 per second, pad seconds, cut clips, sample."""
    end_s = frames / rate
    places = np.array([math.floor(n / rate * 30 + Fraction(1, 2)) for n in range(frames)])
    video = [int(np.flatnonzero(places <= n)[-1]) for n in range(math.floor(end_s * 30 + Fraction(1, 2)))]
    while len(video) % 30 or len(video) % (30 * clip_length_s):
        video.append(video[-1])
    clips = torch.tensor(video).view(-1, 30 * clip_length_s)[: math.ceil(end_s / clip_length_s)]
    chosen = torch.linspace(0, 32 * 2 * math.floor(rate) / 30 - 1, 32).clamp(0, clips.shape[1] - 1).long()
    return clips[:, chosen].numpy()


@pytest.mark.parametrize("rate", [Fraction(15000, 1001), 24, 25, Fraction(30000, 1001), 30, 50])
@pytest.mark.parametrize(("frames", "clip_length_s"), [(61, 1), (97, 2), (460, 2), (150, 1)])
def test_frames_are_those_of_the_published_features(rate, frames, clip_length_s):
    rate = Fraction(rate)
    times_s = published_frame_times(float(frames / rate), clip_length_s, float(rate))
    shown = np.searchsorted(np.arange(frames) / float(rate), times_s, side="right") - 1
    np.testing.assert_array_equal(shown, published_frames(frames, rate, clip_length_s))
    assert (np.diff(times_s.ravel()) >= 0).all()


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_without_torchvision_the_remedy_is_named():
    with pytest.raises(ImportError, match="SlowFast needs pytorchvideo and torchvision"):
        build_video_encoder("slowfast")


@pytest.fixture(scope="module")
def library():
    """pytorchvideo; without torchvision, of which its module of heads imports one class that SlowFast never uses."""
    pytest.importorskip("pytorchvideo")
    modules = set(sys.modules)
    if importlib.util.find_spec("torchvision") is None:
        stand_in, ops = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
        ops.RoIAlign = torch.nn.Identity
        sys.modules |= {"torchvision": stand_in, "torchvision.ops": ops}
    try:
        yield importlib.import_module("pytorchvideo.models.hub.slowfast")
    finally:
        for name in set(sys.modules) - modules:
            if name.split(".")[0] in ("torchvision", "pytorchvideo"):
                del sys.modules[name]


@pytest.fixture(scope="module")
def weights(library, tmp_path_factory) -> Path:
    """Random weights where torch keeps what the library downloads."""
    path = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints" / "SLOWFAST_8x8_R50.pyth"
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save({"model_state": library.slowfast_r50().state_dict()}, path)
    return path


def test_rows_are_the_pooled_pathways(library, weights):
    encoder = build_video_encoder(f"slowfast:{weights}")
    frames = np.random.default_rng(0).integers(0, 256, (60, 224, 260, 3), dtype=np.uint8)
    rows = encoder.encode_video(frames, 1.0, fps=30.0).features
    assert rows.shape == (2, 2304)
    assert rows.dtype == np.float32
    whole = library.slowfast_r50().eval()
    whole.load_state_dict(torch.load(weights)["model_state"])
    seen = []
    whole.blocks[5].register_forward_hook(lambda module, inputs, output: seen.append(output.flatten(1)))
    # 1 s of 30 frames: every second of them, the last for what lies past the end of the clip, the middle of the picture
    places = np.minimum(np.floor(np.arange(32) * 63 / 31 + 1e-9).astype(int), 29)
    clip = torch.from_numpy(frames[:30][places, :, 18:242]).permute(3, 0, 1, 2)[None] / 255
    clip = (clip - 0.45) / 0.225
    with torch.no_grad():
        whole([clip[:, :, [0, 4, 8, 13, 17, 22, 26, 31]], clip])
    np.testing.assert_allclose(rows[0], seen[0][0].numpy(), atol=1e-4)
    assert encoder.spec() == {"name": f"slowfast:{weights}", "dim": 2304}


def test_a_file_of_other_weights_is_refused(library, tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt holds no weights of pytorchvideo's slowfast_r50"):
        build_video_encoder(f"slowfast:{tmp_path / 'other.pt'}")
    with pytest.raises(OSError, match="cannot be built"):
        build_video_encoder(f"slowfast:{tmp_path / 'none.pt'}")


def write_clip(folder: Path) -> None:
    """A CLIP of two small layers with the widths and positions of ViT-B/32."""
    folder.mkdir(parents=True)
    layers = {"num_hidden_layers": 2, "intermediate_size": 32}
    text = {"hidden_size": 512, "num_attention_heads": 8, "vocab_size": 60, "max_position_embeddings": 77, **layers}
    vision = {"hidden_size": 32, "num_attention_heads": 2, "image_size": 224, "patch_size": 32, **layers}
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    CLIPModel(CLIPConfig(text_config=text | ends, vision_config=vision, projection_dim=512)).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz." for end in ("", "</w>")]
    vocab = {token: index for index, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder, model_max_length=77).save_pretrained(folder)


@pytest.mark.slow
@needs_shared
def test_a_converted_checkpoint_answers_a_video(weights, tmp_path, monkeypatch, capsys):
    """From a checkpoint of the released code on SlowFast and CLIP to moments in an mp4, by two commands."""
    monkeypatch.setenv("TORCH_HOME", str(weights.parent.parent.parent))
    monkeypatch.chdir(tmp_path)  # where the encoder's name is a folder, as on a machine that has it
    write_clip(tmp_path / "openai" / "clip-vit-base-patch32")
    small = {"hidden_size": 32, "intermediate_size": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 5}
    config = BMDetrConfig.released(
        video_dim=2816, text_dim=512, clip_length=2, text_rows="all", alignment_dim=8, **small
    )
    BMDetrForMomentRetrieval(config).save_pretrained("model")
    export_released("model", "released/model.ckpt")
    options = json.loads(Path("released/opt.json").read_text())
    folders = ["features/charades_features/slowfast_features", "features/charades_features/clip_features"]
    options |= {"v_feat_dirs": folders, "t_feat_type": "clip", "dset_name": "charades"}
    Path("released/opt.json").write_text(json.dumps(options))
    assert main(["convert", "released/model.ckpt", "converted"]) == 0

    video = Path(os.environ["BMDETR_SHARED"]) / "videos" / "charades_example.mp4"
    command = ["predict", str(video), "a person opens a door.", "someone", "--model", "converted", "--json"]
    capsys.readouterr()
    assert main(command) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    published = np.load(video.with_name("charades_example_clip_vision.npz"))["features"]
    assert [len(answer["saliency"]) for answer in answers] == [len(published)] * 2 == [15, 15]
    assert answers[0]["moments"]
    assert all(0 <= moment["start"] <= moment["end"] <= 30.7 for moment in answers[0]["moments"])
    assert answers[0]["saliency"] != answers[1]["saliency"]
