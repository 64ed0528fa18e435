"""Data sets exported by `dataset_scripts`, pushed and loaded with the real clients over HTTP."""

import json

import pytest
from hub_processes import run_script
from huggingface_hub import DatasetCard
from loopback_hub import loopback_hub

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub():
    with loopback_hub() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hub_datasets")


@pytest.fixture(scope="module")
def exported(hub, folder):
    arguments = {"folder": str(folder), "url": hub.url}
    return run_script("export_data", folder, hub.environment(folder / "push_home"), arguments=arguments)


@pytest.fixture(scope="module")
def loaded(hub, folder, exported):
    commit = hub.repositories["datasets", "tester/tacos"].refs["main"]
    environment = hub.environment(folder / "pull_home")
    return run_script("load_data", folder, environment, arguments={"url": hub.url, "commit": commit})


def test_an_export_is_pushed_with_card_and_statistics(hub, exported):
    assert exported["export"] == {"value": 0}
    files = hub.files("tester/tacos", kind="datasets")
    splits = [f"data/{split}.parquet" for split in ("train", "val", "test")]
    assert {*splits, "jsonl/train.jsonl", "README.md", "statistics.json"} <= set(files)
    assert hub.repositories["datasets", "tester/tacos"].private
    assert DatasetCard(files["README.md"].decode()).data.pretty_name
    assert any(request.startswith("POST /datasets/tester/tacos.git/info/lfs") for request in hub.requests)


def test_a_push_to_another_owner_is_refused(hub, exported):
    assert exported["other owner"] == {"value": 2}
    assert ("datasets", "someone/tacos") not in hub.repositories


def test_load_dataset_reads_what_was_pushed(hub, loaded):
    rows = loaded["parquet"]["value"]
    written = hub.files("tester/tacos", kind="datasets")["jsonl/train.jsonl"].decode().splitlines()
    assert {split: len(part) for split, part in rows.items()} == {"train": 3, "val": 3, "test": 3}
    for row, line in zip(rows["train"], written, strict=True):
        original = json.loads(line)
        assert {name: row[name] for name in original} == {**original, "qid": str(original["qid"])}
    assert rows["train"][0]["relevant_windows"] == [[0.0, 5.0]]


def test_a_commit_can_be_named(loaded):
    assert loaded["commit"]["value"] == loaded["parquet"]["value"]


def test_what_cannot_be_loaded_ends_in_an_error_that_names_it(loaded):
    for name, repository in (("absent", "tester/never"), ("without token", "tester/tacos")):
        assert loaded[name].get("error"), loaded[name]
        assert repository in loaded[name]["message"]
