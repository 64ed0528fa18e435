"""Matched rows as checked, padded NumPy arrays, ready for the metrics."""

import logging
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np

from ..contract_bmdetr import clip_count
from .metrics import BoolArray, FloatArray, IntArray
from .reliability import are_probabilities
from .submission import RowTable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MomentArrays:
    """Windows of every query, in seconds; padding is the empty window (0, 0). A query without a window is absent."""

    predicted_se: FloatArray  # (queries, ranks, 2), in the order listed
    scores: FloatArray  # (queries, ranks); -inf where padded
    windows_se: FloatArray  # (queries, windows, 2)
    window_mask: BoolArray  # (queries, windows); 1 = real

    @property
    def is_present(self) -> BoolArray:
        """Whether the video shows what the query says: (queries,)."""
        return np.asarray(self.window_mask.any(axis=1))

    @property
    def num_predicted(self) -> IntArray:
        """How many windows were predicted: (queries,)."""
        return np.isfinite(self.scores).sum(axis=1)

    def take(self, queries: BoolArray) -> "MomentArrays":
        return MomentArrays(*(getattr(self, field.name)[queries] for field in fields(self)))


@dataclass(frozen=True)
class SaliencyArrays:
    """Predicted and rated saliency of every clip; `clips` is the length of the longest video."""

    scores: FloatArray  # (queries, clips); 0 where a prediction is shorter than the video
    clip_mask: BoolArray  # (queries, clips); 1 = a clip of the video
    ratings: FloatArray  # (queries, annotators, clips); 0 for clips that were not rated
    top_clip: IntArray  # (queries,); first clip with the highest score, at most `clips`


def moment_arrays(predictions: RowTable, ground_truth: RowTable) -> MomentArrays:
    """Predicted and true windows of matched rows.

    Predicted windows that do not end after they start are kept: they hold a rank and match nothing. A true window may
    have length zero, which nothing matches, but not a negative one. Both are logged as a warning with their number,
    and so are queries whose predictions are not listed best first.

    Raises:
        ValueError: A row lacks its windows, a window is malformed, or a true window ends before it starts.
    """
    flat_predicted, num_predicted = _flatten(predictions, "pred_relevant_windows", 3, "[start s, end s, score]")
    flat_true, num_true = _flatten(ground_truth, "relevant_windows", 2, "[start s, end s]")
    true_length_s = flat_true[:, 1] - flat_true[:, 0]
    row_of_window = np.repeat(np.arange(len(num_true)), num_true)
    is_reversed = np.bincount(row_of_window, true_length_s < 0, len(num_true)) > 0
    _check_rows(
        ground_truth,
        is_reversed,
        lambda row: (
            f"a window that ends before it starts in relevant_windows {flat_true[row_of_window == row].tolist()}; "
            "expected start <= end: correct the annotation"
        ),
    )
    scores = _pad(flat_predicted[:, 2], num_predicted, fill=-np.inf)

    num_empty = int((true_length_s == 0).sum())
    num_degenerate = int((flat_predicted[:, 1] <= flat_predicted[:, 0]).sum())
    num_unsorted = int((scores[:, 1:] > scores[:, :-1]).any(axis=1).sum())
    if num_empty:
        logger.warning(f"{num_empty} windows in {ground_truth.source} have length zero: no prediction can match them.")
    if num_degenerate:
        logger.warning(
            f"{num_degenerate} of {len(flat_predicted)} windows in {predictions.source} do not end after they start: "
            "they count as wrong."
        )
    if num_unsorted:
        logger.warning(
            f"{num_unsorted} of {len(scores)} queries in {predictions.source} are not listed best first: "
            "recall goes by the order listed, mAP by the scores."
        )
    return MomentArrays(
        predicted_se=_pad(flat_predicted[:, :2], num_predicted),
        scores=scores,
        windows_se=_pad(flat_true, num_true),
        window_mask=_mask(num_true),
    )


def presence_scores(predictions: RowTable) -> FloatArray | None:
    """`pred_exist_score` of every query, `(queries,)`, or None where no row has one.

    Raises:
        ValueError: Some rows have one and others do not, or one is no number from 0 to 1.
    """
    if not predictions.has("pred_exist_score"):
        return None
    values = [row.get("pred_exist_score") for row in predictions.rows]
    numbers = [_as_numbers([value], ()) for value in values]
    is_bad = np.array([number is None or not are_probabilities(number) for number in numbers])
    _check_rows(
        predictions,
        is_bad,
        lambda row: (
            "no pred_exist_score, which other rows have; expected one for every query"
            if values[row] is None
            else f"pred_exist_score {values[row]!r}; expected a probability from 0 to 1"
        ),
    )
    return np.array(values, dtype=np.float64)


def is_absent(ground_truth: RowTable, index: int) -> bool:
    """Whether a row says that its video does not show what the query says: its list of windows is empty.

    Raises:
        ValueError: the windows are no list.
    """
    windows = ground_truth.rows[index].get("relevant_windows")
    if windows is not None and not _is_list(windows):
        place = ground_truth.where(index)
        raise ValueError(f"{place} has relevant_windows {reprlib.repr(windows)}; expected a list of [start s, end s].")
    return windows is not None and len(windows) == 0


def saliency_arrays(predictions: RowTable, ground_truth: RowTable, clip_length_s: float) -> SaliencyArrays:
    """Saliency of matched rows, all of which have `saliency_scores` in the ground truth.

    Predicted scores past the last clip are dropped (but a highest
    score there counts as the top clip), clips without one score 0.

    Raises:
        ValueError: A row lacks a field, or its clips, ratings and duration do not fit together.
    """
    num_clips = _clips_per_video(ground_truth, clip_length_s)
    ratings = _ratings(ground_truth, num_clips)
    flat_scores, num_scores = _flatten(predictions, "pred_saliency_scores", None, "a score for every clip")
    _check_rows(predictions, num_scores == 0, "empty pred_saliency_scores; expected a score for every clip")
    max_clips = ratings.shape[2]
    top_clip = _pad(flat_scores, num_scores, fill=-np.inf).argmax(axis=1)
    predicted = _pad(flat_scores, num_scores)[:, :max_clips]
    return SaliencyArrays(
        scores=np.pad(predicted, ((0, 0), (0, max_clips - predicted.shape[1]))),
        clip_mask=_mask(num_clips),
        ratings=ratings,
        top_clip=np.minimum(top_clip, max_clips),
    )


def _clips_per_video(ground_truth: RowTable, clip_length_s: float) -> IntArray:
    """Clips of each video, by `clip_count`, except that a partial last clip counts only where it was rated.

    The released evaluator counts whole clips only, and stops at a rating of a partial one. Leaving out partial clips
    that nobody rated keeps its figures wherever it gives one.
    """
    durations_s: list[Any] = [row.get("duration") for row in ground_truth.rows]
    _check_rows(
        ground_truth,
        np.array([_as_numbers([duration_s], ()) is None or duration_s <= 0 for duration_s in durations_s]),
        lambda row: f"duration {durations_s[row]!r}; expected a positive number of seconds",
    )
    all_clips = np.array([clip_count(duration_s, clip_length_s) for duration_s in durations_s], dtype=np.int64)
    whole_clips = (np.asarray(durations_s, dtype=np.float64) / clip_length_s).astype(np.int64)
    flat_clips, num_ids = _flatten(ground_truth, "relevant_clip_ids", None, "indices of clips")
    last_rated = np.zeros(len(num_ids))
    np.maximum.at(last_rated, np.repeat(np.arange(len(num_ids)), num_ids), flat_clips)
    return np.where(last_rated >= whole_clips, all_clips, whole_clips)


def _ratings(ground_truth: RowTable, num_clips: IntArray) -> FloatArray:
    """The annotators' ratings of every clip: (queries, annotators, clips)."""
    num_annotators = _num_annotators(ground_truth)
    flat_clips, num_ids = _flatten(ground_truth, "relevant_clip_ids", None, "indices of clips")
    flat_ratings, num_rated = _flatten(
        ground_truth, "saliency_scores", num_annotators, f"{num_annotators} ratings of a clip, as in the first row"
    )
    _check_rows(
        ground_truth,
        num_ids != num_rated,
        lambda row: f"{num_ids[row]} relevant_clip_ids but {num_rated[row]} saliency_scores; expected as many of both",
    )
    query = np.repeat(np.arange(len(num_ids)), num_ids)
    is_bad = (flat_clips != np.floor(flat_clips)) | (flat_clips < 0) | (flat_clips >= num_clips[query])
    _check_rows(
        ground_truth,
        np.bincount(query, is_bad, len(num_ids)) > 0,
        lambda row: (
            f"relevant_clip_ids {flat_clips[is_bad & (query == row)].tolist()}; expected integers from 0 to "
            f"{num_clips[row] - 1}, as the video has {num_clips[row]} clips: check duration and clip_length_s"
        ),
    )
    max_clips = int(num_clips.max())
    clip = flat_clips.astype(np.int64)
    num_distinct = np.bincount(np.unique(query * max_clips + clip) // max_clips, minlength=len(num_ids))
    _check_rows(ground_truth, num_distinct != num_ids, "a clip twice in relevant_clip_ids; expected it once")

    ratings = np.zeros((len(num_ids), num_annotators, max_clips))
    ratings[query, :, clip] = flat_ratings
    return ratings


def _num_annotators(ground_truth: RowTable) -> int:
    """The number of ratings of the first rated clip, which all other clips must have too."""
    for index, row in enumerate(ground_truth.rows):
        clips = row["saliency_scores"]
        if not _is_list(clips):
            raise ValueError(f"{ground_truth.where(index)} has saliency_scores {reprlib.repr(clips)}; expected a list.")
        if len(clips) and not (_is_list(clips[0]) and len(clips[0])):
            raise ValueError(
                f"{ground_truth.where(index)} has {reprlib.repr(clips[0])} in saliency_scores; expected a list for "
                "each clip, with a rating by each annotator: one annotator is written as [[4], [3], ...]."
            )
        if len(clips):
            return len(clips[0])
    return 1


def _flatten(table: RowTable, field: str, width: int | None, meaning: str) -> tuple[FloatArray, IntArray]:
    """All items of a list field one after the other, (items, width) or (items,), and how many each row has."""
    values: list[Any] = [row.get(field) for row in table.rows]
    is_bad = np.array([not _is_list(value) for value in values])
    _check_rows(
        table,
        is_bad,
        lambda row: (
            f"no {field}; expected a list of {meaning}"
            if values[row] is None
            else f"{field} {reprlib.repr(values[row])}; expected a list of {meaning}"
        ),
    )
    counts = np.array([len(value) for value in values])
    items = list(chain.from_iterable(values))
    shape = () if width is None else (width,)
    flat = _as_numbers(items, shape)
    if flat is None:  # look at one item after the other only to name the one at fault
        for index, value in enumerate(values):
            for item in value:
                if _as_numbers([item], shape) is None:
                    raise ValueError(
                        f"{table.where(index)} has {reprlib.repr(item)} in {field}; expected {meaning}, finite numbers."
                    )
        flat = np.array(items, dtype=np.float64)
    return flat, counts


def _as_numbers(items: list[Any], item_shape: tuple[int, ...]) -> FloatArray | None:
    """Items as one float array, or None if they are no finite numbers of the given shape."""
    if not items:
        return np.zeros((0, *item_shape))
    try:
        array = np.array(items)
    except ValueError:  # items of different lengths
        return None
    # Integers and floats only: text would convert silently, and so would True among numbers.
    if array.dtype.kind not in "iuf" or array.shape[1:] != item_shape or not np.isfinite(array).all():
        return None
    if any(isinstance(value, (bool, np.bool_)) for item in items for value in (item if _is_list(item) else (item,))):
        return None
    return array.astype(np.float64)


def _pad(flat: FloatArray, counts: IntArray, fill: float = 0.0) -> FloatArray:
    """(items, ...) -> (rows, longest row, ...)."""
    mask = _mask(counts)
    padded = np.full(mask.shape + flat.shape[1:], fill)
    padded[mask] = flat
    return padded


def _mask(counts: IntArray) -> BoolArray:
    """(rows, longest row), 1 = real; the axis has at least one entry."""
    return np.arange(max(1, int(counts.max()))) < counts[:, None]


def _check_rows(table: RowTable, is_bad: BoolArray, problem: str | Callable[[int], str]) -> None:
    """Raise about the first bad row: "<place> has <problem>"."""
    if is_bad.any():
        row = int(np.flatnonzero(is_bad)[0])
        what = problem if isinstance(problem, str) else problem(row)
        raise ValueError(f"{table.where(row)} has {what} ({int(is_bad.sum())} of {len(is_bad)} rows).")


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))
