"""Span conversions, overlap, suppression and foreground clips, against plain Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_bmdetr.spans_bmdetr import (
    IGNORE,
    foreground_clips,
    generalized_temporal_iou,
    has_moment,
    mean_inside,
    spans_cxw_to_se,
    spans_se_to_cxw,
    temporal_iou,
    temporal_nms,
)

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)
# Multiples of 1/64 are exact in float32, so plain Python and tensors agree to the last digit.
grid = st.integers(0, 64).map(lambda i: i / 64)
span_se = st.tuples(grid, grid).map(sorted).filter(lambda se: se[0] < se[1])


def overlap(a, b) -> tuple[float, float, float]:
    """IoU, union and generalised IoU of two (start, end) pairs, by cases."""
    if a[1] <= b[0] or b[1] <= a[0]:  # apart
        shared = 0.0
    elif a[0] <= b[0] and b[1] <= a[1]:  # b inside a
        shared = b[1] - b[0]
    elif b[0] <= a[0] and a[1] <= b[1]:
        shared = a[1] - a[0]
    elif a[0] < b[0]:
        shared = a[1] - b[0]
    else:
        shared = b[1] - a[0]
    union = (a[1] - a[0]) + (b[1] - b[0]) - shared
    hull = max(*a, *b) - min(*a, *b)
    iou = shared / union
    return iou, union, iou - (hull - union) / hull


def test_conversions_of_the_worked_example():
    assert spans_cxw_to_se(torch.tensor([0.5, 0.2])).tolist() == pytest.approx([0.4, 0.6])
    assert spans_se_to_cxw(torch.tensor([0.4, 0.6])).tolist() == pytest.approx([0.5, 0.2])


@PROPERTY
@given(st.lists(span_se, min_size=1, max_size=5))
def test_conversions_are_inverse_in_any_shape(spans):
    spans_se = torch.tensor(spans).reshape(1, -1, 2)
    assert torch.equal(spans_cxw_to_se(spans_se_to_cxw(spans_se)), spans_se)


@PROPERTY
@given(span_se, span_se)
def test_overlaps_are_those_of_plain_python(a, b):
    iou, union, giou = overlap(a, b)
    first, second = torch.tensor(a), torch.tensor(b)
    got_iou, got_union = temporal_iou(first, second)
    assert got_iou.item() == pytest.approx(iou, abs=1e-6)
    assert got_union.item() == pytest.approx(union, abs=1e-6)
    assert generalized_temporal_iou(first, second).item() == pytest.approx(giou, abs=1e-6)


@PROPERTY
@given(span_se, span_se, st.integers(1, 4), st.integers(-3, 3))
def test_overlaps_are_symmetric_and_do_not_depend_on_unit_or_origin(a, b, scale, offset):
    a, b = torch.tensor(a), torch.tensor(b)
    for measure in (lambda x, y: temporal_iou(x, y)[0], generalized_temporal_iou):
        assert torch.equal(measure(a, b), measure(b, a))
        assert measure(a * scale + offset, b * scale + offset).item() == pytest.approx(measure(a, b).item(), abs=1e-5)
    assert temporal_iou(a, a)[0].item() == generalized_temporal_iou(a, a).item() == 1.0
    assert -1 < generalized_temporal_iou(a, b).item() <= temporal_iou(a, b)[0].item() <= 1


def test_generalised_iou_of_the_worked_example():
    giou = generalized_temporal_iou(torch.tensor([0.0, 0.2]), torch.tensor([0.8, 1.0]))
    assert giou.item() == pytest.approx(-0.6)


def test_pairwise_overlaps_by_broadcasting():
    a, b = torch.tensor([[0.0, 0.5], [0.25, 1.0]]), torch.tensor([[0.0, 0.5], [0.5, 1.0], [0.0, 1.0]])
    iou, union = temporal_iou(a[:, None], b[None])
    assert iou.shape == union.shape == (2, 3)
    expected = [[overlap(x, y)[0] for y in b.tolist()] for x in a.tolist()]
    torch.testing.assert_close(iou, torch.tensor(expected))
    assert generalized_temporal_iou(a[:, None], b[None]).shape == (2, 3)


def test_spans_without_length_have_no_overlap_and_finite_gradients():
    point = torch.tensor([0.3, 0.3], requires_grad=True)
    iou, union = temporal_iou(point, torch.tensor([0.3, 0.3]))
    assert iou.item() == union.item() == 0
    giou = generalized_temporal_iou(point, torch.tensor([0.3, 0.3]))
    assert giou.item() == 0
    giou.backward()
    assert point.grad is not None
    assert point.grad.isfinite().all()
    assert temporal_iou(torch.tensor([0.3, 0.3]), torch.tensor([0.0, 1.0]))[0].item() == 0


moments = st.lists(st.tuples(span_se, st.integers(0, 5)).map(lambda m: (*m[0], m[1])), min_size=0, max_size=8)


@PROPERTY
@given(moments, st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]))
def test_suppression_against_repeated_removal(rows, threshold):
    left = sorted(rows, key=lambda row: -row[2])  # stable, as ties should be
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [row for row in left if overlap(row, best)[0] <= threshold]
    result = temporal_nms(torch.tensor(rows).reshape(-1, 3), threshold)
    assert result.reshape(-1, 3).tolist() == torch.tensor(kept).reshape(-1, 3).tolist()


def test_suppression_leaves_its_input_alone_and_is_best_first():
    rows = torch.tensor([[0.0, 4.0, 0.1], [8.0, 9.0, 0.5], [0.0, 5.0, 0.9]])
    before = rows.clone()
    assert temporal_nms(rows, 0.5).tolist() == rows[[2, 1]].tolist()
    assert temporal_nms(rows, 0.5, most=1).tolist() == rows[[2]].tolist()
    assert temporal_nms(rows, 0.5, most=3).tolist() == rows[[2, 1]].tolist()
    assert torch.equal(rows, before)


def clips_by_loop(moments_cxw, num_clips: int, video_len: int) -> list[bool]:
    """A clip whose centre lies in a moment, or the one that holds the centre of a moment without any."""
    result = [False] * video_len
    for centre, width in moments_cxw:
        start, end = centre - width / 2, centre + width / 2
        inside = [i for i in range(num_clips) if start <= (i + 0.5) / num_clips < end]
        for i in inside or [min(int(centre * num_clips), num_clips - 1)]:
            result[i] = True
    return result


@PROPERTY
@given(
    st.lists(
        st.tuples(st.lists(span_se, min_size=0, max_size=3), st.sampled_from([1, 2, 4, 8, 16])), min_size=1, max_size=4
    ),
    st.integers(0, 3),
)
def test_foreground_clips_against_a_loop(rows, padding):
    video_len = max(num_clips for _, num_clips in rows) + padding
    labels = torch.full((len(rows), 3, 2), IGNORE)
    mask = torch.zeros(len(rows), video_len, dtype=torch.long)
    for i, (spans, num_clips) in enumerate(rows):
        mask[i, :num_clips] = 1
        if spans:
            labels[i, : len(spans)] = spans_se_to_cxw(torch.tensor(spans))
    expected = [
        clips_by_loop([c for c in label.tolist() if c[0] != IGNORE], int(row.sum()), video_len)
        for label, row in zip(labels, mask, strict=True)
    ]
    for cast in (torch.long, torch.bool, torch.float32):
        foreground = foreground_clips(labels, mask.to(cast))
        assert foreground.dtype == torch.bool
        assert foreground.tolist() == expected


@PROPERTY
@given(st.integers(0, 1000), st.integers(1, 20), st.integers(1, 40))
def test_a_moment_however_short_has_foreground_where_it_is(centre, width, num_clips):
    centre, width = centre / 1000, width / 1000
    foreground = foreground_clips(torch.tensor([[[centre, width]]]), torch.ones(1, num_clips))[0]
    distance = ((torch.arange(num_clips) + 0.5) / num_clips - centre).abs()
    assert 1 <= foreground.sum() <= math.ceil(width * num_clips)
    assert distance[foreground].min() <= distance.min() + 1e-6


def test_foreground_worked_examples():
    mask = torch.tensor([[1, 1, 1, 1, 0]])

    def clips(centre: float, width: float) -> list[int]:
        return foreground_clips(torch.tensor([[[centre, width]]]), mask)[0].nonzero().flatten().tolist()

    assert clips(0.5, 0.5) == [1, 2]  # exactly two clips of four
    assert clips(0.5, 1.0) == [0, 1, 2, 3]  # never the padding
    assert clips(0.5, 0.3) == [1, 2]  # both centres, 0.375 and 0.625, lie in [0.35, 0.65)
    assert clips(0.99, 0.01) == [3]  # holds no centre
    assert clips(1.0, 0.001) == [3]  # a centre on the end belongs to the last clip


def test_rows_without_a_moment():
    labels = torch.tensor([[[0.5, 0.2], [IGNORE, IGNORE]], [[IGNORE, IGNORE], [IGNORE, IGNORE]]])
    assert has_moment(labels).tolist() == [[True, False], [False, False]]
    assert not foreground_clips(labels, torch.ones(2, 6))[1].any()
    assert not foreground_clips(torch.zeros(2, 0, 2), torch.ones(2, 6)).any()


def test_the_mean_inside_a_span_is_over_the_clips_that_it_covers() -> None:
    values, mask = torch.tensor([[0.1, 0.2, 0.4, 0.8, 9.0]]), torch.tensor([[1, 1, 1, 1, 0]])
    spans_cxw = torch.tensor([[[0.5, 0.5], [0.5, 1.0], [0.3, 0.01]]])  # the two in the middle, all, the one it lies in
    torch.testing.assert_close(mean_inside(values, spans_cxw, mask), torch.tensor([[0.3, 0.375, 0.2]]))
