"""Checkpoints of the released code: read safely, converted whole, written back exactly."""

import argparse
import json
import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from released_case import OUTPUTS, ReleasedCase, draw_parameter
from safetensors.torch import load_file, save_file

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval
from modeling_bmdetr.processing_bmdetr import BMDetrProcessor
from modeling_bmdetr.released import (
    convert_released_checkpoint,
    convert_to_folder,
    export_released,
    to_released_state_dict,
)
from modeling_bmdetr.released.checkpoint import read_released_checkpoint, released_config, released_options
from modeling_bmdetr.released.names import idle_parameters, released_layout

TEXT_POSITIONS = {
    "txt_position_embed.position_embeddings.weight",
    "txt_position_embed.LayerNorm.weight",
    "txt_position_embed.LayerNorm.bias",
}


@pytest.fixture(scope="module")
def case() -> ReleasedCase:
    return ReleasedCase.load()


@pytest.fixture(scope="module")
def state_dict(case) -> dict[str, torch.Tensor]:
    return case.state_dict()


def released_opt(**changes) -> dict:
    """Options as a released run on Charades-STA stores them in `opt.json`, sizes of the golden case."""
    return {
        "dset_name": "charades",
        "lr": 2e-4,
        "lr_warmup": -1,
        "use_temporal_shifting": True,
        "additional_losses": ["shifting"],
        "resume": None,
        "device": 0,
        "v_feat_dirs": ["features/charades_features/slowfast_features", "features/charades_features/clip_features"],
        "t_feat_type": "clip",
        "t_feat_dir": "features/charades_features/clip_text_features/",
        "v_feat_dim": 16,
        "t_feat_dim": 16,
        "ctx_mode": "video_tef",
        "no_norm_vfeat": False,
        "no_norm_tfeat": False,
        "max_v_l": 75,
        "max_q_l": 32,
        "clip_length": 1,
        "position_embedding": "sine",
        "enc_layers": 2,
        "dec_layers": 3,
        "dim_feedforward": 64,
        "hidden_dim": 256,
        "input_dropout": 0.5,
        "dropout": 0.1,
        "use_txt_pos": False,
        "nheads": 8,
        "num_queries": 5,
        "pre_norm": False,
        "transformer_activation": "prelu",
        "n_input_proj": 2,
        "contrastive_hdim": 32,
        "temperature": 0.07,
        "saliency_margin": 0.2,
        "span_loss_type": "l1",
        "set_cost_span": 1,
        "set_cost_giou": 8,
        "set_cost_class": 8,
        "span_loss_coef": 1,
        "giou_loss_coef": 8,
        "label_loss_coef": 8,
        "class_loss_coef": 1,
        "eos_coef": 0.1,
        "lw_saliency": 4.0,
        "lw_prob_loss_coef": 2.0,
        "lw_contrastive_loss_coef": 1.0,
        "prob_thd": 1.0,
        **changes,
    }


def save_released(path, state_dict, opt=None):
    """A file as the released training loop saves it: weights, optimiser, schedule, epoch and options."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=2e-4, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 40)
    parameter.sum().backward()
    optimizer.step()
    opt = released_opt() if opt is None else opt
    # While it runs, the released code widens `v_feat_dim` by the endpoint columns and sets a torch.device.
    namespace = argparse.Namespace(**{**opt, "v_feat_dim": opt["v_feat_dim"] + 2, "device": torch.device("cpu")})
    checkpoint = {"optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict(), "epoch": 41}
    torch.save({"model": state_dict, **checkpoint, "opt": namespace}, path)
    path.with_name("opt.json").write_text(json.dumps(opt, indent=4))
    return path


@pytest.fixture
def checkpoint(tmp_path, state_dict):
    (tmp_path / "run").mkdir()
    return save_released(tmp_path / "run" / "model_best.ckpt", state_dict)


# Conversion


def test_converted_folder_predicts_the_golden_outputs_in_a_new_process(tmp_path, case, checkpoint):
    report = convert_to_folder(checkpoint, tmp_path / "converted")
    assert len(report.converted) == len(case.shapes) - 3
    assert set(report.dropped) == TEXT_POSITIONS
    assert report.unknown == report.missing == ()
    files = {path.name for path in (tmp_path / "converted").iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "README.md"} <= files

    save_file({name: value.contiguous() for name, value in case.inputs(True, True).items()}, tmp_path / "inputs")
    script = """
        import sys, torch
        from safetensors.torch import load_file, save_file
        from modeling_bmdetr import BMDetrForMomentRetrieval
        folder, inputs, result = sys.argv[1:]
        model = BMDetrForMomentRetrieval.from_pretrained(folder)
        inputs = load_file(inputs)
        with torch.no_grad():
            views = {"with_negative": model(**inputs)}
            views["shifted"] = views["with_negative"].shifted
            positive = {k: v for k, v in inputs.items() if not k.startswith(("negative", "shifted"))}
            views["positive_only"] = model(**positive)
        names = %r
        save_file({f"{v}.{k}": o[n].contiguous() for v, o in views.items() for k, n in names.items()}, result)
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script) % OUTPUTS, tmp_path / "converted", tmp_path / "inputs", "out"],
        cwd=tmp_path,
        check=True,
    )
    outputs = load_file(tmp_path / "out")
    assert len(outputs) == 3 * len(OUTPUTS)
    for name, value in outputs.items():
        golden = case.tensors[name]
        value = value[tuple(slice(size) for size in golden.shape)]
        torch.testing.assert_close(value, golden, rtol=0, atol=1e-5)


def test_options_become_configuration(checkpoint):
    config = convert_released_checkpoint(checkpoint).config
    expected = {
        # sizes, from the weights; the release counts the two endpoint columns, 18
        "video_dim": 16,
        "text_dim": 16,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "intermediate_size": 64,
        "num_queries": 5,
        "alignment_dim": 32,
        "num_attention_heads": 8,
        "projection_layers": 2,
        "activation": "prelu",
        # forms
        "decoder_memory": "encoder",
        "frame_attention_scale": "literal",
        "alignment_pooling": "gated",
        "alignment_denominator": "all",
        # losses, on the paper's scale
        "l1_loss_weight": 0.5,
        "giou_loss_weight": 8,
        "class_loss_weight": 8,
        "margin_loss_weight": 8,
        "margin": 0.2,
        "probability_loss_weight": 2,
        "positive_probability_loss_weight": 0,
        "alignment_loss_weight": 1,
        "temperature": 0.07,
        "no_object_weight": 0.1,
        # features
        "clip_length": 1,
        "max_clips": 75,
        "max_tokens": 32,
        "endpoint_features": True,
        "normalize_video": True,
        "normalize_text": True,
        "text_rows": "all",
        "long_video": "truncate",
    }
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lw_saliency": 1, "lw_contrastive_loss_coef": 3}, {"margin_loss_weight": 2, "alignment_loss_weight": 3}),
        ({"span_loss_coef": 10}, {"l1_loss_weight": 5}),
        ({"dset_name": "hl", "clip_length": 2}, {"text_rows": "to_end_of_text", "clip_length": 2}),
        ({"no_norm_vfeat": True, "no_norm_tfeat": True}, {"normalize_video": False, "normalize_text": False}),
        ({"dropout": 0.3, "input_dropout": 0}, {"dropout": 0.3, "attention_dropout": 0.3, "projection_dropout": 0}),
        ({"nheads": 4}, {"num_attention_heads": 4}),
        ({"ctx_mode": "video"}, {"video_dim": 18, "endpoint_features": False}),
        (
            {"set_cost_class": 1, "set_cost_span": 2, "set_cost_giou": 3},
            {"class_cost": 1, "l1_cost": 2, "giou_cost": 3},
        ),
        (
            {"v_feat_dirs": ["features/charades_features/c3d_features/"]},
            {"video_encoders": [{"name": "c3d", "dim": 16}]},
        ),
        # feature folders that cannot explain 16 values per clip are not believed
        ({}, {"video_encoders": None, "text_encoder": None}),
    ],
)
def test_changed_options(state_dict, changes, expected):
    model = convert_released_checkpoint({"model": state_dict, "opt": argparse.Namespace(**released_opt(**changes))})
    assert {name: getattr(model.config, name) for name in expected} == expected


def test_released_widths_name_their_encoders():
    """The widths and folders of the released QVHighlights run."""
    shapes = {"input_vid_proj.0.net.1.weight": [256, 2818], "input_txt_proj.0.net.1.weight": [256, 512]}
    weights = {name: draw_parameter(name, shape) for name, shape in shapes.items()}
    opt = released_opt(v_feat_dirs=["features/hl_features/slowfast_features", "features/hl_features/clip_features"])
    config, notes = released_config(read_released_checkpoint({"model": weights, "opt": opt}))
    assert notes == []
    assert [encoder["dim"] for encoder in config.video_encoders] == [2304, 512]
    assert [encoder["name"].split(":")[0] for encoder in config.video_encoders] == ["slowfast", "clip"]
    assert config.video_encoders[1]["frames_per_clip"] == 1
    assert config.video_encoders[1]["clips"] == "nearest"
    assert config.text_encoder == {"name": "clip:openai/clip-vit-base-patch32", "dim": 512}
    assert config.video_dim == 2816


def test_options_come_from_the_checkpoint_then_from_the_file_beside_it(tmp_path, state_dict):
    path = save_released(tmp_path / "model.ckpt", state_dict, released_opt(lw_saliency=3))
    path.with_name("opt.json").write_text(json.dumps({"lw_saliency": 9, "temperature": 0.5}))
    torch.save({"model": state_dict, "opt": argparse.Namespace(lw_saliency=3)}, path)
    config = convert_released_checkpoint(path).config
    assert (config.margin_loss_weight, config.temperature) == (6, 0.5)
    assert convert_released_checkpoint(path, margin_loss_weight=1.5).config.margin_loss_weight == 1.5


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
def test_bare_state_dicts(tmp_path, state_dict, suffix):
    path = tmp_path / f"weights{suffix}"
    save_file(state_dict, path) if suffix == ".safetensors" else torch.save(state_dict, path)
    encoders = [{"name": "c3d", "dim": 16}]
    model = convert_released_checkpoint(path, video_encoders=encoders)
    assert model.config.video_encoders == encoders
    assert model.config.margin_loss_weight == BMDetrConfig.released().margin_loss_weight
    assert not model.training
    torch.testing.assert_close(model.state_dict()["class_head.bias"], state_dict["class_embed.bias"], rtol=0, atol=0)


def test_files_of_older_pytorch(tmp_path, state_dict):
    path = tmp_path / "old.ckpt"
    checkpoint = {"model": state_dict, "opt": argparse.Namespace(**released_opt())}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    assert convert_released_checkpoint(path).config.video_dim == 16


def test_processor_of_the_folder(tmp_path, checkpoint):
    convert_to_folder(checkpoint, tmp_path / "ours", clip_length=2)
    convert_to_folder(checkpoint, tmp_path / "theirs", prediction_format="released")
    processor = BMDetrProcessor.from_pretrained(tmp_path / "ours")
    assert processor.prediction_format == "seconds"
    assert processor.contract == BMDetrConfig.from_pretrained(tmp_path / "ours").feature_contract
    assert processor.contract.clip_length == 2
    assert BMDetrProcessor.from_pretrained(tmp_path / "theirs").prediction_format == "released"
    card = (tmp_path / "ours" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "model_best.ckpt" in card
    assert str(tmp_path) not in card


# Back to the released names


def test_round_trip_is_exact(tmp_path, case, state_dict):
    model = convert_released_checkpoint(state_dict)
    model.save_pretrained(tmp_path)
    for converted in (model, BMDetrForMomentRetrieval.from_pretrained(tmp_path)):
        released = to_released_state_dict(converted)
        assert {name: list(value.shape) for name, value in released.items()} == case.shapes
        for name, value in released.items():
            assert value.dtype == torch.float32
            expected = torch.zeros_like(value) if name in TEXT_POSITIONS else state_dict[name]
            assert torch.equal(value, expected), name


def test_query_key_and_value_keep_their_rows(state_dict):
    attention = convert_released_checkpoint(state_dict).model.encoder.layers[1].self_attention
    stacked = state_dict["transformer.encoder.layers.1.self_attn.in_proj_weight"]
    assert torch.equal(attention.q_proj.weight, stacked[:256])
    assert torch.equal(attention.k_proj.weight, stacked[256:512])
    assert torch.equal(attention.v_proj.weight, stacked[512:])


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_export(tmp_path, case, checkpoint, suffix):
    convert_to_folder(checkpoint, tmp_path / "converted", max_clips=60)
    file = export_released(tmp_path / "converted", tmp_path / "export" / f"model{suffix}")
    if suffix == ".safetensors":
        assert {name: list(value.shape) for name, value in load_file(file).items()} == case.shapes
        return
    content = torch.load(file, weights_only=True)
    assert {name: list(value.shape) for name, value in content["model"].items()} == case.shapes
    options = json.loads((tmp_path / "export" / "opt.json").read_text())
    assert options == content["opt"]
    original = released_opt(max_v_l=60)
    assert {name: options[name] for name in options} == {name: original[name] for name in options}
    again = convert_released_checkpoint(file).config
    first = BMDetrForMomentRetrieval.from_pretrained(tmp_path / "converted").config
    for field in BMDetrConfig.__annotations__:
        assert getattr(again, field) == getattr(first, field), field


def test_export_leaves_options_that_are_there(tmp_path, checkpoint):
    convert_to_folder(checkpoint, tmp_path / "converted")
    (tmp_path / "opt.json").write_text("{}")
    export_released(tmp_path / "converted", tmp_path / "model.ckpt")
    assert (tmp_path / "opt.json").read_text() == "{}"


def small_config(**kwargs) -> BMDetrConfig:
    sizes = {"video_dim": 6, "text_dim": 5, "hidden_size": 16, "intermediate_size": 8, "num_attention_heads": 2}
    return BMDetrConfig.released(**{**sizes, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 3, **kwargs})


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"decoder_layers": 1},
        {"projection_layers": 1},
        {"projection_layers": 3},
        {"activation": "relu"},
        {"activation": "gelu"},
        {"endpoint_features": False},
        {"max_tokens": 9, "max_clips": 11, "clip_length": 0.5},
        {"l1_loss_weight": 0.3, "margin_loss_weight": 1.2, "no_object_weight": 0.7, "dropout": 0.2},
    ],
    ids=str,
)
def test_every_shape_goes_there_and_back(kwargs):
    model = BMDetrForMomentRetrieval(small_config(**kwargs, attention_dropout=kwargs.get("dropout", 0.1)))
    released = to_released_state_dict(model)
    again = convert_released_checkpoint({"model": released, "opt": released_options(model.config)})
    assert again.config.to_diff_dict() == model.config.to_diff_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_decoder_of_one_layer_has_idle_scales():
    model = BMDetrForMomentRetrieval(small_config(decoder_layers=1))
    released = to_released_state_dict(model)
    scales = {name for name in released if name.startswith("transformer.decoder.query_scale")}
    assert len(scales) == 4
    assert scales < set(idle_parameters(model.config))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alignment_pooling", "linear"),
        ("learnable_spans", False),
        ("background_aware", False),
        ("decoder_memory", "attended"),
        ("frame_attention_scale", "mean_one"),
    ],
)
def test_other_forms_are_not_written_as_released(field, value):
    model = BMDetrForMomentRetrieval(small_config(**{field: value}))
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        to_released_state_dict(model)


def test_unplaceable_parameter_is_named():
    with pytest.raises(ValueError, match=r"model\.extra\.weight"):
        released_layout(["class_head.weight", "model.extra.weight"])


# Parameters that do not fit


def test_every_unknown_and_missing_parameter_is_named(state_dict):
    broken = dict(state_dict)
    for name in ("saliency_proj.bias", "transformer.encoder.layers.1.self_attn.in_proj_weight", "class_embed.weight"):
        del broken[name]
    broken |= {"backbone.conv1.weight": torch.ones(2), "transformer.encoder.norm.bias": torch.ones(256)}
    with pytest.raises(ValueError, match="incomplete") as error:
        convert_released_checkpoint(broken)
    message = str(error.value)
    unknown, missing = message.split("2 unknown:")[1].split("3 missing:")
    assert "backbone.conv1.weight" in unknown
    assert "transformer.encoder.norm.bias" in unknown
    for name in ("saliency_proj.bias", "in_proj_weight", "class_embed.weight"):
        assert name in missing
    assert "strict=False" in message


def test_not_strict_takes_what_is_there(tmp_path, state_dict):
    broken = {name: value for name, value in state_dict.items() if name != "class_embed.bias"}
    broken["extra"] = torch.ones(1)
    report = convert_to_folder(broken, tmp_path, strict=False)
    assert report.unknown == ("extra",)
    assert report.missing == ("class_embed.bias",)
    assert "extra" in str(report)
    model = BMDetrForMomentRetrieval.from_pretrained(tmp_path)
    assert torch.equal(model.state_dict()["class_head.weight"], state_dict["class_embed.weight"])
    assert model.state_dict()["class_head.bias"].isfinite().all()


def test_a_missing_layer_is_named(state_dict):
    broken = {name: value for name, value in state_dict.items() if not name.startswith("transformer.decoder.layers.1.")}
    with pytest.raises(ValueError, match=r"transformer\.decoder\.layers\.1\.sa_v_proj\.weight"):
        convert_released_checkpoint(broken)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("span_embed.layers.2.weight", (150, 256)), ("FPM.0.weight", (64, 256)), ("input_txt_proj.1.net.1.bias", (3,))],
)
def test_misshapen_parameters_are_named(state_dict, name, shape):
    with pytest.raises(ValueError, match="unexpected shapes") as error:
        convert_released_checkpoint({**state_dict, name: torch.zeros(shape)})
    assert f"{name}: {shape}, expected" in str(error.value)


def test_another_model_is_not_converted():
    with pytest.raises(ValueError, match=r"no checkpoint of BM-DETR.*input_proj\.weight"):
        convert_released_checkpoint({"input_proj.weight": torch.ones(2, 2), "activation.weight": torch.ones(1)})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("position_embedding", "trainable"),
        ("use_txt_pos", True),
        ("pre_norm", True),
        ("span_loss_type", "ce"),
        ("transformer_activation", "glu"),
        ("lw_saliency", "4"),
        ("temperature", None),
        ("eos_coef", True),
    ],
)
def test_options_without_a_counterpart(state_dict, option, value):
    with pytest.raises(ValueError, match=f"`{option}` must be"):
        convert_released_checkpoint({"model": state_dict, "opt": released_opt(**{option: value})})


def test_an_activation_without_weights_must_be_told():
    model = BMDetrForMomentRetrieval(small_config(activation="gelu"))
    released = to_released_state_dict(model)
    with pytest.raises(ValueError, match="pass `activation`"):
        convert_released_checkpoint(released, num_attention_heads=2)
    assert convert_released_checkpoint(released, num_attention_heads=2, activation="gelu").config.activation == "gelu"


# Files that are not what they should be


class Exploit:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile_files(folder, trace):
    """Real attacks: each creates the file `trace` when it is unpickled."""
    command = f"{sys.executable} -c \"open({str(trace)!r}, 'w').close()\""
    calls = {
        "system": Exploit(os.system, command),
        "eval": Exploit(eval, f"open({str(trace)!r}, 'w').close()"),
        "exec": Exploit(exec, f"open({str(trace)!r}, 'w').close()"),
        "popen": Exploit(subprocess.check_call, [sys.executable, "-c", f"open({str(trace)!r}, 'w').close()"]),
    }
    weights = {"class_embed.bias": [1.0, 1.0]}
    for name, call in calls.items():
        for place, content in {
            "bare": call,
            "model": {"model": {**weights, "x": call}},
            "opt": {"model": weights, "opt": argparse.Namespace(lr=call)},
            "optimizer": {"model": weights, "optimizer": {"state": [call]}},
        }.items():
            yield folder / f"{name}-{place}.ckpt", content


@pytest.mark.parametrize("how", ["zip", "old", "pickle"])
def test_hostile_pickles_are_refused(tmp_path, how):
    trace = tmp_path / "trace"
    for path, content in hostile_files(tmp_path, trace):
        if how == "pickle":
            path.write_bytes(pickle.dumps(content, protocol=2))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
        with pytest.raises(ValueError, match="was refused") as error:
            convert_released_checkpoint(path)
        assert path.name in str(error.value)
        assert any(name in str(error.value) for name in ("system", "eval", "exec", "check_call"))
        assert "weights_only" not in str(error.value)
        assert not trace.exists()


def test_the_attacks_are_real(tmp_path):
    """What the test above refuses would have run."""
    trace = tmp_path / "trace"
    for path, content in hostile_files(tmp_path, trace):
        torch.save(content, path)
        torch.load(path, weights_only=False)
        assert trace.exists(), path
        trace.unlink()


def test_a_hostile_file_writes_no_folder(tmp_path):
    torch.save(Exploit(os.getcwd), tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match="was refused"):
        convert_to_folder(tmp_path / "bad.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_loading_changes_no_global_permission(tmp_path, state_dict):
    before = set(torch.serialization.get_safe_globals())
    path = save_released(tmp_path / "model.ckpt", state_dict)
    read_released_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_released_checkpoint(path)
        assert argparse.Namespace in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("how", ["zip", "old"])
def test_truncated_files(tmp_path, how):
    path = tmp_path / "whole.ckpt"
    content = {"model": {"class_embed.bias": torch.ones(500)}, "opt": argparse.Namespace(lr=1)}
    torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    whole = path.read_bytes()
    for size in [0, 1, 2, 50, len(whole) // 3, len(whole) // 2, len(whole) - 30, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"whole\.ckpt cannot be read as a PyTorch checkpoint"):
            convert_released_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html><body>Quota exceeded</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"hello world\n",
        bytes(range(256)) * 4,
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_files_of_another_kind(tmp_path, content):
    path = tmp_path / "download.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"download\.ckpt cannot be read as a PyTorch checkpoint"):
        convert_released_checkpoint(path)


def test_truncated_safetensors(tmp_path, state_dict):
    path = tmp_path / "weights.safetensors"
    save_file({"class_embed.bias": torch.ones(9)}, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"weights\.safetensors is not a whole safetensors file"):
        convert_released_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "must hold a mapping"),
        ([1, 2], "must hold a mapping"),
        ({}, "it is empty"),
        ({"class_embed.weight": torch.zeros(1).expand(10**5, 10**5)}, "state more values than the file holds"),
        ({"model": [1]}, "`model` must hold a state dict"),
        ({"model": {}}, "it is empty"),
        ({"epoch": 3, "opt": {}}, r"entries \['epoch', 'opt'\] are no tensors"),
        ({"model": {"FPM.0.weight": torch.ones(2, 2)}, "opt": 3}, "`opt` must hold the released options"),
    ],
)
def test_checkpoints_without_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=message):
        convert_released_checkpoint(tmp_path / "model.ckpt")


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_broken_options_beside_the_checkpoint(tmp_path, state_dict, text):
    path = save_released(tmp_path / "model.ckpt", state_dict)
    path.with_name("opt.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"opt\.json beside the checkpoint"):
        convert_released_checkpoint(path)


def test_paths(tmp_path, checkpoint):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        convert_released_checkpoint(tmp_path / "nowhere.ckpt")
    with pytest.raises(ValueError, match=r"is a folder.*model_best\.ckpt"):
        convert_released_checkpoint(checkpoint.parent)
    with pytest.raises(TypeError, match="`source` must be a path or a mapping"):
        convert_released_checkpoint(3)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        convert_to_folder(checkpoint, tmp_path / "file")


def test_folders_of_features_that_are_no_list_are_named(state_dict):
    checkpoint = {"model": state_dict, "opt": argparse.Namespace(**released_opt(v_feat_dirs=3))}
    with pytest.raises(ValueError, match=r"`v_feat_dirs` must be a list of folders, received 3"):
        convert_released_checkpoint(checkpoint)
