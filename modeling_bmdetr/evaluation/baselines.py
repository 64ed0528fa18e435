"""What needs no model: the whole video, and the span that is right most often. A model has to beat both."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .evaluator import evaluate_submission
from .metrics import temporal_iou

STEPS = 20
"""Fixed spans begin and end at multiples of this part of the video."""


def whole_video(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Predictions: every moment is the whole video."""
    return [{**_ids(row), "pred_relevant_windows": [[0.0, row["duration"], 1.0]]} for row in rows]


def best_fixed_span(train_rows: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Predictions: the share of the video that overlaps a training query's first moment with an IoU of 0.7 most often.

    Training queries without a moment tell nothing.
    """
    first = [(row["relevant_windows"][0], row["duration"]) for row in train_rows if row["relevant_windows"]]
    spans = np.array([[time / duration_s for time in window] for window, duration_s in first])
    grid = np.linspace(0.0, 1.0, STEPS + 1)
    candidates = np.array([(start, end) for start in grid for end in grid if end > start])
    start, end = candidates[(temporal_iou(spans[None], candidates[None], "lengths")[0] >= 0.7).mean(axis=0).argmax()]
    return [
        {**_ids(row), "pred_relevant_windows": [[float(start) * row["duration"], float(end) * row["duration"], 1.0]]}
        for row in rows
    ]


def baseline_metrics(
    train_rows: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """What both reach on labelled rows: the metrics of `evaluate_submission` by the baseline's name."""
    baselines = {"whole video": whole_video(rows), "best fixed span": best_fixed_span(train_rows, rows)}
    return {name: evaluate_submission(predictions, rows) for name, predictions in baselines.items()}


def _ids(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("qid", "vid", "query")}
