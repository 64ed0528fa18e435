"""The quickstart: baselines and checks by hand, and, slowly, the whole run on a few videos in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.quickstart import best_fixed_span, checks, swap_sentences, whole_video
from modeling_bmdetr.evaluation import evaluate_submission

ROOT = Path(__file__).resolve().parents[2]


def row(qid: str, vid: str, start: float, end: float, duration: float = 10.0) -> dict:
    windows = [[start, end]]
    return {"qid": qid, "vid": vid, "query": f"query {qid}", "duration": duration, "relevant_windows": windows}


def test_baselines_are_evaluated_like_any_prediction():
    train = [row("a", "v", 2, 4), row("b", "v", 2.1, 4), row("c", "v", 7, 9)]
    test = [row("d", "w", 4, 8, duration=20.0), row("e", "w", 0, 20, duration=20.0)]
    assert evaluate_submission(whole_video(test), test)["MR-full-R1@0.7"] == 50
    fixed = best_fixed_span(train, test)  # about a fifth to two fifths of the video, right for two of three
    assert evaluate_submission(fixed, test)["MR-full-R1@0.7"] == 50
    assert evaluate_submission(best_fixed_span(train[2:], test), test)["MR-full-R1@0.7"] == 0


def test_swapped_rows_ask_with_another_sentence_of_the_video():
    rows = [row("a", "v", 1, 2), row("b", "v", 3, 4), row("c", "v", 5, 6), row("alone", "w", 1, 2)]
    swapped = swap_sentences(rows)
    assert [(r["qid"], r["query"], r["relevant_windows"]) for r in swapped] == [
        ("b", "query b", [[1, 2]]),
        ("c", "query c", [[3, 4]]),
        ("a", "query a", [[5, 6]]),
    ]


def test_checks_fail_where_the_model_has_not_learned():
    def figures(r5: float, r7: float) -> dict[str, float]:
        return {"MR-full-R1@0.5": r5, "MR-full-R1@0.7": r7}

    good = checks(figures(65, 45), {"x": figures(30, 15), "y": figures(40, 5)}, figures(30, 22.5))
    assert list(good.values()) == [True] * 4
    bad = checks(figures(59.9, 39.9), {"x": figures(30, 15)}, figures(30, 20))
    assert list(bad.values()) == [False] * 4


@pytest.mark.slow
def test_the_whole_run_on_a_few_videos(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "examples/quickstart.py", "--out", str(out), "--epochs", "1", "--videos", "8", "2", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    report = json.loads((out / "report.json").read_text())
    assert done.returncode == (0 if all(report["checks"].values()) else 1), done.stderr[-2000:]
    assert report["data"]["test"]["videos"] == 3
    assert set(report["seconds"]) == {
        *("render", "extract", "negatives", "train", "calibrate", "evaluate", "answer", "total")
    }
    assert set(report["baselines"]) == {"whole video", "best fixed span"}
    assert (out / "timeline.png").stat().st_size > 10_000
    assert (out / "reliability.png").stat().st_size > 10_000
    assert report["calibration"]["notes"]["score"].startswith("not fitted")  # two videos have few queries
    from modeling_bmdetr import BMDetrForMomentRetrieval

    assert BMDetrForMomentRetrieval.from_pretrained(out / "model").num_parameters() == report["training"]["parameters"]
