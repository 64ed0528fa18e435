"""Time `evaluate_submission` on random rows in the shape of QVHighlights' validation split.

    python examples/benchmarks/evaluation_speed.py

Prints the seconds for 1,550 queries with 10 predictions each, three annotators and 75 clips, highlights included, from
rows in memory and from JSON lines files; the goal is less than one second. Nothing is kept.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from modeling_bmdetr.evaluation import evaluate_submission, write_jsonl

DURATION_S = 150
CLIP_LENGTH_S = 2
NUM_CLIPS = DURATION_S // CLIP_LENGTH_S


def random_row(qid: int, rng: np.random.Generator) -> dict[str, Any]:
    """One query with one to four moments, and the ratings of three annotators for the clips in them."""
    bounds = np.sort(
        rng.choice(NUM_CLIPS + 1, size=2 * rng.choice([1, 2, 3, 4], p=[0.55, 0.25, 0.12, 0.08]), replace=False)
    )
    clip_ids = np.concatenate([np.arange(start, end) for start, end in bounds.reshape(-1, 2)])
    return {
        "qid": qid,
        "query": f"query {qid}",
        "vid": f"video_{qid}",
        "duration": DURATION_S,
        "relevant_windows": (CLIP_LENGTH_S * bounds.reshape(-1, 2)).tolist(),
        "relevant_clip_ids": clip_ids.tolist(),
        "saliency_scores": rng.integers(0, 5, (len(clip_ids), 3)).tolist(),
    }


def random_prediction(row: dict[str, Any], num_predictions: int, rng: np.random.Generator) -> dict[str, Any]:
    """Random windows with scores, best first, and a score for every clip."""
    windows_se = np.sort(rng.uniform(0, DURATION_S, (num_predictions, 2)), axis=1)
    scores = -np.sort(-rng.random(num_predictions))
    return {
        "qid": row["qid"],
        "query": row["query"],
        "vid": row["vid"],
        "pred_relevant_windows": np.column_stack([windows_se, scores]).round(4).tolist(),
        "pred_saliency_scores": rng.normal(size=NUM_CLIPS).round(4).tolist(),
    }


def best_of(repeats: int, function: Callable[[], object]) -> float:
    """The shortest wall time of several calls, in seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time evaluate_submission on random rows shaped like QVHighlights.")
    parser.add_argument("--queries", type=int, default=1550)
    parser.add_argument("--predictions", type=int, default=10, help="predicted windows per query")
    parser.add_argument("--repeats", type=int, default=5, help="the shortest of so many runs is printed")
    options = parser.parse_args(arguments)

    rng = np.random.default_rng(0)
    ground_truth = [random_row(qid, rng) for qid in range(options.queries)]
    predictions = [random_prediction(row, options.predictions, rng) for row in ground_truth]
    with tempfile.TemporaryDirectory() as folder:
        predictions_path, ground_truth_path = Path(folder, "predictions.jsonl"), Path(folder, "ground_truth.jsonl")
        write_jsonl(predictions, predictions_path)
        write_jsonl(ground_truth, ground_truth_path)
        in_memory_s = best_of(options.repeats, lambda: evaluate_submission(predictions, ground_truth))
        from_files_s = best_of(options.repeats, lambda: evaluate_submission(predictions_path, ground_truth_path))
    print(f"{options.queries} queries x {options.predictions} predictions and highlights, best of {options.repeats}:")
    print(f"  rows in memory    {in_memory_s:.3f} s")
    print(f"  JSON lines files  {from_files_s:.3f} s")


if __name__ == "__main__":
    main()
