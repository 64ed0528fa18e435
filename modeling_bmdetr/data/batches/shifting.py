"""Temporal shifting (3.4): the moment moves to a random place, the other clips close up."""

import math

import numpy as np


def shift_moment(
    span_cxw: tuple[float, float], num_clips: int, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[float, float]] | None:
    """Draws a new place for a moment, every place with the same chance, the present one and the last included.

    The clips that the moment touches move as a block. The moment keeps its width and its offset inside the block's
    first clip. Worked example: clips `0 1 2 3 4`, the moment touches `1 2` and moves to the end: `0 3 4 1 2`.

    Args:
        span_cxw: (centre, width) on a time axis on which the clips fill [0, 1].
        num_clips: Real clips n.

    Returns:
        The frame order `(num_clips,)`, int64, such that clip i of the shifted view is clip `order[i]` of the video,
        and the moment's span in it. None when the moment touches every clip, so that nothing can move.
    """
    centre, width = span_cxw
    start, end = (centre - width / 2) * num_clips, (centre + width / 2) * num_clips  # in clips
    first = min(max(math.floor(start + 1e-6), 0), num_clips - 1)
    last = min(max(math.ceil(end - 1e-6) - 1, first), num_clips - 1)
    block = np.arange(first, last + 1)
    others = np.delete(np.arange(num_clips), block)
    if not len(others):
        return None
    place = int(rng.integers(len(others) + 1))
    order = np.concatenate((others[:place], block, others[place:]))
    return order, (centre + (place - first) / num_clips, width)
