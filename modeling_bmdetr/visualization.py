"""Pictures of answers: frames, ground truth, predicted moments and what the model attends to (the paper's Figure 4)."""

import math
import os
import textwrap
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .files_bmdetr import replacing_path
from .packages_bmdetr import needed_module
from .video_bmdetr import iter_frames, probe_video

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    from .evaluation.reliability import ReliabilityBins

NO_MATPLOTLIB = "plots need matplotlib: pip install matplotlib"
TRUTH, FOUND, PROBABILITY = "#2a9d4f", "#2f6fdb", "#d1495b"
LEAST_SCORE = 0.005  # what would be written as 0.00 is not drawn
TITLE_LETTERS = 105  # per line
TITLE_LINES = 40
LARGEST = 1e9  # seconds or anything else that is drawn
FRAME_HEIGHT_IN = 0.9
DPI, MOST_PIXELS = 120, 65_000  # matplotlib draws fewer than 2^16 pixels
LEFT_TO_RIGHT = "\u200e"
# Seconds between ticks on a time line; from `MINUTES_FROM_S` on they are written as m:ss.
TICK_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
MINUTES_FROM_S = 120
# Fonts for letters that matplotlib's own lacks, where the machine has them.
MORE_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans Devanagari", "Noto Sans", "Arial Unicode MS", "SimHei")


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
    then p (Eq. 6, a line) over o (Eq. 7, a strip). The strip shows o times the number of clips, always on the scale
    from 1, an even share, to e: Eq. 7 is a softmax over probabilities, so that is the most it can reach. Where p is
    flat the strip is pale.

    Args:
        answers: One answer, or a list of them.
        video: Path of the video, for the frames.
        ground_truth: For each answer the described moments, [[start s, end s], ...].
        path: Where to save the picture; its suffix says in which format. The file is written whole or not at all.
        num_frames: At most so many frames are shown, and as many as fit beside each other.
        max_moments: Moments shown of each answer; those that score less than 0.005 are left out.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no answers, more than a picture holds, one without what is drawn of it, or not one list of moments
            for each; matplotlib does not know the suffix.
        OSError: the file cannot be written.
    """
    figures = needed_module("matplotlib.figure", NO_MATPLOTLIB)
    several: list[Mapping[str, Any]] = [answers] if isinstance(answers, Mapping) else list(answers)
    if not several:
        raise ValueError("`answers` is empty: there is nothing to draw")
    for answer in several:
        _check_answer(answer)
    if ground_truth is not None and len(ground_truth) != len(several):
        raise ValueError(f"{len(ground_truth)} lists of moments for {len(several)} answers; pass one for each")
    duration_s = float(several[0]["duration"])
    titles = [_wrapped(f"{_quoted(answer['query'])}{_presence(answer)}") for answer in several]
    heights: list[float] = [FRAME_HEIGHT_IN] if video is not None else []
    for answer in several:
        bars = len(_moments(answer, max_moments)) + (ground_truth is not None)
        heights += [0.25 * max(bars, 1) + 0.1, 0.75]
    lines = sum(text.count("\n") + 1 for text in titles) + (title or "").count("\n")
    height = 1.1 + sum(heights) + 0.2 * lines + 0.12 * len(heights)
    if height * DPI > MOST_PIXELS:
        raise ValueError(
            f"a picture of {len(several)} answers would be {height * DPI:,.0f} pixels high, and {MOST_PIXELS:,} are "
            "the most: draw fewer answers in one picture"
        )
    figure = figures.Figure(figsize=(11, height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(heights), 1, height_ratios=heights, sharex=True))
    first = 1 if video is not None else 0
    for i, answer in enumerate(several):
        bars_axis, attention_axis = axes[first + 2 * i], axes[first + 2 * i + 1]
        _draw_bars(bars_axis, answer, ground_truth[i] if ground_truth is not None else None, max_moments)
        _draw_attention(attention_axis, answer)
        bars_axis.set_title(titles[i], fontsize=10, loc="left")
    axes[-1].set_xlim(0, duration_s)
    _label_times(axes[-1], duration_s)
    _explain(figure, several, ground_truth is not None)
    if title:
        _plain(figure.suptitle(_wrapped(title), fontsize=11))
    for axis in axes:
        _plain(axis.set_title(axis.get_title(loc="left"), fontsize=10, loc="left"))
    with warnings.catch_warnings():
        # A letter that no installed font has shows as a box with its number.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        if video is not None:
            _draw_frames(figure, axes[0], video, num_frames)
        if path is not None:
            path = Path(path) if Path(path).suffix else Path(f"{os.fspath(path)}.png")
            with replacing_path(path) as aside:
                figure.savefig(aside, dpi=DPI)
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
    figures = needed_module("matplotlib.figure", NO_MATPLOTLIB)
    if not bins:
        raise ValueError("`bins` is empty: there is nothing to draw")
    figure = figures.Figure(figsize=(4.2 * len(bins), 4.8), layout="constrained")
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
        with replacing_path(path) as aside:
            figure.savefig(aside, dpi=DPI)
    return figure


def _check_answer(answer: Mapping[str, Any]) -> None:
    """Raises `ValueError` unless an answer holds what is drawn of it."""
    curves = ("frame_probabilities", "frame_attention") if "frame_probabilities" in answer else ("saliency",)
    if missing := [name for name in ("query", "moments", "duration", "clip_length", *curves) if name not in answer]:
        raise ValueError(f"an answer lacks {', '.join(map(repr, missing))}: pass what the pipeline returned")
    if not isinstance(answer["query"], str):
        raise ValueError(f"`query` of an answer must be a sentence, received {answer['query']!r}")
    for name in ("duration", "clip_length"):
        if not (_is_finite(answer[name]) and answer[name] > 0):
            raise ValueError(f"`{name}` of an answer must be a positive number of seconds, received {answer[name]!r}")
    if answer.get("presence") is not None and not _is_finite(answer["presence"]):
        raise ValueError(f"`presence` of an answer must be a number or None, received {answer['presence']!r}")
    moments = answer["moments"]
    names = ("start", "end", "score")
    if not isinstance(moments, Sequence) or not all(
        isinstance(moment, Mapping) and all(_is_finite(moment.get(name)) for name in names) for moment in moments
    ):
        raise ValueError(
            f"`moments` of an answer must be a list of dicts with {', '.join(names)}, received {moments!r}"
        )
    lengths = set()
    for name in curves:
        values = answer[name]
        if not isinstance(values, (Sequence, np.ndarray)) or not len(values) or not all(map(_is_finite, values)):
            raise ValueError(f"`{name}` of an answer must be finite numbers, one per clip, received {values!r}")
        lengths.add(len(values))
    if len(lengths) > 1:
        raise ValueError(f"{' and '.join(curves)} of an answer must have as many numbers, received {sorted(lengths)}")


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return is_number and bool(abs(value) <= LARGEST)


def _quoted(query: str) -> str:
    """A sentence in quotation marks; of one written from right to left, what follows still stands on its right."""
    mark = LEFT_TO_RIGHT if any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in query) else ""
    return f"{mark}“{query}”{mark}"


def _presence(answer: Mapping[str, Any]) -> str:
    presence = answer.get("presence")
    return "" if presence is None else f"   presence {presence:.2f}"


def _moments(answer: Mapping[str, Any], max_moments: int) -> list[Mapping[str, float]]:
    return [moment for moment in answer["moments"][:max_moments] if moment["score"] >= LEAST_SCORE]


def _draw_bars(
    axis: "Axes", answer: Mapping[str, Any], truth: Sequence[Sequence[float]] | None, max_moments: int
) -> None:
    """Ground truth and the best moments, each a row; what the row is stands left of it, where nothing overlaps it."""
    rows: list[tuple[str, list[tuple[float, float, float]], str]] = []
    duration_s = answer["duration"]
    if truth is not None:
        spans = [_span(start, end, duration_s) for start, end in truth[:2]] + [f"{len(truth) - 2} more"] * (
            len(truth) > 2
        )
        described = f"described  {', '.join(spans)}" if spans else "described  nowhere"
        rows.append((described, [(start, end, 1.0) for start, end in truth], TRUTH))
    for rank, moment in enumerate(_moments(answer, max_moments), start=1):
        start, end, score = moment["start"], moment["end"], moment["score"]
        rows.append(
            (f"{rank}.  {_span(start, end, duration_s)}  score {score:.2f}", [(start, end, 0.25 + 0.75 * score)], FOUND)
        )
    if len(rows) == (truth is not None):
        rows.append(("no moment found", [], FOUND))
    for height, (_, bars, colour) in enumerate(rows):
        for start, end, alpha in bars:
            width = max(end - start, 0.003 * duration_s)  # a short moment of a long video can be seen
            axis.barh(
                height,
                width,
                left=min(start, duration_s - width),
                height=0.7,
                color=colour,
                alpha=min(alpha, 1.0),
            )
    axis.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=8)
    axis.tick_params(axis="x", labelbottom=False)
    axis.set_ylim(len(rows) - 0.4, -0.6)


def _draw_attention(axis: "Axes", answer: Mapping[str, Any]) -> None:
    """p as a line over o as a strip; saliency where the model has neither."""
    has_p = "frame_probabilities" in answer
    values = np.asarray(answer["frame_probabilities"] if has_p else answer["saliency"], dtype=float)
    edges = np.minimum(np.arange(len(values) + 1) * answer["clip_length"], answer["duration"])
    if has_p:
        attention = np.asarray(answer["frame_attention"], dtype=float)[None] * len(values)
        across = axis.get_xaxis_transform()
        axis.pcolormesh(edges, [0, 1], attention, cmap="Blues", vmin=1.0, vmax=math.e, alpha=0.7, transform=across)
        axis.set_ylim(-0.05, 1.05)  # lines at 0 and 1 can be seen beside the frame
        axis.set_yticks([0, 1], ["0", "1"], fontsize=8)
    axis.stairs(values, edges, color=PROBABILITY, linewidth=1.6, baseline=None)
    axis.set_ylabel("frame\nprobability" if has_p else "saliency", rotation=0, ha="right", va="center", fontsize=8)


def _explain(figure: "Figure", answers: Sequence[Mapping[str, Any]], has_truth: bool) -> None:
    """A legend in words, below the time line."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=TRUTH, label="described moment")] if has_truth else []
    handles.append(Patch(color=FOUND, label="found moment (stronger: better score)"))
    if any("frame_probabilities" in answer for answer in answers):
        handles.append(Line2D([], [], color=PROBABILITY, label="probability that a frame belongs to the moment"))
        handles.append(Patch(color="#9ecae1", label="attention to a frame above an even share"))
    else:
        handles.append(Line2D([], [], color=PROBABILITY, label="saliency"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)


def _draw_frames(figure: "Figure", axis: "Axes", video: str | os.PathLike, num_frames: int) -> None:
    """Evenly spaced frames with the video's aspect ratio, as many as fit, each centred on the time that it shows."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    info = probe_video(video)
    axis.set_ylim(0, 1)
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.tick_params(axis="x", bottom=False, labelbottom=False)
    axis.set_ylabel("video", rotation=0, ha="right", va="center", fontsize=8)
    figure.draw_without_rendering()  # lays everything out, so that the room for the frames is known
    box = axis.get_window_extent()
    width_in, height_in = box.width / figure.dpi, box.height / figure.dpi
    aspect = info.width / info.height
    frame_height_in = min(height_in, width_in / aspect)
    shown = max(1, min(num_frames, int(width_in / (frame_height_in * aspect))))
    height_px = max(1, round(frame_height_in * DPI))
    size = (max(1, round(height_px * aspect)), height_px)
    times = (np.arange(shown) + 0.5) * info.duration_s / shown
    for time_s, frame in iter_frames(video, times, size=size):
        image = OffsetImage(frame, zoom=frame_height_in * 72 / frame.shape[0], dpi_cor=True)
        axis.add_artist(AnnotationBbox(image, (time_s, 0.5), frameon=False, pad=0, box_alignment=(0.5, 0.5)))


def _label_times(axis: "Axes", duration_s: float) -> None:
    """Ticks at round times; as m:ss on a long axis."""
    if duration_s < 2:
        axis.set_xlabel("seconds")
        return
    ticks = np.arange(0, duration_s + 1e-6, tick_step_s(duration_s, 10))
    in_minutes = duration_s >= MINUTES_FROM_S
    axis.set_xticks(ticks, [clock(tick) if in_minutes else f"{tick:g}" for tick in ticks])
    axis.set_xlabel(("time (h:mm:ss)" if duration_s >= 3600 else "time (m:ss)") if in_minutes else "seconds")


def clock(seconds: float, decimals: int = 0) -> str:
    """A time as players write it: `0:07`, `2:05.3`, `1:02:05`."""
    units = round(seconds * 10**decimals)
    whole, rest = divmod(units, 10**decimals)
    hours, minutes, whole = whole // 3600, whole // 60 % 60, whole % 60
    text = f"{hours}:{minutes:02d}:{whole:02d}" if hours else f"{minutes}:{whole:02d}"
    return f"{text}.{rest:0{decimals}d}" if decimals else text


def tick_step_s(duration_s: float, ticks: int) -> float:
    """Seconds between at most so many ticks on a time line that people read easily."""
    return next((step for step in TICK_STEPS_S if duration_s / step <= ticks), duration_s / ticks)


def _span(start: float, end: float, duration_s: float) -> str:
    """A span for people, in the units of the time line of a video that lasts so long."""
    if duration_s >= MINUTES_FROM_S:
        decimals = int(duration_s < 3600)
        return f"{clock(start, decimals)} - {clock(end, decimals)}"
    decimals = 1 if duration_s >= 10 else 2
    return f"{start:.{decimals}f} - {end:.{decimals}f} s"


def _wrapped(text: str) -> str:
    """The text in lines of a title, with letters that cannot be drawn as escapes."""
    letters = (
        letter if letter.isprintable() or letter == LEFT_TO_RIGHT else " " if letter.isspace() else ascii(letter)[1:-1]
        for letter in text
    )
    lines = textwrap.wrap("".join(letters), TITLE_LETTERS) or [""]
    return "\n".join(lines if len(lines) <= TITLE_LINES else [*lines[:TITLE_LINES], "…"])


def _plain(text: "Text") -> None:
    """Draws the text as it is (no mathematics between dollar signs), with fonts for as many scripts as there are."""
    from matplotlib import font_manager, rcParams

    text.set_parse_math(False)
    installed = {font.name for font in font_manager.fontManager.ttflist}
    text.set_fontfamily([*rcParams["font.family"], *(font for font in MORE_FONTS if font in installed)])
