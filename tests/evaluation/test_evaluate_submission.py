"""`evaluate_submission` against the released evaluator's figures and against an independent computation."""

import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from factories import make_row
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_bmdetr.contract_bmdetr import clip_count
from modeling_bmdetr.data import validate_rows
from modeling_bmdetr.evaluation import evaluate_submission

FIXTURE = Path(__file__).parents[1] / "fixtures" / "released_evaluator_case.json"
CLIP_S = 2
AP_THRESHOLDS = [Fraction(percent, 100) for percent in range(50, 100, 5)]


# --- Golden figures -----------------------------------------------------------------------------------------


def released_case():
    """60 queries and the figures the released evaluator gives for them; saliency scores are replaced by their ranks."""
    case = json.loads(FIXTURE.read_text())
    predictions = [
        {field: row[field] for field in ("qid", "pred_relevant_windows", "pred_saliency_scores")}
        for row in case["rows"]
    ]
    return predictions, case["rows"], case["released"]


def test_released_figures():
    predictions, ground_truth, released = released_case()
    metrics = evaluate_submission(predictions, ground_truth)
    assert len(released) == 14
    assert {name: metrics[name] for name in released} == pytest.approx(released, abs=0.01)


@pytest.mark.skipif("BMDETR_SHARED" not in os.environ, reason="BMDETR_SHARED is not set")
def test_released_figures_of_the_reference_file():
    path = Path(os.environ["BMDETR_SHARED"], "reference", "released_evaluator_case.json")
    case = json.loads(path.read_text())
    metrics = evaluate_submission(case["predictions"], case["ground_truth"])
    assert {name: metrics[name] for name in case["brief"]} == pytest.approx(case["brief"], abs=0.01)
    predictions, ground_truth, _ = released_case()
    assert evaluate_submission(predictions, ground_truth) == metrics


# --- Brute force: exact fractions, one query, threshold and window after the other --------------------------


def exact_iou(a, b):
    (a_start, a_end), (b_start, b_end) = ([Fraction(bound) for bound in window[:2]] for window in (a, b))
    if a_end <= a_start or b_end <= b_start:
        return Fraction(0)
    overlap = max(Fraction(0), min(a_end, b_end) - max(a_start, b_start))
    return overlap / (a_end - a_start + b_end - b_start - overlap)


def exact_moment_ap(predicted, windows, threshold):
    ranked = sorted(predicted[:10], key=lambda window: -window[2])
    remaining = list(windows)
    hits = []
    for prediction in ranked:
        reaching = [
            (exact_iou(prediction, w), i) for i, w in enumerate(remaining) if exact_iou(prediction, w) >= threshold
        ]
        if reaching:
            remaining.pop(max(reaching)[1])
        hits.append(bool(reaching))
    precision = [Fraction(sum(hits[: n + 1]), n + 1) for n in range(len(hits))]
    return sum(max(precision[n:]) for n in range(len(hits)) if hits[n]) / Fraction(len(windows))


def exact_highlight_ap(scores, relevant):
    """`scores` and `relevant` have one entry for each clip."""
    levels = sorted(set(scores), reverse=True)
    taken = [[r for s, r in zip(scores, relevant, strict=True) if s >= level] for level in levels]
    precision = [Fraction(sum(t), len(t)) for t in taken]
    steps = [n for n in range(len(levels)) if sum(taken[n]) > (sum(taken[n - 1]) if n else 0)]
    return sum(max(precision[n:]) for n in steps) / Fraction(len(steps)) if steps else Fraction(0)


def pairs_taken(predicted, windows, threshold):
    """IoUs of the pairs that predictions form one after the other; threshold 0 means any overlap."""
    remaining, ious = list(windows), []
    for prediction in predicted:
        reaching = [(exact_iou(prediction, w), i) for i, w in enumerate(remaining)]
        reaching = [(iou, i) for iou, i in reaching if iou > 0 and iou >= threshold]
        if reaching:
            iou, index = max(reaching)
            remaining.pop(index)
            ious.append(iou)
    return ious


def exact_multi_moment(pairs):
    shares = {}
    multi = [(ps, ws) for ps, ws in pairs if len(ws) > 1]
    if not multi:
        return shares

    def recall(some, size, threshold, beyond=0):
        found = [len(pairs_taken(ps[: size or len(ws)], ws, threshold)) for ps, ws in some]
        return mean(Fraction(max(n - beyond, 0), len(ws) - beyond) for n, (_, ws) in zip(found, some, strict=True))

    for threshold in ("0.5", "0.7"):
        shares[f"MR-full-Rn@{threshold}"] = recall(pairs, None, Fraction(threshold))
    for size in (1, 3, 5):
        shares[f"MR-full-mR@{size}"] = mean(recall(pairs, size, t) for t in AP_THRESHOLDS)
    for size in (3, 5):
        shares[f"MR-multi-mR+@{size}"] = mean(recall(multi, size, t, beyond=1) for t in AP_THRESHOLDS)
    shares["MR-multi-mAP"] = mean(exact_moment_ap(ps, ws, t) for t in AP_THRESHOLDS for ps, ws in multi)
    return shares


def exact_auc(scores, positive):
    wins = [
        Fraction(2 * (a > b) + (a == b), 2)
        for a, is_a in zip(scores, positive, strict=True)
        for b, is_b in zip(scores, positive, strict=True)
        if is_a and not is_b
    ]
    return mean(wins)


def exact_reliability(scores, true):
    """Expected calibration error over ten bins, and Brier score."""
    scores = [Fraction(score) for score in scores]
    error = Fraction(0)
    for number in range(10):
        inside = [n for n, s in enumerate(scores) if number <= 10 * s < number + 1 or (number == 9 and s == 1)]
        if inside:
            error += abs(sum(scores[n] for n in inside) - sum(bool(true[n]) for n in inside))
    return error / len(scores), mean((s - bool(t)) ** 2 for s, t in zip(scores, true, strict=True))


def exact_judgement(predictions, ground_truth):
    by_qid = {row["qid"]: row for row in predictions}
    rows = [(by_qid[row["qid"]], row) for row in ground_truth]
    shares = {}
    judged = [(p["pred_relevant_windows"][0], t["relevant_windows"]) for p, t in rows if p["pred_relevant_windows"]]
    scores = [first[2] for first, _ in judged]
    if scores and all(0 <= score <= 1 for score in scores):
        right = [any(exact_iou(first, w) >= Fraction(1, 2) for w in ws) for first, ws in judged]
        shares["CAL-ECE"], shares["CAL-Brier"] = exact_reliability(scores, right)
        if len(set(right)) == 2:
            shares["CAL-AUC"] = exact_auc(scores, right)
    present = [bool(truth["relevant_windows"]) for _, truth in rows]
    if "pred_exist_score" not in predictions[0] or len(set(present)) < 2:
        return shares
    presence = [prediction["pred_exist_score"] for prediction, _ in rows]
    shares["PR-AUROC"] = exact_auc(presence, present)
    for kind in {truth["absent_kind"] for _, truth in rows if "absent_kind" in truth}:
        among = [n for n, (_, truth) in enumerate(rows) if present[n] or truth.get("absent_kind") == kind]
        shares[f"PR-{kind}-AUROC"] = exact_auc([presence[n] for n in among], [present[n] for n in among])
    rejected = [value <= 0.5 for value in presence]
    rightly = sum(r and not p for r, p in zip(rejected, present, strict=True))
    wrong = sum(r == p for r, p in zip(rejected, present, strict=True))  # rejected though present, or the reverse
    shares["PR-Rej-F1"] = Fraction(2 * rightly, 2 * rightly + wrong) if rightly or wrong else Fraction(0)
    shares["PR-ECE"], shares["PR-Brier"] = exact_reliability(presence, present)
    for size in (1, 3, 5):
        values = []
        for (prediction, truth), gone in zip(rows, rejected, strict=True):
            predicted = [] if gone else prediction["pred_relevant_windows"][:size]
            windows = truth["relevant_windows"]
            ious = pairs_taken(predicted, windows, 0)
            union = len(predicted) + len(windows) - len(ious)
            values.append(sum(ious) / Fraction(union) if union else Fraction(1))
        shares[f"G-mIoU@{size}"] = mean(values)
    return shares


def mean(values):
    values = list(values)
    return Fraction(sum(values)) / len(values)


def exact_metrics(predictions, ground_truth):
    """Unrounded percent."""
    by_qid = {row["qid"]: row for row in predictions}
    judgement = exact_judgement(predictions, ground_truth)
    ground_truth = [row for row in ground_truth if row["relevant_windows"]]
    pairs = [(by_qid[row["qid"]]["pred_relevant_windows"], row["relevant_windows"]) for row in ground_truth]
    shares = exact_multi_moment(pairs) | judgement
    for rank in (1, 5) if pairs else ():
        best = [max((exact_iou(p, w) for p in ps[:rank] for w in ws), default=Fraction(0)) for ps, ws in pairs]
        for threshold in ("0.3", "0.5", "0.7"):
            shares[f"MR-full-R{rank}@{threshold}"] = mean(iou >= Fraction(threshold) for iou in best)
        if rank == 1:
            shares["MR-full-mIoU"] = mean(best)
    for name, low, high in (("full", None, None), ("short", 0, 10), ("middle", 10, 30), ("long", 30, 150)):
        in_range = [(ps, [w for w in ws if low is None or low < w[1] - w[0] <= high]) for ps, ws in pairs]
        in_range = [(ps, ws) for ps, ws in in_range if ws]
        if in_range:
            ap = {t: mean(exact_moment_ap(ps, ws, t) for ps, ws in in_range) for t in AP_THRESHOLDS}
            shares[f"MR-{name}-mAP"] = mean(ap.values())
            if name == "full":
                shares["MR-full-mAP@0.5"], shares["MR-full-mAP@0.75"] = ap[Fraction(1, 2)], ap[Fraction(3, 4)]
    rated = [row for row in ground_truth if "saliency_scores" in row]
    for name, minimum in (("Fair", 2), ("Good", 3), ("VeryGood", 4)) if rated else ():
        precisions, hits = [], []
        for row in rated:
            scores = by_qid[row["qid"]]["pred_saliency_scores"]
            num_clips = int(row["duration"]) // CLIP_S
            ratings = dict(zip(row["relevant_clip_ids"], row["saliency_scores"], strict=True))
            for annotator in range(2):
                relevant = [clip in ratings and ratings[clip][annotator] >= minimum for clip in range(num_clips)]
                precisions.append(exact_highlight_ap((scores + [0] * num_clips)[:num_clips], relevant))
            hits.append(any(rating >= minimum for rating in ratings.get(scores.index(max(scores)), ())))
        shares[f"HL-min-{name}-mAP"] = mean(precisions)
        shares[f"HL-min-{name}-Hit1"] = mean(hits)
    return {name: float(100 * share) for name, share in shares.items()}


# Quarter seconds are exact in binary, so that an IoU that equals a threshold does so in floating point too.
quarters = st.integers(0, 200).map(lambda quarter: quarter / 4)
scores = st.integers(0, 8).map(lambda eighth: eighth / 8)
predicted_windows = st.tuples(quarters, quarters, scores).map(list)
# Few distinct bounds make windows equal, nested, touching, of the lengths that bound the ranges, and longer than them.
bounds = st.sampled_from([0, 1, 5, 10, 10.25, 20, 30, 40, 50, 150, 151])
true_windows = st.tuples(bounds, bounds).map(sorted).map(list)
coarse_predictions = st.builds(lambda w, score: [*w, score], true_windows, st.sampled_from([0.5, 1.0]))


@st.composite
def submissions(draw):
    num_queries = draw(st.integers(1, 5))
    has_ratings, has_absent, has_presence, has_any_score = (draw(st.booleans()) for _ in range(4))
    predictions, ground_truth = [], []
    for qid in range(num_queries):
        is_absent = has_absent and draw(st.booleans())
        true = [] if is_absent else draw(st.lists(true_windows, min_size=1, max_size=4))
        truth = {"qid": f"q{qid}", "relevant_windows": true}
        if is_absent and draw(st.booleans()):
            truth["absent_kind"] = draw(st.sampled_from(["unrelated", "other_action"]))
        windows = draw(st.lists(coarse_predictions | predicted_windows, max_size=13))
        if has_any_score and windows:
            windows[0] = [*windows[0][:2], draw(st.integers(-3, 3))]  # no probability
        prediction = {"qid": f"q{qid}", "pred_relevant_windows": windows}
        if has_presence:
            prediction["pred_exist_score"] = draw(scores)
        if has_ratings and not is_absent:
            num_clips = draw(st.integers(1, 8))
            clips = draw(st.lists(st.integers(0, num_clips - 1), unique=True))
            rating = st.lists(st.integers(0, 4), min_size=2, max_size=2)
            truth["duration"] = num_clips * CLIP_S + draw(st.sampled_from([0, 1]))
            truth["relevant_clip_ids"] = clips
            truth["saliency_scores"] = draw(st.lists(rating, min_size=len(clips), max_size=len(clips)))
            # Shorter and longer than the video, with ties and on both sides of 0.
            prediction["pred_saliency_scores"] = draw(st.lists(st.integers(-2, 2), min_size=1, max_size=10))
        predictions.append(prediction)
        ground_truth.append(truth)
    ratings = [rating for row in ground_truth for rating in row.get("saliency_scores", [])]
    rated = [row for row in ground_truth if "saliency_scores" in row]
    if rated and not ratings:  # with nothing rated the number of annotators is unknown
        rated[0] |= {"relevant_clip_ids": [0], "saliency_scores": [[0, 0]]}
    return draw(st.permutations(predictions)), ground_truth


@settings(deadline=None, derandomize=True, max_examples=100)
@given(submissions())
def test_equals_brute_force(submission):
    predictions, ground_truth = submission
    if not exact_metrics(predictions, ground_truth):
        with pytest.raises(ValueError, match="nothing to evaluate"):
            evaluate_submission(predictions, ground_truth)
        return
    metrics = evaluate_submission(predictions, ground_truth)
    expected = exact_metrics(predictions, ground_truth)
    assert metrics.keys() == expected.keys()
    for name, value in metrics.items():
        assert value == round(value, 2)
        assert value == pytest.approx(expected[name], abs=0.00501), name  # half of the last digit


def test_brute_force_agrees_with_the_released_figures():
    predictions, ground_truth, released = released_case()
    ground_truth = [row | {"saliency_scores": [r[:2] for r in row["saliency_scores"]]} for row in ground_truth]
    expected = exact_metrics(predictions, ground_truth)
    moment_names = [name for name in released if name.startswith("MR")]
    assert len(moment_names) == 8
    for name in moment_names:
        assert expected[name] == pytest.approx(released[name], abs=0.00501)
    metrics = evaluate_submission(predictions, ground_truth)
    assert metrics == pytest.approx(expected, abs=0.00501)


# --- Properties ---------------------------------------------------------------------------------------------


def test_order_of_rows_and_type_of_qid_do_not_matter():
    predictions, ground_truth, _ = released_case()
    metrics = evaluate_submission(predictions, ground_truth)
    assert all(isinstance(row["qid"], int) for row in ground_truth)
    shuffled = [predictions[index] for index in np.random.default_rng(0).permutation(len(predictions))]
    as_text = [row | {"qid": str(row["qid"])} for row in shuffled]
    assert evaluate_submission(as_text, ground_truth) == metrics
    assert evaluate_submission(predictions, [row | {"qid": np.int64(row["qid"])} for row in ground_truth]) == metrics


def test_input_is_left_as_it_was():
    predictions, ground_truth, _ = released_case()
    before = json.dumps([predictions, ground_truth])
    evaluate_submission(predictions, ground_truth)
    assert json.dumps([predictions, ground_truth]) == before


def test_arrays_and_tuples_equal_lists():
    predictions, ground_truth, _ = released_case()
    as_arrays = [
        row | {field: np.array(row[field]) for field in ("pred_relevant_windows", "pred_saliency_scores")}
        for row in predictions
    ]
    as_tuples = [row | {"relevant_windows": tuple(map(tuple, row["relevant_windows"]))} for row in ground_truth]
    assert evaluate_submission(iter(as_arrays), iter(as_tuples)) == evaluate_submission(predictions, ground_truth)


def test_predictions_after_the_tenth_do_not_count():
    predictions, ground_truth, _ = released_case()
    more = [
        row
        | {
            "pred_relevant_windows": row["pred_relevant_windows"]
            + [[*window, 2.0] for window in truth["relevant_windows"]]
        }
        for row, truth in zip(predictions, ground_truth, strict=True)
    ]
    assert evaluate_submission(more, ground_truth) == evaluate_submission(predictions, ground_truth)


def test_a_perfect_submission_scores_100():
    rng = np.random.default_rng(1)
    ground_truth = []
    for qid in range(20):
        start = rng.integers(0, 5, 3).cumsum() * 10.0
        clips = sorted(rng.choice(75, 10, replace=False).tolist())
        ground_truth.append(
            {
                "qid": qid,
                "duration": 150,
                "relevant_windows": [
                    [s, s + length] for s, length in zip(start.tolist(), (5.0, 20.0, 60.0), strict=True)
                ],
                "relevant_clip_ids": clips,
                "saliency_scores": [[4, 4, 4]] * len(clips),
            }
        )
    predictions = [
        {
            "qid": row["qid"],
            "pred_relevant_windows": [[*window, 0.9] for window in row["relevant_windows"]],
            "pred_saliency_scores": [float(clip in row["relevant_clip_ids"]) for clip in range(75)],
        }
        for row in ground_truth
    ]
    metrics = evaluate_submission(predictions, ground_truth)
    by_range = {name: value for name, value in metrics.items() if name[3:] in ("short-mAP", "middle-mAP", "long-mAP")}
    assert len(by_range) == 3  # a window of another range that is found as well is a false positive there
    others = {"MR-full-mR@1": 33.33, "CAL-ECE": 10.0, "CAL-Brier": 1.0}  # one prediction of three; scores of 0.9
    assert {name: metrics[name] for name in others} == others
    assert all(value == 100.0 for name, value in metrics.items() if name not in {**by_range, **others})
    assert by_range["MR-short-mAP"] == 100.0
    assert by_range["MR-middle-mAP"] == 50.0
    assert by_range["MR-long-mAP"] == pytest.approx(33.33)


# --- what validation passes, evaluation takes ----------------------------------------------------------------


@st.composite
def rated_rows(draw):
    """Rows with ratings of any clips of videos of any length, the partial last clip included."""
    rows = []
    for number in range(draw(st.integers(1, 4))):
        duration_s = draw(st.floats(0.3, 40, allow_nan=False).map(lambda value: round(value, 2)))
        clips = draw(st.sets(st.integers(0, clip_count(duration_s, 2.0) - 1), min_size=1))
        ratings = draw(st.lists(st.integers(0, 4), min_size=3 * len(clips), max_size=3 * len(clips)))
        scores = [ratings[first : first + 3] for first in range(0, len(ratings), 3)]
        fields = {"relevant_clip_ids": sorted(clips), "saliency_scores": scores}
        windows = [[0.0, round(duration_s / 2, 3)]]
        rows.append(make_row(qid=number, vid=f"v{number}", duration=duration_s, relevant_windows=windows, **fields))
    return rows


@settings(deadline=None, derandomize=True, max_examples=60)
@given(rated_rows())
def test_rows_that_are_valid_can_be_evaluated(rows):
    assert validate_rows(rows, clip_length_s=2.0).ok
    predictions = [
        {"qid": row["qid"], "pred_relevant_windows": [[0, 1, 0.5]], "pred_saliency_scores": [1.0, 0.0]} for row in rows
    ]
    assert evaluate_submission(predictions, rows)


def test_a_partial_last_clip_counts_where_it_was_rated():
    truth = make_row(duration=5.0, relevant_clip_ids=[2], saliency_scores=[[4]])
    predicted = {"qid": "q1", "pred_saliency_scores": [0.1, 0.2, 0.9]}
    assert evaluate_submission([predicted], [truth])["HL-min-VeryGood-Hit1"] == 100.0


def test_every_row_has_as_many_annotators():
    rows = [
        make_row(qid="a", relevant_clip_ids=[1], saliency_scores=[[1, 2, 3]]),
        make_row(qid="b", query="Another.", relevant_clip_ids=[1], saliency_scores=[[1, 2]]),
    ]
    assert [problem.field for problem in validate_rows(rows).errors] == ["saliency_scores"]
    predictions = [{"qid": row["qid"], "pred_saliency_scores": [0.0]} for row in rows]
    with pytest.raises(ValueError, match="3 ratings of a clip"):
        evaluate_submission(predictions, rows)
