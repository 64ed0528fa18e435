"""Recipes: what they may say, the rows and features they lead to, and that every one of them runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import benchmark_rows  # noqa: F401
import pytest
import train
import yaml
from recipe_worlds import CONFIGS, SMALL, make_world

from modeling_bmdetr import BMDetrForMomentRetrieval
from modeling_bmdetr.data import read_rows, write_rows
from modeling_bmdetr.recipes import load_rows, open_store, preparation, read_recipe, running, training_arguments
from modeling_bmdetr.recipes.preparation import hold_out, limited_rows, with_negatives

ALL = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
IN_PROCESSES = {"charades_sta_slowfast_clip": 1, "qvhighlights_slowfast_clip": 2}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The recipe for own data, in a world of its own."""
    monkeypatch.chdir(tmp_path)
    return make_world(tmp_path, "own_data")


def test_every_benchmark_and_feature_set_has_a_recipe():
    assert set(ALL) == {
        *("activitynet_c3d", "charades_cd_i3d", "charades_sta_c3d", "charades_sta_clip"),
        *("charades_sta_slowfast_clip", "charades_sta_vgg", "own_data", "qvhighlights_clip"),
        *("qvhighlights_slowfast_clip", "tacos_c3d"),
    }


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_opens_with_how_to_run_it_what_it_needs_and_what_it_aims_at(name):
    head = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").split("\ndata:")[0]
    assert f"accelerate launch examples/train.py examples/configs/{name}.yaml" in head
    for word in ("Needs: ", "Aims at: ", "Selects on "):
        assert head.count(f"# {word}") == 1
    assert all(line.startswith("#") or not line for line in head.splitlines())
    recipe = read_recipe(CONFIGS / f"{name}.yaml")
    assert recipe.features["clip_length"] > 0


@pytest.mark.parametrize(
    ("name", "weights", "epochs", "rate", "drop", "shifting"),
    [
        ("charades_sta_vgg", (8, 1), 100, 2e-4, 40, True),
        ("charades_sta_clip", (8, 1), 100, 2e-4, 40, True),
        ("charades_cd_i3d", (8, 1), 100, 2e-4, 40, True),
        ("qvhighlights_slowfast_clip", (2, 3), 200, 1e-4, 0, False),
        ("qvhighlights_clip", (2, 3), 200, 1e-4, 0, False),
    ],
)
def test_recipes_with_a_released_script_repeat_its_settings(name, weights, epochs, rate, drop, shifting, tmp_path):
    recipe = read_recipe(CONFIGS / f"{name}.yaml")
    assert (recipe.model["margin_loss_weight"], recipe.model["alignment_loss_weight"]) == weights
    assert not any("probability" in name for name in recipe.model)  # the objective is the package's, not the release's
    args = training_arguments(recipe, tmp_path)
    assert (args.num_train_epochs, args.learning_rate, args.lr_drop_epochs) == (epochs, rate, drop)
    assert (args.per_device_train_batch_size, args.weight_decay, args.max_grad_norm) == (32, 1e-4, 0.1)
    assert args.temporal_shifting is shifting
    assert recipe.features["max_clips"] == 75


# ------------------------------------------------------------------------------------------------------------- reading


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  learning_rat: 1", "unknown entry `training.learning_rat`; did you mean `learning_rate`"),
        ("training:\n  evaluation_strategy: epoch", "did you mean .*`eval_strategy`"),
        ("trainin:\n  seed: 1", "unknown section `trainin`; did you mean `training`"),
        ("model:\n  clip_length: 2", "unknown entry `model.clip_length`; it belongs to `features`"),
        ("model:\n  video_dim: 2", "unknown entry `model.video_dim`; it follows from the encoders"),
        ("training:\n  hidden_size: 2", "unknown entry `training.hidden_size`; it belongs to `model`"),
        ("training:\n  num_train_epochs: many", "`training.num_train_epochs` must be float, received 'many'"),
        ("training:\n  temporal_shifting: 1", "`training.temporal_shifting` must be bool, received 1"),
        ("training:\n  resume_from_checkpoint: true", "unknown entry `training.resume_from_checkpoint`"),
        ("data:\n  limit: ten", "`data.limit` must be int or NoneType, received 'ten'"),
        ("negatives:\n  iou_threshold:", "`negatives.iou_threshold` must be float, received None"),
        ("negatives:\n  similarity_threshold: high", "`negatives.similarity_threshold` must be float or NoneType"),
        ("training:\n  seed: 1\n  seed: 2", "seed occurs twice in one section"),
        ("training: [1, 2]", "must hold the sections"),
        ("training: {", "is not YAML"),
    ],
)
def test_what_a_recipe_must_not_say(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(write(tmp_path, text))


def test_what_is_recorded_holds_no_token(tmp_path):
    recipe = read_recipe(write(tmp_path, "training: {hub_token: secret, seed: 1}"))
    assert recipe.training["hub_token"] == "secret"
    assert recipe.to_dict()["training"] == {"seed": 1}


def test_all_problems_are_told_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)learning_rat.*hiden_size"):
        read_recipe(write(tmp_path, "training:\n  learning_rat: 1\nmodel:\n  hiden_size: 2"))


def test_numbers_are_numbers(tmp_path):
    recipe = read_recipe(write(tmp_path, "training: {learning_rate: 2e-4, weight_decay: 1E-4, seed: 3, run_name: 1e}"))
    assert recipe.training == {"learning_rate": 2e-4, "weight_decay": 1e-4, "seed": 3, "run_name": "1e"}


def test_overrides(tmp_path):
    path = write(tmp_path, "training: {seed: 3}")
    recipe = read_recipe(
        path, ["training.seed=4", "model.dropout=0", "data.test=[a, b]", "training.learning_rate=1e-3"]
    )
    assert recipe.training == {"seed": 4, "learning_rate": 1e-3}
    assert recipe.model == {"dropout": 0}
    assert recipe.data == {"test": ["a", "b"]}
    for wrong in ("seed=4", "training.seed", "training.sed=4"):
        with pytest.raises(ValueError, match=r"section\.entry=value|did you mean `seed`"):
            read_recipe(path, [wrong])
    with pytest.raises(FileNotFoundError, match="examples/configs"):
        read_recipe(tmp_path / "nothing.yaml")


# ------------------------------------------------------------------------------------------------------ rows, negatives


def test_held_out_videos_are_no_part_of_training_and_always_the_same(own):
    rows = list(read_rows("own/train.jsonl"))
    kept, held = hold_out(rows, 0.25)
    assert not {row["vid"] for row in kept} & {row["vid"] for row in held}
    assert sorted(row["qid"] for row in kept + held) == sorted(row["qid"] for row in rows)
    assert len({row["vid"] for row in held}) == 2
    assert {row["vid"] for row in hold_out(rows[::-1], 0.25)[1]} == {row["vid"] for row in held}
    with pytest.raises(ValueError, match=r"`data.held_out` must be a share in \(0, 1\), received 2"):
        hold_out(rows, 2)


def test_a_limit_spreads_evenly():
    rows = [{"qid": str(number)} for number in range(10)]
    assert [row["qid"] for row in limited_rows(rows, 4)] == ["0", "3", "6", "9"]
    assert limited_rows(rows, 11) == limited_rows(rows, None) == rows
    with pytest.raises(ValueError, match=r"`data\.limit` must be at least 1, received 0"):
        limited_rows(rows, 0)


def test_negative_queries_beyond_a_limit_are_left_out():
    rows = [
        {"qid": "a", "neg_query_ids": ["b", "c"], "neg_query_weights": [0.5, 0.7]},
        {"qid": "b", "neg_query_ids": ["a", "c"]},
        {"qid": "c"},
    ]
    assert preparation.limited_rows(rows, 2) == [
        {"qid": "a", "neg_query_ids": ["c"], "neg_query_weights": [0.7]},
        {"qid": "c"},
    ]
    assert preparation.limited_rows(rows, None) == rows


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data.train="], ValueError, "`data.train` is missing"),
        (["data.benchmark=charades"], ValueError, "did you mean `charades_cd` or `charades_sta`"),
        (["data.benchmark=tacos"], ValueError, "`data.data_dir` is missing"),
        (["data.benchmark=moving_shapes", "data.data_dir=own"], ValueError, "has no options splits; it is rendered"),
        (["data.train=own/other.jsonl"], FileNotFoundError, "No annotation file"),
        (["data.test=[a/val.jsonl, b/val.jsonl]"], ValueError, "'a/val.jsonl', 'b/val.jsonl' would all be reported as"),
        (["data.test=own/eval.jsonl"], ValueError, "'eval', 'own/eval.jsonl' would all be reported as 'eval'"),
    ],
)
def test_rows_that_cannot_be_read(own, overrides, error, message):
    with pytest.raises(error, match=message):
        load_rows(read_recipe(own, overrides))


def test_features_that_cannot_be_used(own):
    rows = load_rows(read_recipe(own))
    with pytest.raises(ValueError, match=r"`features\.video` is missing"):
        open_store(read_recipe(own, ["features.video="]), rows)
    with pytest.raises(ValueError, match="clip_length: 2"):
        open_store(read_recipe(own, ["features.clip_length=2"]), rows)


def test_a_packed_store_is_prepared_as_the_recipe_says(own):
    store = open_store(
        recipe := read_recipe(own, ["features.max_clips=20", "features.long_video=resample"]), load_rows(recipe)
    )
    assert (store.contract.max_clips, store.contract.long_video) == (20, "resample")
    assert [encoder["dim"] for encoder in store.contract.video_encoders] == [512]


def test_negatives_are_mined_once(own, tmp_path, monkeypatch):
    recipe = read_recipe(own, ["negatives.encoder=hashed-words"])
    rows = load_rows(recipe).train
    mined = with_negatives(recipe, rows, tmp_path / "cache")
    assert any(row["neg_query_ids"] for row in mined)
    monkeypatch.setattr(preparation, "mine_negative_queries", None)  # a second time it must not be called
    assert with_negatives(recipe, rows, tmp_path / "cache") == mined
    other = read_recipe(own, ["negatives.encoder=hashed-words", "training.negative_sampling=random_video"])
    assert with_negatives(other, rows, tmp_path / "cache") == rows
    assert with_negatives(recipe, mined, tmp_path / "elsewhere") == mined
    other = read_recipe(own, ["negatives.encoder=hashed-words", "training.negative_sampling=mined_only"])
    assert with_negatives(other, rows, tmp_path / "cache") == mined


def test_evaluation_with_negatives_has_them_mined_too(own, tmp_path):
    overrides = ["negatives.encoder=hashed-words", "negatives.similarity_threshold=null", "data.test=own/train.jsonl"]
    recipe = read_recipe(own, overrides)
    rows = load_rows(recipe)
    assert preparation.add_negatives(recipe, rows, tmp_path).eval == rows.eval
    recipe = read_recipe(own, [*overrides, "training.evaluate_with_negatives=true"])
    mined = preparation.add_negatives(recipe, rows, tmp_path)
    for part in (mined.train, mined.eval, mined.test["own/train.jsonl"]):
        assert all(len(row["neg_query_weights"]) == len(row["neg_query_ids"]) for row in part)


def test_a_set_without_moments_is_evaluated_with_negatives_too(own, tmp_path):
    """It has none to mine, and is predicted all the same."""
    rows = [{**row, "relevant_windows": None} for row in read_rows("own/val.jsonl")]
    write_rows("own/unknown.jsonl", rows)
    more = ["data.test=own/unknown.jsonl", "training.evaluate_with_negatives=true", "training.max_steps=10"]
    assert train.main([str(own), "--out", str(tmp_path / "out"), "--override", *SMALL, *more]) == 0
    predictions = read_rows(tmp_path / "out" / "predictions_unknown.jsonl")
    assert {row["qid"] for row in predictions} < {row["qid"] for row in rows}  # a limit is set


# -------------------------------------------------------------------------------------------------------------- running


def check_run(out, steps=20):
    """What every run must leave behind; returns the report."""
    report = json.loads((out / "report.json").read_text())
    assert [run["training"]["updates"] for run in report["runs"]] == [steps] * len(report["runs"])
    for metrics in report["summary"].values():
        assert {"MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-mAP"} <= set(metrics)
    folder = out if (out / "model").exists() else out / f"seed{report['runs'][0]['seed']}"
    assert BMDetrForMomentRetrieval.from_pretrained(folder / "model").config.hidden_size == 16
    for label, size in report["data"]["sets"].items():
        if label != "train":
            assert len((folder / f"predictions_{Path(label).stem}.jsonl").read_text().splitlines()) == size["queries"]
    last = report["runs"][0]["metrics"][list(report["summary"])[-1]]
    assert f"{last['MR-full-R1@0.5']:.2f}" in (folder / "model" / "README.md").read_text()
    assert json.loads((folder / "model" / "results.json").read_text())["metrics"] == last
    assert abs(sum(report["data"]["negatives"].values()) - 1) < 1e-3
    return report


def test_own_data_over_seeds_and_again(own, tmp_path, capsys):
    arguments = [
        str(own),
        "--out",
        str(tmp_path / "out"),
        "--seeds",
        "1,2",
        "--override",
        *SMALL,
        "training.max_steps=10",
    ]
    assert train.main(arguments) == 0
    report = check_run(tmp_path / "out", steps=10)
    values = report["summary"]["eval"]["MR-full-mIoU"]
    assert len(values["values"]) == 2
    assert values["std"] is not None
    table = (tmp_path / "out" / "report.md").read_text()
    assert f"{values['mean']:.2f} ± {values['std']:.2f}" in table
    assert table.strip() in capsys.readouterr().out
    fixed = report["baselines"]["eval"]["best fixed span"]["MR-full-mIoU"]
    assert re.search(rf"\| eval, best fixed span \|.*\| {fixed:.2f} \|", table)

    assert train.main(arguments) == 2
    assert "pass --resume" in capsys.readouterr().err
    model = tmp_path / "out" / "seed1" / "model" / "model.safetensors"
    written = model.stat().st_mtime_ns
    (tmp_path / "out" / "seed2" / "result.json").unlink()
    assert train.main([*arguments, "--resume"]) == 0
    assert "seed1: done before" in capsys.readouterr().out
    assert model.stat().st_mtime_ns == written
    again = json.loads((tmp_path / "out" / "report.json").read_text())
    assert again["summary"] == report["summary"]


def test_a_run_that_was_stopped_goes_on_to_the_same_report(own, tmp_path, monkeypatch):
    arguments = [str(own), "--override", *SMALL, "training.report_to=tensorboard"]
    assert train.main([*arguments, "--out", "left_alone"]) == 0
    assert list((tmp_path / "left_alone").glob("runs/*/events.out.tfevents*"))

    step, training_step = [0], running.BMDetrTrainer.training_step

    def stopped(self, *args, **kwargs):
        step[0] += 1
        if step[0] == 17:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(running.BMDetrTrainer, "training_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train.main([*arguments, "--out", "stopped"])
    assert train.main([*arguments, "--out", "stopped", "--resume"]) == 0
    reports = [json.loads((tmp_path / out / "report.json").read_text()) for out in ("left_alone", "stopped")]
    assert reports[1]["runs"][0]["training"]["resumed_from"] == "stopped/checkpoint-10"
    assert reports[0]["summary"] == reports[1]["summary"]
    weights = [(tmp_path / out / "model" / "model.safetensors").read_bytes() for out in ("left_alone", "stopped")]
    assert weights[0] == weights[1]


def test_resuming_with_another_recipe_is_said(own, tmp_path, capsys):
    arguments = [str(own), "--out", str(tmp_path / "out"), "--override", *SMALL, "training.max_steps=10"]
    assert train.main(arguments) == 0
    assert train.main([*arguments, "training.max_steps=15", "--resume"]) == 0
    assert "was begun with training.max_steps = 10, and goes on with 15" in capsys.readouterr().err
    report = check_run(tmp_path / "out", steps=15)
    assert report["runs"][0]["training"]["resumed_from"].endswith("checkpoint-10")

    # Neither weights of another seed nor those of another model are gone on with.
    written = [(tmp_path / "out" / name).read_bytes() for name in ("report.json", "recipe.json")]
    assert train.main([*arguments, "training.max_steps=15", "training.seed=7", "--resume"]) == 2
    assert "begun with training.seed = 42, not 7: give each seed a folder" in capsys.readouterr().err
    assert train.main([*arguments, "training.max_steps=15", "training.data_seed=7", "--resume"]) == 2
    assert "begun with training.data_seed = unset, not 7" in capsys.readouterr().err
    assert train.main([*arguments, "training.max_steps=15", "model.hidden_size=32", "--resume"]) == 2
    assert "holds another model than the one to train" in capsys.readouterr().err
    assert [(tmp_path / "out" / name).read_bytes() for name in ("report.json", "recipe.json")] == written


def test_bad_input_ends_with_one_message(own, capsys):
    assert train.main([str(own), "--override", "training.sed=1"]) == 2
    assert "unknown entry `training.sed`; did you mean `seed`" in capsys.readouterr().err
    assert train.main([str(own), "--seeds", "1,x"]) == 2
    assert "--seeds expects whole numbers between commas" in capsys.readouterr().err


def test_the_released_forms_by_one_entry(own):
    recipe = read_recipe(own, ["model.released=true", "model.temperature=0.1"])
    config = preparation.build_config(recipe, open_store(recipe, load_rows(recipe)).contract)
    assert (config.alignment_pooling, config.frame_attention_scale, config.temperature) == ("gated", "literal", 0.1)
    assert config.text_rows == "to_end_of_text"  # the features say so


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name not in IN_PROCESSES])
def test_every_recipe_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main([str(make_world(tmp_path, name)), "--out", "out", "--override", *SMALL]) == 0
    check_run(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(IN_PROCESSES))
def test_recipes_run_by_accelerate_launch(name, tmp_path):
    processes = IN_PROCESSES[name]
    recipe = make_world(tmp_path, name)
    launch = [Path(sys.executable).parent / "accelerate", "launch", "--num_processes", str(processes)]
    launch += ["--multi_gpu" if processes > 1 else "--cpu", "--num_machines", "1", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0", "--mixed_precision", "bf16"]
    script = recipe.parents[1] / "train.py"
    done = subprocess.run(
        [*map(str, launch), str(script), str(recipe), "--out", "out", "--override", *SMALL],
        cwd=tmp_path,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report = check_run(tmp_path / "out")
    assert (report["machine"]["processes"], report["machine"]["precision"]) == (processes, "bf16")
    assert report["machine"]["batch_size"] == 4 * processes
    assert re.search(r"\| eval \| +\d", (tmp_path / "out" / "report.md").read_text())
    assert yaml.safe_load(recipe.read_text())["data"]["benchmark"] in str(report["recipe"]["data"])
