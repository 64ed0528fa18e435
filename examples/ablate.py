"""Train a grid of variants of BM-DETR over seeds, and tabulate them: the paper's ablations and ours.

    python examples/ablate.py --preset charades_simulated --data-dir annotations/charades_sta \
        --variants objective forms --seeds 0,1,2 --out outputs/ablation
    python examples/ablate.py --list

Variants are named one by one, by table, or `all` (see `--list`); the order given is the order they run in, a seed of
every variant before the next seed. Every run writes one result file under `OUT/runs` when it is done, so a killed grid
goes on with what is missing when the same command is given again; a result made with other settings or data does not
count. `--jobs N` shares the grid between N processes; processes started by hand on the same folder share it too.
Written to `--out` after every run: `ablation.csv`, `ablation.md`, and at the end `*.png`.

Presets that simulate frames compare variants with each other; their figures are no benchmark results.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from ablation_data import ExperimentData, digest_of, load_data
from ablation_report import write_report
from ablation_variants import PRESETS, TABLES, VARIANTS, Preset, Variant, select_variants
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval
from modeling_bmdetr.configuration_bmdetr import contract_fields
from modeling_bmdetr.data import CanonicalRow, add_absent_rows
from modeling_bmdetr.evaluation import evaluate_submission
from modeling_bmdetr.files_bmdetr import take_lock, write_json
from modeling_bmdetr.training import BMDetrTrainer, BMDetrTrainingArguments

_METRICS = ("MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-mAP", "MR-full-mIoU", "p_inside", "p_outside")
_JOINT = ("joint_p_inside", "joint_p_outside")
_TRUST = ("CAL-ECE", "CAL-AUC", "PR-AUROC", "PR-ECE")
# Of every run, unless `--training` says otherwise.
_NOTHING_SAVED = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
_TRAINING_DEFAULTS = {field.name: field.default for field in fields(BMDetrTrainingArguments)} | _NOTHING_SAVED


@dataclass(frozen=True)
class Run:
    """One variant with one seed, in full."""

    variant: Variant
    seed: int
    model: dict[str, Any]
    training: dict[str, Any]
    mining: dict[str, Any]
    data_digest: str

    @property
    def digest(self) -> str:
        """Equal for runs that compute the same, whatever the variant is called."""
        config = BMDetrConfig(**self.model).to_dict()
        config = {name: value for name, value in config.items() if name in BMDetrConfig.__annotations__}
        # A setting that says what the default says is no difference, nor is 2 for 2.0.
        training = {name: value for name, value in self.training.items() if value != _TRAINING_DEFAULTS.get(name)}
        settings = [
            {name: float(value) if type(value) is int else value for name, value in part.items()}
            for part in (config, training)
        ]
        return digest_of([*settings, self.data_digest])

    def result_path(self, out_dir: Path) -> Path:
        return out_dir / "runs" / f"{self.variant.name}-{self.digest}-seed{self.seed}.json"

    def find_result(self, out_dir: Path) -> dict[str, Any] | None:
        """The result of this run, or of another variant's run that computes the same."""
        for path in sorted((out_dir / "runs").glob(f"*-{self.digest}-seed{self.seed}.json")):
            return json.loads(path.read_text(encoding="utf-8"))
        return None


def plan_runs(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    preset: Preset,
    data: ExperimentData,
    model: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> list[Run]:
    """The grid in the order it runs in: every variant with the first seed, then with the second.

    Args:
        model, training: Settings of every run, over the preset's and under the variant's.
    """
    features = contract_fields(data.store.contract)
    digest = data.digest()
    return [
        Run(
            variant,
            seed,
            {**features, **preset.model, **(model or {}), **variant.model},
            {**preset.training, **(training or {}), **variant.training},
            variant.mining,
            digest_of([digest, variant.mining]) if variant.mining else digest,
        )
        for seed in seeds
        for variant in variants
    ]


class _EvaluateAtEpochs(TrainerCallback):
    """Asks for an evaluation at the end of chosen epochs, and counts the steps."""

    def __init__(self, epochs: Sequence[int]):
        self.epochs = set(epochs)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        control.should_evaluate = round(state.epoch) in self.epochs
        return control


def train_and_evaluate(run: Run, data: ExperimentData, evaluate_at: Sequence[int] = ()) -> dict[str, Any]:
    """Trains one variant with one seed, and evaluates it at the end and after the epochs of `evaluate_at`."""
    started = time.perf_counter()
    set_seed(run.seed)
    model = BMDetrForMomentRetrieval(BMDetrConfig(**run.model))
    options = {**_NOTHING_SAVED, "disable_tqdm": True, "log_level": "error", **run.training}
    with TemporaryDirectory() as scratch:
        args = BMDetrTrainingArguments(**options, output_dir=scratch, seed=run.seed)
        trainer = BMDetrTrainer(
            model,
            args,
            store=data.store,
            train_rows=data.train_rows_with(run.mining),
            eval_rows=data.eval_rows,
            callbacks=[_EvaluateAtEpochs([epoch for epoch in evaluate_at if epoch < args.num_train_epochs])],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    metrics = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    if not run.mining:  # the evaluation rows keep the data's own negative queries
        metrics |= joint_probabilities(trainer, metrics)
    # The evaluation's own figures of trust are those of scores that nobody calibrated.
    metrics = {name: value for name, value in metrics.items() if not name.startswith(("CAL-", "PR-"))}
    metrics |= trust_figures(trainer, data.eval_rows, run.seed)
    log = trainer.state.log_history
    return {
        "variant": run.variant.name,
        "seed": run.seed,
        "metrics": metrics,
        "history": [
            {"epoch": round(entry["epoch"]), **{name: entry.get(f"eval_{name}") for name in _METRICS}}
            for entry in log
            if "eval_MR-full-R1@0.7" in entry
        ],
        "losses": [
            {name: value for name, value in entry.items() if name == "epoch" or "loss" in name}
            for entry in log
            if "loss" in entry
        ],
        "steps": trainer.state.global_step,
        "seconds": round(time.perf_counter() - started, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **{name: getattr(run, name) for name in ("model", "training", "mining", "data_digest")},
        "torch": torch.__version__,
    }


def joint_probabilities(trainer: BMDetrTrainer, metrics: Mapping[str, float]) -> dict[str, float]:
    """Table 9: the joint probability (Eq. 6) inside and outside the moments, given negative queries in evaluation.

    They are drawn for the evaluation rows as for training. Without any in training, p is P(f|Q+) all along; where the
    evaluation rows have none that are mined, nothing is measured.

    Args:
        metrics: Those of an evaluation as at inference.
    """
    given, names = trainer.args.evaluate_with_negatives, ("p_inside", "p_outside")
    if not trainer.config.background_aware:
        return {}
    if trainer.args.negative_sampling == "none":
        return {f"joint_{name}": metrics[name] for name in names}
    if not any(row.get("neg_query_ids") for row in trainer.eval_dataset or ()):
        return {}
    trainer.args.evaluate_with_negatives = True
    try:
        measured = trainer.evaluate(metric_key_prefix="joint")
    finally:
        trainer.args.evaluate_with_negatives = given
    return {f"joint_{name}": measured[f"joint_{name}"] for name in names}


def trust_figures(trainer: BMDetrTrainer, rows: Sequence[CanonicalRow], seed: int) -> dict[str, float]:
    """How far scores and presence can be trusted: calibrated on one half of the videos, measured on the other.

    Absent queries are sentences of the half's other videos, see `add_absent_rows`. What could not be calibrated has no
    figures.
    """
    first = set(sorted({row["vid"] for row in rows})[::2])
    fitted_on, measured_on = ([row for row in rows if (row["vid"] in first) == half] for half in (True, False))
    calibration = trainer.calibrate(fitted_on)
    if calibration.score is None:
        return {}
    answers = trainer.predict_rows(measured_on)
    found = evaluate_submission(answers, measured_on)
    if calibration.presence is not None:
        with_absent, _ = add_absent_rows(measured_on, share=1.0, seed=seed)
        asked = trainer.predict_rows(with_absent[len(measured_on) :])
        together = evaluate_submission([*answers, *asked], with_absent)
        found |= {name: value for name, value in together.items() if name.startswith("PR-")}
    return {name: found[name] for name in _TRUST if name in found}


@contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """Whether this process may do a run. The claim goes with the process, killed or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        yield take_lock(file.fileno())


def run_grid(
    runs: Sequence[Run],
    data: ExperimentData,
    out_dir: str | os.PathLike,
    *,
    evaluate_at: Sequence[int] = (),
    report: bool = True,
    parent: int | None = None,
) -> bool:
    """Does what is missing of a grid, leaving out what other processes are doing.

    Args:
        report: Print a line and write the tables after every run.
        parent: Stop after the present run when this process id is no longer the parent.

    Returns:
        Whether the grid is complete; not so while another process is still at a run.
    """
    out_dir = Path(out_dir)
    bar = tqdm(total=len(runs), desc="runs", unit="run", disable=not report, dynamic_ncols=True)
    complete = True
    for run in runs:
        if parent is not None and os.getppid() != parent:
            return False
        if run.find_result(out_dir) is None:
            with _claim(out_dir / "claims" / f"{run.digest}-seed{run.seed}") as mine:
                if not mine:
                    complete = False
                elif run.find_result(out_dir) is None:  # another process may just have done it
                    result = train_and_evaluate(run, data, evaluate_at)
                    write_json(run.result_path(out_dir), result)
                    if report:
                        bar.write(progress_line(result))
                        write_report(collect(runs, out_dir), out_dir, plots=False)
        bar.update()
    bar.close()
    return complete


def collect(runs: Sequence[Run], out_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """The results there are, one for every run of the grid that is done, under the run's own variant."""
    found = []
    for run in runs:
        if (result := run.find_result(Path(out_dir))) is not None:
            variant = run.variant
            found.append({**result, "variant": variant.name, "table": variant.table, "label": variant.label})
    return found


def progress_line(result: Mapping[str, Any]) -> str:
    """One line about one run."""
    metrics = result["metrics"]
    names = [name for name in (*_METRICS, *_JOINT, *_TRUST) if name in metrics]
    shown = "  ".join(f"{name.removeprefix('MR-full-')} {metrics[name]:g}" for name in names)
    return f"{result['variant']:32} seed {result['seed']}  {shown}  ({result['seconds']:.0f} s)"


def spawn_helpers(number: int, arguments: Sequence[str]) -> list[subprocess.Popen]:
    """Further processes on the same grid; each takes the runs that nobody has claimed."""
    try:
        import fcntl  # noqa: F401
    except ImportError:
        raise ValueError("`--jobs` above 1 needs file locks, which this system does not have: use `--jobs 1`") from None
    command = [sys.executable, os.path.abspath(__file__), *arguments, "--helper-of", str(os.getpid())]
    return [subprocess.Popen(command) for _ in range(number)]


# Command line


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print presets and variants, and stop")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="charades_simulated")
    parser.add_argument("--variants", nargs="+", default=["all"], metavar="NAME", help="variants, tables, or `all`")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, separated by commas (default 0,1,2)")
    parser.add_argument("--out", default="outputs/ablation", metavar="DIR", help="results (default outputs/ablation)")
    parser.add_argument("--data-dir", metavar="DIR", help="original annotation files of the preset's benchmark")
    parser.add_argument("--train-rows", metavar="FILE", help="canonical rows, in place of the preset's")
    parser.add_argument("--eval-rows", metavar="FILE", help="canonical rows to evaluate on")
    parser.add_argument("--features", nargs="+", metavar="DIR", help="packed feature store of both")
    parser.add_argument("--model", nargs="+", default=[], metavar="FIELD=VALUE", help="BMDetrConfig of every run")
    parser.add_argument("--training", nargs="+", default=[], metavar="FIELD=VALUE", help="arguments of every run")
    parser.add_argument("--evaluate-at", default="", metavar="EPOCHS", help="also evaluate after these, by commas")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the grid (default 1)")
    parser.add_argument("--report-only", action="store_true", help="write the tables of what is done, and stop")
    parser.add_argument("--helper-of", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`field=value` pairs; values are JSON where they can be, else text."""
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"expected FIELD=VALUE, received {pair!r}")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


def require_known(model: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Refuses settings that no run could have, before the first one starts."""
    if unknown := sorted(model.keys() - BMDetrConfig.__annotations__):
        raise ValueError(f"`--model` expects fields of BMDetrConfig, received {unknown}")
    of_the_grid = {"seed", "output_dir"}  # given by `--seeds` and `--out`
    if unknown := sorted(training.keys() - (_TRAINING_DEFAULTS.keys() - of_the_grid)):
        raise ValueError(
            "`--training` expects fields of BMDetrTrainingArguments, without `seed` (see `--seeds`) and `output_dir`, "
            f"received {unknown}"
        )


def list_grid() -> str:
    lines = ["Presets:", *(f"  {name:26} {preset.description}" for name, preset in PRESETS.items())]
    for table, title in TABLES.items():
        lines += ["", f"{table}: {title}"]
        lines += [f"  {variant.name:32} {variant.label}" for variant in VARIANTS.values() if variant.table == table]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    args = parse_arguments(arguments)
    if args.list:
        print(list_grid())
        return
    logging.set_verbosity_error()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    evaluate_at = [int(epoch) for epoch in args.evaluate_at.split(",") if epoch]
    preset, out_dir = PRESETS[args.preset], Path(args.out)
    model, training = parse_settings(args.model), parse_settings(args.training)
    require_known(model, training)
    variants = select_variants(args.variants)
    data = load_data(args.preset, out_dir / "data", args.data_dir, args.train_rows, args.eval_rows, args.features)
    runs = plan_runs(variants, seeds, preset, data, model, training)
    if args.helper_of is not None:
        run_grid(runs, data, out_dir, evaluate_at=evaluate_at, report=False, parent=args.helper_of)
        return
    if not args.report_only:
        helpers = spawn_helpers(args.jobs - 1, arguments) if args.jobs > 1 else []
        run_grid(runs, data, out_dir, evaluate_at=evaluate_at)
        for helper in helpers:
            helper.wait()
        run_grid(runs, data, out_dir, evaluate_at=evaluate_at)  # what a helper left undone, if it died
    results = collect(runs, out_dir)
    write_report(results, out_dir)
    print(f"{len(results)} of {len(runs)} runs done; tables: {out_dir / 'ablation.md'}, {out_dir / 'ablation.csv'}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError, OSError) as error:
        print(f"ablate.py: {error}", file=sys.stderr)
        sys.exit(2)
