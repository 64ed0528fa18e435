"""Runs a recipe, once or for several seeds: trains, evaluates, writes model, predictions, card and report."""

import gc
import json
import platform
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import set_seed

from ..calibration_bmdetr import calibration_lines
from ..cards import write_model_card
from ..data.batches.negative_sampling import NegativeSampler, Strategy
from ..data.features.store import FeatureStore
from ..data.rows.schema import is_labelled
from ..evaluation import write_jsonl
from ..evaluation.baselines import baseline_metrics
from ..files_bmdetr import replacing_file, require_writable, write_json
from ..tables import markdown_table
from ..training import BMDetrTrainer, BMDetrTrainingArguments
from ..training.record import count_rows, library_versions, training_record
from .preparation import (
    RecipeRows,
    add_negatives,
    build_model,
    labels_of,
    load_rows,
    open_store,
    title_of,
)
from .progress import PlannedRun, find_runs, recipe_of_run, write_record
from .recipe import Recipe

# Shown in the table; the report has all.
HEADLINES = ("R1@0.3", "R1@0.5", "R1@0.7", "R5@0.5", "R5@0.7", "mIoU", "mAP")
_NO_METRICS = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def train_by_recipe(
    recipe: Recipe, out: Path, seeds: Sequence[int] | None = None, resume: bool = False
) -> dict[str, Any]:
    """Runs a recipe, once or for each seed, and returns the report that it writes to `out`.

    Raises:
        OSError: nothing can be written to `out`.
        ValueError: what the recipe names does not fit, or `out` holds a run that is not to be resumed.
    """
    require_writable(out)
    rows = load_rows(recipe)
    return train_runs(recipe, rows, out, find_runs(recipe, rows, out, seeds, resume))


def train_runs(recipe: Recipe, rows: RecipeRows, out: Path, runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """Trains what of these runs is not done, and returns the report of all that it writes to `out`."""
    arguments = runs[0][0]
    say = print if arguments.process_index == 0 else lambda *_: None
    store = open_store(recipe, rows)
    with arguments.main_process_first(local=False, desc="mining negative queries"):  # one process mines for all
        rows = add_negatives(recipe, rows, out)
    data = describe_data(recipe, rows)
    say(json.dumps(data, indent=2))
    results = []
    for arguments, progress in runs:
        if progress.result is not None:
            say(f"{arguments.output_dir}: done before")
        results.append(progress.result or run(recipe, rows, store, arguments, progress.checkpoint))
    report = {
        "recipe": recipe.to_dict(),
        "data": data,
        "summary": summarize(results),
        "baselines": baselines_of(rows),
        "runs": results,
        "machine": describe_machine(arguments),
        "versions": library_versions(),
    }
    if arguments.process_index == 0:
        table = report_table(report)
        write_json(out / "report.json", report)
        with replacing_file(out / "report.md") as file:
            file.write(table + "\n")
        say(f"\n{table}\n\n{out / 'report.json'}")
    return report


def baselines_of(rows: RecipeRows) -> dict[str, dict[str, dict[str, float]]]:
    """What needs no model reaches on every labelled set, by the set's label and the baseline's name."""
    sets = {"eval": rows.eval, **rows.test}
    labels = labels_of(sets)
    labelled = [name for name, part in sets.items() if all(map(is_labelled, part))]
    return {labels[name]: baseline_metrics(rows.train, sets[name]) for name in labelled}


def run(
    recipe: Recipe,
    rows: RecipeRows,
    store: FeatureStore,
    arguments: BMDetrTrainingArguments,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """Trains once, evaluates the best checkpoint, and writes model, predictions and result."""
    out, is_main = Path(str(arguments.output_dir)), arguments.process_index == 0
    set_seed(arguments.seed)
    model = build_model(recipe, store.contract)
    trainer = BMDetrTrainer(model, arguments, store=store, train_rows=rows.train, eval_rows=rows.eval)
    if is_main and checkpoint is None:
        write_record(recipe, rows, arguments)
    started = time.perf_counter()
    trainer.train(checkpoint)
    trained_s = time.perf_counter() - started
    if is_main:  # what was refused has not become the recipe of the run
        write_record(recipe, rows, arguments)
    if rows.eval and all(map(is_labelled, rows.eval)):
        calibration = trainer.calibrate(rows.eval)
        if is_main:
            print("\n".join(calibration_lines(calibration)))
    trainer.save_model(str(out / "model"))

    metrics = {}
    labels = labels_of(["eval", *rows.test])
    for name, part in {"eval": rows.eval, **rows.test}.items():
        label = labels[name]
        predictions, metrics[label] = predict_and_evaluate(trainer, part)
        if is_main:
            write_jsonl(predictions, out / f"predictions_{label}.jsonl")
    if is_main:
        write_card(trainer, recipe, out / "model", *list(metrics.items())[-1])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "seed": arguments.seed,
        "metrics": metrics,
        "best": {
            "metric": arguments.metric_for_best_model,
            "value": trainer.state.best_metric,
            "checkpoint": trainer.state.best_model_checkpoint,
        },
        "training": {
            "loss": round(losses[-1], 5) if losses else None,  # the last that was logged
            "epochs": trainer.state.epoch,
            "updates": trainer.state.global_step,
            "parameters": model.num_parameters(),
            "resumed_from": checkpoint,
        },
        "seconds": {"train": round(trained_s, 1), "total": round(time.perf_counter() - started, 1)},
        "recipe": recipe_of_run(recipe, arguments),
    }
    if is_main:
        write_json(out / "result.json", result)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    del trainer, model
    gc.collect()
    return result


def predict_and_evaluate(trainer: BMDetrTrainer, rows: Sequence[Any]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Predictions and metrics of rows; no metrics where they have no labels."""
    if not all(map(is_labelled, rows)):
        return trainer.predict_rows(rows), {}
    output = trainer.predict(rows, metric_key_prefix="test")
    named = {name.removeprefix("test_"): value for name, value in (output.metrics or {}).items()}
    metrics = {name: value for name, value in named.items() if name not in _NO_METRICS}
    return trainer.as_predictions(output.predictions, output.label_ids, rows), metrics


def write_card(trainer: BMDetrTrainer, recipe: Recipe, folder: Path, split: str, metrics: dict[str, float]) -> None:
    """A model card with the metrics of one set, and `results.json`, from which it can be written again."""
    record = {**training_record(trainer, {"name": title_of(recipe), "split": split}), "metrics": metrics}
    write_json(folder / "results.json", record)
    write_model_card(trainer.accelerator.unwrap_model(trainer.model), folder, record)


# -------------------------------------------------------------------------------------------------------------- report


def describe_data(recipe: Recipe, rows: RecipeRows) -> dict[str, Any]:
    """Sizes of the sets, and where the negative queries of an epoch come from."""
    strategy = recipe.training.get("negative_sampling", "mined")
    used = strategy if recipe.model.get("background_aware", True) else "none"
    sets = {"train": rows.train, "eval": rows.eval, **rows.test}
    shares = NegativeSampler(rows.train, cast(Strategy, used)).shares()
    return {
        "sets": {name: count_rows(part) for name, part in sets.items()},
        "negatives": {name: round(share, 4) for name, share in shares.items()},
        "moments_a_query": dict(sorted(Counter(len(row["relevant_windows"] or ()) for row in rows.train).items())),
    }


def describe_machine(arguments: BMDetrTrainingArguments) -> dict[str, Any]:
    device = arguments.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": f"{device.type} ({name})",
        "processes": arguments.world_size,
        "precision": getattr(arguments, "mixed_precision", "no"),
        "batch_size": arguments.per_device_train_batch_size * arguments.world_size,
        "accumulated_batches": arguments.gradient_accumulation_steps,
    }


def summarize(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean and sample standard deviation over the runs, for each set and metric that all runs have."""
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for label in results[0]["metrics"]:
        summary[label] = {}
        for name in results[0]["metrics"][label]:
            values = [result["metrics"][label].get(name) for result in results]
            if None not in values:
                spread = statistics.stdev(values) if len(values) > 1 else None
                summary[label][name] = {
                    "mean": round(statistics.fmean(values), 4),
                    "std": None if spread is None else round(spread, 4),
                    "values": values,
                }
    return summary


def report_table(report: dict[str, Any]) -> str:
    """The headline metrics in Markdown, percent: mean and standard deviation over the seeds, and the baselines'."""
    seeds = [result["seed"] for result in report["runs"]]
    rows = []
    for label, metrics in report["summary"].items():
        rows.append([label, *(_cell(metrics.get(f"MR-full-{name}")) for name in HEADLINES)])
        for baseline, reached in report["baselines"].get(label, {}).items():
            cells = (f"{reached[f'MR-full-{name}']:.2f}" if f"MR-full-{name}" in reached else "-" for name in HEADLINES)
            rows.append([f"{label}, {baseline}", *cells])
    title = f"Seeds {', '.join(map(str, seeds))}; percent, mean ± standard deviation."
    return f"{title}\n\n{markdown_table(['set', *HEADLINES], rows)}"


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    spread = "" if entry["std"] is None else f" ± {entry['std']:.2f}"
    return f"{entry['mean']:.2f}{spread}"
