"""An exported model beside the model: accuracy on the quickstart's test split, seconds, and size.

    bmdetr export outputs/quickstart/model --out exported --int8
    python examples/benchmarks/export_speed.py outputs/quickstart exported --json export.json

Sides: the model in PyTorch (`eager`), the same through `torch.compile`, and the ONNX files in ONNX Runtime, in full
precision and with 8-bit matrices. Each answers the test queries in batches; times are the median over rounds, of the
processor, which other jobs change less than the clock.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_clock import timed
from torch import Tensor

from modeling_bmdetr import BMDetrForMomentRetrieval, BMDetrProcessor
from modeling_bmdetr.contract_bmdetr import pad_rows, prepare_text_features, prepare_video_features
from modeling_bmdetr.data import FeatureStore, read_rows
from modeling_bmdetr.evaluation import evaluate_submission
from modeling_bmdetr.export import INPUTS, load_exported
from modeling_bmdetr.files_bmdetr import write_json

Side = Callable[..., Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("quickstart", type=Path, help="folder that examples/quickstart.py wrote")
    parser.add_argument("exported", type=Path, help="what `bmdetr export --int8` wrote of its model")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=20, help="batches timed per side and size")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sides", nargs="+", default=["eager", "torch.compile", "onnx", "onnx int8"])
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = BMDetrForMomentRetrieval.from_pretrained(args.quickstart / "model").eval()
    processor = BMDetrProcessor.from_pretrained(args.quickstart / "model")
    store = FeatureStore.from_packed(args.quickstart / "features", model.config.feature_contract)
    rows = list(read_rows(args.quickstart / "videos" / "test.jsonl"))
    compiled = torch.compile(model, dynamic=True)
    sides: dict[str, Side] = {
        "eager": lambda *inputs: model(**dict(zip(INPUTS, inputs, strict=True))),
        "torch.compile": lambda *inputs: compiled(**dict(zip(INPUTS, inputs, strict=True))),
        "onnx": load_exported(args.exported, threads=args.threads),
        "onnx int8": load_exported(args.exported, int8=True, threads=args.threads),
    }
    sizes = {"onnx": "model.onnx", "onnx int8": "model.int8.onnx"}
    figures: dict[str, Any] = {"threads": args.threads, "queries": len(rows)}
    for name in args.sides:
        side = sides[name]
        first = once(side, batch_of(store, rows[:32]))  # compiles, where the side does
        metrics = evaluate_submission(predictions(side, processor, store, rows), rows)
        figures[name] = {key: round(metrics[f"MR-full-{key}"], 2) for key in ("R1@0.5", "R1@0.7")}
        figures[name]["s for the first batch of 32"] = round(first, 2)
        for size in args.batch_sizes:
            figures[name][f"ms per batch of {size}"] = round(1e3 * seconds(side, store, rows[:size], args.rounds), 2)
        if name in sizes:
            figures[name]["MB"] = round((args.exported / sizes[name]).stat().st_size / 1e6, 2)
        print(f"{name:<14}", figures[name], flush=True)
    if args.json:
        write_json(args.json, figures)


def batch_of(store: FeatureStore, rows: list[Any]) -> tuple[Tensor, ...]:
    """The four inputs of the model."""
    contract = store.contract
    video = pad_rows([prepare_video_features(store.source("video").read(row["vid"]), contract) for row in rows])
    text = pad_rows([prepare_text_features(store.source("text").read(row["qid"]), contract) for row in rows])
    return (*video, *text)


def predictions(side: Side, processor: BMDetrProcessor, store: FeatureStore, rows: list[Any]) -> list[dict[str, Any]]:
    found = []
    for first in range(0, len(rows), 32):
        some = rows[first : first + 32]
        inputs = batch_of(store, some)
        with torch.inference_mode():
            outputs = side(*inputs)
        moments = processor.post_process_moments(outputs, inputs[1], [row["duration"] for row in some])
        for row, best in zip(some, moments, strict=True):
            windows = [[moment["start"], moment["end"], moment["score"]] for moment in best]
            found.append({**{key: row[key] for key in ("qid", "vid", "query")}, "pred_relevant_windows": windows})
    return found


def seconds(side: Side, store: FeatureStore, rows: list[Any], rounds: int) -> float:
    """Median processor seconds of a batch, after three that warm up."""
    inputs = batch_of(store, rows)
    return statistics.median([once(side, inputs) for _ in range(rounds + 3)][3:])


def once(side: Side, inputs: tuple[Tensor, ...]) -> float:
    """Processor seconds of one batch, those of a compiler's processes included."""
    with torch.inference_mode():
        return timed(lambda: side(*inputs))[1]


if __name__ == "__main__":
    main()
