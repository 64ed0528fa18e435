"""Calibration: what is fitted, when it is refused, and that it goes with the weights it was fitted for."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import CONTRACT, PAPER, make_model, make_rows, make_store, make_trainer

from modeling_bmdetr import (
    BMDetrForMomentRetrieval,
    BMDetrProcessor,
    BMDetrTrainer,
    BMDetrTrainingArguments,
    calibrating,
)
from modeling_bmdetr.calibrating import (
    RawAnswers,
    calibrate_folder,
    fit_calibration,
    fit_logistic,
    fit_score,
    held_out_errors,
    raw_answers,
    rows_read,
    score_logits,
)
from modeling_bmdetr.calibration_bmdetr import Calibration, calibration_lines, weights_fingerprint
from modeling_bmdetr.cards import renew_calibration
from modeling_bmdetr.cli import main
from modeling_bmdetr.data import FeatureWriter, write_rows
from modeling_bmdetr.evaluation import evaluate_submission, expected_calibration_error

PRESENT = make_rows(40, seed=5, several_moments=False)
ABSENT = [
    {
        **row,
        "qid": f"{row['qid']}_absent",
        "query": f"nothing {row['qid']}",
        "relevant_windows": [],
        "neg_query_ids": [],
    }
    for row in PRESENT[::2]
]
ROWS = [*PRESENT, *ABSENT]
STORE = make_store(ROWS)


@pytest.fixture(scope="module")
def model():
    return make_model().eval()


def some_calibration(model, **fields):
    plain = {"score": (2.0, 0.5, -1.0), "presence": (3.0, 0.25), "rows": 60, "absent_rows": 20, "notes": {}}
    return Calibration(**{"fingerprint": weights_fingerprint(model), **plain, **fields})


def simulated_answers(rows=4000, presence=True, seed=0):
    """Overconfident scores: the logit is three times that of the truth; presence says more."""
    rng = np.random.default_rng(seed)
    logits, presence_logits = rng.normal(0, 1.5, (rows, 5)), rng.normal(0, 2, rows)
    logits = -np.sort(-logits, axis=1)
    chance = 1 / (1 + np.exp(-(logits + 0.5 * presence_logits[:, None] - 0.5)))
    return RawAnswers(
        scores=1 / (1 + np.exp(-3 * logits)),
        is_right=rng.random((rows, 5)) < chance,
        presence_logits=presence_logits if presence else None,
        is_present=np.ones(rows, dtype=bool),
    )


class TestFit:
    def test_where_presence_says_all_that_the_score_says_the_score_is_fitted_alone(self):
        rng = np.random.default_rng(0)
        worth, error = rng.normal(0, 1, 400), rng.normal(0, 1, 400)
        answers = RawAnswers(
            scores=(1 / (1 + np.exp(-(worth + 3 * error))))[:, None],
            is_right=(rng.random(400) < 1 / (1 + np.exp(-3 * worth)))[:, None],
            presence_logits=worth + error,  # with the score taken off it, it is the worth alone
            is_present=np.ones(400, dtype=bool),
        )
        fitted, reason = fit_score(answers)
        assert fitted is not None, reason
        assert fitted[0] > 0
        assert fitted[1] == 0.0

    def test_the_regression_that_made_the_data_is_found_again(self):
        fitted, reason = fit_score(simulated_answers())
        assert not reason
        assert fitted == pytest.approx((1 / 3, 0.5, -0.5), abs=0.08)

    def test_scores_become_what_they_promise(self):
        before, after = held_out_errors(simulated_answers(presence=False))
        assert before > 0.1
        assert after < 0.06

    @pytest.mark.parametrize(
        ("number", "is_true", "logits", "reason"),
        [
            (49, "mixed", "rising", "49 rows, and at least 50 are needed"),
            (80, "all", "rising", "all are right, so there is nothing to tell apart"),
            (80, "none", "rising", "all are wrong, so there is nothing to tell apart"),
            (80, "mixed", "falling", "what is right does not score higher than what is wrong"),
        ],
    )
    def test_what_cannot_be_fitted_is_not(self, number, is_true, logits, reason):
        truth = {"mixed": np.arange(number) % 2 == 0, "all": np.ones(number, bool), "none": np.zeros(number, bool)}[
            is_true
        ]
        sign = 1 if logits == "rising" else -1
        fitted, said = fit_logistic(sign * (truth + 0.1 * np.arange(number) % 1)[:, None], truth, ("right", "wrong"))
        assert fitted is None
        assert said.startswith("not fitted: ")
        assert reason in said

    def test_few_rows_fit_nothing_however_many_spans_they_have(self):
        few = simulated_answers(rows=49)
        assert fit_score(few) == (None, "not fitted: 49 rows, and at least 50 are needed")

    def test_rows_of_a_model(self, model):
        calibration = fit_calibration(model, ROWS, STORE)
        assert (calibration.rows, calibration.absent_rows) == (len(ROWS), len(ABSENT))
        assert calibration.fingerprint == weights_fingerprint(model)
        for name in ("score", "presence"):  # random weights may tell nothing apart, and then it says so
            assert (getattr(calibration, name) is None) == calibration.notes.get(name, "").startswith("not fitted")
        assert not model.training
        assert model.config.calibration is None
        json.dumps(calibration.to_dict(), allow_nan=False)

    def test_is_right_is_what_the_metrics_count(self, model):
        answers = raw_answers(model, PRESENT, STORE)
        predictions = [
            {"qid": row["qid"], "pred_relevant_windows": windows}
            for row, windows in zip(PRESENT, model_windows(model, PRESENT), strict=True)
        ]
        metrics = evaluate_submission(predictions, PRESENT)
        assert round(100 * float(answers.is_right[:, 0].mean()), 2) == metrics["MR-full-R1@0.5"]
        error = expected_calibration_error(answers.scores[:, 0], answers.is_right[:, 0])
        assert metrics["CAL-ECE"] == pytest.approx(100 * error, abs=0.01)

    def test_a_model_without_presence_head_has_none(self):
        calibration = fit_calibration(make_model(**PAPER), ROWS, STORE)
        assert calibration.presence is None
        assert calibration.notes["presence"] == "not fitted: the model has no presence head"

    def test_present_rows_alone_are_paired_with_other_videos(self, model):
        rows = [{**row, "query": f"unique{number}"} for number, row in enumerate(PRESENT)]
        calibration = fit_calibration(model, rows, STORE)
        assert f"{len(rows)} pairs with other videos, by rule" in calibration.notes["presence"]
        alike = fit_calibration(model, PRESENT, STORE)  # all their sentences share a word
        assert "0 pairs with other videos, by rule" in alike.notes["presence"]

    def test_rows_of_parquet_are_those_of_a_file(self, model):
        arrays = [{**row, "relevant_windows": np.array(row["relevant_windows"], dtype=object)} for row in PRESENT]
        assert fit_calibration(model, iter(arrays), STORE) == fit_calibration(model, PRESENT, STORE)

    def test_rows_without_labels(self, model):
        with pytest.raises(ValueError, match="1 of 2 rows have no `relevant_windows`"):
            fit_calibration(model, [PRESENT[0], {**PRESENT[1], "relevant_windows": None}], STORE)

    @pytest.mark.parametrize(
        "fields", [{"query": True}, {"duration": "20"}, {"relevant_windows": [[5]]}, {"relevant_windows": [[9.0, 2.0]]}]
    )
    def test_rows_with_errors_are_refused(self, model, fields):
        with pytest.raises(ValueError, match=next(iter(fields))):
            fit_calibration(model, [PRESENT[0], {**PRESENT[1], **fields}], STORE)
        with pytest.raises(TypeError, match="must be a mapping"):
            fit_calibration(model, [PRESENT[0], None], STORE)


def model_windows(model, rows):
    from modeling_bmdetr import BMDetrProcessor
    from modeling_bmdetr.data import MomentRetrievalCollator, MomentRetrievalDataset

    dataset = MomentRetrievalDataset(rows, STORE, CONTRACT, with_labels=False)
    batch = MomentRetrievalCollator()([dataset[index] for index in range(len(rows))])
    durations_s = batch.pop("durations_s")
    batch.pop("row_index")
    with torch.no_grad():
        outputs = model(**batch)
    processor = BMDetrProcessor(model.config)
    return processor.decode(outputs["scores"], outputs["pred_spans"], batch["video_mask"].sum(1), durations_s).tolist()


class TestApply:
    def test_by_hand(self, model):
        scores, presence = some_calibration(model).apply(torch.tensor([[0.5, 0.8]]), torch.tensor([2.0]))
        expected = [1 / (1 + math.exp(-(2 * math.log(s / (1 - s)) + 0.5 * 2 - 1))) for s in (0.5, 0.8)]
        assert scores[0].tolist() == pytest.approx(expected)
        assert presence.item() == pytest.approx(1 / (1 + math.exp(-6.25)))

    def test_scores_of_zero_and_one_stay_finite(self, model):
        scores, presence = some_calibration(model).apply(torch.tensor([[0.0, 1.0]]), None)
        assert torch.isfinite(scores).all()
        assert presence is None
        assert np.isfinite(score_logits(np.array([0.0, 1.0]))).all()

    def test_the_model_applies_it_in_evaluation_alone(self, model):
        plain = model_windows(model, PRESENT[:6])
        model.config.calibration = some_calibration(model).to_dict()
        try:
            calibrated = model_windows(model, PRESENT[:6])
        finally:
            model.config.calibration = None
        for before, after in zip(plain, calibrated, strict=True):
            assert [row[:2] for row in before] == [row[:2] for row in after]  # the order does not change
            assert [row[2] for row in before] != [row[2] for row in after]

    def test_other_weights_refuse_it(self, model):
        other = make_model(seed=1).eval()
        other.config.calibration = some_calibration(model).to_dict()
        with pytest.raises(ValueError, match=r"fitted for other weights than these.*bmdetr calibrate"):
            model_windows(other, PRESENT[:2])

    def test_it_is_saved_and_loaded_with_the_weights_at_any_precision(self, model, tmp_path):
        model.config.calibration = some_calibration(model).to_dict()
        try:
            expected = model_windows(model, PRESENT[:2])
            model.save_pretrained(tmp_path)
        finally:
            model.config.calibration = None
        loaded = BMDetrForMomentRetrieval.from_pretrained(tmp_path)
        assert model_windows(loaded, PRESENT[:2]) == pytest.approx(np.array(expected), abs=1e-5)
        for dtype in (torch.bfloat16, torch.float16):
            assert BMDetrForMomentRetrieval.from_pretrained(tmp_path, dtype=dtype).calibration is not None

    def test_a_malformed_one_is_refused(self, model):
        values = some_calibration(model).to_dict()
        assert Calibration.from_dict(json.loads(json.dumps(values))).to_dict() == values
        for field, value, message in [
            ("score", [0.0, 1.0, 1.0], "first number of `score` .* above 0, received 0.0"),
            ("presence", [1.0], "`presence` .* 2 finite numbers"),
            ("presence", 0, "`presence` .* 2 finite numbers, received 0"),
            ("score", [1.0, [], 1.0], "`score` .* 3 finite numbers"),
            ("score", [1e39, 1.0, 1.0], "`score` .* 3 finite numbers"),
            ("score", ["1", 1.0, 1.0], "`score` .* 3 finite numbers"),
            ("fingerprint", None, "`fingerprint` .* 4 finite numbers"),
        ]:
            with pytest.raises(ValueError, match=message):
                Calibration.from_dict({**values, field: value})
        for value in (3, [1], None):
            with pytest.raises(ValueError, match="a calibration has the fields"):
                Calibration.from_dict(value)
        with pytest.raises(ValueError, match="a calibration has the fields"):
            make_model(calibration={"score": None})


def test_a_trainer_calibrates_and_a_new_training_forgets(tmp_path):
    never = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    trainer = make_trainer(tmp_path, eval_rows=ROWS, store=make_store(make_rows(), ROWS), max_steps=2, **never)
    trainer.model.config.calibration = some_calibration(trainer.model).to_dict()
    trainer.train()
    assert trainer.model.config.calibration is None
    calibration = trainer.calibrate(ROWS)
    fitted = calibration.score is not None or calibration.presence is not None
    assert (trainer.model.config.calibration is not None) == fitted
    predictions = trainer.predict_rows(ROWS)
    assert all(0 <= row["pred_exist_score"] <= 1 for row in predictions) or calibration.presence is None


def test_what_users_are_told(model):
    assert calibration_lines(None) == [
        "not calibrated: a score is what the model ranks by, and no probability (`bmdetr calibrate`)"
    ]
    lines = calibration_lines(some_calibration(model, presence=None, notes={"presence": "not fitted: few"}))
    assert lines == ["score: calibrated on 60 rows, 20 of them absent", "presence: not calibrated (not fitted: few)"]


def test_the_command(tmp_path, capsys):
    model = make_model(seed=4).eval()
    model.save_pretrained(tmp_path / "model")
    write_rows(tmp_path / "val.jsonl", ROWS)
    with FeatureWriter(tmp_path / "features", CONTRACT) as writer:
        for vid in {row["vid"]: None for row in ROWS}:
            writer.add_video(vid, STORE.video(vid))
        for row in ROWS:
            writer.add_text(row["qid"], STORE.text(row["qid"]))
        writer.finish()
    command = [
        "calibrate",
        str(tmp_path / "model"),
        str(tmp_path / "val.jsonl"),
        "--features",
        str(tmp_path / "features"),
    ]
    code = main([*command, "--json"])
    shown = capsys.readouterr()
    assert code in (0, 1), shown.err
    printed = json.loads(shown.out)
    expected = fit_calibration(model, ROWS, STORE)
    assert printed["rows"] == len(ROWS)
    assert (printed["score"] is None) == (expected.score is None) == (code == 1)
    stored = json.loads((tmp_path / "model" / "config.json").read_text())["calibration"]
    nothing = expected.score is None and expected.presence is None
    assert (stored is None) == nothing
    assert main([*command[:-1], str(tmp_path / "nowhere")]) == 2


def test_nothing_is_written_where_nothing_was_fitted(model, tmp_path):
    calibration, lines = calibrate_folder(model, PRESENT[:20], STORE, tmp_path / "out")
    assert calibration.score is None
    assert "nothing was fitted" in lines[-1]
    assert not (tmp_path / "out").exists()


def test_another_model_is_not_replaced(tmp_path):
    make_model(seed=4).save_pretrained(tmp_path / "one")
    make_model(seed=5).save_pretrained(tmp_path / "other")
    before = (tmp_path / "other" / "model.safetensors").read_bytes()
    one = BMDetrForMomentRetrieval.from_pretrained(tmp_path / "one")
    with pytest.raises(ValueError, match=r"other' holds another model than the one to calibrate.*another folder"):
        calibrate_folder(one, ROWS, STORE, tmp_path / "other")
    assert (tmp_path / "other" / "model.safetensors").read_bytes() == before
    for _ in range(2):  # its own folder, and once more
        calibrate_folder(one, ROWS, STORE, tmp_path / "one")


class TestVideosLongerThanTheModelReads:
    CONTRACT = replace(CONTRACT, max_clips=4, long_video="window")

    def rows(self):
        """Rows of 20 s of which every second one describes what lies beyond the first 4 clips."""
        rows = [{**row, "vid": f"v{i}", "duration": 20.0} for i, row in enumerate(PRESENT[:60])]
        end_s = 4 * self.CONTRACT.clip_length
        for i, row in enumerate(rows):
            row["relevant_windows"] = [[end_s, end_s + 3.0]] if i % 2 else [[0.0, 3.0]]
        return [*rows, {**ABSENT[0], "vid": "v0", "duration": 20.0}]

    def test_what_it_does_not_read_is_no_part_of_the_calibration(self, package_log):
        rows = self.rows()
        store, model = make_store(rows, contract=self.CONTRACT), make_model(contract=self.CONTRACT).eval()
        read = [row for row in rows if not row["relevant_windows"] or row["relevant_windows"][0][0] == 0]
        assert rows_read(rows, self.CONTRACT, store) == read
        calibration = fit_calibration(model, rows, store)
        assert calibration.rows == len(read)
        assert "30 of 61 rows are left out of the calibration" in package_log.text
        with pytest.raises(ValueError, match=r"1 of 1 rows are left out.*rows about the beginning"):
            fit_calibration(model, rows[1:2], store)

    def test_resampled_videos_and_short_ones_are_read_to_their_end(self):
        rows = self.rows()
        for contract in (replace(self.CONTRACT, long_video="resample"), replace(self.CONTRACT, max_clips=40)):
            assert rows_read(rows, contract, make_store(rows, contract=contract)) == rows

    def test_evaluation_says_what_it_does_not_look_at(self, tmp_path, package_log):
        rows = self.rows()
        store = make_store(rows, contract=self.CONTRACT)
        arguments = BMDetrTrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True)
        trainer = BMDetrTrainer(make_model(contract=self.CONTRACT), arguments, store=store, eval_rows=rows)
        trainer.evaluate()
        assert "30 of 61 rows describe what lies beyond the first 4 clips" in package_log.text


def test_a_new_folder_keeps_the_settings_of_the_processor(model, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrating, "fit_calibration", lambda *_, **__: some_calibration(model))
    processor = BMDetrProcessor(model.config, nms_threshold=0.5)
    calibrate_folder(model, ROWS, STORE, tmp_path / "out", processor=processor)
    assert BMDetrProcessor.from_pretrained(tmp_path / "out").nms_threshold == 0.5


def test_the_card_says_what_is_true_of_the_calibration(tmp_path):
    model = make_model(seed=4)
    model.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    card.write_text(card.read_text() + "\nmy own line\n")
    plain = card.read_text()
    before = copy.deepcopy(model.config)
    model.config.calibration = some_calibration(model).to_dict()
    renew_calibration(tmp_path, before, model)
    assert "- score: calibrated on 60 rows, 20 of them absent" in card.read_text()
    assert "It is not calibrated" not in card.read_text()
    assert card.read_text().endswith("my own line\n")
    calibrated = copy.deepcopy(model.config)
    model.config.calibration = None
    renew_calibration(tmp_path, calibrated, model)
    assert card.read_text() == plain
