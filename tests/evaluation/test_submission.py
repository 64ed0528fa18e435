"""Matching submissions, and what is said about malformed ones."""

import json

import pytest

from modeling_bmdetr.evaluation import (
    METRIC_FORMATS,
    evaluate_submission,
    format_metrics,
    write_jsonl,
)

PREDICTIONS = [{"qid": qid, "vid": f"v{qid}", "pred_relevant_windows": [[0, 10, 0.5]]} for qid in range(8)]
GROUND_TRUTH = [{"qid": qid, "vid": f"v{qid}", "relevant_windows": [[0, 10]]} for qid in range(8)]
RATED = {"duration": 10, "relevant_clip_ids": [0, 4], "saliency_scores": [[4, 0], [1, 2]]}


def changed(rows, index, **fields):
    return [row | fields if number == index else row for number, row in enumerate(rows)]


def test_evaluation_from_files_names_file_and_line(tmp_path):
    predictions, ground_truth = tmp_path / "p.jsonl", tmp_path / "g.jsonl"
    write_jsonl(PREDICTIONS[::-1], predictions)
    write_jsonl(GROUND_TRUTH, ground_truth)
    assert evaluate_submission(predictions, str(ground_truth)) == evaluate_submission(PREDICTIONS, GROUND_TRUTH)
    write_jsonl(changed(PREDICTIONS, 2, pred_relevant_windows=[[0, 1]])[::-1], predictions)
    with pytest.raises(ValueError, match=r"p\.jsonl:6 \(qid 2\) has \[0, 1\] in pred_relevant_windows"):
        evaluate_submission(predictions, ground_truth)


# --- qids ---------------------------------------------------------------------------------------------------


def test_difference_of_qids_is_named():
    with pytest.raises(ValueError, match="do not hold the same queries") as error:
        evaluate_submission([PREDICTIONS[0], PREDICTIONS[0] | {"qid": "new"}], GROUND_TRUTH)
    assert "7 of 8 in ground_truth have no prediction (qid '1', '2', '3', '4', '5', ...)" in str(error.value)
    assert "1 of 2 in predictions are not in the ground truth (qid 'new')" in str(error.value)
    with pytest.raises(
        ValueError, match=r"0 of 7 in ground_truth have no prediction, 1 of 8 in predictions .*\(qid '7'\)"
    ):
        evaluate_submission(PREDICTIONS, GROUND_TRUTH[:7])


def test_another_video_for_the_same_qid():
    with pytest.raises(
        ValueError, match=r"predictions\[7\] \(qid 3\) is about the video 'v3', ground_truth\[3\] .*'other'"
    ):
        evaluate_submission(PREDICTIONS[4:] + PREDICTIONS[:4], changed(GROUND_TRUTH, 3, vid="other"))
    evaluate_submission(changed(PREDICTIONS, 3, vid=None), changed(GROUND_TRUTH, 4, vid=None))


@pytest.mark.parametrize("repeated", [3, "3"])
def test_repeated_qid(repeated):
    with pytest.raises(
        ValueError, match=r"predictions\[5\] \(qid '?3'?\) repeats the qid of predictions\[3\] \(qid 3\)"
    ):
        evaluate_submission(changed(PREDICTIONS, 5, qid=repeated), GROUND_TRUTH)


@pytest.mark.parametrize(
    ("predictions", "ground_truth", "error", "message"),
    [
        (changed(PREDICTIONS, 1, qid=None), GROUND_TRUTH, ValueError, r"predictions\[1\] has no qid"),
        (PREDICTIONS, changed(GROUND_TRUTH, 1, qid=1.5), TypeError, r"ground_truth\[1\] \(qid 1.5\): qid must be"),
        ([], GROUND_TRUTH, ValueError, "predictions is empty"),
        (PREDICTIONS, [], ValueError, "ground_truth is empty"),
        (
            PREDICTIONS[0],
            GROUND_TRUTH,
            TypeError,
            "predictions must be a list of dictionaries or the path of a file, received dict",
        ),
        (
            PREDICTIONS,
            None,
            TypeError,
            "ground_truth must be a list of dictionaries or the path of a file, received NoneType",
        ),
        (PREDICTIONS, [[0, 10]], TypeError, r"ground_truth\[0\] must be a dictionary, received list"),
    ],
)
def test_rows_that_are_no_rows(predictions, ground_truth, error, message):
    with pytest.raises(error, match=message):
        evaluate_submission(predictions, ground_truth)


# --- Malformed windows and saliency -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "window",
    [
        [0, 1],
        [0, 1, 0.5, 9],
        [0, float("nan"), 0.5],
        [0, 1, float("inf")],
        [0, "1", 0.5],
        [0, None, 0.5],
        [True, 5, 0.5],
        5.0,
        [[0, 1, 0.5]],
        {"start": 0},
    ],
    ids=str,
)
def test_malformed_predicted_window(window):
    with pytest.raises(
        ValueError, match=r"predictions\[2\] \(qid 2\) has .* expected \[start s, end s, score\], finite"
    ):
        evaluate_submission(changed(PREDICTIONS, 2, pred_relevant_windows=[[0, 1, 0.5], window]), GROUND_TRUTH)


@pytest.mark.parametrize(
    "windows", [[0, 10], [[0, 10], [3]], [[0, 10, 0.5]], [["0", "10"]], [[None, 10]], [[True, 10]]], ids=str
)
def test_malformed_true_window(windows):
    with pytest.raises(
        ValueError, match=r"ground_truth\[2\] \(qid 2\) has .* expected \[start s, end s\], finite numbers"
    ):
        evaluate_submission(PREDICTIONS, changed(GROUND_TRUTH, 2, relevant_windows=windows))


def test_text_in_every_window_is_not_taken_for_numbers():
    with pytest.raises(ValueError, match=r"predictions\[0\] .* expected \[start s, end s, score\]"):
        evaluate_submission([row | {"pred_relevant_windows": [["0", "10", "1"]]} for row in PREDICTIONS], GROUND_TRUTH)


def test_reversed_true_window():
    with pytest.raises(
        ValueError, match=r"ground_truth\[4\] .* ends before it starts .*\[\[0.0, 5.0\], \[10.0, 2.5\]\]"
    ):
        evaluate_submission(PREDICTIONS, changed(GROUND_TRUTH, 4, relevant_windows=[[0, 5], [10, 2.5]]))


@pytest.mark.parametrize(
    ("predictions", "ground_truth", "message"),
    [
        (
            changed(PREDICTIONS, 2, pred_relevant_windows=None),
            GROUND_TRUTH,
            r"predictions\[2\] .* has no pred_relevant_windows",
        ),
        (
            changed(PREDICTIONS, 2, pred_relevant_windows="x"),
            GROUND_TRUTH,
            "pred_relevant_windows 'x'; expected a list",
        ),
        (PREDICTIONS, changed(GROUND_TRUTH, 2, relevant_windows=None), r"ground_truth\[2\] .* has no relevant_windows"),
        (
            changed(PREDICTIONS, 2, pred_exist_score=0.5),
            GROUND_TRUTH,
            r"predictions\[0\] .* has no pred_exist_score, which other rows have.*\(7 of 8",
        ),
        (
            [{**row, "pred_exist_score": 1.5} for row in PREDICTIONS],
            GROUND_TRUTH,
            r"predictions\[0\] .* pred_exist_score 1.5; expected a probability from 0 to 1",
        ),
        (PREDICTIONS, [{"qid": qid} for qid in range(8)], "a split without labels cannot be evaluated"),
        (
            [{"qid": qid, "pred_saliency_scores": [1]} for qid in range(8)],
            changed(GROUND_TRUTH, 6, **RATED, relevant_windows="[]"),
            r"ground_truth\[6\] .* has relevant_windows '\[\]'; expected a list",
        ),
        ([{"qid": qid} for qid in range(8)], GROUND_TRUTH, "nothing to evaluate"),
        ([{"qid": qid, "pred_saliency_scores": [1]} for qid in range(8)], GROUND_TRUTH, "nothing to evaluate"),
    ],
)
def test_missing_windows(predictions, ground_truth, message):
    with pytest.raises(ValueError, match=message):
        evaluate_submission(predictions, ground_truth)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"relevant_clip_ids": None}, "no relevant_clip_ids"),
        ({"relevant_clip_ids": [0]}, "1 relevant_clip_ids but 2 saliency_scores"),
        (
            {"relevant_clip_ids": [0, 5]},
            r"relevant_clip_ids \[5.0\]; expected integers from 0 to 4",
        ),
        ({"relevant_clip_ids": [-1, 2]}, r"relevant_clip_ids \[-1.0\]"),
        ({"relevant_clip_ids": [0.5, 2]}, r"relevant_clip_ids \[0.5\]"),
        ({"relevant_clip_ids": [2, 2]}, "a clip twice in relevant_clip_ids"),
        ({"duration": None}, "duration None; expected a positive number"),
        ({"duration": "10"}, "duration '10'; expected a positive number"),
        ({"duration": -1.5}, "duration -1.5; expected a positive number of seconds"),
        ({"saliency_scores": [[4, 0], [1, 2, 3]]}, r"\[1, 2, 3\] in saliency_scores; expected 2 ratings"),
        ({"saliency_scores": [4, 0]}, r"4 in saliency_scores; expected a list for each clip.*\[\[4\], \[3\], \.\.\.\]"),
        ({"saliency_scores": 4}, "saliency_scores 4; expected a list"),
        ({"saliency_scores": [[4, True], [1, 2]]}, r"\[4, True\] in saliency_scores"),
    ],
)
def test_malformed_ratings(truth, message):
    predictions = [row | {"pred_saliency_scores": [0.5] * 5} for row in PREDICTIONS]
    evaluate_submission(predictions, changed(GROUND_TRUTH, 6, **RATED))
    with pytest.raises(ValueError, match=rf"ground_truth\[6\] \(qid 6\) has .*{message}"):
        evaluate_submission(predictions, changed(GROUND_TRUTH, 6, **(RATED | truth)))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (None, "no pred_saliency_scores"),
        ([], "empty pred_saliency_scores"),
        ([0.5, float("nan")], "nan in pred_saliency_scores; expected a score for every clip, finite numbers"),
        ([[0.5], [0.1]], r"\[0.5\] in pred_saliency_scores"),
    ],
)
def test_malformed_predicted_saliency(scores, message):
    predictions = changed(
        [row | {"pred_saliency_scores": [0.5] * 5} for row in PREDICTIONS], 6, pred_saliency_scores=scores
    )
    with pytest.raises(ValueError, match=rf"predictions\[6\] \(qid 6\) has {message}"):
        evaluate_submission(predictions, [row | RATED for row in GROUND_TRUTH])


# --- Text ---------------------------------------------------------------------------------------------------

METRICS = {"MR-full-R1@0.5": 100.0, "MR-full-mAP": 8.5}


def test_table():
    assert format_metrics(METRICS) == "Metric               %\nMR-full-R1@0.5  100.00\nMR-full-mAP       8.50"


def test_markdown():
    assert format_metrics(METRICS, "markdown").split("\n") == [
        "| Metric | % |",
        "|---|---:|",
        "| MR-full-R1@0.5 | 100.00 |",
        "| MR-full-mAP | 8.50 |",
    ]


def test_json():
    assert json.loads(format_metrics(METRICS, "json")) == METRICS
    assert format_metrics({"a": float("nan"), "b": 1.0}, "json") == '{\n  "a": null,\n  "b": 1.0\n}'


def test_unknown_format():
    assert METRIC_FORMATS == ("table", "json", "markdown")
    with pytest.raises(ValueError, match="style must be one of table, json, markdown, received 'html'"):
        format_metrics(METRICS, "html")
