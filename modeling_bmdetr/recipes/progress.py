"""How far the runs of a recipe came before, and whether they may go on: with the seed and the rows of their record."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from accelerate.utils import broadcast_object_list

from ..files_bmdetr import write_json
from ..training import BMDetrTrainingArguments, last_checkpoint
from .preparation import RecipeRows, training_arguments
from .recipe import SECTIONS, Recipe

_SEEDS = ("training.seed", "training.data_seed")


@dataclass
class Progress:
    """How far a run came before: its result if it is done, else the checkpoint to resume from, if any; or why it must
    not go on."""

    result: dict[str, Any] | None = None
    checkpoint: str | None = None
    refusal: str = ""


PlannedRun: TypeAlias = tuple[BMDetrTrainingArguments, Progress]


def find_runs(
    recipe: Recipe, rows: RecipeRows, out: Path, seeds: Sequence[int] | None = None, resume: bool = False
) -> list[PlannedRun]:
    """The runs of a recipe and how far each came before; nothing is written. Errors as in `find_progress`."""
    folders = [(out, None)] if seeds is None else [(out / f"seed{seed}", seed) for seed in seeds]
    # The first arguments start the process group.
    runs = [training_arguments(recipe, folder, seed) for folder, seed in folders]
    return [(arguments, find_progress(recipe, rows, arguments, resume)) for arguments in runs]


def find_progress(recipe: Recipe, rows: RecipeRows, arguments: BMDetrTrainingArguments, resume: bool) -> Progress:
    """What an earlier run left in the output folder. All processes answer alike, as the first one sees it.

    Raises:
        ValueError: the folder holds a run, and it is not to be resumed, or was begun with another seed or
            on other rows.
    """
    answer = [Progress()]
    if arguments.process_index == 0:
        answer[0] = _look_up_progress(recipe, rows, arguments, resume)
    if arguments.world_size > 1:
        broadcast_object_list(answer)
    if answer[0].refusal:
        raise ValueError(answer[0].refusal)
    return answer[0]


def refusal_to_overwrite(folder: Path) -> str:
    """Why no new run may begin in a folder: it holds one already. Nothing if it may."""
    if not (folder / "result.json").is_file() and last_checkpoint(folder) is None:
        return ""
    return f"'{folder}' holds a run: pass --resume to go on with it, or another --out"


def _look_up_progress(recipe: Recipe, rows: RecipeRows, arguments: BMDetrTrainingArguments, resume: bool) -> Progress:
    folder = Path(str(arguments.output_dir))
    refusal = refusal_to_overwrite(folder)
    if not refusal or not resume:
        return Progress(refusal=refusal)
    changes = find_changes(recipe, arguments)
    if seeds := [f"{name} = {old}, not {new}" for name, (old, new) in changes.items() if name in _SEEDS]:
        return Progress(
            refusal=f"'{folder}' holds a run that was begun with {'; '.join(seeds)}: give each seed a folder of its "
            "own, by --seeds or another --out"
        )
    if changed := changed_sets(folder, rows):
        return Progress(
            refusal=f"'{folder}' holds a run on other rows: those of {', '.join(changed)} have changed since. Give the "
            "rows as they were to go on with it, or another --out to train on these"
        )
    for name, (old, new) in changes.items():
        print(f"{folder} was begun with {name} = {old}, and goes on with {new}", file=sys.stderr)
    path = folder / "result.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    # The finished run of another recipe, such as one with fewer epochs, is not the result of this one.
    if result and result["recipe"] != recipe_of_run(recipe, arguments):
        result = None
    return Progress(result, last_checkpoint(folder))


def changed_sets(folder: Path, rows: RecipeRows) -> list[str]:
    """The sets whose rows are others than those of the run in a folder; none where it does not say which it had."""
    path = folder / "rows.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [name for name, digest in rows.digests.items() if before.get(name, digest) != digest]


def recipe_of_run(recipe: Recipe, arguments: BMDetrTrainingArguments) -> dict[str, Any]:
    """The recipe as JSON reads it back, with the seed of one run."""
    entries = recipe.to_dict()
    return json.loads(json.dumps({**entries, "training": {**entries["training"], "seed": arguments.seed}}))


def find_changes(recipe: Recipe, arguments: BMDetrTrainingArguments) -> dict[str, tuple[Any, Any]]:
    """Entries of the recipe that differ from those with which the run in the output folder was begun: then and now."""
    path, now = Path(str(arguments.output_dir)) / "recipe.json", recipe_of_run(recipe, arguments)
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else now
    before["training"].setdefault("seed", now["training"]["seed"])
    changes = {}
    for section in SECTIONS:
        entries = now[section]
        for name in sorted({*entries, *before[section]}):
            pair = (before[section].get(name, "unset"), entries.get(name, "unset"))
            if pair[0] != pair[1]:
                changes[f"{section}.{name}"] = pair
    return changes


def write_record(recipe: Recipe, rows: RecipeRows, arguments: BMDetrTrainingArguments) -> None:
    """Writes what a run has been begun with, by which `find_progress` tells whether it may go on."""
    folder = Path(str(arguments.output_dir))
    write_json(folder / "recipe.json", recipe_of_run(recipe, arguments))
    write_json(folder / "rows.json", rows.digests)
