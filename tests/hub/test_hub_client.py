"""Pushing and pulling with the real client over HTTP, each from a process of its own with a cache of its own."""

import json
from pathlib import Path

import numpy as np
import pytest
from hub_processes import REPOSITORY, make_bare_site, run_script
from huggingface_hub import ModelCard
from loopback_hub import TOKEN, LoopbackHub, loopback_hub

CODE = sorted(path.name for path in (REPOSITORY / "modeling_bmdetr").glob("*_bmdetr.py"))
CHECKPOINT = sorted([*CODE, "README.md", "config.json", "model.safetensors", "processor_config.json"])


@pytest.fixture(scope="module")
def hub():
    with loopback_hub() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def pushed(hub: LoopbackHub, folder: Path) -> dict:
    arguments = {"folder": str(folder), "repository": str(REPOSITORY), "url": hub.url, "token": TOKEN}
    return run_script("push", folder, hub.environment(folder / "push_home"), arguments=arguments)


@pytest.fixture(scope="module")
def requests_of_push(hub: LoopbackHub, pushed: dict) -> list[str]:
    return list(hub.requests)


@pytest.fixture(scope="module")
def pulled(hub: LoopbackHub, folder: Path, pushed: dict, requests_of_push) -> dict:
    files = hub.files("tester/saved")
    weights, config = files["model.safetensors"], json.loads(files["config.json"])
    broken = {
        "weights cut off": {"model.safetensors": weights[: len(weights) // 2]},
        "weights overwritten": {"model.safetensors": b"\xff" * len(weights)},
        "weights of another model": {"config.json": json.dumps({**config, "hidden_size": 32}).encode()},
        "more than it holds": {"config.json": json.dumps({**config, "hidden_size": 1_000_000}).encode()},
        "config cut off": {"config.json": files["config.json"][:100]},
    }
    for name, changed in broken.items():
        hub.put(f"tester/{name.replace(' ', '-')}", {**files, **changed})
    hub.put("tester/weights-absent", {name: files[name] for name in files if name != "model.safetensors"})
    names = [f"tester/{name.replace(' ', '-')}" for name in (*broken, "weights absent")]
    first = hub.repositories["models", "tester/video"].commits
    commit = next(sha for sha, tree in first.items() if tree)
    arguments = {"url": hub.url, "broken": names, "commit": commit}
    hub.requests.clear()
    return run_script("pull", folder, hub.environment(folder / "pull_home"), arguments=arguments)


@pytest.fixture(scope="module")
def without_library(hub: LoopbackHub, folder: Path, pushed: dict) -> dict:
    site = folder / "site"
    site.mkdir()
    video = folder / "video.mp4"
    video.write_bytes(b"not read")
    arguments = {"folder": str(folder), "local": str(folder / "saved"), "video": str(video), "url": hub.url}
    environment = hub.environment(folder / "bare_home")
    return run_script("without_library", folder, environment, site=make_bare_site(site), arguments=arguments)


def value(report: dict, name: str):
    assert "value" in report[name], f"{name}: {report[name]}"
    return report[name]["value"]


# Pushing


def test_the_trainer_pushes_a_complete_checkpoint(hub, pushed):
    assert "/tester/trained/commit/" in value(pushed, "trainer")
    files = hub.files("tester/trained")
    assert set(CHECKPOINT) <= set(files)
    config = json.loads(files["config.json"])
    assert config["custom_pipelines"]["temporal-grounding"]["impl"] == "pipeline_bmdetr.MomentRetrievalPipeline"
    assert config["auto_map"]["AutoModel"] == "modeling_bmdetr.BMDetrForMomentRetrieval"
    assert json.loads(files["processor_config.json"])["nms_threshold"] == 0.5
    for name in CODE:
        assert files[name] == (REPOSITORY / "modeling_bmdetr" / name).read_bytes()


def test_every_push_of_the_trainer_has_the_code(hub, pushed):
    repository = hub.repositories["models", "tester/trained"]
    assert any("epoch" in message for message in repository.messages), repository.messages
    for tree in list(repository.commits.values())[1:]:
        assert set(CODE) <= set(tree)
        assert {"config.json", "processor_config.json", "model.safetensors"} <= set(tree)


def test_nothing_pushed_holds_the_access_token(hub, pushed):
    for repository in hub.repositories.values():
        for tree in repository.commits.values():
            for name, stored in tree.items():
                assert TOKEN.encode() not in stored.content, name


def test_the_pushed_card_has_the_metrics_of_the_pushed_weights(hub, pushed):
    files = hub.files("tester/trained")
    card = ModelCard(files["README.md"].decode())
    record = json.loads(files["results.json"])
    assert pushed["best step"] is not None
    at_best = [entry for entry in pushed["history"] if entry["step"] == pushed["best step"] and "eval_loss" in entry]
    assert record["metrics"] == {
        name.removeprefix("eval_"): figure
        for name, figure in at_best[-1].items()
        if name.startswith(("eval_MR", "eval_p_"))
    }
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        name: figure for name, figure in record["metrics"].items() if name.startswith("MR-")
    }
    assert card.data.license == "mit"
    assert {"moment-retrieval", "temporal-grounding", "highlight-detection", "tiny"} <= set(card.data.tags)
    assert card.data.eval_results[0].dataset_name == "Tiny"
    assert 'from_pretrained("tester/trained"' in card.text


def test_the_model_pushes_exactly_the_checkpoint_in_one_commit(hub, pushed):
    repository = hub.repositories["models", "tester/video"]
    assert value(pushed, "push").startswith(hub.url)
    assert repository.private
    assert sorted(hub.files("tester/video")) == CHECKPOINT
    assert repository.messages == ["initial commit", "A model of videos", "Upload BM-DETR checkpoint"]
    assert sorted(hub.files("tester/video", "other")) == CHECKPOINT
    assert hub.files("tester/video", "other")["model.safetensors"] != hub.files("tester/video")["model.safetensors"]
    assert 'model="tester/video"' in hub.files("tester/video")["README.md"].decode()


def test_weights_go_the_way_of_large_files(hub, pushed, requests_of_push):
    weights = hub.repositories["models", "tester/video"].commits
    oid = next(tree for tree in weights.values() if tree)["model.safetensors"].sha256
    assert "POST /tester/video.git/info/lfs/objects/batch" in requests_of_push
    assert f"PUT /_lfs/{oid}" in requests_of_push
    assert f"POST /_lfs/{oid}/verify" in requests_of_push


def test_saving_can_push_and_a_card_edited_by_hand_stays(hub, pushed):
    assert value(pushed, "save and push") is None
    assert "/tester/saved/" in value(pushed, "push again")
    assert b"Edited by hand." in hub.files("tester/saved")["README.md"]
    assert sorted(hub.files("tester/saved")) == CHECKPOINT


def test_refused_uploads_say_why(hub, pushed):
    assert "Invalid credentials" in pushed["wrong token"]["message"]
    assert "'someone'" in pushed["other owner"]["message"]
    assert ("models", "tester/never") not in hub.repositories


def test_an_interrupted_upload_leaves_nothing_half_visible(hub, pushed):
    for name in ("commit dropped", "weights dropped", "second commit dropped"):
        assert pushed[name]["error"] == "ConnectionError", pushed[name]
        assert "run it again" in pushed[name]["message"]
    assert hub.files("tester/interrupted") == {}
    assert hub.files("tester/saved")["model.safetensors"] == hub.files("tester/video")["model.safetensors"]
    assert "/tester/retried/" in value(pushed, "weights dropped once")
    assert sorted(hub.files("tester/retried")) == CHECKPOINT


def test_the_script_uploads_a_folder_with_its_results(hub, pushed):
    assert pushed["example"]["code"] == 0, pushed["example"]
    assert pushed["example"]["out"].startswith(f"{hub.url}/tester/example/commit/")
    files = hub.files("tester/example")
    assert sorted(files) == sorted([*CHECKPOINT, "results.json"])
    assert ModelCard(files["README.md"].decode()).data.eval_results
    assert files["model.safetensors"] == hub.files("tester/video")["model.safetensors"]
    assert hub.repositories["models", "tester/example"].private
    assert pushed["example keeps card"]["code"] == 0, pushed["example keeps card"]
    assert b"Edited by hand." in hub.files("tester/saved")["README.md"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("example, wrong token", "Invalid credentials"),
        ("example, no checkpoint", "no config.json"),
        ("example, weight missing", "class_head.bias"),
        ("example, weights cut off", "damaged or cut off"),
        ("example, other processor", "do not fit config.json"),
    ],
)
def test_the_script_refuses_with_one_clear_line(hub, pushed, name, words):
    assert pushed[name]["code"] == 2
    assert pushed[name]["out"] == ""
    last = pushed[name]["err"].strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert ("models", "tester/never") not in hub.repositories


# Pulling, with the library


def test_what_is_pulled_gives_the_same_numbers(pushed, pulled):
    assert value(pulled, "trained") == value(pushed, "trained numbers")
    assert value(pulled, "saved") == value(pulled, "from the cache") == value(pushed, "numbers")
    assert value(pulled, "commit") == value(pushed, "numbers")
    assert value(pulled, "answers") == value(pushed, "answers")
    assert value(pulled, "half") == "torch.bfloat16"


def test_a_revision_is_another_model(pushed, pulled):
    assert value(pulled, "branch") == value(pushed, "other numbers") != value(pushed, "numbers")


def test_the_installed_classes_win_over_the_code_in_the_repository(pushed, pulled):
    assert value(pulled, "auto") == "modeling_bmdetr.modeling_bmdetr"
    assert value(pushed, "offline pipeline") == "modeling_bmdetr.pipeline_bmdetr"
    assert value(pulled, "processor")["nms_threshold"] == 0.5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing repository", "tester/never"),
        ("missing branch", "never"),
        ("interrupted upload", "tester/interrupted"),
        ("private without token", "tester/video"),
        ("wrong token", "tester/video"),
        ("cut", "the download of 'tester/example' broke off"),
        ("tester/weights-cut-off", "the weights (*.safetensors) of 'tester/weights-cut-off' are damaged"),
        ("tester/weights-overwritten", "the weights (*.safetensors) of 'tester/weights-overwritten' are damaged"),
        ("tester/weights-absent", "model.safetensors"),
        ("tester/weights-of-another-model", "of another shape (class_head.weight"),
        ("tester/more-than-it-holds", "of them, and the files hold"),
        ("tester/config-cut-off", "config.json"),
    ],
)
def test_what_cannot_be_loaded_ends_in_a_clear_error(pulled, name, words):
    assert "error" in pulled[name], f"{name} loaded"
    assert words in pulled[name]["message"], pulled[name]


def test_a_download_cut_off_is_tried_again_or_leaves_no_file(pushed, pulled):
    assert "value" in pulled["cut once"]
    assert "model.safetensors" not in value(pulled, "files after the cut")
    assert value(pulled, "after the cut") == value(pushed, "numbers")


# Pulling, without the library


def test_nothing_beyond_torch_transformers_and_numpy_is_there(without_library):
    assert value(without_library, "importable") == []
    for place in ("folder", "hub"):
        assert all(name.startswith("transformers_modules.") for name in value(without_library, f"{place}: modules"))


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_the_code_in_the_repository_gives_the_same_numbers(pushed, without_library, place):
    assert value(without_library, f"{place}: numbers") == value(pushed, "numbers")
    assert value(without_library, f"{place}: answers") == value(pushed, "answers")
    assert value(without_library, f"{place}: config") == 6
    assert value(without_library, f"{place}: processor")["feature_contract"]["long_video"] == "window"
    assert value(without_library, f"{place}: config shown")


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_a_model_of_the_code_in_the_repository_is_saved_whole(folder, without_library, place):
    for kind in ("model", "pipeline"):
        names = value(without_library, f"{place}: {kind} saved again")
        assert names == [name for name in CHECKPOINT if name != "README.md"]
        for name in names:
            assert (folder / f"{place} {kind}" / name).read_bytes() == (folder / "saved" / name).read_bytes(), name


@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize("kind", ["config", "model", "processor", "pipeline"])
def test_code_that_nobody_trusts_is_refused_without_a_question(without_library, place, kind):
    refused = without_library[f"{place}: {kind} not trusted"]
    assert refused.get("error") == "ValueError", refused
    assert "trust_remote_code=True" in refused["message"]


def test_a_pipeline_is_found_without_the_name_of_its_task(without_library):
    assert value(without_library, "task inferred") == "MomentRetrievalPipeline"


def test_a_revision_without_the_library(pushed, without_library):
    assert value(without_library, "branch") == value(pushed, "other numbers")


def test_the_cache_is_enough_without_the_library(pushed, without_library):
    assert value(without_library, "from the cache") == value(pushed, "numbers")


def test_what_is_not_installed_is_named_when_it_is_needed(without_library):
    assert "PyAV" in without_library["video file"]["message"]
    assert "pip install" in without_library["video file"]["message"]
    assert "SciPy" in without_library["several moments"]["message"]
    assert np.isfinite(value(without_library, "one moment"))


def test_the_example_in_the_card_runs(without_library):
    moments = value(without_library, "card")
    assert moments
    assert {"start", "end", "score"} == set(moments[0])
    assert 0 <= moments[0]["start"] <= moments[0]["end"] <= 5 * 2.0


def test_a_model_of_the_code_in_the_repository_is_pushed_whole(hub, pushed, without_library):
    assert "/tester/again/" in value(without_library, "push")
    assert value(without_library, "pushed again") == value(pushed, "numbers")
    assert sorted(hub.files("tester/again")) == [name for name in CHECKPOINT if name != "README.md"]
