"""Checkpoints that are whole or not there: where they are written, how they are published, and which is the last.

A checkpoint is written under `OUTPUT/_unfinished/` and moved to `OUTPUT/checkpoint-STEP` when every process is done
with it; a checkpoint that is to be deleted is moved there first. So a folder named `checkpoint-STEP` is whole, whenever
the process dies.

This is the one file that overrides private methods of transformers' Trainer.
"""

import json
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from ..files_bmdetr import naming_failed_writes

TRAINER_STATE = "trainer_state.json"
# The Trainer uploads no file or folder whose name begins with an underscore.
UNFINISHED = "_unfinished"


def unfinished_dir(output_dir: str | os.PathLike) -> Path:
    """Where a run writes what is not whole yet, and what it deletes."""
    return Path(output_dir) / UNFINISHED


def list_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    found = [path for path in Path(output_dir).glob(f"{prefix}*") if path.name.removeprefix(prefix).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(prefix)))


def last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The newest checkpoint from which a run can go on, or None.

    One that another program left unfinished, without the state that the Trainer writes last, is passed over.
    """
    for path in reversed(list_checkpoints(output_dir)):
        try:
            json.loads((path / TRAINER_STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def require_same_weights(weights: Path, expected: Mapping[str, list[int]]) -> None:
    """Refuses the weights of another model.

    Args:
        weights: A safetensors file.
        expected: The shape of every tensor of the model, by name.

    Raises:
        ValueError: the file has other tensors, or tensors of other shapes.
    """
    with safe_open(weights, framework="pt") as file:
        held = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    differing = sorted(name for name in {*held, *expected} if held.get(name) != expected.get(name))
    if differing:
        shown = [f"{name} {held.get(name, 'missing')}, expected {expected.get(name, 'none')}" for name in differing[:3]]
        raise ValueError(
            f"'{weights.parent}' holds another model than the one to train, in {len(differing)} tensors: "
            f"{'; '.join(shown)}: go on with the model settings it was made with, or train into another folder"
        )


def publish_checkpoint(written: Path, output_dir: str | os.PathLike) -> Path:
    """Moves a checkpoint that is whole to its place; one of the same name that is there already is replaced."""
    target = Path(output_dir) / written.name
    if target.exists():
        delete_checkpoint(target)
    os.replace(written, target)
    return target


def delete_checkpoint(path: Path) -> None:
    """Deletes a checkpoint so that it is never seen in part."""
    doomed = unfinished_dir(path.parent) / f"deleted-{path.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    doomed.parent.mkdir(exist_ok=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
    with suppress(OSError):  # a checkpoint that waits for its turn is there, too
        doomed.parent.rmdir()


def rotate_checkpoints(output_dir: str | os.PathLike, limit: int | None, best: str | None) -> None:
    """Deletes the oldest checkpoints until `limit` are left; the newest and the best always stay."""
    if limit is None or limit <= 0:
        return
    checkpoints = list_checkpoints(output_dir)
    best_name = Path(best).name if best else None
    disposable = [path for path in checkpoints[:-1] if path.name != best_name]
    for path in disposable[: max(0, len(checkpoints) - limit)]:
        delete_checkpoint(path)


class CheckpointingTrainer(Trainer, ABC):
    """A Trainer whose checkpoints are whole or not there, and which goes on from one only where that is right."""

    _writes_checkpoint = False

    @abstractmethod
    def batches_per_epoch(self) -> int:
        """Batches of this process in an epoch of the training rows."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As [`Trainer.train`]. `resume_from_checkpoint=True` goes on from the newest checkpoint that is whole.

        Raises:
            ValueError: it is True and `output_dir` has no such checkpoint.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(str(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise ValueError(f"'{self.args.output_dir}' holds no whole checkpoint to go on from")
        if self.args.should_save:
            shutil.rmtree(unfinished_dir(str(self.args.output_dir)), ignore_errors=True)  # left by a process that died
        # Of the whole model: wrapped for several processes it may show this one's share.
        self._shapes = {name: list(value.shape) for name, value in self.model.state_dict().items()}  # type: ignore[union-attr]
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _init_training_state(
        self, max_steps: int, num_updates: int, num_epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """Where a run starts or goes on: (epochs, batches of the next) that are done.

        Raises:
            ValueError: an epoch of the checkpoint had another number of batches.
        """
        done = super()._init_training_state(max_steps, num_updates, num_epochs, checkpoint, trial)
        if checkpoint is None:
            return done
        state, per_epoch = self.state, self.batches_per_epoch()
        state.compute_steps(self.args, max_steps)  # of logging, evaluation and saving, which may be others now
        batches = round((state.epoch or 0) * per_epoch)
        updates = batches // per_epoch * num_updates
        updates += math.ceil(batches % per_epoch / self.args.gradient_accumulation_steps)
        if updates != state.global_step or not math.isclose(batches, (state.epoch or 0) * per_epoch, abs_tol=1e-3):
            raise ValueError(
                f"'{checkpoint}' was made with another number of batches per epoch than {per_epoch}: go on with the "
                "rows, batch size, accumulation and number of processes that it was made with"
            )
        # The path in the state is another one when the folder was moved, or is named from elsewhere.
        best = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
        if best.is_dir():
            state.best_model_checkpoint = str(best)
        newest = last_checkpoint(str(self.args.output_dir))
        if self.args.should_save and newest is not None and Path(newest).samefile(checkpoint):
            # A process that died right after its last checkpoint left one too many.
            rotate_checkpoints(str(self.args.output_dir), self.args.save_total_limit, state.best_model_checkpoint)
        return (num_epochs, 0) if state.global_step >= max_steps else done

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Loads the weights.

        Raises:
            ValueError: they are those of another model than the one that is trained.
        """
        weights = Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME
        if weights.is_file():  # sharded checkpoints are left to the library's own checks
            require_same_weights(weights, self._shapes)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Continues both, but with the arguments of this run: its learning rate and schedule, its weight decay."""
        optimizer, scheduler = self.optimizer, self.lr_scheduler
        if checkpoint is None or optimizer is None or not isinstance(scheduler, LambdaLR):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        given = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        scheduler.base_lrs = [options["initial_lr"] for options in given]
        for group, options, factor in zip(optimizer.param_groups, given, scheduler.lr_lambdas, strict=True):
            group.update(options, lr=options["initial_lr"] * factor(scheduler.last_epoch))
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]

    def _get_output_dir(self, trial: Any) -> str:
        directory = super()._get_output_dir(trial)
        return str(unfinished_dir(directory)) if self._writes_checkpoint else directory

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes a checkpoint out of sight, and moves it to its place when every process is done with it.

        Raises:
            OSError: writing failed, as on a full disk; what was written of the checkpoint is deleted.
        """
        output_dir = self._get_output_dir(trial)
        target = Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            with naming_failed_writes(target):
                self._write_checkpoint(model, trial, target)
        finally:
            if self.args.should_save:
                shutil.rmtree(unfinished_dir(output_dir), ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))

    def _write_checkpoint(self, model: nn.Module, trial: Any, target: Path) -> None:
        output_dir = target.parent
        written = unfinished_dir(output_dir) / target.name
        if self.args.should_save:
            shutil.rmtree(unfinished_dir(output_dir), ignore_errors=True)  # left by a process that died
        self.accelerator.wait_for_everyone()
        self._writes_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writes_checkpoint = False
        if self.state.best_model_checkpoint == str(written):
            self.state.best_model_checkpoint = str(target)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(written / TRAINER_STATE))
            publish_checkpoint(written, output_dir)
            rotate_checkpoints(output_dir, self.args.save_total_limit, self.state.best_model_checkpoint)
