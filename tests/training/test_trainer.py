"""BMDetrTrainer on one process: what it trains on, logs, selects and saves."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from factories import CONTRACT, NO_DROPOUT, make_model, make_rows, make_store, make_trainer

from modeling_bmdetr import BMDetrForMomentRetrieval
from modeling_bmdetr.data.batches.sampler import UniqueVideoBatchSampler
from modeling_bmdetr.evaluation import evaluate_submission
from modeling_bmdetr.training import BMDetrTrainer, BMDetrTrainingArguments

LOSS_TERMS = {"loss_cls", "loss_l1", "loss_iou", "loss_margin", "loss_prob", "loss_prob_positive", "loss_semantic"}
QUIET = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


class RecordingTrainer(BMDetrTrainer):
    """Remembers which rows each training step saw, and the losses as they were returned."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps, self.losses = [], []

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        result = super().compute_loss(model, inputs, return_outputs, **kwargs)
        if model.training:
            self.steps.append(inputs["row_index"].tolist())
            self.losses.append(float(result.detach()))
        return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three epochs with evaluation and checkpoints, on two workers."""
    directory = tmp_path_factory.mktemp("run")
    trainer = make_trainer(
        directory,
        trainer_class=RecordingTrainer,
        num_train_epochs=3,
        learning_rate=5e-3,
        dataloader_num_workers=2,
        metric_for_best_model="MR-full-mIoU",
        save_total_limit=None,
    )
    trainer.train()
    return trainer


def test_every_epoch_visits_every_query_once_in_batches_of_unique_videos(trained):
    rows = trained.train_dataset
    per_epoch = len(trained.steps) // 3
    for epoch in range(3):
        steps = trained.steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert Counter(row for step in steps for row in step) == Counter(range(len(rows)))
        assert all(len({rows[row]["vid"] for row in step}) == len(step) for step in steps)
    assert trained.steps[:per_epoch] != trained.steps[per_epoch : 2 * per_epoch]
    assert trained.state.global_step == len(trained.steps) == 3 * math.ceil(len(rows) / 4)


def test_every_term_of_both_views_is_logged(trained):
    logs = [entry for entry in trained.state.log_history if "loss" in entry]
    assert len(logs) == 3
    for entry in logs:
        assert LOSS_TERMS | {f"shifted_{name}" for name in LOSS_TERMS} <= set(entry)
    per_epoch = len(trained.losses) // 3
    for epoch, entry in enumerate(logs):
        losses = trained.losses[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert entry["loss"] == pytest.approx(sum(losses) / per_epoch, rel=1e-3)


def test_evaluation_reports_the_metrics_of_evaluate_submission(trained):
    rows = trained.eval_dataset
    metrics = trained.evaluate()
    expected = evaluate_submission(trained.predict_rows(rows), rows, clip_length_s=CONTRACT.clip_length)
    assert {name: metrics[f"eval_{name}"] for name in expected} == expected
    assert 0 < metrics["eval_p_inside"] < 1
    assert 0 < metrics["eval_p_outside"] < 1
    assert math.isfinite(metrics["eval_loss"])


def test_the_best_checkpoint_by_the_metric_is_loaded(trained):
    evaluations = [entry for entry in trained.state.log_history if "eval_MR-full-mIoU" in entry]
    scores = {entry["step"]: entry["eval_MR-full-mIoU"] for entry in evaluations}
    best_step = max(scores, key=lambda step: (scores[step], -step))
    assert len(set(scores.values())) > 1
    assert trained.state.best_metric == scores[best_step]
    assert Path(trained.state.best_model_checkpoint).name == f"checkpoint-{best_step}"
    saved = BMDetrForMomentRetrieval.from_pretrained(trained.state.best_model_checkpoint)
    for (name, loaded), kept in zip(saved.state_dict().items(), trained.model.state_dict().values(), strict=True):
        assert torch.equal(loaded, kept), name


def test_a_checkpoint_carries_model_contract_and_processor(trained):
    directory = Path(trained.state.best_model_checkpoint)
    names = {path.name for path in directory.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "trainer_state.json"} <= names
    assert BMDetrForMomentRetrieval.from_pretrained(directory).config.feature_contract == CONTRACT
    assert json.loads((directory / "processor_config.json").read_text())["feature_contract"] == CONTRACT.to_dict()
    assert "use_cache" not in json.loads((directory / "config.json").read_text())


def test_nothing_is_left_of_writing_checkpoints(trained):
    per_epoch = trained.state.global_step // 3
    names = {path.name for path in Path(trained.args.output_dir).iterdir()}
    assert names == {f"checkpoint-{per_epoch * epoch}" for epoch in (1, 2, 3)}


def test_predictions_come_in_the_order_of_the_rows_best_first(trained):
    rows = list(reversed(trained.eval_dataset))
    predictions = trained.predict_rows(rows)
    assert [prediction["qid"] for prediction in predictions] == [row["qid"] for row in rows]
    for prediction, row in zip(predictions, rows, strict=True):
        windows = prediction["pred_relevant_windows"]
        assert len(windows) == trained.config.num_queries
        assert windows == sorted(windows, key=lambda window: -window[2])
        assert all(0 <= start <= end <= row["duration"] for start, end, _ in windows)
        assert len(prediction["pred_saliency_scores"]) == len(trained.store.video(row["vid"])[: CONTRACT.max_clips])


def test_rows_without_labels_can_be_predicted(trained):
    rows = [{**row, "relevant_windows": None} for row in trained.eval_dataset]
    with_labels = trained.predict_rows(trained.eval_dataset)
    for without, with_label in zip(trained.predict_rows(rows), with_labels, strict=True):
        assert without["pred_relevant_windows"] == with_label["pred_relevant_windows"]


def test_evaluation_uses_negatives_only_when_asked_to(tmp_path):
    for wanted in (False, True):
        trainer = make_trainer(tmp_path, evaluate_with_negatives=wanted)
        assert any("negative_text_mask" in batch for batch in trainer.get_eval_dataloader()) == wanted
        assert all("shifted_labels" not in batch for batch in trainer.get_eval_dataloader())


@pytest.mark.parametrize(
    ("arguments", "model", "present"),
    [
        ({"negative_sampling": "none"}, {}, {"shifted_labels"}),
        ({"temporal_shifting": False}, {}, {"negative_labels"}),
        ({"negative_sampling": "same_video"}, {}, {"negative_labels", "shifted_labels"}),
        ({}, {"background_aware": False}, {"shifted_labels"}),
    ],
)
def test_what_a_training_batch_holds(tmp_path, arguments, model, present):
    trainer = make_trainer(tmp_path, model=model, **arguments)
    batch = next(iter(trainer.get_train_dataloader()))
    assert {name for name in ("shifted_labels", "negative_labels") if name in batch} == present
    assert len(batch["row_index"]) <= 4


def test_the_learning_rate_falls_every_so_many_epochs(tmp_path):
    trainer = make_trainer(
        tmp_path, num_train_epochs=5, lr_drop_epochs=2, learning_rate=1e-3, logging_strategy="steps", logging_steps=1,
        **QUIET,
    )  # fmt: skip
    trainer.train()
    steps = math.ceil(len(trainer.train_dataset) / 4)
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    expected = [1e-3] * 2 * steps + [1e-4] * 2 * steps + [1e-5] * steps
    assert rates == pytest.approx(expected, rel=1e-6)


def test_the_schedule_counts_epochs_of_the_data_when_steps_are_limited(tmp_path):
    rows = make_rows()
    steps = math.ceil(len(rows) / 4)
    trainer = make_trainer(
        tmp_path, rows, lr_drop_epochs=1, max_steps=steps + 1, gradient_accumulation_steps=1, learning_rate=1e-3,
        logging_strategy="steps", logging_steps=1, **QUIET,
    )  # fmt: skip
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-3] * steps + [1e-4], rel=1e-6)


def test_the_schedule_counts_updates_not_batches(tmp_path):
    rows = make_rows()
    updates = math.ceil(math.ceil(len(rows) / 4) / 2)
    trainer = make_trainer(
        tmp_path, rows, lr_drop_epochs=1, num_train_epochs=2, gradient_accumulation_steps=2, learning_rate=1e-3,
        logging_strategy="steps", logging_steps=1, **QUIET,
    )  # fmt: skip
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-3] * updates + [1e-4] * updates, rel=1e-6)


def test_the_same_seed_gives_the_same_weights(tmp_path):
    def train(seed, workers=0):
        trainer = make_trainer(tmp_path, max_steps=3, seed=seed, dataloader_num_workers=workers, **QUIET)
        trainer.train()
        return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])

    assert torch.equal(train(1), train(1, workers=2))
    assert not torch.equal(train(1), train(2))


def test_training_lowers_the_loss(tmp_path):
    rows = make_rows(4)
    trainer = make_trainer(
        tmp_path, rows, model=NO_DROPOUT, num_train_epochs=30, learning_rate=3e-3, max_grad_norm=1.0, **QUIET
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(tmp_path, precision):
    trainer = make_trainer(tmp_path, num_train_epochs=1, **{precision: True})
    result = trainer.train()
    assert math.isfinite(result.training_loss)
    assert all(
        parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in trainer.model.parameters()
    )
    assert math.isfinite(trainer.evaluate()["eval_MR-full-mIoU"])


def test_training_without_evaluation_rows(tmp_path):
    rows = make_rows(3)
    trainer = BMDetrTrainer(
        make_model(),
        BMDetrTrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True, disable_tqdm=True, **QUIET),
        store=make_store(rows),
        train_rows=rows,
    )
    trainer.train()
    with pytest.raises(ValueError, match="evaluation needs `eval_rows`"):
        trainer.evaluate()


def test_evaluation_without_training_rows(tmp_path):
    rows = make_rows(3)
    trainer = BMDetrTrainer(
        make_model(),
        BMDetrTrainingArguments(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True),
        store=make_store(rows),
        eval_rows=rows,
    )
    assert "eval_MR-full-mAP" in trainer.evaluate()
    assert "test_MR-full-mAP" in trainer.predict(rows).metrics
    with pytest.raises(ValueError, match="training needs `train_rows`"):
        trainer.train()


def test_rows_that_cannot_be_trained_on_are_named(tmp_path):
    rows = make_rows(3)
    with pytest.raises(ValueError, match=r"1 errors in \d+ rows:\n.*qid vq1.*is missing"):
        make_trainer(tmp_path, [rows[0], {**rows[1], "relevant_windows": None}, *rows[2:]])
    with pytest.raises(FileNotFoundError, match="videos are missing"):
        make_trainer(tmp_path, rows, store=make_store(rows[:1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr_drop_epochs": -1}, "`lr_drop_epochs` must not be negative"),
        ({"num_train_epochs": 0}, "`num_train_epochs` must be a number above 0"),
        ({"num_train_epochs": -1.0}, "`num_train_epochs` must be a number above 0"),
        ({"num_train_epochs": math.nan}, "`num_train_epochs` must be a number above 0"),
        ({"num_train_epochs": math.inf}, "`num_train_epochs` must be a number above 0"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be at least 1"),
        ({"lr_drop_factor": 0.0}, "`lr_drop_factor` must lie in"),
        ({"lr_drop_epochs": 3, "lr_scheduler_type": "linear"}, "set `lr_drop_epochs` to 0"),
        ({"remove_unused_columns": True}, "`remove_unused_columns` must be False"),
        ({"negative_sampling": "hard"}, "`negative_sampling` must be one of"),
        ({"num_negatives": 0}, "`num_negatives` must be at least 1"),
        ({"shifting_limit_s": 0}, "`shifting_limit_s` must be positive"),
        ({"dataloader_drop_last": True}, "`dataloader_drop_last` has no effect"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` has no effect"),
        ({"train_sampling_strategy": "sequential"}, "must be 'random' or 'group_by_length'"),
        ({"cpu_matmul_precision": "bfloat16", "bf16": True}, "has no effect with `bf16`"),
        ({"cpu_matmul_precision": "float16"}, "must be 'float32' or 'bfloat16', received 'float16'"),
        ({"auto_find_batch_size": True}, "`auto_find_batch_size` has no effect"),
    ],
)
def test_arguments_that_cannot_be_meant(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        BMDetrTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **arguments)


def test_defaults_are_the_released_recipe(tmp_path):
    args = BMDetrTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (2e-4, 1e-4, 0.1)
    assert (args.num_train_epochs, args.per_device_train_batch_size, args.lr_drop_epochs) == (100, 32, 40)
    assert args.metric_for_best_model == "MR-full-R1@0.7"
    assert args.ddp_find_unused_parameters is False


def test_several_accelerators_without_a_launcher_are_not_used_in_a_way_nobody_asked_for(tmp_path, package_log):
    rows = make_rows(3)
    args = BMDetrTrainingArguments(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=1, **QUIET)
    args._n_gpu = 2  # as on a machine with two
    trainer = BMDetrTrainer(make_model(), args, store=make_store(rows), train_rows=rows)
    assert (trainer.args.n_gpu, trainer.args.train_batch_size) == (1, 32)
    assert "start one process on each with `accelerate launch`" in package_log.text


def test_a_shifted_view_that_cannot_be_is_reported(tmp_path, package_log):
    make_trainer(tmp_path, shifting_limit_s=2.0).get_train_dataloader()
    assert "no view is shifted" in package_log.text


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_the_loader_yields_the_sampler_s_batches(tmp_path, strategy):
    trainer = make_trainer(tmp_path, train_sampling_strategy=strategy)
    videos = [row["vid"] for row in trainer.train_dataset]
    lengths = [trainer.store.num_clips(video) for video in videos] if strategy == "group_by_length" else None
    sampler = UniqueVideoBatchSampler(videos, 4, seed=3, lengths=lengths)
    loader = trainer.get_train_dataloader()
    loader.set_epoch(5)
    sampler.set_epoch(5)
    assert [batch["row_index"].tolist() for batch in loader] == [[row for _, row in batch] for batch in sampler]
