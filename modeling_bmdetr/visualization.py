"""Pictures of answers: frames, ground truth, predicted moments and what the model attends to (the paper's Figure 4)."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .video_bmdetr import iter_frames, probe_video

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .evaluation.reliability import ReliabilityBins

TRUTH, FOUND, PROBABILITY = "#2a9d4f", "#2f6fdb", "#d1495b"


def plot_moments(
    answers: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    video: str | os.PathLike | None = None,
    ground_truth: Sequence[Sequence[Sequence[float]]] | None = None,
    path: str | os.PathLike | None = None,
    *,
    num_frames: int = 12,
    max_moments: int = 3,
    title: str | None = None,
) -> "Figure":
    """Draws answers of [`MomentRetrievalPipeline`] about one video on a common time line.

    From top to bottom: frames of the video; for each query its ground truth and the best moments with their scores,
    then p (Eq. 6, a line) and o (Eq. 7, a heat strip). The softmax of Eq. 7 over probabilities varies at most e-fold,
    so the strip is scaled to its own range and p stands beside it.

    Args:
        answers: One answer, or a list of them.
        video: Path of the video, for the frames.
        ground_truth: For each answer the described moments, [[start s, end s], ...].
        path: Where to save the picture; its suffix says in which format.
        num_frames: Frames shown.
        max_moments: Moments shown of each answer.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no answers, or not one list of moments for each.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "modeling-bmdetr[plot]"') from error

    several: list[Mapping[str, Any]] = [answers] if isinstance(answers, Mapping) else list(answers)
    if not several:
        raise ValueError("`answers` is empty: there is nothing to draw")
    if ground_truth is not None and len(ground_truth) != len(several):
        raise ValueError(f"{len(ground_truth)} lists of moments for {len(several)} answers; pass one for each")
    duration_s = float(several[0]["duration"])
    strip = [1.0] if video is not None else []
    figure = Figure(figsize=(11, 0.6 + 1.1 * len(strip) + 2.2 * len(several)), layout="constrained")
    axes = figure.subplots(
        len(strip) + 2 * len(several), 1, height_ratios=strip + [1.1, 0.9] * len(several), sharex=True
    )
    axes = np.atleast_1d(axes)
    if video is not None:
        _draw_frames(axes[0], video, num_frames)
    for i, answer in enumerate(several):
        bars, attention = axes[len(strip) + 2 * i], axes[len(strip) + 2 * i + 1]
        _draw_bars(bars, answer, ground_truth[i] if ground_truth is not None else None, max_moments)
        _draw_attention(attention, answer)
    axes[-1].set_xlim(0, duration_s)
    axes[-1].set_xlabel("seconds")
    if title:
        figure.suptitle(title, fontsize=11)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def plot_reliability(
    bins: Mapping[str, "ReliabilityBins"], path: str | os.PathLike | None = None, *, title: str | None = None
) -> "Figure":
    """Draws how often what was given a probability came true: on the diagonal, probabilities are what they say.

    Args:
        bins: By name, the result of `reliability_bins`; one panel each, with the counts below.
        path: Where to save the picture; its suffix says in which format.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `bins` is empty.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "modeling-bmdetr[plot]"') from error

    if not bins:
        raise ValueError("`bins` is empty: there is nothing to draw")
    figure = Figure(figsize=(4.2 * len(bins), 4.8), layout="constrained")
    axes = figure.subplots(2, len(bins), height_ratios=[3, 1], sharex=True, squeeze=False)
    for (name, some), curve, counts in zip(bins.items(), axes[0], axes[1], strict=True):
        width = np.diff(some.edges)
        curve.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
        curve.bar(some.edges[:-1], np.nan_to_num(some.share_true), width, align="edge", color=FOUND, alpha=0.35)
        curve.plot(some.mean_probability, some.share_true, color=FOUND, marker="o", linestyle="none")
        curve.set_title(f"{name}: calibration error {some.calibration_error:.3f}", fontsize=10)
        curve.set_ylim(0, 1)
        counts.bar(some.edges[:-1], some.counts, width, align="edge", color="#999999")
        counts.set_xlim(0, 1)
        counts.set_xlabel("probability given")
    axes[0, 0].set_ylabel("share that came true")
    axes[1, 0].set_ylabel("queries")
    if title:
        figure.suptitle(title, fontsize=11)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _draw_frames(axis: "Axes", video: str | os.PathLike, num_frames: int) -> None:
    """Evenly spaced frames, each drawn over the share of time it stands for."""
    info = probe_video(video)
    edges = np.linspace(0, info.duration_s, num_frames + 1)
    times = 0.5 * (edges[:-1] + edges[1:])
    for (_, frame), left, right in zip(iter_frames(video, times), edges[:-1], edges[1:], strict=True):
        axis.imshow(frame, extent=(left, right, 0, 1), aspect="auto")
    axis.set_ylim(0, 1)
    axis.set_yticks([])
    axis.set_ylabel("video", rotation=0, ha="right", va="center")


def _draw_bars(
    axis: "Axes", answer: Mapping[str, Any], truth: Sequence[Sequence[float]] | None, max_moments: int
) -> None:
    """Ground truth and the best moments, each a row."""
    rows: list[tuple[str, list[tuple[float, float, str, float]], str]] = []
    if truth is not None:
        rows.append(("truth", [(start, end, f"{start:.1f}-{end:.1f} s", 1.0) for start, end in truth], TRUTH))
    for rank, moment in enumerate(answer["moments"][:max_moments], start=1):
        label = f"{moment['start']:.1f}-{moment['end']:.1f} s, score {moment['score']:.2f}"
        bar = (moment["start"], moment["end"], label, 0.25 + 0.75 * moment["score"])
        rows.append((f"#{rank}", [bar], FOUND))
    for height, (_, bars, colour) in enumerate(rows):
        for start, end, label, alpha in bars:
            axis.barh(height, max(end - start, 0.01), left=start, height=0.7, color=colour, alpha=alpha)
            late = end > 0.7 * answer["duration"]
            axis.annotate(
                label,
                (start if late else end, height),
                xytext=(-4 if late else 4, 0),
                textcoords="offset points",
                ha="right" if late else "left",
                va="center",
                fontsize=8,
            )
    axis.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    presence = answer.get("presence")
    said = "" if presence is None else f"   presence {presence:.2f}"
    axis.set_title(f"“{answer['query']}”{said}", fontsize=10, loc="left")


def _draw_attention(axis: "Axes", answer: Mapping[str, Any]) -> None:
    """p as a line over o as a heat strip; saliency where the model has neither."""
    clip_s = answer["clip_length"]
    values = answer.get("frame_probabilities", answer["saliency"])
    edges = np.minimum(np.arange(len(values) + 1) * clip_s, answer["duration"])
    heat = np.asarray(answer.get("frame_attention", answer["saliency"]))[None]
    spread = heat.max() - heat.min() + 1e-9  # half of the colour map, so that the line stays readable on it
    axis.pcolormesh(
        edges,
        [0, 1],
        heat,
        cmap="Blues",
        vmin=heat.min(),
        vmax=heat.max() + spread,
        transform=axis.get_xaxis_transform(),
    )
    axis.stairs(values, edges, color=PROBABILITY, linewidth=1.6, baseline=None)
    if "frame_probabilities" in answer:
        axis.set_ylim(0, 1)
        axis.set_ylabel("p (line)\no (strip)", rotation=0, ha="right", va="center", fontsize=8)
    else:
        axis.set_ylabel("saliency", rotation=0, ha="right", va="center", fontsize=8)
