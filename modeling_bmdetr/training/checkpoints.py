"""Checkpoints that are whole or not there: where they are written, how they are published, and which is the last.

A checkpoint is written under `OUTPUT/_unfinished/` and moved to `OUTPUT/checkpoint-STEP` when every process is done
with it; a checkpoint that is to be deleted is moved there first. So a folder named `checkpoint-STEP` is whole, whenever
the process dies.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

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


def rotate_checkpoints(output_dir: str | os.PathLike, limit: int | None, best: str | None) -> None:
    """Deletes the oldest checkpoints until `limit` are left; the newest and the best always stay."""
    if limit is None or limit <= 0:
        return
    checkpoints = list_checkpoints(output_dir)
    best_name = Path(best).name if best else None
    disposable = [path for path in checkpoints[:-1] if path.name != best_name]
    for path in disposable[: max(0, len(checkpoints) - limit)]:
        delete_checkpoint(path)
