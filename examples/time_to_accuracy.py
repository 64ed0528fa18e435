"""How many updates and how much processor time the package's defaults need to be as accurate as the released form.

    python examples/time_to_accuracy.py --data-dir annotations/charades_sta --out outputs/time_to_accuracy

Both train on the data, sizes and schedule of a preset of `ablate.py`, and are evaluated every `--every` updates. First
the forms and losses of the released code (`BMDetrConfig.released()`) are trained to their end; then the package's
defaults, until their R1@0.7 is what the others ended with. A run that is done lies in `--out` and is not done again.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from ablation_data import ExperimentData, load_data
from ablation_variants import PRESETS, Preset
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval
from modeling_bmdetr.configuration_bmdetr import contract_fields
from modeling_bmdetr.files_bmdetr import write_json
from modeling_bmdetr.training import BMDetrTrainer, BMDetrTrainingArguments

METRIC = "eval_MR-full-R1@0.7"


class Curve(TrainerCallback):
    """Accuracy by updates and by processor time, that of the evaluations left out.

    Args:
        target: Accuracy at which training stops; it goes on to its end when left out.
    """

    def __init__(self, target: float | None):
        self.target = target
        self.points: list[dict[str, float]] = []
        self.trained_s = self.since = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.since = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.process_time()
        self.trained_s, self.since = self.trained_s + now - self.since, now

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        self.since, accuracy = time.process_time(), given["metrics"][METRIC]
        point = {"updates": state.global_step, "processor_s": round(self.trained_s, 1), "R1@0.7": accuracy}
        if not self.points or self.points[-1]["updates"] != state.global_step:
            self.points.append(point)
            print(point, flush=True)
        control.should_training_stop |= self.target is not None and accuracy >= self.target


def curve_of(
    config: BMDetrConfig, preset: Preset, data: ExperimentData, every: int, seed: int, target: float | None
) -> list[dict[str, float]]:
    """Trains one model; accuracy after every `every` updates and at the end."""
    set_seed(seed)
    curve = Curve(target)
    with TemporaryDirectory() as scratch:
        trainer = BMDetrTrainer(
            BMDetrForMomentRetrieval(config),
            BMDetrTrainingArguments(
                **preset.training,
                output_dir=scratch,
                seed=seed,
                eval_strategy="steps",
                eval_steps=every,
                save_strategy="no",
                load_best_model_at_end=False,
                disable_tqdm=True,
                log_level="error",
            ),
            store=data.store,
            train_rows=data.train_rows,
            eval_rows=data.eval_rows,
            callbacks=[curve],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        if target is None:
            trainer.evaluate()
    return curve.points


def reached(points: Sequence[dict[str, float]], target: float) -> dict[str, float] | None:
    """The first point that is as accurate."""
    return next((point for point in points if point["R1@0.7"] >= target), None)


def table(released: Sequence[dict[str, float]], own: Sequence[dict[str, float]]) -> str:
    """Both in Markdown."""
    target = released[-1]["R1@0.7"]
    lines = ["| | R1@0.7 | updates | processor time, s |", "|---|---|---|---|"]
    rows = {"released form, at its end": released[-1], "the package's defaults, when as accurate": reached(own, target)}
    for name, point in rows.items():
        if point is None:
            lines.append(f"| {name} | {max(each['R1@0.7'] for each in own)} at most | | |")
        else:
            lines.append(f"| {name} | {point['R1@0.7']} | {point['updates']} | {point['processor_s']} |")
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="charades_simulated")
    parser.add_argument("--data-dir", metavar="DIR", help="original annotation files of the preset's benchmark")
    parser.add_argument("--out", type=Path, default=Path("outputs/time_to_accuracy"), help="folder (%(default)s)")
    parser.add_argument("--every", type=int, default=40, help="updates between evaluations (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of both (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    preset = PRESETS[args.preset]
    data = load_data(args.preset, args.out / "data", args.data_dir)
    fields = {**contract_fields(data.store.contract), **preset.model}
    curves: dict[str, list[dict[str, float]]] = {}
    for name, make in (("released", BMDetrConfig.released), ("own", BMDetrConfig)):
        path = args.out / f"{args.preset}-{name}-every{args.every}-seed{args.seed}.json"
        if not path.is_file():
            target = curves["released"][-1]["R1@0.7"] if curves else None
            write_json(path, curve_of(make(**fields), preset, data, args.every, args.seed, target))
        curves[name] = json.loads(path.read_text(encoding="utf-8"))
    print(table(curves["released"], curves["own"]))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"time_to_accuracy.py: {error}", file=sys.stderr)
        sys.exit(2)
