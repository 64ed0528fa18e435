"""The configuration's strictness, and the feature contract that travels with it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from modeling_bmdetr import BMDetrConfig
from modeling_bmdetr.configuration_bmdetr import WITHOUT_RANKING, FeatureContract

SLOWFAST = {"name": "slowfast", "dim": 2304}
CLIP = {"name": "clip", "dim": 512, "image_size": (224, 224)}
TEXT = {"name": "clip-text", "dim": 512}


@pytest.fixture
def contract() -> FeatureContract:
    return FeatureContract(
        video_encoders=(SLOWFAST, CLIP),
        text_encoder=TEXT,
        clip_length=2.0,
        max_clips=64,
        max_tokens=20,
        long_video="window",
        normalize_video=False,
        text_rows="all",
    )


# The configuration


def test_defaults_are_valid_and_those_that_the_paper_and_its_release_state():
    config = BMDetrConfig()
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (256, 8, 1024)
    assert (config.encoder_layers, config.decoder_layers, config.num_queries) == (3, 3, 10)
    assert (config.margin, config.temperature, config.no_object_weight) == (0.2, 0.07, 0.1)
    assert (config.class_cost, config.l1_cost, config.giou_cost) == (8, 1, 8)
    assert config.background_aware
    assert config.learnable_spans
    assert (config.alignment_pooling, config.alignment_denominator) == ("linear", "all")
    assert config.d_model == config.hidden_size


def test_released_differs_in_the_forms_and_takes_further_fields():
    released, default = BMDetrConfig.released(video_dim=7), BMDetrConfig(video_dim=7)
    differing = {name for name, value in released.to_dict().items() if value != default.to_dict()[name]}
    assert differing == {
        "frame_attention_scale",
        "alignment_pooling",
        "probability_loss_weight",
        "positive_probability_loss_weight",
        "negative_probability_loss_weight",
        "text_rows",
        *(WITHOUT_RANKING.keys() - {"things_per_clip"}),  # 1 by default too
    }
    forms = (released.decoder_memory, released.frame_attention_scale, released.alignment_pooling)
    assert forms == ("encoder", "literal", "gated")
    assert released.alignment_denominator == "all"
    assert BMDetrConfig.released(alignment_pooling="linear").alignment_pooling == "linear"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "256"),
        ("hidden_size", 256.0),
        ("dropout", "0.1"),
        ("background_aware", "yes"),
        ("decoder_memory", "decoder"),
        ("frame_attention_scale", "mean"),
        ("alignment_pooling", "max"),
        ("alignment_denominator", "positives"),
        ("long_video", "crop"),
        ("text_rows", "some"),
        ("activation", "tanh"),
        ("video_encoders", ["clip"]),
        ("text_encoder", "clip"),
    ],
)
def test_a_wrong_type_or_choice_names_field_and_value(field, value):
    with pytest.raises(StrictDataclassError, match=field) as error:
        BMDetrConfig(**{field: value})
    assert str(value) in str(error.value) or repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"num_queries": 0}, ["`num_queries` must be at least 1", "received 0"]),
        ({"encoder_layers": -1}, ["`encoder_layers` must be at least 1", "received -1"]),
        ({"video_dim": 0}, ["`video_dim` must be at least 1"]),
        ({"encoder_layers": 1_000_000}, ["`encoder_layers`", "at most 100,", "received 1000000"]),
        ({"hidden_size": 10**9}, ["`hidden_size`", "at most 1000000,"]),
        ({"max_clips": 10**400}, ["`max_clips` must be at most 1000000"]),
        ({"clip_length": 10**400}, ["`clip_length`", "positive number of seconds"]),
        ({"video_encoders": [{"name": "clip", "dim": True}]}, ["`dim`", "'dim': True"]),
        ({"text_encoder": {"name": "clip", "dim": 10**9}}, ["`dim`", "1000000"]),
        ({"hidden_size": 100}, ["`hidden_size` (100)", "`num_attention_heads` (8)"]),
        ({"hidden_size": 18, "num_attention_heads": 3}, ["`hidden_size` (18)", "of 4"]),
        ({"dropout": 1.0}, ["`dropout` must lie in [0, 1)", "received 1.0"]),
        ({"projection_dropout": -0.1}, ["`projection_dropout`", "-0.1"]),
        ({"margin_loss_weight": -1.0}, ["`margin_loss_weight`", "not negative", "-1.0"]),
        ({"giou_cost": float("nan")}, ["`giou_cost`", "nan"]),
        ({"l1_loss_weight": float("inf")}, ["`l1_loss_weight`", "finite", "inf"]),
        ({"no_object_weight": -0.1}, ["`no_object_weight`"]),
        ({"margin": -0.2}, ["`margin`"]),
        ({"temperature": 0.0}, ["`temperature` must be positive", "0.0"]),
        ({"class_cost": 0, "l1_cost": 0, "giou_cost": 0}, ["nothing to match by"]),
        ({"clip_length": 0.0}, ["`clip_length`", "positive number of seconds", "0.0"]),
        ({"max_clips": 0}, ["`max_clips`", "received 0"]),
        ({"max_tokens": -3}, ["`max_tokens`", "received -3"]),
        ({"video_encoders": [SLOWFAST], "video_dim": 2306}, ["2306", "slowfast (2304 wide)", "endpoint columns out"]),
        ({"text_encoder": TEXT, "text_dim": 300}, ["300", "clip-text (512 wide)"]),
        ({"video_encoders": [{"name": "clip"}]}, ["`name`", "`dim`", "{'name': 'clip'}"]),
    ],
)
def test_a_value_that_cannot_be_right_is_refused_with_its_name(fields, parts):
    with pytest.raises(StrictDataclassError) as error:
        BMDetrConfig(**fields)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("dtype", ["loat32", "int8", "float", 7, "__name__"])
def test_a_type_that_weights_cannot_have_is_refused(dtype):
    with pytest.raises(ValueError, match="`dtype` must be one of float32, "):
        BMDetrConfig(dtype=dtype)
    assert BMDetrConfig(dtype="bfloat16").dtype == BMDetrConfig(dtype=torch.bfloat16).dtype == torch.bfloat16


def test_assignment_is_checked_as_well():
    config = BMDetrConfig()
    with pytest.raises(StrictDataclassError, match="num_queries"):
        config.num_queries = "ten"  # type: ignore[assignment]


def test_an_unknown_field_is_an_error_that_knows_other_names():
    with pytest.raises(TypeError, match=r"unknown BMDetrConfig fields.*'hiden_size'"):
        BMDetrConfig(hiden_size=64)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="`v_feat_dim` is `video_dim` here"):
        BMDetrConfig(v_feat_dim=512)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="`eos_coef` is `no_object_weight` here"):
        BMDetrConfig.released(eos_coef=0.1)


def test_every_hint_names_a_field():
    from modeling_bmdetr.configuration_bmdetr import OTHER_NAMES

    assert set(OTHER_NAMES.values()) <= set(BMDetrConfig.__annotations__)
    assert not set(OTHER_NAMES) & set(BMDetrConfig.__annotations__)


def test_fields_of_the_base_class_pass():
    fields: dict[str, Any] = {"output_attentions": True, "id2label": {0: "moment", 1: "none"}, "name_or_path": "x"}
    config = BMDetrConfig(**fields)
    assert config.output_attentions
    assert config.id2label == {0: "moment", 1: "none"}


def test_a_configuration_survives_its_file(tmp_path: Path):
    config = BMDetrConfig(video_dim=2816, video_encoders=[SLOWFAST, {**CLIP}], text_encoder=TEXT, num_queries=7)
    config.save_pretrained(tmp_path)
    loaded = BMDetrConfig.from_pretrained(tmp_path)
    assert loaded.num_queries == 7
    assert loaded.feature_contract == config.feature_contract
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bmdetr"
    loaded.save_pretrained(tmp_path / "again")
    assert BMDetrConfig.from_pretrained(tmp_path / "again").to_dict() == loaded.to_dict()


def test_a_file_with_unknown_fields_loads_with_a_warning(tmp_path: Path, caplog):
    BMDetrConfig(num_queries=3).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**stored, "from_the_future": 1}))
    with caplog.at_level(logging.WARNING):
        assert BMDetrConfig.from_pretrained(tmp_path).num_queries == 3
    assert "from_the_future" in caplog.text


def test_a_file_with_an_impossible_value_does_not_load(tmp_path: Path):
    BMDetrConfig().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**stored, "num_queries": 0}))
    with pytest.raises(StrictDataclassError, match="num_queries"):
        BMDetrConfig.from_pretrained(tmp_path)


# The feature contract


def test_a_contract_survives_json_and_the_configuration(contract):
    values = json.loads(json.dumps(contract.to_dict()))
    assert FeatureContract.from_dict(values) == contract
    config = BMDetrConfig.from_contract(contract, num_queries=5)
    assert config.feature_contract == contract
    assert (config.video_dim, config.text_dim, config.num_queries) == (2816, 512, 5)
    assert not contract.mismatches(config.feature_contract)


def test_a_contract_without_encoders_keeps_the_widths_given():
    config = BMDetrConfig.from_contract(FeatureContract(clip_length=3.0), video_dim=10, text_dim=4)
    assert (config.video_dim, config.text_dim, config.clip_length) == (10, 4, 3.0)
    assert (config.feature_contract.video_dim, config.feature_contract.text_dim) == (0, 0)


def test_a_contract_does_not_share_its_dicts(contract):
    options = {"name": "clip", "dim": 512}
    held = FeatureContract(video_encoders=(options,))
    options["dim"] = 1
    assert held.video_dim == 512
    held.to_dict()["video_encoders"][0]["dim"] = 2
    assert held.video_dim == 512


def test_mismatches_name_both_sides_and_the_remedy(contract):
    other = FeatureContract(video_encoders=(CLIP,), text_encoder={**TEXT, "layer": -2}, clip_length=1.0)
    lines = contract.mismatches(other)
    assert [line.split(":")[0] for line in lines] == ["video_encoders", "text_encoder", "clip_length", "text_rows"]
    with pytest.raises(ValueError, match="do not fit") as error:
        contract.require_match(other, "checkpoint 'a'", "store 'b'")
    message = str(error.value)
    assert "the features of store 'b' do not fit checkpoint 'a'" in message
    assert "slowfast (2304 wide) + clip (512 wide, image_size=[224, 224]) against clip (512 wide" in message
    assert "clip-text (512 wide) against clip-text (512 wide, layer=-2)" in message
    assert "clip_length: 2.0 against 1.0" in message
    assert "Extract the features again with the encoders and clip length of checkpoint 'a'" in message
    assert "or use a checkpoint trained on those of store 'b'" in message


def test_only_what_decides_the_values_has_to_match(contract):
    same = FeatureContract.from_dict({**contract.to_dict(), "max_clips": 10, "long_video": "truncate"})
    contract.require_match(same, "one", "other")
    unnamed = FeatureContract(clip_length=2.0, text_rows="all")  # says nothing about its encoders
    contract.require_match(unnamed, "one", "other")


def test_encoders_that_are_normalised_one_by_one_must_be_named(contract):
    unnamed = FeatureContract(clip_length=2.0, text_rows="all")
    with pytest.raises(
        ValueError, match=r"name them in the configuration, as in `video_encoders=\[\{'name': 'slowfast'"
    ):
        unnamed.require_match(contract, "the model", "the feature store")
    FeatureContract.from_dict({**unnamed.to_dict(), "normalize_video": False}).require_match(contract, "one", "other")
    unnamed.require_match(FeatureContract.from_dict({**contract.to_dict(), "video_encoders": [CLIP]}), "one", "other")


def test_the_order_of_encoders_matters(contract):
    turned = FeatureContract.from_dict({**contract.to_dict(), "video_encoders": [CLIP, SLOWFAST]})
    assert len(contract.mismatches(turned)) == 1


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"clip_seconds": 1}, ["unknown entries", "clip_seconds", "clip_length"]),
        ({"clip_length": "2"}, ["`clip_length`", "'2'"]),
        ({"clip_length": float("nan")}, ["`clip_length`", "nan"]),
        ({"max_clips": 7.5}, ["`max_clips`", "7.5"]),
        ({"max_tokens": 0}, ["`max_tokens`", "0"]),
        ({"long_video": "crop"}, ["`long_video`", "truncate", "'crop'"]),
        ({"text_rows": "some"}, ["`text_rows`", "to_end_of_text", "'some'"]),
        ({"video_encoders": ["clip"]}, ["`name`", "`dim`", "'clip'"]),
        ({"video_encoders": [{"name": "clip", "dim": "512"}]}, ["`dim`", "'512'"]),
        ({"text_encoder": {"dim": 512}}, ["`name`", "{'dim': 512}"]),
    ],
)
def test_a_contract_that_cannot_be_right_is_refused(values, parts):
    with pytest.raises(ValueError, match=parts[0]) as error:
        FeatureContract.from_dict(values)
    for part in parts[1:]:
        assert part in str(error.value)


def test_a_file_from_before_ranking_means_the_paper_model():
    saved = {name: value for name, value in BMDetrConfig().to_dict().items() if name not in WITHOUT_RANKING}
    assert "transformers_version" in saved
    loaded = BMDetrConfig.from_dict(saved)
    assert {name: getattr(loaded, name) for name in WITHOUT_RANKING} == WITHOUT_RANKING
    own = BMDetrConfig.from_dict(BMDetrConfig(score="product").to_dict())
    assert own.quality_head
    assert own.score == "product"
