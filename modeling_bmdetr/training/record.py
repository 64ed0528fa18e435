"""What a model card should say about a training run, read off its trainer."""

import importlib.metadata
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import TrainerState

PACKAGES = ("modeling-bmdetr", "torch", "transformers", "accelerate", "datasets", "numpy")
ARGUMENTS = (
    *("num_train_epochs", "learning_rate", "lr_drop_epochs", "lr_drop_factor", "weight_decay", "max_grad_norm"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "negative_sampling", "num_negatives"),
    *("temporal_shifting", "shifting_limit_s"),
)


def training_record(trainer: Any, dataset: Mapping[str, str] | str | None = None) -> dict[str, Any]:
    """A record of results for `write_model_card`: metrics of the weights as they are now, data, arguments, versions.

    Args:
        trainer: Its log holds the metrics, its rows and arguments the rest.
        dataset: Name of the data, or `name`, `id` and `split` of the evaluated rows.
    """
    args: Any = trainer.args
    state = trainer.state
    split, metrics = metrics_of_current_weights(state, bool(args.load_best_model_at_end))
    dataset = {"name": dataset} if isinstance(dataset, str) else dict(dataset or {})
    evaluated: Any = trainer.eval_dataset
    if isinstance(evaluated, Mapping):
        evaluated = [row for part in evaluated.values() for row in part]
    rows: dict[str, Any] = {"train": trainer.train_dataset, "eval": evaluated}
    training = {name: getattr(args, name) for name in ARGUMENTS}
    if not args.lr_drop_epochs:
        del training["lr_drop_epochs"], training["lr_drop_factor"]
    if not args.temporal_shifting:
        del training["shifting_limit_s"]
    training["precision"] = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    if args.cpu_matmul_precision != "float32" and args.device.type == "cpu":
        training["cpu_matmul_precision"] = str(trainer.type_of_products()).removeprefix("torch.")
    if args.load_best_model_at_end:
        training["checkpoint_chosen_by"] = f"{args.metric_for_best_model} on eval"
    if args.world_size > 1:
        training["processes"] = args.world_size
    return {
        "metrics": metrics,
        "dataset": {"name": "unnamed data", "split": split, **dataset} if dataset or metrics else None,
        "data": {name: count_rows(part) for name, part in rows.items() if part},
        "training": {**training, "optimizer_steps": state.global_step},
        "seed": args.seed,
        "versions": library_versions(),
    }


def metrics_of_current_weights(state: TrainerState, loads_best: bool) -> tuple[str, dict[str, float]]:
    """Name of the evaluation, and its metrics, that belong to the weights the trainer holds now.

    An evaluation made after training comes first (`test` before `eval`), then, when training ended by loading the best
    checkpoint, that checkpoint's; else the last one, if no step was taken since.
    """
    history = state.log_history
    end = max((i for i, entry in enumerate(history) if "train_runtime" in entry), default=None)
    if end is not None:
        for split in ("test", "eval"):
            if after := _evaluations(history[end:], split):
                return split, after[-1][1]
    evaluations = _evaluations(history, "eval")
    wanted = state.best_global_step if end is not None and loads_best else state.global_step
    found = [metrics for step, metrics in evaluations if step == wanted]
    return "eval", found[-1] if found else {}


def count_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many videos and queries rows have."""
    return {"videos": len({row["vid"] for row in rows}), "queries": len(rows)}


def library_versions() -> dict[str, str]:
    """Python's version and those of the packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _evaluations(entries: Iterable[Mapping[str, Any]], prefix: str) -> list[tuple[int, dict[str, float]]]:
    """Steps and metrics of the log's entries that are evaluations under a prefix."""
    wanted = tuple(f"{prefix}_{kind}" for kind in ("MR-", "HL-", "p_"))
    found = []
    for entry in entries:
        metrics = {key.removeprefix(f"{prefix}_"): value for key, value in entry.items() if key.startswith(wanted)}
        if metrics:
            found.append((int(entry.get("step", -1)), metrics))
    return found
