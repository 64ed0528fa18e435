"""Evaluate a checkpoint: metrics, figures by moment length, submission files and plots.

    python examples/evaluate.py outputs/qvhighlights_slowfast_clip/model \
        --recipe examples/configs/qvhighlights_slowfast_clip.yaml --sets val test_with_gt
    python examples/evaluate.py CHECKPOINT --rows own/val.jsonl --features own/features
    accelerate launch examples/evaluate.py CHECKPOINT ...

The checkpoint is a folder or a name on the Hub; its feature contract must fit the features. With a recipe, rows and
features are those of its `data` and `features`; `--sets` are splits or files, those of `data.eval` and `data.test` when
left out. Written to `--out` (`outputs/evaluation/<checkpoint>`), for each set: `<set>.metrics.json`, `<set>.md`,
`<set>.png`, `<set>.reliability.png` (how far scores are probabilities), and `<set>.submission.jsonl`, whose qids have
the type that they have in the annotations, as an evaluation server expects. A set in which a query has no label gets
the submission alone.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_rows import benchmark_of

from modeling_bmdetr import BMDetrForMomentRetrieval, BMDetrProcessor
from modeling_bmdetr.data import CanonicalRow, read_rows, write_rows
from modeling_bmdetr.data.rows.schema import is_labelled
from modeling_bmdetr.evaluation import evaluate_submission, format_metrics, submission_reliability
from modeling_bmdetr.evaluation.arrays import moment_arrays
from modeling_bmdetr.evaluation.metrics import best_iou
from modeling_bmdetr.evaluation.submission import load_rows, match_by_qid
from modeling_bmdetr.files_bmdetr import require_writable, write_json
from modeling_bmdetr.packages_bmdetr import needed_module
from modeling_bmdetr.recipes import Recipe, RecipeRows, load_set, open_store, predict_and_evaluate, read_recipe
from modeling_bmdetr.recipes.preparation import labels_of, tests_of
from modeling_bmdetr.recipes.recipe import HELD_OUT
from modeling_bmdetr.tables import markdown_table
from modeling_bmdetr.training import BMDetrTrainer, BMDetrTrainingArguments
from modeling_bmdetr.visualization import NO_MATPLOTLIB, plot_reliability

LENGTHS_S = {"0-10 s": (0.0, 10.0), "10-30 s": (10.0, 30.0), "30-150 s": (30.0, 150.0), "over 150 s": (150.0, np.inf)}
THRESHOLDS = np.linspace(0.05, 0.95, 19)
BY_LENGTH = ("MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-mIoU", "MR-full-mAP")


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        evaluate_checkpoint(args)
    except (ValueError, ImportError, OSError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a folder, or a name on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--recipe", help="the recipe that names rows and features")
    entry: dict[str, Any] = {"metavar": "ENTRY=VALUE", "help": "of the recipe"}
    parser.add_argument("--override", nargs="+", action="extend", default=[], **entry)
    parser.add_argument("--sets", nargs="+", help="splits or files to evaluate on (those of the recipe)")
    parser.add_argument("--rows", nargs="+", help="without a recipe: JSONL files to evaluate on")
    parser.add_argument("--features", nargs="+", help="without a recipe: packed store, or folders of video features")
    parser.add_argument("--text", help="without a recipe: folder of text features, where they are not packed")
    parser.add_argument("--out", help="folder for everything written (outputs/evaluation/<name of the checkpoint>)")
    parser.add_argument("--batch-size", type=int, default=64, help="queries at a time on each process (64)")
    parser.add_argument("--cpu", action="store_true", help="use no accelerator")
    return parser


def default_folder(checkpoint: str) -> Path:
    """A folder of each checkpoint's own, so that one does not replace the results of another."""
    parts = [part for part in Path(checkpoint).parts if part not in ("/", ".", "..", "outputs", "model")]
    return Path("outputs") / "evaluation" / "-".join(parts[-2:])


def evaluate_checkpoint(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Evaluates every set, and returns for each its metrics and figures by length."""
    args.out = args.out or str(default_folder(args.checkpoint))
    require_writable(args.out)
    arguments = BMDetrTrainingArguments(
        output_dir=args.out,
        per_device_eval_batch_size=args.batch_size,
        use_cpu=args.cpu,
        disable_tqdm=not sys.stderr.isatty(),
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
    )
    model = BMDetrForMomentRetrieval.from_pretrained(args.checkpoint, revision=args.revision)
    processor = BMDetrProcessor.from_pretrained(args.checkpoint, revision=args.revision)
    recipe = recipe_of(args, model)
    names = args.sets or args.rows or [name for name in (recipe.data.get("eval"), *tests_of(recipe)) if name]
    labels = labels_of(names)
    sets = {name: load_set(recipe, name, labelled=False) for name in names}
    store = open_store(recipe, RecipeRows([], [], sets))
    trainer = BMDetrTrainer(model, arguments, store=store, processor=processor)
    results = {}
    for name, part in sets.items():
        predictions, metrics = predict_and_evaluate(trainer, part)
        if arguments.process_index == 0:
            label = labels[name]
            results[label] = report(Path(args.out), label, predictions, part, metrics, integer_qids(recipe, name, part))
    return results


def recipe_of(args: argparse.Namespace, model: BMDetrForMomentRetrieval) -> Recipe:
    """The recipe given, or one made of `--rows` and `--features`. The features are prepared as the checkpoint says."""
    contract = model.config.feature_contract.to_dict()
    if args.recipe and (args.rows or args.features or args.text):
        raise ValueError("--recipe names rows and features: give it, or --rows and --features; --sets choose its rows")
    if args.recipe:
        recipe = read_recipe(args.recipe, args.override)
        return Recipe(recipe.data, {**contract, **recipe.features}, recipe.negatives, recipe.model, recipe.training)
    if not args.rows or not args.features:
        raise ValueError("give --recipe, or --rows and --features: what is the checkpoint to be evaluated on?")
    features = {**contract, "video": args.features, **({"text": args.text} if args.text else {})}
    return Recipe({}, features, {}, {}, {})


def integer_qids(recipe: Recipe, name: str, rows: Sequence[CanonicalRow]) -> set[str]:
    """The qids that are integers in the annotations."""
    data = recipe.data
    if data.get("benchmark"):
        split = data["train"] if name == HELD_OUT else name
        return {row["qid"] for row in rows} if benchmark_of(data, split).integer_qids else set()
    return set(read_rows(data["train"] if name == HELD_OUT else name).integer_qids)


def report(
    out: Path,
    label: str,
    predictions: Sequence[Mapping[str, Any]],
    rows: Sequence[CanonicalRow],
    metrics: Mapping[str, float],
    numbered: set[str],
) -> dict[str, Any]:
    """Writes what is known of a set, prints its tables, and returns the figures."""
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / f"{label}.submission.jsonl", predictions, integer_qids=numbered)
    if not metrics:
        unlabelled = sum(not is_labelled(row) for row in rows)
        print(f"{label}: {unlabelled} of {len(rows)} queries without labels; {out / f'{label}.submission.jsonl'}")
        return {"queries": len(rows)}
    lengths = metrics_by_length(predictions, rows)
    figures = {"queries": len(rows), "metrics": dict(metrics), "by_length": lengths}
    write_json(out / f"{label}.metrics.json", figures)
    shares = [name for name in ("p_inside", "p_outside") if name in metrics]
    percent = {name: value for name, value in metrics.items() if name not in shares}
    text = f"# {label}: {len(rows)} queries\n\n{format_metrics(percent, 'markdown')}\n\n{length_table(lengths)}\n"
    if means := " and ".join(f"{metrics[name]:.3f}" for name in shares):
        text += f"\nMean of p inside and outside the moments: {means}\n"
    (out / f"{label}.md").write_text(text, encoding="utf-8")
    plot(out / f"{label}.png", label, predictions, rows, lengths)
    if bins := submission_reliability(predictions, rows):
        plot_reliability(bins, out / f"{label}.reliability.png", title=f"{label}: {len(rows)} queries")
    print(f"{text}\n{out / f'{label}.png'}\n")
    return figures


def metrics_by_length(
    predictions: Sequence[Mapping[str, Any]], rows: Sequence[CanonicalRow]
) -> dict[str, dict[str, float]]:
    """Metrics over the moments of each range of lengths: a query counts in every range in which it has a moment."""
    result = {}
    for name, (above_s, up_to_s) in LENGTHS_S.items():
        kept, truth = [], []
        for prediction, row in zip(predictions, rows, strict=True):
            windows = [[s, e] for s, e in row["relevant_windows"] or () if above_s < e - s <= up_to_s]
            if windows:
                kept.append({"qid": row["qid"], "pred_relevant_windows": prediction["pred_relevant_windows"]})
                truth.append({"qid": row["qid"], "relevant_windows": windows})
        if truth:
            found = evaluate_submission(kept, truth)
            result[name] = {"queries": len(truth), **{metric: found[metric] for metric in BY_LENGTH}}
    return result


def length_table(lengths: Mapping[str, Mapping[str, float]]) -> str:
    """`metrics_by_length` in Markdown."""
    names = [metric.removeprefix("MR-full-") for metric in BY_LENGTH]
    rows = [[name, str(m["queries"]), *(f"{m[metric]:.2f}" for metric in BY_LENGTH)] for name, m in lengths.items()]
    return markdown_table(["moment", "queries", *names], rows)


def recall_curves(
    predictions: Sequence[Mapping[str, Any]], rows: Sequence[CanonicalRow]
) -> dict[str, tuple[np.ndarray, float]]:
    """For R1 and R5, percent of queries by IoU threshold, and the mean of the best IoU."""
    truth = load_rows(rows, "rows")
    arrays = moment_arrays(match_by_qid(load_rows(predictions, "predictions"), truth), truth)
    arrays = arrays.take(arrays.is_present)
    curves = {}
    for rank in (1, 5):
        iou = best_iou(arrays.predicted_se, arrays.windows_se, max_rank=rank)
        curves[f"R{rank}"] = (100 * (iou[:, None] >= THRESHOLDS).mean(axis=0), float(iou.mean()))
    return curves


def plot(
    path: Path,
    label: str,
    predictions: Sequence[Mapping[str, Any]],
    rows: Sequence[CanonicalRow],
    lengths: Mapping[str, Mapping[str, float]],
) -> None:
    """Recall by IoU threshold, and mAP by moment length."""
    figures = needed_module("matplotlib.figure", NO_MATPLOTLIB)
    figure = figures.Figure(figsize=(10, 4), layout="constrained")
    recall, by_length = figure.subplots(1, 2)
    for (name, (curve, mean_iou)), style in zip(recall_curves(predictions, rows).items(), ("-", "--"), strict=True):
        recall.plot(THRESHOLDS, curve, style, color="#2f6fdb", label=f"{name} (mean IoU {mean_iou:.2f})")
    recall.set(xlabel="temporal IoU of at least", ylabel="queries (%)", xlim=(0, 1), ylim=(0, 100))
    recall.grid(alpha=0.3)
    recall.legend(frameon=False)
    bars = by_length.bar(list(lengths), [metrics["MR-full-mAP"] for metrics in lengths.values()], color="#2a9d4f")
    by_length.bar_label(bars, [f"{metrics['queries']} queries" for metrics in lengths.values()], fontsize=8)
    by_length.set(xlabel="length of the moment", ylabel="mAP", ylim=(0, 100))
    figure.suptitle(f"{label}: {len(rows)} queries")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
