"""The `evaluate` module computes what `evaluate_submission` does, batch by batch, and loads offline from its folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_bmdetr.evaluation import evaluate_module_path, evaluate_submission
from modeling_bmdetr.evaluation.moment_retrieval.moment_retrieval import MomentRetrieval

ROWS = json.loads((Path(__file__).parents[1] / "fixtures" / "released_evaluator_case.json").read_text())["rows"]
PREDICTIONS = [
    {"qid": str(row["qid"]), "query": "ignored"} | {field: row[field] for field in row if field.startswith("pred_")}
    for row in ROWS
]
REFERENCES = [{field: row[field] for field in row if not field.startswith("pred_")} for row in ROWS]
EXPECTED = evaluate_submission(PREDICTIONS, REFERENCES)

LOAD_OFFLINE = """
import json, sys
import evaluate
from modeling_bmdetr.evaluation import evaluate_module_path
metric = evaluate.load(evaluate_module_path())
case = json.load(open(sys.argv[1]))
for start in range(0, len(case["predictions"]), 16):
    batch = slice(start, start + 16)
    metric.add_batch(predictions=case["predictions"][batch], references=case["references"][batch])
print(json.dumps(metric.compute()))
"""


@pytest.fixture
def metric(tmp_path):
    return MomentRetrieval(cache_dir=str(tmp_path))


def test_loads_offline_from_its_folder(tmp_path):
    (tmp_path / "case.json").write_text(json.dumps({"predictions": PREDICTIONS, "references": REFERENCES}))
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD_OFFLINE, str(tmp_path / "case.json")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1]) == EXPECTED


def test_path_is_a_folder_with_a_module_of_its_name():
    path = Path(evaluate_module_path())
    assert (path / f"{path.name}.py").is_file()


def test_batches_in_different_orders(metric):
    for start in range(0, len(ROWS), 7):
        batch = slice(start, start + 7)
        metric.add_batch(predictions=PREDICTIONS[batch], references=REFERENCES[::-1][batch])
    assert metric.compute() == EXPECTED


def test_one_by_one_and_at_once(metric):
    for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == EXPECTED
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == EXPECTED


def test_fields_are_optional(metric):
    predictions = [
        {"qid": 1, "vid": "v", "pred_relevant_windows": [[0, 10, 1]]},
        {"qid": "b", "pred_relevant_windows": []},
    ]
    references = [{"qid": "1", "relevant_windows": [[0, 10]]}, {"qid": "b", "vid": "w", "relevant_windows": [[0, 5]]}]
    metrics = metric.compute(predictions=predictions, references=references)
    assert metrics == evaluate_submission(predictions, references)
    assert metrics["MR-full-mAP"] == 50.0


def test_absent_queries_and_presence(metric):
    predictions = [
        {"qid": "a", "pred_relevant_windows": [[0, 10, 0.9]], "pred_exist_score": 0.8},
        {"qid": "b", "pred_relevant_windows": [[0, 5, 0.4]], "pred_exist_score": 0.3},
    ]
    references = [
        {"qid": "a", "relevant_windows": [[0, 10]]},
        {"qid": "b", "relevant_windows": [], "absent_kind": "unrelated"},
    ]
    metrics = metric.compute(predictions=predictions, references=references)
    assert metrics == evaluate_submission(predictions, references)
    assert metrics["PR-unrelated-AUROC"] == metrics["G-mIoU@1"] == 100.0


def test_clip_length(metric):
    predictions = [{"qid": 1, "pred_saliency_scores": [0] * 9 + [1]}]
    references = [{"qid": 1, "duration": 10, "relevant_clip_ids": [9], "saliency_scores": [[4]]}]
    metrics = metric.compute(predictions=predictions, references=references, clip_length_s=1.0)
    assert metrics["HL-min-VeryGood-mAP"] == 100.0


def test_errors(metric):
    with pytest.raises(ValueError, match="predictions and references must both be given"):
        metric.compute(predictions=PREDICTIONS)
    with pytest.raises(TypeError, match="qid must be a string or an integer, received None"):
        metric.compute(predictions=[{"pred_relevant_windows": []}], references=REFERENCES[:1])
    with pytest.raises(ValueError, match="do not hold the same queries"):
        metric.compute(predictions=PREDICTIONS[:2], references=REFERENCES[1:3])
