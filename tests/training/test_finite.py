"""A run that diverges stops with the batch's qids and the last good checkpoint, or skips and counts."""

import math

import numpy as np
import pytest
import torch
from factories import NO_DROPOUT, make_rows, make_store, make_trainer
from transformers import TrainerCallback

from modeling_bmdetr.loss_bmdetr import BMDetrLoss, LossTerm
from modeling_bmdetr.training.finite import all_finite

ROWS = make_rows(6, several_moments=False)
ONE_VIEW = {**NO_DROPOUT, "answer_negatives": False}  # a term is computed once in a step
STEPS = {"logging_strategy": "steps", "logging_steps": 1, "eval_strategy": "no", "load_best_model_at_end": False}


def bad_on(steps, value, model):
    """A loss whose extra term is `value` in the given steps, counted from 1."""
    step = iter(range(1, 1000))

    def extra(inputs):
        return inputs.outputs["pred_spans"].mean() * (value if next(step) in steps else 0.0)

    criterion = BMDetrLoss(model.config)
    criterion.terms = {**BMDetrLoss.terms, "loss_extra": LossTerm(1.0, extra)}
    criterion.weights["loss_extra"] = 1.0
    return criterion


def make_bad_run(tmp_path, steps=(3,), value=math.nan, **options):
    options = {"save_strategy": "steps", "save_steps": 1, "temporal_shifting": False, **STEPS, **options}
    trainer = make_trainer(tmp_path, ROWS, model=ONE_VIEW, store=make_store(ROWS, make_rows(5, 1, "e")), **options)
    trainer.criterion = bad_on(steps, value, trainer.model)
    return trainer


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_training_with_qids_and_checkpoint(tmp_path, value):
    trainer = make_bad_run(tmp_path, value=value)
    third = trainer.train_sampler().global_batches(0)[2]
    with pytest.raises(FloatingPointError, match="training diverged at update 3") as error:
        trainer.train()
    for row in third:
        assert f"'{ROWS[row]['qid']}'" in str(error.value)
    assert str(tmp_path / "checkpoint-2") in str(error.value)
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    assert not (tmp_path / "checkpoint-3").exists()


def test_before_any_checkpoint_that_is_said(tmp_path):
    with pytest.raises(FloatingPointError, match="no checkpoint was written before"):
        make_bad_run(tmp_path, steps=(1,)).train()


def test_a_gradient_that_is_not_finite_stops_training(tmp_path):
    trainer = make_bad_run(tmp_path, steps=(), max_grad_norm=0.0)
    trainer.model.class_head.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(FloatingPointError, match="loss or a gradient of the batch of qid"):
        trainer.train()


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    class Spoil(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                model.class_head.weight[0, 0] = math.inf

    trainer = make_bad_run(tmp_path, steps=())
    trainer.add_callback(Spoil())
    with pytest.raises(FloatingPointError, match="a weight is not finite"):
        trainer.train()
    assert not (tmp_path / "checkpoint-1").exists()


def test_bad_updates_are_skipped_and_counted_when_asked(tmp_path, package_log):
    weights = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            weights[state.global_step] = model.class_head.weight.detach().clone()

    trainer = make_bad_run(
        tmp_path, steps=(2, 3), skip_nonfinite=True, num_train_epochs=1, save_strategy="no", learning_rate=1e-2
    )
    trainer.add_callback(Keep())
    trainer.train()
    logs = {entry["step"]: entry for entry in trainer.state.log_history if "loss" in entry}
    assert torch.equal(weights[1], weights[2])
    assert torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[3], weights[4])
    assert logs[1]["loss"] > 0
    assert math.isnan(logs[2]["loss"])
    assert math.isnan(logs[3]["loss"])
    assert logs[4]["loss"] > 0
    assert [logs[step]["skipped_updates"] for step in (1, 2, 3, 4)] == [0, 1, 2, 2]
    assert "update 2 is skipped: the loss or a gradient of the batch of qid" in package_log.text


def test_the_logged_loss_is_the_mean_of_the_batches_that_were_trained_on(tmp_path):
    options = {"learning_rate": 0.0, "num_train_epochs": 1, "save_strategy": "no", "logging_steps": 4}
    plain = make_bad_run(tmp_path, steps=(), **{**options, "logging_steps": 1})
    plain.train()
    losses = [entry["loss"] for entry in plain.state.log_history if "loss" in entry]
    trainer = make_bad_run(tmp_path, steps=(2,), skip_nonfinite=True, **options)
    trainer.train()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert logged == pytest.approx((losses[0] + losses[2] + losses[3]) / 3, rel=1e-3)


def test_a_learning_rate_that_diverges_is_noticed(tmp_path):
    options = {"learning_rate": 1e30, "save_strategy": "no", "num_train_epochs": 8}
    with pytest.raises(FloatingPointError, match="Train with a lower `learning_rate`"):
        make_bad_run(tmp_path, steps=(), **options).train()


def test_where_looking_costs_a_wait_updates_are_looked_at_when_they_are_logged_or_saved(tmp_path, monkeypatch):
    """As on an accelerator: the flags of the updates stay there until then."""
    trainer = make_bad_run(tmp_path, steps=(2,), logging_steps=3, save_steps=3)
    rows = trainer.train_sampler().global_batches(0)[1]
    monkeypatch.setattr("modeling_bmdetr.training.finite.looks_at_once", lambda tensor: False)
    with pytest.raises(FloatingPointError, match="diverged") as error:
        trainer.train()
    assert trainer.state.global_step == 3
    for row in rows:
        assert f"'{ROWS[row]['qid']}'" in str(error.value)


def test_all_finite():
    for value in (math.nan, math.inf, -math.inf):
        assert not all_finite([torch.zeros(3), torch.tensor([1.0, value])])
    assert all_finite([torch.zeros(3), torch.full((10,), 1e18)])
    assert all_finite(torch.from_numpy(np.ones(3)) for _ in range(2))
