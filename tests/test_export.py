"""Exported models: the same answers as the model, for any number of pairs, clips and tokens."""

import json
import shutil

import numpy as np
import pytest
import torch
from factories import make_model

from modeling_bmdetr import BMDetrProcessor, FeatureContract
from modeling_bmdetr.cli import main
from modeling_bmdetr.encoders_bmdetr import WEIGHTLESS_VIDEO_ENCODERS, build_video_encoder
from modeling_bmdetr.export import (
    ENCODER_FILE,
    TOLERANCE,
    _write_video_encoder,
    export_model,
    largest_difference,
    load_exported,
)

FEW = ((1, 1, 1), (2, 30, 9), (4, 3, 2))
MANY = tuple((pairs, clips, tokens) for pairs in (1, 2, 7) for clips in (1, 2, 19, 75, 200) for tokens in (1, 4, 33))
FORMS = {
    "default": {},
    "not background-aware": {"background_aware": False, "decoder_memory": "encoder"},
    "learned queries": {"learnable_spans": False, "alignment_pooling": "gated"},
    "released": {"decoder_memory": "encoder", "alignment_pooling": "gated", "alignment_denominator": "all"},
    "things": {"things_per_clip": 2},
    "without endpoints": {"endpoint_features": False, "activation": "gelu"},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model in training mode, its program, and what was said about it; tracing takes a while."""
    model, folder = make_model().train(), tmp_path_factory.mktemp("exported")
    processor = BMDetrProcessor(model.config.feature_contract, nms_threshold=0.5)
    return model, folder, export_model(model, folder, "torch-export", processor=processor)


def test_a_torch_program_answers_like_the_model_for_any_shape(exported):
    model, folder, description = exported
    assert model.training, "exporting changes nothing about the model"
    assert description["file"] == "model.pt2"
    assert largest_difference(make_model().eval(), load_exported(folder), FEW, seed=1) <= TOLERANCE
    assert {path.name for path in folder.iterdir()} == {"model.pt2", "export.json"}, "nothing is left aside"


def test_the_check_finds_an_export_of_another_model(exported):
    other = make_model().eval()
    with torch.no_grad():
        other.class_head.bias += 0.01
    assert largest_difference(other, load_exported(exported[1]), FEW) == pytest.approx(0.01, abs=1e-4)


def test_the_description_carries_what_an_answer_needs(exported):
    model, folder, _ = exported
    description = json.loads((folder / "export.json").read_text())
    assert description["feature_contract"] == model.config.feature_contract.to_dict()
    assert description["nms_threshold"] == 0.5
    assert description["inputs"] == ["video_features", "video_mask", "text_features", "text_mask"]
    assert {"logits", "pred_spans", "saliency_scores", "frame_probabilities"} <= set(description["outputs"])


def test_what_cannot_be_exported_or_loaded_is_said_by_name(tmp_path):
    with pytest.raises(ValueError, match="`format` must be one of"):
        export_model(make_model(), tmp_path, "tflite")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`int8` is made from the ONNX file"):
        export_model(make_model(), tmp_path, "torch-export", int8=True)
    with pytest.raises(FileNotFoundError, match=r"holds no export\.json"):
        load_exported(tmp_path)


def changed(source, folder, **entries):
    """A copy of an exported folder whose description has other entries."""
    shutil.copytree(source, folder)
    description = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**description, **entries}))
    return folder


@pytest.mark.parametrize(
    "entries",
    [
        *({"file": "../model.pt2"}, {"file": "/etc/passwd"}, {"file": ["model.pt2"]}, {"file": None}),
        *({"outputs": "logits"}, {"outputs": [1]}, {"sha256": None}, {"video_dim": "6"}, {"int8_file": "../x"}),
    ],
)
def test_a_description_that_is_not_of_an_export_is_refused(exported, entries, tmp_path):
    shutil.copy(exported[1] / "model.pt2", tmp_path / "model.pt2")
    with pytest.raises(ValueError, match="not what `bmdetr export` writes"):
        load_exported(changed(exported[1], tmp_path / "out", **entries))


@pytest.mark.parametrize("content", [b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_a_description_that_is_none_is_refused(exported, content, tmp_path):
    folder = changed(exported[1], tmp_path / "out")
    (folder / "export.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"export\.json"):
        load_exported(folder)


def test_a_file_that_changed_since_it_was_exported_is_refused(exported, tmp_path):
    folder = changed(exported[1], tmp_path / "out")
    content = bytearray((folder / "model.pt2").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.pt2").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pt2' is damaged"):
        load_exported(folder)


def test_an_exported_model_refuses_what_the_model_refuses(exported):
    run = load_exported(exported[1])
    video, text = np.ones((2, 3, 6), np.float32), np.ones((2, 4, 5), np.float32)
    masks = np.ones((2, 3), np.int64), np.ones((2, 4), bool)
    assert run(video, masks[0], torch.from_numpy(text), masks[1])["pred_spans"].isfinite().all()
    for wrong, message in (
        ((video[..., :5], masks[0], text, masks[1]), "must be 6 values wide"),
        ((video * np.nan, masks[0], text, masks[1]), "NaN or infinite"),
        ((video, masks[0], text[:1], masks[1][:1]), "has 2 rows and `text_features` 1"),
        ((video, 2 * masks[0], text, masks[1]), "must hold 1 for real and 0"),
        ((video.astype(np.complex64), masks[0], text, masks[1]), "real numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            run(*wrong)


@pytest.mark.slow
def test_the_command_exports_a_checkpoint(tmp_path, capsys):
    make_model().save_pretrained(tmp_path / "model")
    arguments = ["export", str(tmp_path / "model"), "--format", "torch-export", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["file"] == "model.pt2"
    assert (tmp_path / "out" / "model.pt2").is_file()
    assert result["largest_difference"] <= TOLERANCE


@pytest.mark.slow
def test_onnx_answers_like_the_model_for_any_shape_and_names_its_axes(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = make_model().eval()
    description = export_model(model, tmp_path)
    assert largest_difference(model, load_exported(tmp_path, threads=1), FEW, seed=1) <= TOLERANCE
    graph = onnx.load(tmp_path / "model.onnx").graph
    axes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    assert axes["video_features"] == ["batch", "video_len", model.config.video_dim]
    assert axes["text_mask"] == ["batch", "text_len"]
    assert [value.name for value in graph.output] == description["outputs"]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch-export"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_model_answers_the_same_over_many_shapes_and_masks(form, format, tmp_path):
    pytest.importorskip("onnxruntime")
    model = make_model(**FORMS[form]).eval()
    export_model(model, tmp_path, format)
    assert largest_difference(model, load_exported(tmp_path), MANY, seed=2) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTLESS_VIDEO_ENCODERS)
def test_the_encoder_of_frames_beside_a_model_gives_the_rows_of_the_encoder(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    encoder = build_video_encoder(name)
    contract = FeatureContract(video_encoders=(encoder.spec(),))
    _write_video_encoder(BMDetrProcessor(contract), tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / ENCODER_FILE))
    for clips in (1, 5):
        frames = np.zeros((4 * clips, 48, 48, 3), np.uint8)
        for index, frame in enumerate(frames):
            frame[2 * clips : 2 * clips + 12, index : index + 12, 0] = 250  # a red square that moves to the right
            frame[30:40, 40 - index % 7 : 47, 2] = 200  # and something blue that grows
        (rows,) = session.run(["rows"], {"frames": frames})
        expected = encoder.measure(torch.from_numpy(frames)).numpy()
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(rows, expected, atol=2e-3)  # roots of rounding errors are larger than they


@pytest.mark.slow
def test_8_bit_answers_are_close_and_the_file_is_smaller(tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = make_model(projection_layers=3).eval()
    export_model(model, tmp_path, int8=True)
    assert largest_difference(model, load_exported(tmp_path), MANY, seed=2) <= TOLERANCE
    assert TOLERANCE < largest_difference(model, load_exported(tmp_path, int8=True), MANY, seed=2) < 1.0
