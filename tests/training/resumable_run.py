"""A training run that dies where it is told to; run as a script, in processes of its own.

python resumable_run.py OUT POINT...      forks once for each point; the run of a point goes to OUT/POINT
python resumable_run.py OUT POINT --rank  one process of several, with RANK and so on in the environment
"""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from factories import make_rows, make_trainer
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from modeling_bmdetr.training import BMDetrTrainer
from modeling_bmdetr.training import checkpointing as checkpoints_module

# 27 queries in batches of 4: 7 updates an epoch, 14 in all. With dropout, workers, shifts, negatives and a schedule.
ROWS = make_rows(11, seed=6)
ARGUMENTS: dict[str, Any] = {
    "num_train_epochs": 2,
    "lr_drop_epochs": 1,
    "lr_drop_factor": 0.5,
    "learning_rate": 2e-3,
    "dataloader_num_workers": 2,
    "save_total_limit": 2,
    "metric_for_best_model": "MR-full-mIoU",
    "logging_strategy": "steps",
    "logging_steps": 1,
}
EVERY_THREE = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
EVERY_EPOCH = {"eval_strategy": "epoch", "save_strategy": "epoch"}
# Where the run dies -> the arguments of the run. Those in a save die in the one of update 12.
POINTS: dict[str, dict[str, Any]] = {
    "in_mid_epoch": EVERY_THREE,
    "in_mid_epoch_with_accumulation": {
        **EVERY_THREE,
        "gradient_accumulation_steps": 2,
        "save_steps": 2,
        "eval_steps": 2,
    },
    "after_an_epoch": EVERY_EPOCH,
    "before_weights_are_written": EVERY_THREE,
    "while_the_optimizer_is_written": EVERY_THREE,
    "while_the_state_is_written": EVERY_THREE,
    "before_the_checkpoint_is_moved": EVERY_THREE,
    "before_old_ones_are_deleted": EVERY_THREE,
    "while_old_ones_are_deleted": EVERY_THREE,
}
DEATHS = {"in_mid_epoch": 11, "in_mid_epoch_with_accumulation": 7, "after_an_epoch": 9}
SAVE = 12


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DieAtStep(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            die()


def make_run(out: Path, point: str) -> BMDetrTrainer:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    options = {**ARGUMENTS, **POINTS[point]}
    return make_trainer(out / point, ROWS, per_device_train_batch_size=4 // processes, **options)


def arm(trainer: BMDetrTrainer, point: str) -> None:
    """Prepares a run to die at its point."""
    if point in DEATHS:
        trainer.add_callback(DieAtStep(DEATHS[point]))
        return

    def at_save(owner: Any, name: str, last_words: Any) -> None:
        original = getattr(owner, name)

        def patched(*args: Any, **kwargs: Any) -> Any:
            if trainer.state.global_step == SAVE:
                last_words(*args)
                die()
            return original(*args, **kwargs)

        setattr(owner, name, patched)

    def half_an_optimizer(output_dir: str) -> None:
        (Path(output_dir) / "optimizer.pt").write_bytes(b"PK\x03\x04 half")

    def half_a_state(_: TrainerState, path: str) -> None:
        Path(path).write_text('{"global_step": ')

    def first_file(path: Path, **_: Any) -> None:
        next(file for file in sorted(Path(path).iterdir()) if file.is_file()).unlink()

    def only_old_checkpoints(path: Path, **kwargs: Any) -> None:
        if "deleted-" in str(path) and Path(path).exists():
            first_file(path)
            die()
        rmtree(path, **kwargs)

    rmtree = shutil.rmtree
    {
        "before_weights_are_written": lambda: at_save(trainer, "save_model", lambda *_: None),
        "while_the_optimizer_is_written": lambda: at_save(trainer, "_save_optimizer_and_scheduler", half_an_optimizer),
        "while_the_state_is_written": lambda: at_save(TrainerState, "save_to_json", half_a_state),
        "before_the_checkpoint_is_moved": lambda: at_save(checkpoints_module, "publish_checkpoint", lambda *_: None),
        "before_old_ones_are_deleted": lambda: at_save(checkpoints_module, "rotate_checkpoints", lambda *_: None),
        "while_old_ones_are_deleted": lambda: setattr(checkpoints_module.shutil, "rmtree", only_old_checkpoints),
    }[point]()


def main(out: Path, points: list[str], is_rank: bool) -> None:
    for point in points:
        child = 0 if is_rank else os.fork()
        if child == 0:
            trainer = make_run(out, point)
            arm(trainer, point)
            trainer.train()
            os._exit(3)  # it should have died
        _, status = os.waitpid(child, 0)
        if os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"{point}: ended with status {status} instead of dying")


def finish(out: Path, point: str) -> None:
    """Resumes a run on several processes and stores what it ends with."""
    trainer = make_run(out, point)
    trainer.train(resume_from_checkpoint=checkpoints_module.last_checkpoint(out / point))
    torch.save(outcome(trainer), out / f"rank{os.environ['RANK']}.pt")
    dist.destroy_process_group()


def outcome(trainer: BMDetrTrainer) -> dict[str, Any]:
    """What two runs must have in common: weights, optimiser, logs and metrics, and the record of the best model."""
    timing = ("runtime", "per_second", "preparation_time", "flos", "train_loss")
    history = [
        {name: value for name, value in entry.items() if not any(word in name for word in timing)}
        for entry in trainer.state.log_history
    ]
    state = trainer.state
    return {
        "weights": {name: value.clone() for name, value in trainer.model.state_dict().items()},
        "optimizer": [value for entry in trainer.optimizer.state_dict()["state"].values() for value in entry.values()],
        "history": history,
        "best": (state.best_metric, state.best_global_step, Path(state.best_model_checkpoint).name),
        "steps": state.global_step,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, *names = sys.argv[1:]
    if "--finish" in names:
        finish(Path(target), names[0])
    else:
        main(Path(target), [name for name in names if name != "--rank"], "--rank" in names)
