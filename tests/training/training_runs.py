"""Training runs that tests repeat on one and on two processes; run as a script, this is one of the processes.

python training_runs.py OUT NAME...      with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from factories import NO_DROPOUT, make_model, make_rows, make_trainer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback

from modeling_bmdetr.loss_bmdetr import MomentTargets
from modeling_bmdetr.training import BMDetrTrainer
from modeling_bmdetr.training.distributed import gather_texts, mean_counts

# Without momentum or normalisation a tiny difference stays tiny. Batches are global; some are odd, the last is short.
PLAIN: dict[str, Any] = {
    "optim": "sgd",
    "learning_rate": 0.01,
    "max_grad_norm": 0.0,
    "num_train_epochs": 2,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "logging_strategy": "steps",
    "logging_steps": 1,
}
TESTS = (str(Path(__file__).parents[1]), str(Path(__file__).parents[2]))  # where a script finds the factories
GLOBAL_BATCH = 8
# 27 queries: the last batches of 8, and of 4, hold three, which two processes share unequally.
ROWS = make_rows(11, seed=6)
for _row in ROWS[::2]:  # in the others every negative query counts fully
    _row["neg_query_weights"] = [0.3 + 0.1 * _number for _number in range(len(_row["neg_query_ids"]))]
# What differs from `PLAIN` in arguments and, under `model`, in the configuration.
# Without what compares the rows of a batch with one another.
ROW_BY_ROW = dict.fromkeys(("alignment_loss_weight", "contrast_loss_weight", "retrieval_loss_weight"), 0.0)
RUNS: dict[str, dict[str, Any]] = {
    "everything": {"num_negatives": 2, "model": {"probability_loss_weight": 1.0}},
    "released": {
        "model": {
            "frame_attention_scale": "literal",
            "alignment_pooling": "gated",
            "alignment_denominator": "all",
            "probability_loss_weight": 2.0,
            "positive_probability_loss_weight": 0.0,
            "negative_probability_loss_weight": 0.0,
        }
    },
    "no_negatives": {"negative_sampling": "none"},
    "mined_only": {"negative_sampling": "mined_only", "num_negatives": 2},
    "no_shifting": {"temporal_shifting": False},
    "neither": {"temporal_shifting": False, "negative_sampling": "none"},
    "baseline": {"temporal_shifting": False, "model": {"background_aware": False, "learnable_spans": False}},
    "no_alignment": {
        "gather_alignment": False,
        "model": ROW_BY_ROW,
    },
    "not_gathered": {"gather_alignment": False},
    "accumulated": {"gradient_accumulation_steps": 2, "model": ROW_BY_ROW},
}
EVAL_SIZES = (1, 7, 8, 11)


class Recorder(TrainerCallback):
    """Keeps the gradients of every update, as the optimiser is about to use them."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor | None]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        named = getattr(model, "module", model).named_parameters()
        self.gradients.append({n: None if p.grad is None else p.grad.detach().clone() for n, p in named})


class RecordingTrainer(BMDetrTrainer):
    """Keeps the rows of every batch of this process."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        if model.training:
            self.__dict__.setdefault("batches", []).append(inputs["row_index"].tolist())
        return super().compute_loss(model, inputs, return_outputs, **kwargs)


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def train(name: str, out: Path) -> dict[str, Any]:
    """One run, on as many processes as there are: batches of this process, losses, gradients and final weights."""
    options = {**PLAIN, **RUNS[name]}
    model = {**NO_DROPOUT, **options.pop("model", {})}
    accumulated = options.get("gradient_accumulation_steps", 1)
    trainer = make_trainer(
        out / name,
        ROWS,
        trainer_class=RecordingTrainer,
        model=model,
        per_device_train_batch_size=GLOBAL_BATCH // world_size() // accumulated,
        **options,
    )
    recorder = Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "batches": trainer.batches,
        "logs": [{key: value for key, value in entry.items() if "loss" in key} for entry in logs],
        "gradients": recorder.gradients,
        "weights": {name: value.clone() for name, value in trainer.model.state_dict().items()},
    }


def evaluate(out: Path) -> dict[int, Any]:
    """Predictions and metrics of evaluation sets of several sizes, most of them not divisible by anything."""
    results = {}
    rows = make_rows(8, seed=5)
    for size in EVAL_SIZES:
        trainer = make_trainer(out / "evaluation", rows, rows[:size], per_device_eval_batch_size=4 // world_size())
        metrics = {
            name: value
            for name, value in trainer.evaluate().items()
            if "MR-" in name or "p_" in name or name == "eval_loss"
        }
        predictions = trainer.predict_rows(rows[:size])
        results[size] = {"metrics": metrics, "predictions": predictions}
    return results


def inputs_of(batch: dict[str, Any]) -> dict[str, Any]:
    """What the model sees of a collator's batch."""
    return {name: value for name, value in batch.items() if name not in ("row_index", "durations_s")}


def batch_of(trainer: BMDetrTrainer, rows: Any, part: Iterable[int]) -> dict[str, Any]:
    """A training batch of some of the rows, as in the first epoch."""
    examples = trainer.dataset(rows, training=True)
    return trainer.data_collator([examples[0, row] for row in part])


SHARDED_PARTS = [[0, 4, 9], [12, 20]]


def sharded(out: Path) -> dict[str, Any]:
    """Loss and gradients of a model that PyTorch's FSDP shards over the processes, each with its part of a batch."""
    model = make_model(**NO_DROPOUT).train()
    mesh = init_device_mesh("cpu", (world_size(),))
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    trainer = make_trainer(out / "sharded", ROWS)
    batch = batch_of(trainer, ROWS, SHARDED_PARTS[dist.get_rank()])
    targets = MomentTargets.from_inputs(model.config, batch)
    outputs = trainer.forward(model, batch)
    gather_texts(outputs, targets)
    loss, _ = model.criterion(outputs, targets, mean_counts([batch], model.config.num_queries, torch.device("cpu")))
    loss.backward()
    return {
        "loss": float(loss.detach()),
        "gradients": {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()},
    }


def run(out: Path, names: list[str]) -> None:
    rank = int(os.environ["RANK"])
    results: dict[str, Any] = {name: train(name, out) for name in names if name in RUNS}
    if "evaluation" in names:
        results["evaluation"] = evaluate(out)
    if "sharded" in names:
        results["sharded"] = sharded(out)
    torch.save(results, out / f"rank{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


def start_processes(command: list[str], processes: int = 2) -> list[subprocess.Popen]:
    """Starts a script once for each rank, in a process group of its own, so that all can be killed together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    common["PYTHONPATH"] = os.pathsep.join(path for path in (*TESTS, os.environ.get("PYTHONPATH")) if path)
    common |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    if processes == 1:
        common = {name: value for name, value in common.items() if name != "WORLD_SIZE"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {} for rank in range(processes)]
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**common, **rank},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in ranks
    ]


def wait_for(processes: list[subprocess.Popen], timeout_s: float = 480) -> None:
    """Waits until all have ended; raises with what the first that failed wrote."""
    until = time.monotonic() + timeout_s
    for process in processes:
        _, errors = process.communicate(timeout=max(1.0, until - time.monotonic()))
        if process.returncode:
            for other in processes:
                other.kill()
            raise RuntimeError(f"exit code {process.returncode}:\n{errors[-6000:]}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), sys.argv[2:])
