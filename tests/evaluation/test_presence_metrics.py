"""Metrics of presence, calibration and several moments, by hand."""

import logging

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score

from modeling_bmdetr.evaluation import evaluate_submission, format_metrics
from modeling_bmdetr.evaluation.metrics import moment_recall
from modeling_bmdetr.evaluation.presence import rejection_f1, set_iou
from modeling_bmdetr.evaluation.reliability import auroc, brier_score, expected_calibration_error, reliability_bins

TRUTH = [
    {"qid": 1, "relevant_windows": [[0, 10]]},
    {"qid": 2, "relevant_windows": [[0, 10], [20, 30]]},
    {"qid": 3, "relevant_windows": [], "absent_kind": "unrelated"},
    {"qid": 4, "relevant_windows": [], "absent_kind": "other_action"},
]
PREDICTED = [
    {"qid": 1, "pred_relevant_windows": [[0, 8, 0.9], [2, 10, 0.4]], "pred_exist_score": 0.9},
    {"qid": 2, "pred_relevant_windows": [[0, 10, 0.8], [0, 9, 0.6], [20, 25, 0.5]], "pred_exist_score": 0.6},
    {"qid": 3, "pred_relevant_windows": [[0, 5, 0.1]], "pred_exist_score": 0.2},
    {"qid": 4, "pred_relevant_windows": [[5, 9, 0.7]], "pred_exist_score": 0.7},
]


def test_every_figure_by_hand():
    metrics = evaluate_submission(PREDICTED, TRUTH)
    expected = {
        "PR-AUROC": 75.0,  # of four pairs only 0.6 against 0.7 is wrong
        "PR-other_action-AUROC": 50.0,
        "PR-unrelated-AUROC": 100.0,
        "PR-Rej-F1": 66.67,  # one of two absent queries is rejected, rightly: precision 1, recall 0.5
        "PR-ECE": 35.0,  # (0.1 + 0.4 + 0.2 + 0.7) / 4, each alone in its bin
        "PR-Brier": 17.5,  # (0.01 + 0.16 + 0.04 + 0.49) / 4
        "CAL-ECE": 27.5,  # the first predictions: 0.9 right, 0.8 right, 0.1 wrong, 0.7 wrong
        "CAL-Brier": 13.75,  # (0.01 + 0.04 + 0.01 + 0.49) / 4
        "CAL-AUC": 100.0,
        # Queries 1 to 4: 0.8, 1 / 2, rightly empty, and a set of one against none.
        "G-mIoU@1": 57.5,
        # The second prediction of query 1 takes nothing: 0.8 / 2. Query 2: (1 + 0.5) / (3 + 2 - 2).
        "G-mIoU@3": 47.5,
        "G-mIoU@5": 47.5,
        "MR-full-Rn@0.5": 75.0,  # query 1 finds its moment; query 2 spends its second try on the first moment
        "MR-full-mR@3": 62.5,  # query 1 up to 0.8: 7 of 10; query 2: all of one moment, the other only at 0.5: 11 / 20
        "MR-multi-mR+@3": 10.0,  # the second moment is found at 1 of 10 thresholds
    }
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["MR-full-R1@0.7"] == 100.0  # over present queries


def test_kinds_may_have_any_name_and_tables_leave_them_out():
    kinds = [0, float("nan"), "", None, 1]
    absent = [{"qid": 10 + i, "relevant_windows": [], "absent_kind": kind} for i, kind in enumerate(kinds)]
    predicted = [{"qid": row["qid"], "pred_relevant_windows": [], "pred_exist_score": 0.1} for row in absent]
    metrics = evaluate_submission(PREDICTED[:1] + predicted, TRUTH[:1] + absent)
    assert [name for name in metrics if name.endswith("AUROC")] == ["PR-AUROC", "PR-0-AUROC", "PR-1-AUROC"]


def test_kinds_break_no_table():
    truth = [TRUTH[0], {"qid": 3, "relevant_windows": [], "absent_kind": "a|b\n# <c>"}]
    metrics = evaluate_submission([PREDICTED[0], PREDICTED[2]], truth)
    assert metrics["PR-a|b\n# <c>-AUROC"] == 100.0
    assert r"| PR-a\|b # \<c\>-AUROC | 100.00 |" in format_metrics(metrics, "markdown").splitlines()
    assert len(format_metrics(metrics).splitlines()) == 1 + len(metrics)


def test_present_queries_are_judged_as_if_the_absent_ones_were_not_there():
    present = evaluate_submission(PREDICTED[:2], TRUTH[:2])
    everything = evaluate_submission(PREDICTED, TRUTH)
    names = [name for name in present if name.startswith(("MR", "HL"))]
    assert len(names) > 15
    assert {name: everything[name] for name in names} == {name: present[name] for name in names}


def test_data_without_absent_queries_have_no_presence_figures():
    metrics = evaluate_submission(PREDICTED[:2], TRUTH[:2])
    assert not [name for name in metrics if name.startswith(("PR", "G-"))]
    assert not [name for name in evaluate_submission(PREDICTED[:1], TRUTH[:1]) if "multi" in name or "mR" in name]


def test_predictions_without_presence_are_told_so(caplog):
    without = [{key: row[key] for key in ("qid", "pred_relevant_windows")} for row in PREDICTED]
    with caplog.at_level(logging.WARNING):
        metrics = evaluate_submission(without, TRUTH)
    assert not [name for name in metrics if name.startswith(("PR", "G-"))]
    assert "2 queries have no moment, and presence is not measured" in caplog.text


def test_queries_that_are_all_absent_have_scores_but_no_moments():
    metrics = evaluate_submission(PREDICTED[2:], TRUTH[2:])
    assert metrics == {"CAL-ECE": 40.0, "CAL-Brier": 25.0}


def test_scores_that_are_no_probabilities_are_not_judged_as_such():
    scaled = [
        {**row, "pred_relevant_windows": [[s, e, 10 * p] for s, e, p in row["pred_relevant_windows"]]}
        for row in PREDICTED
    ]
    assert not [name for name in evaluate_submission(scaled, TRUTH) if name.startswith("CAL")]


def test_the_threshold_of_rejection():
    strict = evaluate_submission(PREDICTED, TRUTH, presence_threshold=0.7)  # 0.7 is not above it
    assert strict["PR-Rej-F1"] == 80.0  # 2 rightly, 1 wrongly rejected
    with pytest.raises(ValueError, match=r"presence_threshold must lie in \[0, 1\], received 2"):
        evaluate_submission(PREDICTED, TRUTH, presence_threshold=2)


def test_scikit_learn_agrees():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores, labels = rng.integers(0, 9, 40) / 8, rng.random(40) < 0.4
        labels[:2] = True, False
        assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
        assert brier_score(scores, labels) == pytest.approx(brier_score_loss(labels, scores))
        assert rejection_f1(scores, labels) == pytest.approx(f1_score(~labels, scores <= 0.5, zero_division=0))


def test_probabilities_that_are_drawn_true_to_their_value_are_calibrated():
    rng = np.random.default_rng(0)
    probabilities = rng.random(200_000)
    is_true = rng.random(200_000) < probabilities
    assert expected_calibration_error(probabilities, is_true) < 0.01
    assert expected_calibration_error(np.sqrt(probabilities), is_true) == pytest.approx(1 / 6, abs=0.01)
    bins = reliability_bins(np.array([0.0, 0.05, 1.0]), np.array([False, True, True]))
    assert bins.to_dict()["counts"] == [2, *[0] * 8, 1]
    assert bins.to_dict()["share_true"] == [0.5, *[None] * 8, 1.0]


def test_errors():
    some = np.array([0.2, 0.4])
    with pytest.raises(ValueError, match="needs both classes, received 2 positives and 0 negatives"):
        auroc(some, np.array([True, True]))
    with pytest.raises(ValueError, match="all queries are present"):
        rejection_f1(some, np.array([True, True]))
    for figure in (reliability_bins, rejection_f1):
        with pytest.raises(ValueError, match=r"received values from 0.2 to 1.5"):
            figure(np.array([0.2, 1.5]), np.array([True, False]))
    for threshold in (float("nan"), -0.1, 1.1):
        with pytest.raises(ValueError, match="expected a threshold from 0 to 1"):
            rejection_f1(some, np.array([True, False]), threshold)
    with pytest.raises(ValueError, match="no probabilities"):
        brier_score(np.zeros(0), np.zeros(0, dtype=bool))


@pytest.mark.parametrize("figure", [auroc, brier_score, expected_calibration_error, rejection_f1])
@pytest.mark.parametrize(
    ("scores", "truths"),
    [
        *(([0.2, 0.4], [True]), ([[0.2, 0.4]], [True, False]), (0.2, True), (None, None), (["a", "b"], [True, False])),
        *(
            ([0.2, np.nan], [True, False]),
            ([0.2, 0.4j], [True, False]),
            ([0.2, 0.4], [0.5, 2]),
            ([0.2, 0.4], ["", "x"]),
        ),
    ],
)
def test_what_cannot_be_judged_is_refused(figure, scores, truths):
    with pytest.raises(ValueError, match="expected"):
        figure(scores, truths)


def test_zeros_and_ones_are_truths():
    scores, truths = np.array([0.2, 0.4, 0.9]), np.array([0, 0, 1])
    assert auroc(scores, truths) == auroc(scores, truths.astype(bool)) == 1
    assert rejection_f1(scores, truths) == rejection_f1(scores, truths.astype(bool)) == 1
    for bins in (0, 1.5, True, 10**9):
        with pytest.raises(ValueError, match="num_bins"):
            reliability_bins(scores, truths, bins)


def test_two_empty_sets_are_equal():
    nothing = np.zeros((2, 1, 2)), np.zeros(2, dtype=int), np.zeros((2, 1, 2)), np.array([[False], [False]])
    assert set_iou(*nothing).tolist() == [1.0, 1.0]


def test_recall_of_as_many_predictions_as_there_are_moments():
    predicted = np.array([[[0.0, 10], [20, 30]], [[0, 10], [20, 30]]])
    windows = np.array([[[20.0, 30], [0, 0]], [[20, 30], [0, 10]]])
    mask = np.array([[True, False], [True, True]])
    assert moment_recall(predicted, windows, mask, mask.sum(axis=1), (0.5,)).tolist() == [[0.0], [1.0]]
