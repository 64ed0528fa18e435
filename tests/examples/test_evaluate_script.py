"""examples/evaluate.py: figures, figures by length, submission files and plots of a checkpoint."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_worlds import make_world

from modeling_bmdetr import BMDetrForMomentRetrieval
from modeling_bmdetr.data import read_rows
from modeling_bmdetr.evaluation import evaluate_submission, read_jsonl
from modeling_bmdetr.recipes import load_rows, open_store, read_recipe
from modeling_bmdetr.recipes.preparation import build_config

EXAMPLES = Path(__file__).parents[2] / "examples"
_spec = importlib.util.spec_from_file_location("evaluate_script", EXAMPLES / "evaluate.py")
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)

SIZES = ["model.hidden_size=16", "model.num_attention_heads=2", "model.intermediate_size=16", "model.alignment_dim=8"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """`world(recipe)`: the recipe's path and a checkpoint for its features."""
    monkeypatch.chdir(tmp_path)

    def make(name):
        path = make_world(tmp_path, name)
        recipe = read_recipe(path, SIZES)
        store = open_store(recipe, load_rows(recipe))
        torch.manual_seed(0)
        BMDetrForMomentRetrieval(build_config(recipe, store.contract)).save_pretrained("model")
        return path

    return make


def test_a_benchmark_with_integer_qids_and_highlights(world, capsys):
    recipe = world("qvhighlights_slowfast_clip")
    assert script.main(["model", "--recipe", str(recipe), "--out", "out", "--cpu"]) == 0
    for label, file in (("val", "highlight_val_release"), ("test_with_gt", "highlight_test_with_gt")):
        truth = Path("annotations/qvhighlights") / f"{file}.jsonl"
        submission = Path("out") / f"{label}.submission.jsonl"
        assert all(isinstance(row["qid"], int) for row in read_jsonl(submission))
        metrics = json.loads((Path("out") / f"{label}.metrics.json").read_text())["metrics"]
        expected = evaluate_submission(submission, truth)
        assert "HL-min-VeryGood-mAP" in expected
        assert {name: metrics[name] for name in expected} == expected
        assert (Path("out") / f"{label}.png").stat().st_size > 10_000
    assert "| 0-10 s |" in capsys.readouterr().out


def test_own_rows_and_features_without_a_recipe(world, capsys):
    world("own_data")
    arguments = ["model", "--rows", "own/val.jsonl", "own/train.jsonl", "--features", "own/features", "--cpu"]
    assert script.main([*arguments, "--out", "out"]) == 0
    figures = json.loads(Path("out/val.metrics.json").read_text())
    rows = list(read_rows("own/val.jsonl"))
    assert figures["queries"] == len(rows) == len(read_jsonl("out/val.submission.jsonl"))
    assert sum(part["queries"] for part in figures["by_length"].values()) == len(rows)
    table = Path("out/train.md").read_text()
    assert "p_inside" in figures["metrics"]
    assert "p_inside" not in table  # a share, which has no place under "%"
    assert re.search(r"Mean of p inside and outside the moments: 0\.\d{3} and 0\.\d{3}\n", table)


def test_rows_without_labels_get_a_submission_alone(world, capsys):
    world("own_data")
    lines = [json.loads(line) for line in Path("own/val.jsonl").read_text().splitlines()]
    Path("blind.jsonl").write_text("".join(json.dumps({**row, "relevant_windows": None}) + "\n" for row in lines))
    arguments = ["model", "--rows", "blind.jsonl", "--features", "own/features", "--cpu"]
    assert script.main([*arguments, "--out", "out"]) == 0
    assert [path.name for path in Path("out").glob("blind*")] == ["blind.submission.jsonl"]
    assert f"{len(lines)} of {len(lines)} queries without labels" in capsys.readouterr().out
    one = [{**row, "relevant_windows": None} if number == 0 else row for number, row in enumerate(lines)]
    Path("blind.jsonl").write_text("".join(json.dumps(row) + "\n" for row in one))
    assert script.main([*arguments, "--out", "out"]) == 0
    assert f"1 of {len(lines)} queries without labels" in capsys.readouterr().out


def test_features_of_other_encoders_are_refused(world, capsys):
    recipe = world("own_data")
    assert script.main(["model", "--recipe", str(recipe), "--override", "features.clip_length=2", "--cpu"]) == 2
    assert "clip_length" in capsys.readouterr().err
    assert script.main(["model", "--cpu"]) == 2
    assert "give --recipe, or --rows and --features" in capsys.readouterr().err
    assert script.main(["model", "--cpu", "--recipe", str(recipe), "--features", "own/features"]) == 2
    assert "--recipe names rows and features" in capsys.readouterr().err
    assert script.main(["model", "--cpu", "--recipe", str(recipe), "--sets", "own/val.jsonl", "other/val.jsonl"]) == 2
    assert "would all be reported as 'val'" in capsys.readouterr().err


def test_metrics_by_length_look_at_the_moments_of_a_range():
    rows = [
        {"qid": "a", "relevant_windows": [[0, 5], [10, 40]]},
        {"qid": "b", "relevant_windows": [[0, 200]]},
    ]
    predictions = [
        {"qid": "a", "pred_relevant_windows": [[0, 5, 0.9], [10, 40, 0.8]]},
        {"qid": "b", "pred_relevant_windows": [[0, 190, 0.9]]},
    ]
    lengths = script.metrics_by_length(predictions, rows)
    assert list(lengths) == ["0-10 s", "10-30 s", "over 150 s"]
    assert [part["queries"] for part in lengths.values()] == [1, 1, 1]
    assert lengths["0-10 s"]["MR-full-R1@0.7"] == 100
    assert lengths["10-30 s"]["MR-full-R1@0.7"] == 0  # the first answer is the moment of the other range
    assert lengths["over 150 s"]["MR-full-mIoU"] == 95


def test_recall_curves_fall_and_meet_the_metrics():
    rng = np.random.default_rng(0)
    rows, predictions = [], []
    for number in range(40):
        start = rng.uniform(0, 50)
        rows.append({"qid": str(number), "relevant_windows": [[start, start + 20]]})
        windows = [[s, s + 20, 1 - i / 10] for i, s in enumerate(start + rng.normal(0, 6, 7))]
        predictions.append({"qid": str(number), "pred_relevant_windows": windows})
    curves = script.recall_curves(predictions, rows)
    metrics = evaluate_submission(predictions, rows)
    for rank in ("R1", "R5"):
        curve, _ = curves[rank]
        assert (np.diff(curve) <= 0).all()
        for threshold in (0.3, 0.5, 0.7):
            place = int(np.abs(script.THRESHOLDS - threshold).argmin())
            assert curve[place] == pytest.approx(metrics[f"MR-full-{rank}@{threshold}"], abs=0.01)
    assert 100 * curves["R1"][1] == pytest.approx(metrics["MR-full-mIoU"], abs=0.01)


def test_each_checkpoint_has_a_folder_of_its_own():
    names = {str(script.default_folder(name)) for name in ("outputs/a/model", "outputs/b/model", "someone/bmdetr")}
    assert names == {"outputs/evaluation/a", "outputs/evaluation/b", "outputs/evaluation/someone-bmdetr"}


def test_a_folder_that_cannot_be_written_is_refused_first(tmp_path, capsys):
    (tmp_path / "note.txt").touch()
    assert script.main(["no/model", "--cpu", "--out", str(tmp_path / "note.txt" / "out")]) == 2
    assert "note.txt' is no folder" in capsys.readouterr().err
