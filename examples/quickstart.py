"""The main job, offline on a CPU: real mp4 files and sentences in, a trained BM-DETR and answered questions out.

    make quickstart                     # or: python examples/quickstart.py --seed 1 --out outputs/seed1

Renders a small data set of moving shapes as video files, extracts features (of the frames without any weights), mines
negative queries, trains, evaluates on videos never seen against two trivial baselines, then loads the saved folder into
the pipeline and asks free-text questions about one of those videos. Writes `report.json`, `timeline.png` and `model/`.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

import modeling_bmdetr as bmdetr  # like transformers, it imports a class when it is used: workers run these lines too
from dataset_scripts.moving_shapes import NUM_VIDEOS, render_moving_shapes
from dataset_scripts.shapes_paraphrases import paraphrase_rows
from modeling_bmdetr.calibration_bmdetr import calibration_lines
from modeling_bmdetr.data import FeatureStore, extract_features, mine_negative_queries
from modeling_bmdetr.evaluation import evaluate_submission, format_metrics, submission_reliability
from modeling_bmdetr.evaluation.baselines import best_fixed_span, whole_video
from modeling_bmdetr.processes import usable_processors
from modeling_bmdetr.text_encoders_bmdetr import MINILM, WORDS_PREFIX, minilm_folder
from modeling_bmdetr.visualization import plot_moments, plot_reliability

VIDEO_ENCODER, CLIP_LENGTH_S = "moving-things", 1.0
FREE_TEXT = "_free"  # ends the qid of a test query that is asked in other words
QUERIES_SHOWN = 3
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "av")

Row = dict[str, Any]


class Stages:
    """Announces the stages of the run and keeps their seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, what: str) -> Iterator[None]:
        print(f"\n== {what}", flush=True)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/quickstart"), help="folder for everything written")
    parser.add_argument("--seed", type=int, default=0, help="seed of rendering and training")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the training queries")
    text = "words:minilm, which knows words that no training sentence has, or hashed-words where its"
    parser.add_argument("--text-encoder", default=default_text_encoder(), help=f"{text} package is not installed")
    sizes = parser.add_argument("--videos", type=int, nargs=3, metavar=("TRAIN", "VAL", "TEST"), help="videos rendered")
    sizes.default = list(NUM_VIDEOS.values())
    args = parser.parse_args()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # several wait for each other at every step, and for long where a core is busy
    stages, workers = Stages(), min(4, os.cpu_count() or 1)
    transformers.set_seed(args.seed)

    with stages("render", "rendering videos"):
        num_videos = dict(zip(NUM_VIDEOS, args.videos, strict=True))
        try:
            with_absent = render_moving_shapes(args.out / "videos", args.seed, num_videos, workers=workers, absent=True)
        except ValueError as error:  # features and model there are of those videos, too
            sys.exit(f"{error}\nThat is: give another --out, or delete '{args.out}'.")
    splits = {split: [row for row in rows if row["relevant_windows"]] for split, rows in with_absent.items()}
    free_rows = [{**row, "qid": row["qid"] + FREE_TEXT} for row in paraphrase_rows(splits["test"], args.seed, "test")]
    everything = [row for rows in (*with_absent.values(), free_rows) for row in rows]

    with stages("extract", "extracting features"):
        report = extract_features(
            everything,
            args.out / "videos",
            args.out / "features",
            VIDEO_ENCODER,
            args.text_encoder,
            CLIP_LENGTH_S,
            workers=workers,
        )
        print(report)
    store = FeatureStore.from_packed(args.out / "features")

    with stages("negatives", "mining negative queries"):
        train_rows, mining = mine_negative_queries(splits["train"], encoder="hashed-words", progress=False)
        print(mining)
        train_rows += [row for row in with_absent["train"] if not row["relevant_windows"]]  # teach presence

    config = bmdetr.BMDetrConfig.from_contract(
        store.contract,
        hidden_size=128,
        encoder_layers=2,
        decoder_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        projection_dropout=0.1,  # minutes of training on thousands of queries underfit: hardly any dropout
        dropout=0.0,
        attention_dropout=0.0,
        max_clips=max(store.num_clips(vid) for vid in store.video_ids),
        long_video="window",
    )
    model = bmdetr.BMDetrForMomentRetrieval(config)
    training = bmdetr.BMDetrTrainingArguments(
        output_dir=str(args.out / "checkpoints"),
        seed=args.seed,
        num_train_epochs=args.epochs,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        lr_drop_epochs=0,
        warmup_steps=0.08,
        per_device_train_batch_size=32,
        temporal_shifting=False,  # a third of the time of an update, in which more of them teach more here
        train_sampling_strategy="group_by_length",  # a tenth of the time, less of it for padding
        cpu_matmul_precision="bfloat16",  # less time, where the processor has it
        eval_strategy="steps",
        eval_steps=0.5,
        save_strategy="best",
        metric_for_best_model="MR-full-mAP",  # of a few hundred queries, less a matter of luck than a recall
        use_cpu=True,
    )
    if "OMP_NUM_THREADS" not in os.environ and idle_processors() > 1.7:
        torch.set_num_threads(2)  # where another program wants one of them, both wait at every step, and for long
    with stages("train", f"training on {len(train_rows)} queries, {torch.get_num_threads()} threads"):
        shutil.rmtree(args.out / "checkpoints", ignore_errors=True)
        trainer = bmdetr.BMDetrTrainer(
            model,
            training,
            store=store,
            train_rows=train_rows,
            eval_rows=splits["val"],
            processor=bmdetr.BMDetrProcessor(config.feature_contract),
        )
        trainer.train()

    with stages("calibrate", "calibrating scores and presence on the validation queries"):
        calibration = trainer.calibrate(with_absent["val"])
        print("\n".join(calibration_lines(calibration)))

    with stages("evaluate", f"evaluating on {len(splits['test'])} queries of videos never seen"):
        test_rows = splits["test"]
        predictions = trainer.predict_rows(with_absent["test"])
        metrics = evaluate_submission(predictions, with_absent["test"], clip_length_s=CLIP_LENGTH_S)
        present_only = evaluate_submission(
            [p for p in predictions if p["qid"] in {row["qid"] for row in test_rows}], test_rows
        )
        bins = submission_reliability(predictions, with_absent["test"])
        plot_reliability(bins, args.out / "reliability.png", title="on videos never seen")
        swapped = swap_sentences(test_rows)
        swapped_metrics = evaluate_submission(trainer.predict_rows(swapped), swapped, clip_length_s=CLIP_LENGTH_S)
        free_metrics = evaluate_submission(trainer.predict_rows(free_rows), free_rows, clip_length_s=CLIP_LENGTH_S)
        baselines = {
            "whole video": evaluate_submission(whole_video(test_rows), test_rows),
            "best fixed span": evaluate_submission(best_fixed_span(train_rows, test_rows), test_rows),
        }
        print(format_metrics(metrics))

    with stages("answer", "answering questions about a video never seen"):
        trainer.save_model(str(args.out / "model"))
        answers, truth, video = ask(args.out / "model", args.out / "videos", test_rows)
        plot_moments(answers, video, truth, args.out / "timeline.png", title=f"{video.name}, never seen in training")

    result = {
        "metrics": metrics,
        "present_only": {name: value for name, value in present_only.items() if name.startswith("CAL-")},
        "baselines": baselines,
        "swapped_sentences": swapped_metrics,
        "free_text": free_metrics,
        "text_encoder": args.text_encoder,
        "checks": checks(metrics, baselines, swapped_metrics),
        "seed": args.seed,
        "data": {
            name: {"videos": len({r["vid"] for r in rows}), "queries": len(rows)} for name, rows in splits.items()
        },
        "negatives": mining.to_dict(),
        "calibration": calibration.to_dict(),
        "reliability": {name: some.to_dict() for name, some in bins.items()},
        "training": {
            "epochs": args.epochs,
            "learning_rate": training.learning_rate,
            "batch_size": training.per_device_train_batch_size,
            "parameters": model.num_parameters(),
            "threads": torch.get_num_threads(),
            "cpu_matmul_precision": str(trainer.type_of_products()).removeprefix("torch."),
            "validation": trainer.state.best_metric,
        },
        "seconds": {**stages.seconds, "total": round(sum(stages.seconds.values()), 1)},
        "answers": [
            {
                "query": a["query"],
                "truth": t,
                **{name: a[name] for name in ("moments", "calibrated", "presence") if name in a},
            }
            for a, t in zip(answers, truth, strict=True)
        ],
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
    }
    (args.out / "report.json").write_text(json.dumps(result, indent=2) + "\n")
    print_summary(result, args.out)
    sys.exit(0 if all(result["checks"].values()) else 1)


def idle_processors() -> float:
    """How many of the processors that this process may use were idle in half a second, in which it waits."""
    return psutil.cpu_times_percent(interval=0.5).idle / 100 * usable_processors()


def default_text_encoder() -> str:
    """Words by a real sentence encoder where its weights are installed, else by the one that needs none."""
    return WORDS_PREFIX + MINILM if minilm_folder() else "hashed-words"


def swap_sentences(rows: Sequence[Row]) -> list[Row]:
    """Every moment is asked for with the sentence of another query of its video."""
    by_video: dict[str, list[Row]] = {}
    for row in rows:
        by_video.setdefault(row["vid"], []).append(row)
    return [
        {**other, "relevant_windows": row["relevant_windows"]}
        for group in by_video.values()
        if len(group) > 1
        for row, other in zip(group, group[1:] + group[:1], strict=True)
    ]


def ask(model_dir: Path, video_dir: Path, rows: Sequence[Row]) -> tuple[list[dict[str, Any]], list[Any], Path]:
    """Answers sentences about the first test video, from the saved folder."""
    chosen = [row for row in rows if row["vid"] == rows[0]["vid"]][:QUERIES_SHOWN]
    pipe: Any = transformers.pipeline("temporal-grounding", model=str(model_dir))  # type: ignore[call-overload]
    video = video_dir / chosen[0]["video"]
    answers = pipe(video, [row["query"] for row in chosen])
    return answers, [row["relevant_windows"] for row in chosen], video


def checks(metrics: dict[str, float], baselines: dict[str, Any], swapped: dict[str, float]) -> dict[str, bool]:
    """What the run must show: that the model learned, and that it listens to the sentence."""
    r5, r7 = metrics["MR-full-R1@0.5"], metrics["MR-full-R1@0.7"]
    better = max(baseline["MR-full-R1@0.7"] for baseline in baselines.values())
    return {
        "R1@0.5 is at least 60": r5 >= 60,
        "R1@0.7 is at least 40": r7 >= 40,
        "R1@0.7 is at least three times the better baseline": r7 >= 3 * better,
        "another sentence of the video at least halves R1@0.7": swapped["MR-full-R1@0.7"] <= r7 / 2,
    }


def print_summary(result: dict[str, Any], out: Path) -> None:
    """The figures that matter, and where the rest lies."""
    columns = {"BM-DETR": result["metrics"], "BM-DETR, in other words": result["free_text"]}
    columns |= {**result["baselines"], "BM-DETR, swapped": result["swapped_sentences"]}
    print(f"\n{'on videos never seen':<28}{'R1@0.5':>8}{'R1@0.7':>8}{'mIoU':>8}")
    for name, metrics in columns.items():
        values = (metrics[f"MR-full-{key}"] for key in ("R1@0.5", "R1@0.7", "mIoU"))
        print(f"{name:<28}" + "".join(f"{value:>8.2f}" for value in values))
    judged = {f"{name} of present queries": value for name, value in result["present_only"].items()}
    judged |= {name: value for name, value in result["metrics"].items() if name.startswith(("CAL-", "PR-"))}
    print("\n" + "\n".join(f"{name:<32}{value:>8.2f}" for name, value in judged.items()))
    for name, holds in result["checks"].items():
        print(f"{'yes' if holds else 'NO ':<4}{name}")
    for answer in result["answers"]:
        best, truth = answer["moments"][0], answer["truth"][0]
        print(f"\n“{answer['query']}”\n  {best['start']:.1f}-{best['end']:.1f} s, score {best['score']:.2f}", end="")
        print(f"   (described: {truth[0]:.1f}-{truth[1]:.1f} s)", end="")
    print(f"\n\n{result['seconds']['total']:.0f} s in all. Look at {out / 'timeline.png'}. The model: {out / 'model'}")


if __name__ == "__main__":
    main()
