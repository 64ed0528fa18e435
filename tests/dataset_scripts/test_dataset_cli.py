"""The command line of the data sets, and what it exports, read back by plain `datasets.load_dataset`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from dataset_scripts import __main__ as cli
from dataset_scripts import export as export_module
from dataset_scripts import registry
from modeling_bmdetr.data import read_rows, validate_rows

LABELS = {
    "relevant_clip_ids": [1, 2],
    "saliency_scores": [[1, 2, 3], [4, 4, 4]],
    "relevant_windows": [[2, 6]],
}


@pytest.fixture
def qvhighlights(tmp_path) -> Path:
    folder = tmp_path / "qvhighlights"
    folder.mkdir()
    for name, qids in (
        ("train_release", (7, 5)),
        ("val_release", (9,)),
        ("test_release", (3,)),
        ("test_with_gt", (3,)),
    ):
        rows = [{"qid": qid, "query": f"Query  {qid}", "duration": 150, "vid": f"v{qid}"} for qid in qids]
        if name != "test_release":
            rows = [{**row, **LABELS} for row in rows]
        (folder / f"highlight_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def tacos(tmp_path) -> Path:
    folder = tmp_path / "tacos"
    folder.mkdir()
    record = {
        "timestamps": [[0, 100], [100, 220], [0, 100], [50, 50]],
        "sentences": ["He cuts.", "He waits.", "He cuts.", "He stops."],
        "fps": 20,
        "num_frames": 200,
    }
    for name in ("train", "val", "test"):
        (folder / f"{name}.json").write_text(json.dumps({f"{name}.avi": record}))
    return folder


@pytest.fixture
def run(tmp_path, capsys):
    """run(*arguments) -> (exit code, standard output, standard error) of the command line."""

    def call(*arguments):
        cached = ["--cache-dir", str(tmp_path / "cache")] if arguments[0] != "list" else []
        code = cli.main([str(argument) for argument in arguments] + cached)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def loaded(tmp_path, *arguments, **options):
    return load_dataset(*map(str, arguments), cache_dir=str(tmp_path / "load_cache"), **options)


# ------------------------------------------------------------------------------------------------------ list and stats


def test_list_names_data_sets_splits_files_and_licences(run, monkeypatch):
    monkeypatch.setattr(cli, "BENCHMARKS", {name: "" for name in cli.BENCHMARKS if name != "moving_shapes"})
    code, out, _ = run("list")
    assert code == 0
    for text in ("tacos\n  splits: train, val, test", "charades_sta_train.txt  from github.com", "CC BY-NC-SA 4.0"):
        assert text in out


def test_stats_as_table_and_json(run, tacos, tmp_path):
    code, table, _ = run("stats", "tacos", "--data-dir", tacos)
    assert code == 0
    figures, dirt = (part.splitlines() for part in table.strip().split("\n\n"))
    assert dict(zip(figures[0].split(), figures[1].split(), strict=True)) == {
        "split": "train", "videos": "1", "queries": "4", "windows": "4", "moment_stored_s": "4.00", "moment_s": "4.00",
        "moment_clipped_s": "3.75", "video_s": "10.00", "video_per_query_s": "10.00", "words": "2.00",
        "words_and_marks": "3.00",
    }  # fmt: skip
    assert dict(zip(dirt[0].split(), dirt[1].split(), strict=True))["past_end"] == "1"
    assert dirt[-1].split()[:1] == ["all"]
    code, text, _ = run("stats", "tacos", "--data-dir", tacos, "--format", "json", "--out", tmp_path / "stats.json")
    assert json.loads(text) == json.loads((tmp_path / "stats.json").read_text())
    assert json.loads(text)["all"]["dirt"]["zero_length"] == 3
    assert json.loads(text)["all"]["videos"] == 3


def test_stats_of_chosen_splits_as_markdown(run, tacos):
    _, out, _ = run("stats", "tacos", "--data-dir", tacos, "--splits", "val", "--format", "markdown")
    assert out.splitlines()[1].startswith("|---|---:|")
    assert [line.split("|")[1].strip() for line in out.splitlines()[2:3]] == ["val"]


# ----------------------------------------------------------------------------------------------------------- export


def test_exported_parquet_and_jsonl_load_as_the_same_rows(run, qvhighlights, tmp_path):
    out = tmp_path / "out"
    code, text, _ = run("export", "qvhighlights", "--data-dir", qvhighlights, "--out", out)
    assert code == 0
    assert f"{out}/data/test_with_gt.parquet" in text
    data, jsonl = loaded(tmp_path, out), loaded(tmp_path, out / "jsonl")
    assert list(data) == ["train", "val", "test", "test_with_gt"]
    assert data["train"].features == jsonl["train"].features
    assert {split: part.to_list() for split, part in data.items()} == {k: v.to_list() for k, v in jsonl.items()}
    assert data["train"][0] == {
        "qid": "7", "vid": "v7", "query": "Query 7", "duration": 150.0,
        "relevant_windows": [[2.0, 6.0]], "relevant_clip_ids": [1, 2], "saliency_scores": [[1, 2, 3], [4, 4, 4]],
    }  # fmt: skip
    assert data["test"][0]["relevant_windows"] is None
    by_file = loaded(tmp_path, "parquet", data_files={"val": str(out / "data" / "val.parquet")})
    assert by_file["val"].to_list() == data["val"].to_list()


def test_plain_json_loading_needs_no_card(run, tacos, tmp_path):
    out = tmp_path / "out"
    run("export", "tacos", "--data-dir", tacos, "--out", out)
    files = {split: str(out / "jsonl" / f"{split}.jsonl") for split in ("train", "test")}
    rows = loaded(tmp_path, "json", data_files=files)
    assert rows["train"].to_list() == loaded(tmp_path, out)["train"].to_list()


def test_jsonl_keeps_integer_qids_and_is_valid(run, qvhighlights, tmp_path):
    run("export", "qvhighlights", "--data-dir", qvhighlights, "--out", tmp_path / "out")
    lines = (tmp_path / "out" / "jsonl" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["qid"] for line in lines] == [7, 5]
    assert validate_rows(read_rows(tmp_path / "out" / "jsonl" / "train.jsonl"), clip_length_s=2.0).problems == []


def test_cleaning_options_apply_to_the_training_split(run, tacos, tmp_path):
    out = tmp_path / "out"
    options = ("--drop-duplicates", "--drop-zero-length", "--clip-windows")
    _, text, _ = run("export", "tacos", "--data-dir", tacos, "--out", out, *options)
    assert "duplicates: 1 (train (qid tacos_train_2))" in text
    data = loaded(tmp_path, out)
    assert data["train"]["qid"][:] == ["tacos_train_0", "tacos_train_1"]
    assert data["train"][1]["relevant_windows"] == [[5.0, 10.0]]
    assert data["test"].num_rows == 4
    record = json.loads((out / "statistics.json").read_text())
    assert record["cleaning"]["train"]["dropped_rows"] == 2
    assert record["statistics"]["train"]["queries"] == 4
    assert record["files"]["train.json"]["as_documented"] is False
    assert "2 rows of train were dropped." in (out / "README.md").read_text()


def test_the_card_says_where_the_rows_come_from(run, qvhighlights, tmp_path):
    run("export", "qvhighlights", "--data-dir", qvhighlights, "--out", tmp_path / "out")
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "cc-by-nc-sa-4.0"
    assert card.data.pretty_name == "QVHighlights"
    for text in ("github.com/jayleicn/moment_detr @", "| train | 2 |", "never train or select on it", "NeurIPS 2021"):
        assert text in card.text


def test_two_exports_do_not_mix(run, qvhighlights, tacos, tmp_path):
    out = tmp_path / "out"
    assert run("export", "qvhighlights", "--data-dir", qvhighlights, "--out", out)[0] == 0
    code, _, err = run("export", "tacos", "--data-dir", tacos, "--out", out)
    assert code == 2
    assert "already holds test_with_gt.parquet; name an empty folder" in err
    assert run("export", "qvhighlights", "--data-dir", qvhighlights, "--out", out)[0] == 0, "the same again is fine"


@pytest.mark.parametrize("fits", [True, False])
def test_export_refuses_rows_that_the_text_features_do_not_fit(run, tacos, tmp_path, fits):
    features = tmp_path / "text"
    features.mkdir()
    sentences = ["He cuts.", "He waits.", "He cuts.", "He stops."] if fits else ["1", "2", "3", "4"]
    for index, sentence in enumerate(sentences):
        values = np.random.default_rng(sum(map(ord, sentence))).standard_normal((4, 8)).astype(np.float32)
        np.savez(features / f"qidtacos_train_{index}.npz", last_hidden_state=values)
    code, out, err = run(
        "export",
        "tacos",
        "--data-dir",
        tacos,
        "--splits",
        "train",
        "--out",
        tmp_path / "out",
        "--text-features",
        features,
    )
    if fits:
        assert code == 0
        assert "1 repeated sentences compared" in out
    else:
        assert code == 2
        assert "do not fit the rows of train" in err
        assert "repeats the sentence of qid tacos_train_0" in err
        assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------ bad input, Hub


def test_bad_input_ends_with_one_message_and_code_2(run, tacos, tmp_path):
    code, out, err = run("stats", "tacos", "--data-dir", tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert err.startswith("error: TACoS: 3 of 3 files are not in")
    (tacos / "val.json").write_text("{")
    for command in (("stats",), ("export", "--out", tmp_path / "out")):
        code, _, err = run(command[0], "tacos", "--data-dir", tacos, *command[1:])
        assert code == 2
        assert "val.json' is not JSON" in err
    assert run("stats", "tacos", "--data-dir", tacos, "--splits", "dev")[0] == 2
    with pytest.raises(SystemExit) as ended:
        cli.main(["stats", "unknown", "--data-dir", str(tacos)])
    assert ended.value.code == 2


class RecordingHub:
    """Stands for `huggingface_hub.HfApi`: keeps what it is asked to do."""

    calls: list = []

    def __init__(self, token=None):
        self.calls.clear()

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", repo_id, options))

    def upload_folder(self, **options):
        self.calls.append(("upload_folder", options))
        return type("Commit", (), {"commit_url": "https://hub/commit/1"})()


@pytest.mark.parametrize("public", [False, True])
def test_the_export_is_pushed_as_a_data_set_private_unless_asked(run, tacos, tmp_path, monkeypatch, public):
    monkeypatch.setattr(export_module, "HfApi", RecordingHub)
    arguments = ["export", "tacos", "--data-dir", tacos, "--out", tmp_path / "out", "--push-to-hub", "someone/tacos"]
    code, out, _ = run(*arguments, *(["--public"] if public else []))
    assert code == 0
    assert out.splitlines()[-1] == "https://hub/commit/1"
    create, upload = RecordingHub.calls
    assert create == (
        "create_repo", "someone/tacos", {"repo_type": "dataset", "private": not public, "exist_ok": True},
    )  # fmt: skip
    assert (upload[1]["repo_type"], upload[1]["folder_path"]) == ("dataset", str(tmp_path / "out"))
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    matched = {name for name in written if any(Path(name).match(p) for p in upload[1]["allow_patterns"])}
    assert matched == written


# ------------------------------------------------------------------------------------------------ a rendered data set


class Rendered(datasets.GeneratorBasedBuilder):
    """A data set that is made in its folder, not read from it."""

    def _info(self):
        windows = datasets.List(datasets.List(datasets.Value("float64")))
        names = ("qid", "vid", "query", "video")
        text = {name: datasets.Value("string") for name in names}
        features = {**text, "duration": datasets.Value("float64"), "relevant_windows": windows}
        return datasets.DatasetInfo(description="Made here.", features=datasets.Features(features))

    def _split_generators(self, dl_manager):
        folder = Path(self.config.data_dir)
        folder.mkdir(parents=True)
        (folder / "v1.mp4").write_bytes(b"")
        return [datasets.SplitGenerator(name=name, gen_kwargs={"split": name}) for name in ("train", "test")]

    def _generate_examples(self, split):
        row = {"qid": f"{split}_0", "vid": "v1", "query": "A square moves.", "video": "v1.mp4", "duration": 4.0}
        yield 0, {**row, "relevant_windows": [[1.0, 3.0]]}


def test_a_data_set_that_renders_its_own_folder(run, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "builder_class", lambda name: Rendered)
    folder = tmp_path / "videos"
    code, out, _ = run("stats", "moving_shapes", "--data-dir", folder)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["train", "test", "all"]
    assert (folder / "v1.mp4").exists()
    assert run("export", "moving_shapes", "--data-dir", folder, "--out", tmp_path / "out")[0] == 0
    assert loaded(tmp_path, tmp_path / "out")["test"][0]["video"] == "v1.mp4"
    assert "# Rendered" in (tmp_path / "out" / "README.md").read_text()
    code, _, err = run("stats", "moving_shapes", "--data-dir", folder, "--splits", "train")
    assert code == 2
    assert "has no options splits; it is rendered, not read" in err


# ----------------------------------------------------------------------------------------------------- the real files


@pytest.mark.slow
@pytest.mark.skipif("BMDETR_SHARED" not in os.environ, reason="BMDETR_SHARED is not set")
@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("charades_sta", {"train": 12408, "test": 3720}),
        ("charades_cd", {"train": 11071, "val": 859, "test_iid": 823, "test_ood": 3375}),
        ("activitynet_captions", {"train": 37421, "val_1": 17505, "val_2": 17031}),
        ("tacos", {"train": 9790, "val": 4436, "test": 4001}),
        ("qvhighlights", {"train": 7218, "val": 1550, "test": 1542, "test_with_gt": 1542}),
    ],
)
def test_the_real_files_export_at_full_size(run, tmp_path, name, splits):
    folder = Path(os.environ["BMDETR_SHARED"]) / "annotations" / name
    assert run("export", name, "--data-dir", folder, "--out", tmp_path / "out")[0] == 0
    data, jsonl = loaded(tmp_path, tmp_path / "out"), loaded(tmp_path, tmp_path / "out" / "jsonl")
    assert {split: part.num_rows for split, part in data.items()} == splits
    for split in splits:
        assert data[split].to_list() == jsonl[split].to_list()


def test_a_reader_that_has_seen_enough_is_no_error():
    unread, written = os.pipe()
    os.close(unread)
    try:
        command = [sys.executable, "-m", "dataset_scripts", "list"]
        run = subprocess.run(command, stdout=written, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    finally:
        os.close(written)
    assert (run.returncode, run.stderr) == (0, "")
