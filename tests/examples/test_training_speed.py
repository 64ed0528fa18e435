"""The benchmark beside the released code runs, and says what it measured; how long it takes is for a reader to see."""

import json
import os

import pytest
import training_speed

SIZES = ["--queries", "6", "--videos", "3", "--eval-queries", "3", "--batch-size", "2", "--repeats", "1"]
RELEASED_CODE = os.environ.get("BMDETR_RELEASED_CODE")


def test_own_side_alone(tmp_path, capsys):
    figures = tmp_path / "speed.json"
    training_speed.main([*SIZES, "--epochs", "1", "--one-process", "--dir", str(tmp_path), "--json", str(figures)])
    printed = capsys.readouterr().out
    assert "| by the clock | this package, same files | this package, packed store |" in printed
    assert "| queries trained in the last epoch | 6 | 6 |" in printed
    assert "The released code was not measured" in printed
    results = json.loads(figures.read_text())
    assert list(results["sides"]) == ["files", "packed"]
    for side in results["sides"].values():
        assert all(side[operation][0]["clock_s"] > 0 for operation in training_speed.OPERATIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]


def test_rows_have_negatives_of_their_video():
    rows = training_speed.random_rows(60, 12, training_speed.np.random.default_rng(0))
    video_of = {row["qid"]: row["vid"] for row in rows}
    assert len(set(video_of.values())) == 12
    assert any(row["neg_query_ids"] for row in rows)
    for row in rows:
        assert all(video_of[qid] == row["vid"] and qid != row["qid"] for qid in row["neg_query_ids"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "300"], "batch size <= videos"),
        (["--eval-queries", "600"], "no more queries to evaluate"),
        (["--repeats", "0"], "at least one run"),
        (["--released-code", "nowhere"], "has no bm_detr/train.py"),
    ],
)
def test_arguments_that_cannot_be(arguments, message, capsys):
    with pytest.raises(SystemExit):
        training_speed.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(RELEASED_CODE is None, reason="BMDETR_RELEASED_CODE does not name a clone of the released code")
def test_both_sides(tmp_path, capsys):
    results = training_speed.main([*SIZES, "--epochs", "1", "--released-code", str(RELEASED_CODE)])
    printed = capsys.readouterr().out
    assert "| by the clock | released code | this package, same files | this package, packed store |" in printed
    assert all(side["peak_mib"] > side["idle_mib"] > 0 for side in results["sides"].values())
    outputs, losses, gradient, windows, metrics = results["differences"].values()
    assert outputs < 1e-5
    assert losses < 1e-5
    assert gradient < 1e-4
    assert windows == 0
    assert metrics <= 0.01
