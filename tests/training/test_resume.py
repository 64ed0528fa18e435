"""Runs that are killed go on as if nothing had happened, and no checkpoint is taken for whole that is not."""

import json
import os
import shutil
import signal

import pytest
import resumable_run
import torch
from factories import make_trainer
from resumable_run import ARGUMENTS, EVERY_THREE, POINTS, ROWS, SAVE, make_run, outcome
from training_runs import start_processes, wait_for
from transformers.trainer_utils import get_last_checkpoint

from modeling_bmdetr import BMDetrForMomentRetrieval
from modeling_bmdetr.training.checkpointing import (
    delete_checkpoint,
    last_checkpoint,
    list_checkpoints,
    publish_checkpoint,
    rotate_checkpoints,
    unfinished_dir,
)

QUICK = ("in_mid_epoch", "while_the_optimizer_is_written", "before_the_checkpoint_is_moved")
EVERY = [point if point in QUICK else pytest.param(point, marks=pytest.mark.slow) for point in POINTS]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """`killed(point)`: the parent of the folder of a run that died there. Several runs share a process to start in."""
    out = tmp_path_factory.mktemp("killed")

    def start(point):
        if not (out / point).exists():
            together = QUICK if point in QUICK else [other for other in POINTS if other not in QUICK]
            wait_for(start_processes([resumable_run.__file__, str(out), *together], processes=1))
        return out

    return start


_uninterrupted = {}


def uninterrupted(point, tmp_path):
    """What the run of a point ends with when it is left alone."""
    key = json.dumps(POINTS[point])
    if key not in _uninterrupted:
        trainer = make_run(tmp_path / "uninterrupted", point)
        trainer.train()
        _uninterrupted[key] = outcome(trainer)
    return _uninterrupted[key]


def assert_same_outcome(one, other):
    assert one["steps"] == other["steps"]
    assert one["history"] == other["history"]
    assert one["best"] == other["best"]
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name]), name
    assert all(torch.equal(a, b) for a, b in zip(one["optimizer"], other["optimizer"], strict=True))


def assert_whole(checkpoint):
    """Everything that resuming reads can be read."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert checkpoint.name == f"checkpoint-{state['global_step']}"
    if state["best_model_checkpoint"]:
        assert "_unfinished" not in state["best_model_checkpoint"]
    BMDetrForMomentRetrieval.from_pretrained(checkpoint)
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(checkpoint / name, weights_only=True)
    assert list(checkpoint.glob("rng_state*.pth"))


@pytest.mark.parametrize("point", EVERY)
def test_a_killed_run_goes_on_as_if_it_had_not_been(killed, tmp_path, point):
    folder = killed(point) / point
    assert list_checkpoints(folder)
    for checkpoint in list_checkpoints(folder):
        assert_whole(checkpoint)
    # The Trainer's own search finds the same one.
    assert last_checkpoint(folder) == get_last_checkpoint(str(folder))
    last = int(last_checkpoint(folder).rpartition("-")[2])
    expected = {
        "in_mid_epoch": [9],
        "in_mid_epoch_with_accumulation": [6],
        "after_an_epoch": [7],
        "before_old_ones_are_deleted": [SAVE],
        "while_old_ones_are_deleted": [SAVE - 3, SAVE],  # in whichever save there is a checkpoint too many
    }
    assert last in expected.get(point, [SAVE - 3])

    trainer = make_run(folder.parent, point)
    trainer.train(resume_from_checkpoint=True)
    assert_same_outcome(outcome(trainer), uninterrupted(point, tmp_path))
    assert len(list_checkpoints(folder)) <= 3
    for checkpoint in list_checkpoints(folder):
        assert_whole(checkpoint)


def test_an_unfinished_checkpoint_of_another_program_is_passed_over(tmp_path):
    make_checkpoints(tmp_path, 9)
    (tmp_path / "checkpoint-12").mkdir()
    (tmp_path / "checkpoint-15").mkdir()
    (tmp_path / "checkpoint-15" / "trainer_state.json").write_text('{"epoch": ')
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_resuming_needs_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="holds no whole checkpoint to go on from"):
        make_run(tmp_path, "in_mid_epoch").train(resume_from_checkpoint=True)


def make_short_run(out, **options):
    """Ten updates of four queries, with a checkpoint every five; no best one is loaded."""
    defaults = {**EVERY_THREE, "eval_steps": 5, "save_steps": 5, "max_steps": 10, "load_best_model_at_end": False}
    return make_trainer(out, ROWS, **{**ARGUMENTS, "dataloader_num_workers": 0, **defaults, **options})


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """`short_run(to)`: copies what a short run left, and what it ended with."""
    out = tmp_path_factory.mktemp("short") / "run"
    trainer = make_short_run(out)
    trainer.train()

    def copy(to):
        shutil.copytree(out, to)
        return outcome(trainer)

    return copy


def test_a_finished_run_is_not_trained_further(short_run, tmp_path):
    expected = short_run(tmp_path / "run")
    trainer = make_short_run(tmp_path / "run")
    trainer.train(resume_from_checkpoint=True)
    assert_same_outcome(outcome(trainer), expected)


def test_what_a_process_left_that_died_before_it_tidied_up_goes(short_run, tmp_path):
    short_run(tmp_path / "run")
    shutil.copytree(tmp_path / "run" / "checkpoint-5", tmp_path / "run" / "checkpoint-3")
    older = make_short_run(tmp_path / "run", max_steps=5)
    older.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-5"))  # not the newest: all stay
    assert (tmp_path / "run" / "checkpoint-3").is_dir()
    make_short_run(tmp_path / "run").train(resume_from_checkpoint=True)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-5", "checkpoint-10"]
    assert not (tmp_path / "run" / "_unfinished").exists()


def test_the_best_checkpoint_is_found_where_the_run_is_now(short_run, tmp_path):
    """The path in the trainer's state is that of the folder in which the run was begun."""
    short_run(tmp_path / "moved")
    state_file = tmp_path / "moved" / "checkpoint-10" / "trainer_state.json"
    state = json.loads(state_file.read_text())
    state |= {"best_metric": 100.0, "best_global_step": 5, "best_model_checkpoint": "before/checkpoint-5"}
    state_file.write_text(json.dumps(state))
    trainer = make_short_run(tmp_path / "moved", max_steps=11, load_best_model_at_end=True)
    trainer.train(resume_from_checkpoint=True)
    best = tmp_path / "moved" / "checkpoint-5"
    assert trainer.state.best_model_checkpoint == str(best)
    saved = BMDetrForMomentRetrieval.from_pretrained(best).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())


def test_a_run_goes_on_with_the_arguments_it_is_given(short_run, tmp_path):
    short_run(tmp_path / "run")
    changed = {"max_steps": 12, "learning_rate": 0.5, "lr_drop_factor": 0.1, "weight_decay": 0.25, "save_steps": 1}
    trainer = make_short_run(tmp_path / "run", save_total_limit=None, **changed)
    trainer.train(resume_from_checkpoint=True)
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([2e-3] * 7 + [1e-3] * 3 + [0.05] * 2)
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.25, 0.0}
    assert (tmp_path / "run" / "checkpoint-11").is_dir()


@pytest.mark.parametrize("options", [{"per_device_train_batch_size": 6}, {"gradient_accumulation_steps": 2}])
def test_another_number_of_batches_is_refused(short_run, tmp_path, options):
    short_run(tmp_path / "run")
    trainer = make_short_run(tmp_path / "run", max_steps=12, **options)
    with pytest.raises(ValueError, match="checkpoint-10' was made with another number of batches per epoch"):
        trainer.train(resume_from_checkpoint=True)


def test_the_weights_of_another_model_are_refused(short_run, tmp_path):
    short_run(tmp_path / "run")
    weights = (tmp_path / "run" / "checkpoint-10" / "model.safetensors").read_bytes()
    trainer = make_short_run(tmp_path / "run", model={"background_aware": False}, max_steps=12)
    with pytest.raises(ValueError, match=r"another model .* in 4 tensors: model.frame_query_matcher.w1.weight \["):
        trainer.train(resume_from_checkpoint=True)
    assert (tmp_path / "run" / "checkpoint-10" / "model.safetensors").read_bytes() == weights


def make_checkpoints(folder, *steps):
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (2, "checkpoint-5", [5, 20]),
        (2, None, [10, 20]),
        (1, "checkpoint-5", [5, 20]),
        (1, "checkpoint-20", [20]),
        (3, "checkpoint-5", [5, 10, 20]),
        (None, None, [5, 9, 10, 20]),
    ],
)
def test_the_newest_and_the_best_checkpoint_stay(tmp_path, limit, best, left):
    make_checkpoints(tmp_path, 5, 9, 10, 20)
    rotate_checkpoints(tmp_path, limit, best and str(tmp_path / best))
    assert [int(path.name.rpartition("-")[2]) for path in list_checkpoints(tmp_path)] == left


def test_a_checkpoint_replaces_one_of_the_same_name(tmp_path):
    make_checkpoints(tmp_path, 5)
    make_checkpoints(unfinished_dir(tmp_path), 5)
    (unfinished_dir(tmp_path) / "checkpoint-5" / "new").touch()
    publish_checkpoint(unfinished_dir(tmp_path) / "checkpoint-5", tmp_path)
    assert (tmp_path / "checkpoint-5" / "new").exists()
    delete_checkpoint(tmp_path / "checkpoint-5")
    assert not list_checkpoints(tmp_path)


@pytest.mark.slow
def test_two_processes_killed_in_a_save_go_on_as_if_they_had_not_been(tmp_path):
    """One process dies, the other is killed with it; the run that goes on equals one that was left alone."""
    point, last = "while_the_optimizer_is_written", SAVE - 3
    script = resumable_run.__file__
    processes = start_processes([script, str(tmp_path), point, "--rank"])
    assert processes[0].wait(timeout=240) == -signal.SIGKILL
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        finally:
            process.wait()
    for checkpoint in list_checkpoints(tmp_path / point):
        assert_whole(checkpoint)
        assert {path.name for path in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert last_checkpoint(tmp_path / point) == str(tmp_path / point / f"checkpoint-{last}")

    (tmp_path / "alone").mkdir()
    for folder in (tmp_path, tmp_path / "alone"):
        wait_for(start_processes([script, str(folder), point, "--finish"]))
    for rank in range(2):
        resumed, alone = (torch.load(tmp_path / part / f"rank{rank}.pt", weights_only=False) for part in ("", "alone"))
        assert_same_outcome(resumed, alone)
