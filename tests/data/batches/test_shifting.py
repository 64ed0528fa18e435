"""Temporal shifting: what moves, where to, and what stays as it was."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_bmdetr.data.batches.shifting import shift_moment
from modeling_bmdetr.spans_bmdetr import foreground_clips

quick = settings(deadline=None, derandomize=True, max_examples=150)
# Boundaries in tenths of a clip, never at a clip's centre, where rounding would decide what is foreground.
boundaries = st.integers(0, 400).filter(lambda tenths: tenths % 10 != 5)


@st.composite
def moments(draw):
    """((centre, width), number of clips) with 0 <= start < end <= 1."""
    num_clips = draw(st.integers(1, 40))
    start, end = sorted(draw(st.tuples(boundaries, boundaries).filter(lambda pair: pair[0] != pair[1])))
    limit = 10 * num_clips
    start, end = min(start, limit - 1), min(end, limit)
    if start % 10 == 5:
        start -= 1
    return ((start + end) / 20 / num_clips, (end - start) / 10 / num_clips), num_clips


def touched(span_cxw, num_clips):
    """First and last clip that a moment touches."""
    start, end = (span_cxw[0] - span_cxw[1] / 2) * num_clips, (span_cxw[0] + span_cxw[1] / 2) * num_clips
    return math.floor(start + 1e-6), math.ceil(end - 1e-6) - 1


@quick
@given(moments(), st.integers(0, 2**31))
def test_the_block_moves_and_the_rest_closes_up(moment, seed):
    span, num_clips = moment
    first, last = touched(span, num_clips)
    shifted = shift_moment(span, num_clips, np.random.default_rng(seed))
    if last - first + 1 == num_clips:
        assert shifted is None
        return
    order, new_span = shifted
    assert sorted(order.tolist()) == list(range(num_clips))
    new_first, new_last = touched(new_span, num_clips)
    assert order[new_first : new_last + 1].tolist() == list(range(first, last + 1))
    rest = np.delete(order, slice(new_first, new_last + 1))
    assert rest.tolist() == sorted(rest.tolist())


@quick
@given(moments(), st.integers(0, 2**31))
def test_width_and_offset_inside_the_first_clip_are_kept(moment, seed):
    span, num_clips = moment
    shifted = shift_moment(span, num_clips, np.random.default_rng(seed))
    if shifted is None:
        return
    (centre, width), (new_centre, new_width) = span, shifted[1]
    assert new_width == width
    moved_clips = (new_centre - centre) * num_clips
    assert moved_clips == pytest.approx(round(moved_clips), abs=1e-9)
    assert new_centre - width / 2 > -1e-9
    assert new_centre + width / 2 < 1 + 1e-9


@quick
@given(moments(), st.integers(0, 2**31))
def test_foreground_clips_move_with_their_frames(moment, seed):
    span, num_clips = moment
    shifted = shift_moment(span, num_clips, np.random.default_rng(seed))
    if shifted is None:
        return
    order, new_span = shifted
    mask = torch.ones(1, num_clips)
    before = foreground_clips(torch.tensor([[span]], dtype=torch.float64), mask)
    after = foreground_clips(torch.tensor([[new_span]], dtype=torch.float64), mask)
    assert torch.equal(after[0], before[0, torch.from_numpy(order)])


def test_every_place_is_drawn_with_the_same_chance():
    # Clips 1 and 2 of 6: the moment can begin at 0, 1, 2, 3 and 4, its present place and the last included.
    rng = np.random.default_rng(0)
    places = [int(shift_moment((0.3, 0.2), 6, rng)[0].tolist().index(1)) for _ in range(2000)]
    counts = np.bincount(places, minlength=5)
    assert len(counts) == 5
    assert (np.abs(counts - 400) < 80).all(), counts  # about four and a half standard deviations


def test_worked_example_of_the_documentation():
    orders = {tuple(shift_moment((0.4, 0.4), 5, np.random.default_rng(seed))[0].tolist()) for seed in range(40)}
    assert (0, 3, 4, 1, 2) in orders
    assert orders == {(1, 2, 0, 3, 4), (0, 1, 2, 3, 4), (0, 3, 1, 2, 4), (0, 3, 4, 1, 2)}


def test_a_draw_depends_on_the_generator_alone():
    first, second = (shift_moment((0.5, 0.1), 30, np.random.default_rng((1, 2, 3))) for _ in range(2))
    assert first[0].tolist() == second[0].tolist()
    assert first[1] == second[1]
