"""What a saved checkpoint consists of, however it is saved."""

import itertools
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from factories import CONTRACT, make_model, make_trainer
from hub_processes import REPOSITORY
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

from modeling_bmdetr import (
    BMDetrConfig,
    BMDetrForMomentRetrieval,
    BMDetrModel,
    BMDetrProcessor,
    MomentRetrievalPipeline,
    encoders_bmdetr,
)
from modeling_bmdetr.encoders_bmdetr import (
    HashedWordTextEncoder,
    PixelGridVideoEncoder,
    build_text_encoder,
    build_video_encoder,
)
from modeling_bmdetr.saving_bmdetr import check_publishable, upload_checkpoint

CODE = {path.name for path in (REPOSITORY / "modeling_bmdetr").glob("*_bmdetr.py")}
CHECKPOINT = CODE | {"README.md", "config.json", "model.safetensors", "processor_config.json"}
TRAINER_STATE = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_every_file_with_the_suffix_travels_and_no_other(tmp_path):
    make_model().save_pretrained(tmp_path)
    assert names(tmp_path) == CHECKPOINT
    for name in CODE:
        assert (tmp_path / name).read_bytes() == (REPOSITORY / "modeling_bmdetr" / name).read_bytes()


def test_the_configuration_declares_classes_and_pipeline(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    stored = read(tmp_path / "config.json")
    assert stored["auto_map"] == {
        "AutoConfig": "configuration_bmdetr.BMDetrConfig",
        "AutoModel": "modeling_bmdetr.BMDetrForMomentRetrieval",
    }
    assert stored["custom_pipelines"] == {
        "temporal-grounding": {
            "impl": "pipeline_bmdetr.MomentRetrievalPipeline",
            "pt": ["AutoModel"],
            "type": "multimodal",
        }
    }
    assert read(tmp_path / "processor_config.json")["auto_map"] == {
        "AutoProcessor": "processing_bmdetr.BMDetrProcessor"
    }
    # Only a process without the library needs the declaration.
    assert not hasattr(model.config, "custom_pipelines")
    assert not hasattr(BMDetrConfig.from_pretrained(tmp_path), "custom_pipelines")


def test_the_library_loads_its_own_classes_without_trust(tmp_path):
    model = make_model().eval()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is BMDetrConfig
    assert type(AutoProcessor.from_pretrained(tmp_path)) is BMDetrProcessor
    for trusted in ({}, {"trust_remote_code": True}):
        loaded = AutoModel.from_pretrained(tmp_path, **trusted)
        assert type(loaded) is BMDetrForMomentRetrieval
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
        pipe = pipeline("temporal-grounding", model=str(tmp_path), device="cpu", **trusted)
        assert type(pipe) is MomentRetrievalPipeline
        assert type(pipe.processor) is BMDetrProcessor


def test_loading_takes_type_and_device(tmp_path):
    make_model().save_pretrained(tmp_path)
    loaded = BMDetrForMomentRetrieval.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu")
    assert loaded.dtype == torch.bfloat16
    assert loaded.device.type == "cpu"
    automatic = BMDetrForMomentRetrieval.from_pretrained(tmp_path, device_map="auto")
    assert automatic.device.type in ("cpu", "cuda")


def test_saving_again_from_what_was_loaded_changes_nothing(tmp_path):
    make_model().save_pretrained(tmp_path / "first")
    BMDetrForMomentRetrieval.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for name in CHECKPOINT:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_the_trainer_saves_complete_checkpoints(tmp_path):
    trainer = make_trainer(tmp_path, num_train_epochs=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    checkpoint = next(tmp_path.glob("checkpoint-*"))
    assert names(checkpoint) == CHECKPOINT | TRAINER_STATE
    assert names(tmp_path / "model") == CHECKPOINT | {"training_args.bin"}
    assert "custom_pipelines" in read(checkpoint / "config.json")


def test_the_pipeline_saves_its_processor(tmp_path):
    model = make_model()
    pipe = MomentRetrievalPipeline(model, processor=BMDetrProcessor(model.config, nms_threshold=0.6), device="cpu")
    pipe.save_pretrained(tmp_path)
    assert names(tmp_path) == CHECKPOINT
    assert read(tmp_path / "processor_config.json")["nms_threshold"] == 0.6


def test_a_processor_in_the_folder_stays_if_its_contract_is_the_models(tmp_path):
    BMDetrProcessor(CONTRACT, nms_threshold=0.7).save_pretrained(tmp_path)
    make_model().save_pretrained(tmp_path)
    assert read(tmp_path / "processor_config.json")["nms_threshold"] == 0.7
    config = BMDetrConfig.from_contract(CONTRACT, clip_length=4.0, hidden_size=16, num_attention_heads=2)
    BMDetrForMomentRetrieval(config).save_pretrained(tmp_path)
    stored = read(tmp_path / "processor_config.json")
    assert stored["nms_threshold"] is None
    assert stored["feature_contract"]["clip_length"] == 4.0


def test_a_card_in_the_folder_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    make_model().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_other_processes_write_nothing_of_their_own(tmp_path):
    make_model().save_pretrained(tmp_path, is_main_process=False)
    assert names(tmp_path) == set()


def test_the_headless_model_claims_no_pipeline(tmp_path):
    BMDetrModel(make_model().config).save_pretrained(tmp_path)
    code = {"configuration_bmdetr.py", "contract_bmdetr.py"}
    assert names(tmp_path) == code | {"config.json", "model.safetensors"}
    stored = read(tmp_path / "config.json")
    assert "custom_pipelines" not in stored
    assert "AutoModel" not in stored["auto_map"]


def test_pickled_training_arguments_hold_no_token(tmp_path):
    args = make_trainer(tmp_path, hub_token="hf_secret").args
    assert args.hub_token == "hf_secret"
    assert b"hf_secret" not in pickle.dumps(args)
    assert pickle.loads(pickle.dumps(args)).learning_rate == args.learning_rate


def test_damaged_weights_are_named(tmp_path):
    make_model().save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(OSError, match=r"weights .* are damaged or cut off.*force_download=True"):
        BMDetrForMomentRetrieval.from_pretrained(tmp_path)


def test_a_processor_that_is_no_text_is_named(tmp_path):
    make_model().save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    path.write_bytes(b"\xff" + path.read_bytes())
    with pytest.raises(OSError, match=f"the {path.name} of '{tmp_path}' is damaged"):
        BMDetrProcessor.from_pretrained(tmp_path)


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("class_head.weight"), r"1 missing \(class_head\.weight\)"),
        (lambda w: w.update(other=torch.ones(2)), r"1 left over \(other\)"),
        (lambda w: w.update({"class_head.bias": torch.ones(5)}), r"1 of another shape \(class_head\.bias\)"),
    ],
)
def test_a_checkpoint_is_loaded_completely_or_refused(tmp_path, change, said):
    make_model().save_pretrained(tmp_path)
    change_weights(tmp_path, change)
    for load in (BMDetrForMomentRetrieval.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=said):
            load(tmp_path)
    with pytest.raises(ValueError, match=said):
        pipeline("temporal-grounding", model=str(tmp_path), device="cpu")
    if "shape" not in said:
        assert BMDetrForMomentRetrieval.from_pretrained(tmp_path, complete=False).config.hidden_size == 16
    _, info = BMDetrForMomentRetrieval.from_pretrained(tmp_path, output_loading_info=True, ignore_mismatched_sizes=True)
    assert sum(len(names) for names in info.values()) == 1


def test_what_counts_the_spans_is_made_where_a_checkpoint_lacks_it(tmp_path):
    make_model(clip_proposals=True).save_pretrained(tmp_path)
    change_weights(tmp_path, lambda weights: weights.pop("model.clip_proposals.ranks"))
    loaded = BMDetrForMomentRetrieval.from_pretrained(tmp_path, complete=False)
    assert loaded.model.clip_proposals.ranks.tolist() == list(range(loaded.config.num_queries))


@pytest.mark.parametrize("places", [{}, {"subfolder": "inside"}, {"variant": "half"}])
@pytest.mark.parametrize("shard_size", ["1GB", 20_000])
def test_sizes_that_the_weights_cannot_have_are_refused_before_memory_is_taken(tmp_path, places, shard_size):
    folder = tmp_path / places.get("subfolder", "")
    make_model().save_pretrained(folder, max_shard_size=shard_size, variant=places.get("variant"))
    config = read(folder / "config.json")
    assert BMDetrForMomentRetrieval.from_pretrained(tmp_path, **places).config.hidden_size == 16
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 1_000_000}))
    with pytest.raises(ValueError, match=r"it states [\d,]{18,} of them, and the files hold"):
        BMDetrForMomentRetrieval.from_pretrained(tmp_path, **places)


def test_weights_are_read_from_safetensors_only(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for complete in (True, False):
        with pytest.raises(ValueError, match=r"'pytorch_model\.bin', and are read from \*\.safetensors only"):
            BMDetrForMomentRetrieval.from_pretrained(tmp_path, complete=complete)


def test_other_depths_than_the_weights_have_are_refused(tmp_path):
    make_model().save_pretrained(tmp_path)
    config = read(tmp_path / "config.json")
    for layers, said in ((2, "missing"), (0, "encoder_layers")):
        (tmp_path / "config.json").write_text(json.dumps({**config, "encoder_layers": layers}))
        with pytest.raises((ValueError, StrictDataclassError), match=said):
            BMDetrForMomentRetrieval.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    make_model().save_pretrained(tmp_path)
    change_weights(tmp_path, lambda weights: weights["class_head.weight"].fill_(value))
    with pytest.raises(ValueError, match=r"not finite .*class_head\.weight"):
        BMDetrForMomentRetrieval.from_pretrained(tmp_path)


def test_another_architecture_is_called_that(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 16}))
    for load in (BMDetrConfig.from_pretrained, BMDetrForMomentRetrieval.from_pretrained):
        with pytest.raises(ValueError, match=r"is no BM-DETR checkpoint: its config\.json has model_type 'bert'"):
            load(tmp_path)


def test_all_files_have_the_usual_permissions(tmp_path):
    make_model().save_pretrained(tmp_path)
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {usual}


def test_what_a_dead_process_left_half_written_is_mended(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in ("README.md", "processor_config.json")}
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content[: len(content) // 3])
    model.save_pretrained(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole


def test_saving_over_another_model_never_mixes_the_two(tmp_path, monkeypatch):
    """Whichever renaming a process dies at, the folder holds the old model, the new one, or is refused."""
    old, new = make_model(0), make_model(1, encoder_layers=2)
    old.save_pretrained(tmp_path / "old")
    original, refused = os.replace, 0
    for steps in itertools.count():
        folder = shutil.copytree(tmp_path / "old", tmp_path / str(steps))
        calls = iter(range(steps))

        def die(*names, calls=calls):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            original(*names)

        monkeypatch.setattr(os, "replace", die)
        try:
            new.save_pretrained(folder)
            done = True
        except KeyboardInterrupt:
            done = False
        monkeypatch.setattr(os, "replace", original)
        assert not [name for name in names(folder) if name.startswith(".")]
        try:
            loaded = BMDetrForMomentRetrieval.from_pretrained(folder)
        except OSError:
            refused += 1
        else:
            expected = new if done else old
            assert loaded.config.encoder_layers == expected.config.encoder_layers
            assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), expected.parameters(), strict=True))
        new.save_pretrained(folder)
        assert BMDetrForMomentRetrieval.from_pretrained(folder).config.encoder_layers == 2
        if done:
            break
    assert refused


def test_parts_of_an_earlier_model_are_removed(tmp_path):
    make_model().save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    make_model(1).save_pretrained(tmp_path)
    assert names(tmp_path) == CHECKPOINT


def test_only_a_checkpoint_is_uploaded(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json with .*save_pretrained"):
        upload_checkpoint(tmp_path, "tester/never")


def test_a_contract_of_narrow_hashed_words_is_rebuilt():
    spec = HashedWordTextEncoder(dim=8).spec()
    assert build_text_encoder(spec).dim == 8


def test_a_contract_of_the_pixel_grid_is_rebuilt():
    spec = PixelGridVideoEncoder(grid=8, frames_per_clip=3, raster=2).spec()
    assert build_video_encoder(spec).spec() == spec


def test_a_width_in_the_name_of_an_encoder_is_not_given_twice(monkeypatch):
    monkeypatch.setattr(encoders_bmdetr, "_TEXT_ENCODERS", {"hashed:": lambda dim: HashedWordTextEncoder(int(dim))})
    assert build_text_encoder({"name": "hashed:8", "dim": 8}).dim == 8


def test_no_token_and_no_folder_of_this_machine_is_published(tmp_path):
    config = tmp_path / "config.json"
    card = tmp_path / "README.md"
    card.write_text("# A model\n")
    files = {"config.json": config, "README.md": card}
    published = {"video_encoders": [{"name": "clip:openai/clip-vit-base-patch32", "dim": 512}], "text_encoder": None}
    config.write_text(json.dumps(published))
    check_publishable(files)
    for name in ("clip:/home/somebody/clip", "clip:~/clip", "clip:./clip", "clip:C:\\clip", f"hf:{tmp_path}"):
        config.write_text(json.dumps({"video_encoders": [], "text_encoder": {"name": name, "dim": 4}}))
        with pytest.raises(ValueError, match="a folder of this machine"):
            check_publishable(files)
    config.write_text(json.dumps(published))
    card.write_text("token: hf_" + "a1B2" * 8)
    with pytest.raises(ValueError, match=r"'README\.md' holds what looks like an access token"):
        check_publishable(files)
