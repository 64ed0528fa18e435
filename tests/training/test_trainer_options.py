"""What users of the Trainer bring along: a loss of their own, `model_init`, several sets, `compute_metrics`."""

import math

import pytest
import torch
from factories import NO_DROPOUT, PAPER, make_model, make_rows, make_store

from modeling_bmdetr.cpu_layers_bmdetr import FeedForward, Linear
from modeling_bmdetr.loss_bmdetr import LOSS_TERMS, BMDetrLoss, LossTerm, MomentTargets
from modeling_bmdetr.training import BMDetrTrainer, BMDetrTrainingArguments
from modeling_bmdetr.training.record import training_record

QUIET = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "num_train_epochs": 1}
LOGGED = {"logging_strategy": "steps", "logging_steps": 1, "max_steps": 2}


class WidthLoss(BMDetrLoss):
    """A term of one's own, as the documentation shows it."""

    terms = {
        **BMDetrLoss.terms,
        "loss_width": LossTerm(0.5, lambda inputs: inputs.outputs["pred_spans"][..., 1].mean()),
    }


def build(tmp_path, model=None, criterion=None, eval_rows=None, **options):
    """A trainer made with the arguments of the Trainer itself."""
    rows = make_rows(5)
    every = [*rows, *(row for part in eval_rows.values() for row in part)] if isinstance(eval_rows, dict) else rows
    names = ("model_init", "compute_metrics")
    arguments = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "disable_tqdm": True,
        "lr_drop_epochs": 0,
        "temporal_shifting": True,
        **{name: value for name, value in options.items() if name not in names},
    }
    return BMDetrTrainer(
        model,
        BMDetrTrainingArguments(**arguments),
        store=make_store(every),
        train_rows=rows,
        eval_rows=eval_rows or rows,
        criterion=criterion,
        **{name: options[name] for name in names if name in options},
    )


@pytest.mark.parametrize("where", ["trainer", "model"])
def test_a_loss_of_one_s_own_is_called_logged_and_trained_by(tmp_path, where):
    model = make_model(**NO_DROPOUT, **PAPER)
    criterion = WidthLoss(model.config)
    if where == "model":
        model.criterion = criterion
    trainer = build(tmp_path, model, criterion if where == "trainer" else None, **QUIET, **LOGGED)
    batch = next(iter(trainer.get_train_dataloader()))
    bias = model.span_head[-1].bias
    losses = [trainer.compute_loss(model, batch)]
    trainer.criterion = BMDetrLoss(model.config)
    losses.append(trainer.compute_loss(model, batch))
    trainer.criterion = criterion if where == "trainer" else None
    outputs = trainer.forward(model, batch)
    share = (batch["shifted_labels"][:, 0, 0] >= 0).float().mean()  # the rows of the shifted view
    widths = [view.pred_spans[..., 1].mean() for view in (outputs, outputs.shifted)]
    expected = 0.5 * (widths[0] + share * widths[1]) / (1 + share)
    torch.testing.assert_close(losses[0] - losses[1], expected)
    gradients = [torch.autograd.grad(loss, bias, retain_graph=True)[0] for loss in (losses[0] - losses[1], expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0

    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    assert all(0 < entry["loss_width"] < 1 and 0 < entry["shifted_loss_width"] < 1 for entry in logs)


def test_a_forward_with_labels_and_the_trainer_call_the_same_loss(tmp_path):
    model = make_model(**NO_DROPOUT)
    model.criterion = WidthLoss(model.config)
    trainer = build(tmp_path, model, **QUIET)
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = {name: value for name, value in batch.items() if name not in ("row_index", "durations_s")}
    output = model(**inputs)
    assert torch.equal(output.loss, trainer.compute_loss(model, batch))
    assert "loss_width" in output.loss_dict


def test_models_made_by_model_init(tmp_path):
    made = []

    def model_init(trial):
        made.append(make_model(seed=len(made)))
        return made[-1]

    trainer = build(tmp_path, model_init=model_init, **{**QUIET, "max_steps": 1})
    trainer.train()
    assert trainer.model is made[-1]
    assert len(made) == 2  # one to begin with, one for the run, as the library has it
    assert "eval_MR-full-mAP" in trainer.evaluate()
    with pytest.raises(RuntimeError, match="model_init"):
        build(tmp_path, **QUIET)


def test_hyperparameters_are_searched_with_model_init(tmp_path):
    """The steps of a search, as the library's backends take them: a trial, a model, a run, its metrics."""
    trainer = build(tmp_path, model_init=lambda: make_model(), **{**QUIET, "max_steps": 1})
    first = trainer.call_model_init({"learning_rate": 1e-3})
    assert first.config.feature_contract == trainer.contract
    assert trainer.train(trial=None).global_step == 1


def test_several_evaluation_sets(tmp_path):
    sets = {"near": make_rows(2, seed=1, prefix="n"), "far": make_rows(2, seed=2, prefix="f")}
    trainer = build(tmp_path, make_model(), eval_rows=sets, num_train_epochs=2)
    assert trainer.args.metric_for_best_model == "near_MR-full-R1@0.7"
    trainer.train()
    metrics = trainer.evaluate()
    for name, rows in sets.items():
        alone = trainer.evaluate(rows)
        assert metrics[f"eval_{name}_MR-full-mIoU"] == alone["eval_MR-full-mIoU"]
        assert metrics[f"eval_{name}_loss"] == pytest.approx(alone["eval_loss"])
    assert trainer.evaluate("far")["eval_MR-full-mIoU"] == metrics["eval_far_MR-full-mIoU"]
    assert trainer.state.best_metric == max(
        entry["eval_near_MR-full-R1@0.7"] for entry in trainer.state.log_history if "eval_near_MR-full-R1@0.7" in entry
    )
    with pytest.raises(ValueError, match="received other"):
        trainer.evaluate("other")
    named = build(tmp_path, make_model(), eval_rows=sets, metric_for_best_model="far_MR-full-mAP")
    assert named.args.metric_for_best_model == "far_MR-full-mAP"


def test_metrics_of_one_s_own_see_predictions_and_rows(tmp_path):
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction)
        return {"answered": len(prediction.predictions)}

    trainer = build(tmp_path, make_model(), compute_metrics=compute_metrics, **QUIET)
    metrics = trainer.evaluate()
    rows = trainer.eval_dataset
    assert metrics["eval_answered"] == len(rows)
    assert math.isfinite(metrics["eval_MR-full-mAP"])
    predictions, truth = seen[0].predictions, seen[0].label_ids
    assert [prediction["qid"] for prediction in predictions] == [row["qid"] for row in truth]
    assert sorted(row["qid"] for row in truth) == sorted(row["qid"] for row in rows)
    assert len(predictions[0]["pred_relevant_windows"][0]) == 3
    seen.clear()
    trainer.predict_rows(rows)
    assert not seen


def test_a_run_selects_by_a_metric_of_one_s_own(tmp_path):
    trainer = build(
        tmp_path, make_model(), compute_metrics=lambda prediction: {"mine": 1.0}, metric_for_best_model="mine",
        num_train_epochs=1,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_metric == 1.0


@pytest.mark.parametrize("negatives", [False, True])
def test_the_evaluation_loss_does_not_depend_on_the_batch_size(tmp_path, negatives):
    rows = make_rows(6, seed=4)
    model = make_model()
    losses = {}
    for size in (1, 3, 5, len(rows)):
        trainer = BMDetrTrainer(
            model,
            BMDetrTrainingArguments(
                str(tmp_path), per_device_eval_batch_size=size, use_cpu=True, disable_tqdm=True,
                evaluate_with_negatives=negatives, eval_strategy="no", save_strategy="no", load_best_model_at_end=False,
            ),
            store=make_store(rows),
            eval_rows=rows,
        )  # fmt: skip
        losses[size] = trainer.evaluate()["eval_loss"]
        batch = trainer.data_collator([trainer.dataset(rows, False)[index] for index in range(len(rows))])
    assert list(losses.values()) == pytest.approx([losses[1]] * 4, rel=1e-5)
    # It is the loss of all rows as one batch, but for what contrasts these rows, and answers to negatives.
    model.eval()
    terms = trainer.criterion_in_use(trainer.forward(model, batch), MomentTargets.from_inputs(model.config, batch))[1]
    terms = {name: term for name, term in terms.items() if not name.startswith("negative_")}
    terms |= {name: torch.zeros(()) for name, term in LOSS_TERMS.items() if term.per == "batch"}
    assert losses[1] == pytest.approx(model.criterion.weighted_sum(terms).item(), rel=1e-5)


def test_evaluation_without_rows_names_what_is_missing(tmp_path):
    rows = make_rows(3)
    with pytest.raises(ValueError, match=r"'epoch', which needs `eval_rows`: pass them, or .*eval_strategy='no'"):
        BMDetrTrainer(
            make_model(), BMDetrTrainingArguments(str(tmp_path), use_cpu=True), store=make_store(rows), train_rows=rows
        )


@pytest.mark.parametrize("native", [True, False])
def test_products_of_bfloat16_are_of_training_alone_and_where_the_processor_has_them(tmp_path, monkeypatch, native):
    monkeypatch.setattr("modeling_bmdetr.layers_bmdetr.SMALL", 0)
    monkeypatch.setattr("modeling_bmdetr.training.trainer.multiplies_bfloat16", lambda: native)
    used = []

    def noted(apply):
        return lambda *args: used.append(args[-1]) or apply(*args[:-1], torch.float32)

    for function in (Linear, FeedForward):
        monkeypatch.setattr(function, "apply", noted(function.apply))
    model = make_model(**NO_DROPOUT, standardize_inputs=False)
    trainer = build(tmp_path, model, cpu_matmul_precision="bfloat16", **QUIET, **LOGGED)
    trainer.train()
    assert set(used) == {torch.bfloat16 if native else torch.float32}
    assert training_record(trainer)["training"]["cpu_matmul_precision"] == ("bfloat16" if native else "float32")
    used.clear()
    trainer.evaluate()
    trainer.compute_loss(model.train(), next(iter(trainer.get_train_dataloader()))).backward()
    assert set(used) == {torch.float32}
