"""Several processes, or several accumulated batches, give the loss and the gradients of one large batch."""

import math

import pytest
import torch
import training_runs
from factories import NO_DROPOUT, PAPER, make_model, make_rows, make_trainer
from training_runs import EVAL_SIZES, RUNS, batch_of, inputs_of, start_processes, train, wait_for
from training_runs import evaluate as evaluate_here

from modeling_bmdetr import paper_losses_bmdetr
from modeling_bmdetr.loss_bmdetr import LOSS_TERMS
from modeling_bmdetr.targets_bmdetr import COUNTS, MomentTargets
from modeling_bmdetr.training.distributed import count_targets, mean_counts

SAME = [name for name in RUNS if name != "not_gathered"]
BATCH_WIDE = tuple(name.removeprefix("loss_") for name, term in LOSS_TERMS.items() if term.per == "batch")
ROW_BY_ROW = {**NO_DROPOUT, **{LOSS_TERMS[f"loss_{name}"].weight: 0.0 for name in BATCH_WIDE}}


def assert_same_training(one, other, gathered):
    """Equal losses, gradients and weights, up to the order of summation."""
    assert len(one["gradients"]) == len(other["gradients"]) > 3
    for first, second in zip(one["gradients"], other["gradients"], strict=True):
        scale = max(float(gradient.abs().max()) for gradient in first.values())
        for name in first:
            difference = (first[name] - second[name]).abs().max()
            assert difference <= 1e-4 * scale, name
    for first, second in zip(one["logs"], other["logs"], strict=True):
        terms = [term for term in first if gathered or not term.endswith(BATCH_WIDE)]
        assert {term: first[term] for term in terms} == pytest.approx(
            {term: second[term] for term in terms}, rel=1e-4, abs=2e-5
        )
    for name, value in one["weights"].items():
        torch.testing.assert_close(value, other["weights"][name], rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------------- one process


def test_counts_are_what_the_terms_are_means_over(tmp_path, monkeypatch):
    """The counts that are exchanged equal the divisors that the loss terms come to by themselves."""
    divisors: list[float] = []
    masked_mean = paper_losses_bmdetr.masked_mean

    def recording_mean(values, mask, count=None):
        assert count is None
        divisors.append(float(mask.sum()))
        return masked_mean(values, mask)

    monkeypatch.setattr(paper_losses_bmdetr, "masked_mean", recording_mean)
    units = ["rows", "moments", "moments", "present", "present", "rows", "rows", "negatives"]  # of `LOSS_TERMS`
    model = {**NO_DROPOUT, **PAPER, "num_queries": 2}
    trainer = make_trainer(tmp_path, make_rows(11), num_negatives=2, model=model)
    for batch in trainer.get_train_dataloader():
        divisors.clear()
        trainer.model(**inputs_of(batch))
        counts = count_targets(batch, 2)
        assert divisors == [float(counts[view, COUNTS.index(unit)]) for view in range(2) for unit in units]


def part_of_a_larger_batch(model, batch, counts):
    """Loss and terms of a batch over the counts of an update, as the Trainer computes them."""
    inputs = {name: value for name, value in inputs_of(batch).items() if name != "labels"}
    return model.criterion(model(**inputs), MomentTargets.from_inputs(model.config, batch), counts)


def test_a_batch_alone_has_the_loss_of_the_batch(tmp_path):
    trainer = make_trainer(tmp_path, make_rows(11), model=NO_DROPOUT)
    batch = next(iter(trainer.get_train_dataloader()))
    plain = trainer.model(**inputs_of(batch))
    counts = mean_counts([batch], 4, torch.device("cpu"))
    loss, terms = part_of_a_larger_batch(trainer.model, batch, counts)
    torch.testing.assert_close(loss, plain.loss)
    torch.testing.assert_close(terms, plain.loss_dict)
    # Counts are an argument, nothing that the criterion remembers.
    torch.testing.assert_close(part_of_a_larger_batch(trainer.model, batch, 2 * counts)[0], plain.loss / 2)
    torch.testing.assert_close(trainer.model(**inputs_of(batch)).loss, plain.loss)


def test_parts_of_a_batch_add_up_to_it(tmp_path):
    """The mean of the parts' losses is the loss of the whole, however unequal the parts are."""
    rows = make_rows(11)
    trainer = make_trainer(tmp_path, rows, model=ROW_BY_ROW)
    model = trainer.model

    def losses(parts):
        batches = [batch_of(trainer, rows, part) for part in parts]
        counts = mean_counts(batches, model.config.num_queries, torch.device("cpu"))
        results = [part_of_a_larger_batch(model, batch, counts) for batch in batches]
        names = [name for name in results[0][1] if not name.endswith(BATCH_WIDE)]  # of each part by itself
        terms = {name: torch.stack([terms[name] for _, terms in results]).mean() for name in names}
        return torch.stack([loss for loss, _ in results]).mean(), terms

    whole, whole_terms = losses([range(10)])
    for parts in ([range(5), range(5, 10)], [range(1), range(1, 10)], [range(3), range(3, 4), range(4, 10)]):
        total, terms = losses(parts)
        torch.testing.assert_close(total, whole, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(terms, whole_terms, rtol=1e-5, atol=1e-6)


def test_accumulated_batches_equal_the_large_batch(tmp_path):
    """The gradients that the Trainer accumulates over unequal batches, against those of all rows at once."""
    rows = make_rows(11)
    trainer = make_trainer(tmp_path, rows, model=ROW_BY_ROW)
    results = []
    for parts in ([[0, 4, 7], [9, 12]], [[0, 4, 7, 9, 12]]):
        trainer.model.zero_grad()
        update = iter([batch_of(trainer, rows, part) for part in parts])
        batches, counts = trainer.get_batch_samples(update, len(parts), torch.device("cpu"))
        trainer.current_gradient_accumulation_steps = len(batches)
        loss = sum(trainer.training_step(trainer.model, batch, counts) for batch in batches)
        results.append((loss, torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_logged_loss_does_not_grow_with_accumulation(tmp_path, steps):
    fields = {**NO_DROPOUT, "standardize_inputs": False}
    trainer = make_trainer(
        tmp_path, make_rows(11), model=fields, learning_rate=0.0, gradient_accumulation_steps=steps,
        num_train_epochs=1, eval_strategy="no", save_strategy="no", load_best_model_at_end=False, lr_drop_epochs=0,
    )  # fmt: skip
    result = trainer.train()
    model = make_model(**fields)
    losses = [model(**inputs_of(batch)).loss.item() for batch in trainer.get_train_dataloader()]
    assert result.training_loss == pytest.approx(sum(losses) / len(losses), rel=0.1)


def test_every_parameter_has_a_gradient_whatever_is_switched_off(tmp_path, monkeypatch):
    monkeypatch.setitem(training_runs.PLAIN, "max_steps", 2)
    for name in RUNS:
        result = train(name, tmp_path)
        for gradients in result["gradients"]:
            missing = [parameter for parameter, gradient in gradients.items() if gradient is None]
            assert not missing, (name, missing)


# ------------------------------------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Results of every run on each of two processes, with DDP as the arguments set it up."""
    out = tmp_path_factory.mktemp("two")
    wait_for(start_processes([training_runs.__file__, str(out), *RUNS, "evaluation", "sharded"]))
    return [torch.load(out / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_two_processes_train_as_one(two_processes, tmp_path, name):
    here, there = train(name, tmp_path), two_processes[0][name]
    # Where alignment has no weight, it is not gathered, and its value is that of each process's own queries.
    assert_same_training(here, there, gathered=name not in ("no_alignment", "accumulated"))
    for other, value in two_processes[1][name]["weights"].items():
        assert torch.equal(value, there["weights"][other])


@pytest.mark.slow
def test_alignment_within_each_process_is_another_loss(two_processes, tmp_path):
    """Without gathering, what contrasts rows sees fewer queries; everything else agrees."""
    here, there = train("not_gathered", tmp_path), two_processes[0]["not_gathered"]
    first, second = here["logs"][0], there["logs"][0]
    for name in first:
        apart = abs(first[name] - second[name]) > 1e-3 * abs(first[name])
        assert apart == (name == "loss" or name.endswith(BATCH_WIDE)), name


@pytest.mark.slow
def test_a_sharded_model_has_the_same_gradients(two_processes, tmp_path):
    """FSDP on the CPU, by PyTorch itself: Accelerate shards on accelerators only."""
    trainer = make_trainer(tmp_path, training_runs.ROWS, model=NO_DROPOUT)
    rows = sum(training_runs.SHARDED_PARTS[1:], training_runs.SHARDED_PARTS[0])
    batch = batch_of(trainer, training_runs.ROWS, rows)
    model = trainer.model.train()
    loss = model(**training_runs.inputs_of(batch)).loss
    loss.backward()
    results = [result["sharded"] for result in two_processes]
    assert sum(result["loss"] for result in results) / 2 == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(results[0]["gradients"][name], parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_see_every_query_once_and_no_video_twice_in_a_step(two_processes):
    rows = training_runs.ROWS
    for name in RUNS:
        shares = [result[name]["batches"] for result in two_processes]
        steps = [first + second for first, second in zip(*shares, strict=True)]
        assert all(first and second for first, second in zip(*shares, strict=True))
        if name != "accumulated":
            assert len(steps) == 2 * math.ceil(len(rows) / 8)
        for epoch in (steps[: len(steps) // 2], steps[len(steps) // 2 :]):
            assert sorted(row for step in epoch for row in step) == list(range(len(rows)))
            assert all(len({rows[row]["vid"] for row in step}) == len(step) for step in epoch)
        assert len({len(step) for step in steps}) > 1  # some step is short, so batches are unequal


@pytest.mark.slow
@pytest.mark.parametrize("size", EVAL_SIZES)
def test_two_processes_evaluate_every_query_once(two_processes, tmp_path, size):
    rows = make_rows(8, seed=5)[:size]
    here = evaluate_here(tmp_path)[size]
    for result in two_processes:
        there = result["evaluation"][size]
        assert [prediction["qid"] for prediction in there["predictions"]] == [row["qid"] for row in rows]
        assert there["metrics"] == pytest.approx(here["metrics"], abs=1e-3)
        for first, second in zip(there["predictions"], here["predictions"], strict=True):
            windows = torch.tensor(first["pred_relevant_windows"]), torch.tensor(second["pred_relevant_windows"])
            torch.testing.assert_close(*windows, rtol=1e-4, atol=1e-4)
            scores = torch.tensor(first["pred_saliency_scores"]), torch.tensor(second["pred_saliency_scores"])
            torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)
