"""Moment retrieval and highlight metrics on cases small enough to compute by hand."""

import numpy as np
import pytest

from modeling_bmdetr.evaluation import evaluate_submission
from modeling_bmdetr.evaluation.highlights import highlight_average_precision, highlight_hit
from modeling_bmdetr.evaluation.metrics import average_precision, best_iou, temporal_iou


def evaluate(*queries, **options):
    """Each query is (predicted windows, true windows)."""
    predictions = [{"qid": qid, "pred_relevant_windows": predicted} for qid, (predicted, _) in enumerate(queries)]
    ground_truth = [{"qid": qid, "relevant_windows": true} for qid, (_, true) in enumerate(queries)]
    return evaluate_submission(predictions, ground_truth, **options)


# --- Arrays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("union", ["hull", "lengths"])
@pytest.mark.parametrize(
    ("predicted", "window", "expected"),
    [
        ((0, 10), (0, 10), 1.0),
        ((0, 10), (5, 15), 1 / 3),
        ((2, 4), (0, 8), 0.25),
        ((0, 10), (10, 20), 0.0),
        ((0, 10), (30, 40), 0.0),
        ((5, 5), (0, 10), 0.0),
        ((5, 5), (5, 5), 0.0),
        ((10, 0), (0, 10), 0.0),
        ((-5, 5), (0, 5), 0.5),
    ],
)
def test_temporal_iou(predicted, window, expected, union):
    iou = temporal_iou(np.array([[predicted]], float), np.array([[window]], float), union=union)
    assert iou.shape == (1, 1, 1)
    assert iou[0, 0, 0] == pytest.approx(expected)


def test_documented_shapes():
    predicted_se, windows_se = np.zeros((4, 3, 2)), np.ones((4, 2, 2))
    window_mask = np.ones((4, 2), bool)
    assert temporal_iou(predicted_se, windows_se).shape == (4, 3, 2)
    assert best_iou(predicted_se, windows_se, max_rank=2).shape == (4,)
    assert average_precision(predicted_se, np.zeros((4, 3)), windows_se, window_mask, (0.3, 0.5)).shape == (4, 2)
    assert highlight_average_precision(np.zeros((4, 6)), np.zeros((4, 3, 6), bool), np.ones((4, 6), bool)).shape == (
        4,
        3,
    )
    assert highlight_hit(np.zeros(4, int), np.zeros((4, 3, 6), bool)).shape == (4,)


def test_average_precision_without_windows_is_undefined():
    precision = average_precision(
        np.zeros((1, 1, 2)), np.zeros((1, 1)), np.zeros((1, 1, 2)), np.zeros((1, 1), bool), (0.5,)
    )
    assert np.isnan(precision).all()


def test_union_of_decimal_times_rounds_as_in_the_released_evaluator():
    """An IoU of exactly 0.5 and of exactly 0.7: recall takes the hull, average precision the lengths."""
    metrics = evaluate(([[13.4, 22.4, 1]], [[15.5, 27.2]]))  # 6.9 / 13.8
    assert (metrics["MR-full-R1@0.5"], metrics["MR-full-mAP@0.5"]) == (0.0, 100.0)
    metrics = evaluate(([[6.0, 16.8, 1]], [[3.8, 15.1]]))  # 9.1 / 13
    assert metrics["MR-full-R1@0.7"] == 100.0
    assert metrics["MR-full-mAP"] == 40.0  # 0.5, 0.55, 0.6 and 0.65, but not 0.7


# --- Moment retrieval ---------------------------------------------------------------------------------------


def test_recall_and_mean_iou():
    metrics = evaluate(
        ([[0, 10, 0.9], [20, 30, 0.8]], [[20, 30]]),  # second prediction exact, the first misses
        ([[0, 10, 0.9]], [[40, 50], [0, 5]]),  # IoU 0.5 with the second window
        ([[0, 4, 0.9]] + [[60, 70, 0.1]] * 4 + [[0, 10, 0.1]], [[0, 10]]),  # IoU 0.4, exact only at rank 6
    )
    assert metrics["MR-full-R1@0.3"] == 66.67
    assert metrics["MR-full-R1@0.5"] == 33.33
    assert metrics["MR-full-R1@0.7"] == 0.0
    assert metrics["MR-full-R5@0.3"] == 100.0
    assert metrics["MR-full-R5@0.5"] == 66.67
    assert metrics["MR-full-R5@0.7"] == 33.33
    assert metrics["MR-full-mIoU"] == 30.0


@pytest.mark.parametrize(
    ("predicted", "windows", "expected"),
    [
        pytest.param(
            [[0, 10, 3], [0, 10, 2], [20, 30, 1]], [[0, 10], [20, 30]], (1 + 2 / 3) / 2, id="repeated prediction"
        ),
        pytest.param([[0, 10, 1]], [[0, 10], [0, 10]], 0.5, id="repeated window, found once"),
        pytest.param([[0, 10, 2], [0, 10, 1]], [[0, 10], [0, 10]], 1.0, id="repeated window, found twice"),
        pytest.param([[50, 60, 3], [0, 10, 2], [20, 30, 1]], [[0, 10], [20, 30]], 2 / 3, id="interpolation"),
        pytest.param([[50, 60, 2], [0, 10, 1]], [[0, 10]], 0.5, id="second is right"),
        pytest.param([[50, 60, 1], [0, 10, 2]], [[0, 10]], 1.0, id="scores decide, not the order"),
        pytest.param([[50, 60, 1], [0, 10, 1]], [[0, 10]], 0.5, id="equal scores keep the order"),
        pytest.param([[50, 60, 1]] * 10 + [[0, 10, 2]], [[0, 10]], 0.0, id="the eleventh does not count"),
        pytest.param([[0, 20, 2], [0, 10, 1]], [[0, 10], [10, 20]], 1.0, id="equal IoU takes the window listed last"),
        pytest.param([[0, 20, 2], [0, 10, 1]], [[10, 20], [0, 10]], 0.5, id="equal IoU, listed the other way"),
        pytest.param([[0, 10, 2], [0, 8, 1]], [[0, 8], [0, 10]], 1.0, id="the best window is taken first"),
        pytest.param([], [[0, 10]], 0.0, id="no prediction"),
        pytest.param(
            [[10, 0, 3], [5, 5, 2], [0, 10, 1]], [[0, 10]], 1 / 3, id="degenerate predictions hold their rank"
        ),
        pytest.param([[0, 10, 1]], [[5, 5], [0, 10]], 0.5, id="a window of length zero is never found"),
        pytest.param([[5, 5, 1]], [[5, 5]], 0.0, id="not even by itself"),
        pytest.param([[0, 20, 1]], [[0, 10]], 1.0, id="IoU equal to the threshold reaches it"),
        pytest.param([[0, 10, -5.0], [50, 60, -7.0]], [[0, 10]], 1.0, id="negative scores"),
        pytest.param([[140, 160, 1]], [[140, 160]], 1.0, id="beyond the end of the video"),
    ],
)
def test_average_precision(predicted, windows, expected):
    metrics = evaluate((predicted, windows))
    assert metrics["MR-full-mAP@0.5"] == round(100 * expected, 2)


def test_map_is_the_mean_over_ten_thresholds():
    metrics = evaluate(([[0, 77, 1]], [[0, 100]]), ([[0, 1, 1]], [[0, 1]]))  # IoU 0.77: six thresholds of ten
    assert metrics["MR-full-mAP"] == 80.0
    assert metrics["MR-full-mAP@0.75"] == 100.0


def test_a_query_without_predictions_counts():
    metrics = evaluate(([[0, 10, 1]], [[0, 10]]), ([], [[0, 10]]))
    assert {name: value for name, value in metrics.items() if "full" in name} == dict.fromkeys(
        [f"MR-full-{name}" for name in ("R1@0.3", "R1@0.5", "R1@0.7", "R5@0.3", "R5@0.5", "R5@0.7")]
        + [f"MR-full-{name}" for name in ("mIoU", "mAP", "mAP@0.5", "mAP@0.75")],
        50.0,
    )


def test_length_ranges_include_their_upper_bound():
    for length_s, name in [
        (0.5, "short"),
        (10, "short"),
        (10.5, "middle"),
        (30, "middle"),
        (30.5, "long"),
        (150, "long"),
    ]:
        metrics = evaluate(([[0, length_s, 1]], [[0, length_s]]))
        assert {n: v for n, v in metrics.items() if n.startswith("MR") and n.split("-")[1] != "full"} == {
            f"MR-{name}-mAP": 100.0
        }
    for length_s in (0, 150.5):
        metrics = evaluate(([[0, 10, 1]], [[0, length_s]]))
        assert not {"MR-short-mAP", "MR-middle-mAP", "MR-long-mAP"} & set(metrics)


def test_a_query_counts_in_each_of_its_length_ranges():
    found_short = ([[0, 5, 2], [20, 90, 1]], [[0, 5], [20, 90]])
    only_long = ([[0, 5, 1]], [[40, 80]])
    metrics = evaluate(found_short, only_long)
    assert metrics["MR-short-mAP"] == 100.0  # of one query
    assert metrics["MR-long-mAP"] == 25.0  # in the first query the short window comes first and is a false positive
    assert "MR-middle-mAP" not in metrics


def test_own_length_ranges():
    metrics = evaluate(([[0, 200, 1]], [[0, 200]]), length_ranges_s={"hour": (150, 3600), "blink": (0, 1)})
    assert metrics["MR-hour-mAP"] == 100.0
    assert not {"MR-blink-mAP", "MR-short-mAP", "MR-long-mAP"} & metrics.keys()
    for ranges in ({"full": (0, 10)}, {"multi": (0, 10)}, {"none": (10, 10)}):
        with pytest.raises(ValueError, match="length_ranges_s has"):
            evaluate(([[0, 200, 1]], [[0, 200]]), length_ranges_s=ranges)


def test_warnings_count_what_is_odd(package_log):
    evaluate(([[0, 10, 1], [20, 30, 0.5]], [[0, 10]]))
    assert not package_log.records
    evaluate(([[10, 0, 0.5], [5, 5, 0.6], [0, 10, 0.7]], [[0, 10], [3, 3]]), ([], [[0, 1]]))
    assert [record.getMessage() for record in package_log.records] == [
        "1 windows in ground_truth have length zero: no prediction can match them.",
        "2 of 3 windows in predictions do not end after they start: they count as wrong.",
        "1 of 2 queries in predictions are not listed best first: recall goes by the order listed, mAP by the scores.",
    ]


# --- Highlights ---------------------------------------------------------------------------------------------


def highlights(scores, ratings, duration=10, clip_length_s=2.0):
    """One query; `ratings` by clip."""
    return evaluate_submission(
        [{"qid": 1, "pred_saliency_scores": scores}],
        [
            {
                "qid": 1,
                "duration": duration,
                "relevant_windows": [[0, 2]],
                "relevant_clip_ids": list(ratings),
                "saliency_scores": list(ratings.values()),
            }
        ],
        clip_length_s=clip_length_s,
    )


@pytest.mark.parametrize(
    ("scores", "ratings", "expected"),
    [
        pytest.param([5, 4, 3, 2, 1], {0: [2], 2: [3]}, (1 + 2 / 3) / 2, id="first and third"),
        pytest.param([5, 4, 3, 2, 1], {1: [2], 2: [2]}, 2 / 3, id="interpolation"),
        pytest.param([5, 5, 1, 1, 1], {0: [2]}, 0.5, id="tie of a highlight and another clip"),
        pytest.param([5, 5, 1, 1, 1], {0: [2], 1: [2], 2: [2]}, (1 + 3 / 5) / 2, id="a tie is one step"),
        pytest.param([0, 0, 0, 0, 0], {3: [4]}, 1 / 5, id="all equal"),
        pytest.param([5, 4, 3, 2, 1], {0: [1], 1: [0]}, 0.0, id="no highlight"),
        pytest.param([5, 4, 3, 2, 1], {c: [4] for c in range(5)}, 1.0, id="every clip"),
        pytest.param([5, 4, 3, 2, 1], {0: [4, 0]}, 0.5, id="mean over annotators"),
        pytest.param([1, 2], {2: [4]}, 1 / 5, id="missing scores are 0 and tie"),
        pytest.param([-1, -2], {0: [4]}, 1 / 4, id="missing scores are above negative ones"),
        pytest.param([5, 4, 3, 2, 1, 9, 9], {0: [4]}, 1.0, id="scores past the end are dropped"),
    ],
)
def test_highlight_average_precision(scores, ratings, expected):
    assert highlights(scores, ratings)["HL-min-Fair-mAP"] == round(100 * expected, 2)


def test_minimum_ratings():
    metrics = highlights([5, 4, 3, 2, 1], {0: [1, 3], 1: [4, 1]})
    assert metrics == {
        "HL-min-Fair-mAP": 75.0,
        "HL-min-Fair-Hit1": 100.0,
        "HL-min-Good-mAP": 75.0,
        "HL-min-Good-Hit1": 100.0,
        "HL-min-VeryGood-mAP": 25.0,
        "HL-min-VeryGood-Hit1": 0.0,
    }


@pytest.mark.parametrize(
    ("scores", "hit"),
    [
        pytest.param([1, 9, 1, 1, 1], 100.0, id="one annotator is enough"),
        pytest.param([9, 9, 1, 1, 1], 0.0, id="the first of equals is taken: a miss"),
        pytest.param([1, 9, 9, 1, 1], 100.0, id="the first of equals is taken: a hit"),
        pytest.param([1, 8, 1, 1, 1, 9], 0.0, id="past the end of the video"),
    ],
)
def test_hit_at_one(scores, hit):
    assert highlights(scores, {1: [0, 4]})["HL-min-VeryGood-Hit1"] == hit


def test_videos_of_different_length():
    """A padded video has the figures it has alone."""
    short = ([3, 1, 2], {2: [4]}, 6)
    long = ([1, 5, 2, 4, 3, 0, 0], {3: [4], 4: [2]}, 14.9)
    alone = [highlights(scores, ratings, duration) for scores, ratings, duration in (short, long)]
    predictions = [{"qid": qid, "pred_saliency_scores": scores} for qid, (scores, _, _) in enumerate((short, long))]
    ground_truth = [
        {"qid": qid, "duration": d, "relevant_clip_ids": list(r), "saliency_scores": list(r.values())}
        for qid, (_, r, d) in enumerate((short, long))
    ]
    together = evaluate_submission(predictions, ground_truth)
    assert together == {name: pytest.approx((alone[0][name] + alone[1][name]) / 2, abs=0.011) for name in together}
    assert {alone[0]["HL-min-Fair-mAP"], alone[1]["HL-min-Fair-mAP"]} == {50.0, 66.67}


def test_padded_clips_count_for_nothing():
    scores, is_highlight = np.array([[1.0, 2.0, 9.0]]), np.array([[[True, False, True]]])
    clip_mask = np.array([[True, True, False]])
    assert highlight_average_precision(scores, is_highlight, clip_mask).tolist() == [[0.5]]


def test_clip_length():
    metrics = highlights([0] * 9 + [1], {9: [4]}, duration=10, clip_length_s=1.0)
    assert metrics["HL-min-VeryGood-mAP"] == 100.0
    with pytest.raises(ValueError, match="clip_length_s must be a positive number of seconds, received 0"):
        highlights([1], {0: [4]}, clip_length_s=0)


# --- Which keys ---------------------------------------------------------------------------------------------

MOMENT_KEYS = [f"MR-full-R{rank}@{iou}" for rank in (1, 5) for iou in (0.3, 0.5, 0.7)]
MOMENT_KEYS += [f"MR-{name}" for name in ("full-mIoU", "full-mAP", "full-mAP@0.5", "full-mAP@0.75", "short-mAP")]
SCORE_KEYS = ["CAL-ECE", "CAL-Brier"]
HIGHLIGHT_KEYS = [f"HL-min-{name}-{metric}" for name in ("Fair", "Good", "VeryGood") for metric in ("mAP", "Hit1")]
RATED = {"duration": 10, "relevant_clip_ids": [0], "saliency_scores": [[4, 4, 4]]}
WINDOWS = {"pred_relevant_windows": [[0, 10, 1]]}
SALIENCY = {"pred_saliency_scores": [1, 0, 0, 0, 0]}


@pytest.mark.parametrize(
    ("prediction", "truth", "keys"),
    [
        (WINDOWS | SALIENCY, RATED, MOMENT_KEYS + HIGHLIGHT_KEYS + SCORE_KEYS),
        (WINDOWS | SALIENCY, {}, MOMENT_KEYS + SCORE_KEYS),
        (WINDOWS | SALIENCY, {"saliency_scores": None, "relevant_clip_ids": None}, MOMENT_KEYS + SCORE_KEYS),
        (WINDOWS, RATED, MOMENT_KEYS + SCORE_KEYS),
        (WINDOWS | {"pred_saliency_scores": None}, RATED, MOMENT_KEYS + SCORE_KEYS),
        (SALIENCY, RATED, HIGHLIGHT_KEYS),
    ],
)
def test_keys_and_their_order(prediction, truth, keys):
    metrics = evaluate_submission([{"qid": 1} | prediction], [{"qid": 1, "relevant_windows": [[0, 10]]} | truth])
    assert list(metrics) == keys
    assert all(type(value) is float for value in metrics.values())


def test_highlights_cover_the_rated_queries():
    predictions = [{"qid": qid} | WINDOWS | SALIENCY for qid in range(3)]
    ground_truth = [{"qid": qid, "relevant_windows": [[0, 10]]} for qid in range(3)]
    ground_truth[1] |= RATED
    assert evaluate_submission(predictions, ground_truth)["HL-min-VeryGood-mAP"] == 100.0
