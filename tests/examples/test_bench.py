"""The benchmarks run, and say what they measured; how long it takes is for a reader to see."""

import json
import os

import bench
import bench_data
import bench_report
import numpy as np
import pytest

RELEASED_CODE = os.environ.get("BMDETR_RELEASED_CODE")


def test_rows_have_negatives_of_their_video():
    rows = bench_data.random_rows(60, 12, 30, np.random.default_rng(0))
    video_of = {row["qid"]: row["vid"] for row in rows}
    assert len(set(video_of.values())) == 12
    assert any(row["neg_query_ids"] for row in rows)
    for row in rows:
        ((start, end),) = row["relevant_windows"]
        assert 0 <= start < end <= row["duration"]
        assert all(video_of[qid] == row["vid"] and qid != row["qid"] for qid in row["neg_query_ids"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "300"], "batch size <= videos"),
        (["--queries", "150"], "two queries per video"),
        (["--eval-queries", "600"], "queries to evaluate than to train on"),
        (["--repeats", "0"], "at least one run"),
        (["--clips", "2"], "at least 6 clips"),
        (["--only", "lunch"], "invalid choice"),
        (["--released-code", "nowhere"], "has no bm_detr/train.py"),
    ],
)
def test_arguments_that_cannot_be(arguments, message, capsys):
    with pytest.raises(SystemExit):
        bench.main(arguments)
    assert message in capsys.readouterr().err


def test_report_tells_medians_and_how_many_times_as_fast():
    runs = {bench_report.REFERENCE: [400.0, 300.0, 500.0], "this package": [200.0, 100.0, 300.0], "other": []}
    part = {"load": [0.5, 1.5], "rows": {"time": {"unit": "ms", "values": runs}}, "differences": {"outputs": 1.3e-6}}
    text = bench_report.report({"machine": "a machine", "quick": False, "parts": {"update": part}})
    assert "| time, ms | 400 (300..500) | 200 (100..300), 2.00x | - |" in text
    assert text.index("- outputs: 1.3e-06") < text.index("## Training update")
    assert "Load average while measuring: 0.5 to 1.5." in text
    assert "--quick" not in text


def test_a_part_is_measured_once_for_the_same_options(tmp_path, capsys):
    asked = ["--quick", "--only", "submission", "--out", str(tmp_path)]
    first = bench.main(asked)
    assert "12 queries, rows in memory" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "report.json").read_text()) == first
    capsys.readouterr()
    assert bench.main(asked)["parts"] == first["parts"]
    assert "submission: taken from" in capsys.readouterr().out
    bench.main([*asked, "--again"])
    assert "submission: measuring" in capsys.readouterr().out


@pytest.mark.slow
def test_every_part_runs(tmp_path):
    beside = ["--released-code", str(RELEASED_CODE)] if RELEASED_CODE else []
    results = bench.main(["--quick", "--out", str(tmp_path), *beside])
    assert list(results["parts"]) == list(bench.PARTS)
    report = (tmp_path / "report.md").read_text()
    for title in bench_report.TITLES.values():
        assert f"## {title}" in report
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    for part in results["parts"].values():
        for row in part.get("rows", {}).values():
            assert all(value > 0 for values in row["values"].values() for value in values)
    if RELEASED_CODE:
        outputs, losses, gradient, windows, metrics = results["parts"]["update"]["differences"].values()
        assert outputs < 1e-5
        assert losses < 1e-5
        assert gradient < 1e-4
        assert windows == 0
        assert metrics <= 0.01
