"""Highlight detection metrics over padded NumPy arrays, as QVHighlights defines them: average precision and HIT@1.

Axes: `queries`; `clips` of the video; `annotators`, each of whom rated every clip. Whether a rating makes a clip a
highlight is decided by the caller, once for each minimum rating.
"""

import numpy as np

from .metrics import BoolArray, FloatArray


def highlight_average_precision(scores: FloatArray, is_highlight: BoolArray, clip_mask: BoolArray) -> FloatArray:
    """Interpolated average precision of the clips of each query, ranked by score, for each annotator.

    Clips with equal scores share one rank: precision is taken where the score changes. The result is the mean, over the
    distinct scores that bring at least one new highlight, of the interpolated precision (the highest one at this score
    or a lower one). It is 0 for an annotator who marked no highlight and 1 for one who marked every clip.

    Args:
        scores: Shape (queries, clips), finite where `clip_mask` is 1.
        is_highlight: Shape (queries, annotators, clips).
        clip_mask: Shape (queries, clips); 1 = a clip of the video.

    Returns:
        Shape (queries, annotators), in [0, 1].
    """
    num_clips = scores.shape[1]
    order = np.argsort(np.where(clip_mask, -scores, np.inf), axis=1, kind="stable")  # padding last
    ranked_scores = np.take_along_axis(scores, order, axis=1)
    ranked_mask = np.take_along_axis(clip_mask, order, axis=1)
    ranked_highlights = np.take_along_axis(is_highlight & clip_mask[:, None, :], order[:, None, :], axis=2)

    # The last clip of each distinct score: the next clip has another score or is padding.
    is_last = ranked_mask.copy()
    is_last[:, :-1] &= (ranked_scores[:, 1:] != ranked_scores[:, :-1]) | ~ranked_mask[:, 1:]
    is_last = is_last[:, None, :]

    found = np.cumsum(ranked_highlights, axis=2)  # (queries, annotators, clips)
    precision = np.where(is_last, found / np.arange(1, num_clips + 1), 0.0)
    interpolated = np.maximum.accumulate(precision[:, :, ::-1], axis=2)[:, :, ::-1]

    found_at_last = np.maximum.accumulate(np.where(is_last, found, 0), axis=2)
    found_before = np.zeros_like(found_at_last)
    found_before[:, :, 1:] = found_at_last[:, :, :-1]
    brings_new = is_last & (found > found_before)
    return (interpolated * brings_new).sum(axis=2) / np.maximum(brings_new.sum(axis=2), 1)


def highlight_hit(top_clip: np.ndarray, is_highlight: BoolArray) -> BoolArray:
    """Whether at least one annotator marked the clip with the highest predicted score as a highlight: `(queries,)`.

    Args:
        top_clip: Shape (queries,), integer index of the clip; one past the last clip never is a hit.
        is_highlight: Shape (queries, annotators, clips).
    """
    is_inside = top_clip < is_highlight.shape[2]
    clip = np.where(is_inside, top_clip, 0)
    return is_highlight[np.arange(len(top_clip)), :, clip].any(axis=1) & is_inside
