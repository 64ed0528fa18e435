"""Batches of unique videos: every query once, no video twice in a batch, the same on any number of processes."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_bmdetr.data.batches.sampler import UniqueVideoBatchSampler

quick = settings(deadline=None, derandomize=True, max_examples=150)
# Queries of each video; the first element makes videos with many more queries than others likely.
video_sizes = st.lists(st.one_of(st.integers(1, 3), st.integers(1, 30)), min_size=1, max_size=25)


def videos(sizes):
    return [f"v{number}" for number, size in enumerate(sizes) for _ in range(size)]


@quick
@given(video_sizes, st.integers(1, 12), st.integers(0, 5), st.integers(0, 3), st.booleans())
def test_every_query_once_and_no_video_twice(sizes, batch_size, seed, epoch, grouped):
    vids = videos(sizes)
    lengths = [len(vid) * 10 + int(vid[1:]) for vid in vids] if grouped else None
    batches = UniqueVideoBatchSampler(vids, batch_size, seed, lengths=lengths).global_batches(epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(vids)))
    for batch in batches:
        assert 0 < len(batch) <= min(batch_size, math.ceil(len(vids) / len(batches)))
        assert len({vids[row] for row in batch}) == len(batch)


@quick
@given(video_sizes, st.integers(1, 12), st.integers(0, 5))
def test_as_few_batches_as_possible_and_as_many_in_every_epoch(sizes, batch_size, seed):
    sampler = UniqueVideoBatchSampler(videos(sizes), batch_size, seed)
    fewest = max(max(sizes), math.ceil(sum(sizes) / batch_size))
    assert [len(sampler.global_batches(epoch)) for epoch in range(4)] == [fewest] * 4
    assert len(sampler) == fewest


@quick
@given(video_sizes, st.integers(1, 6), st.integers(2, 4), st.integers(0, 3))
def test_processes_share_the_same_global_batches(sizes, batch_size, processes, epoch):
    vids = videos(sizes)
    steps = max(max(sizes), math.ceil(sum(sizes) / (batch_size * processes)))
    if steps * processes > sum(sizes):
        # Each step needs a row on every process, and fewer steps cannot be had.
        with pytest.raises(ValueError, match="train on fewer processes"):
            UniqueVideoBatchSampler(vids, batch_size, 7, processes, 0)
        return
    samplers = [UniqueVideoBatchSampler(vids, batch_size, 7, processes, index) for index in range(processes)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    shares = [list(sampler) for sampler in samplers]
    assert len({len(share) for share in shares}) == 1
    seen = []
    for step in zip(*shares, strict=True):
        rows = [row for batch in step for _, row in batch]
        assert all(0 < len(batch) <= batch_size for batch in step)
        assert len({vids[row] for row in rows}) == len(rows)
        assert {pair[0] for batch in step for pair in batch} == {epoch}
        seen += rows
    assert sorted(seen) == list(range(len(vids)))


@quick
@given(video_sizes, st.integers(1, 4), st.integers(2, 3))
def test_the_global_batches_do_not_depend_on_the_number_of_processes(sizes, batch_size, processes):
    vids = videos(sizes)
    alone = UniqueVideoBatchSampler(vids, batch_size * processes, 7).global_batches(1)
    if min(map(len, alone)) < processes:
        return  # rows were moved so that every process has one
    together = UniqueVideoBatchSampler(vids, batch_size, 7, processes, 0).global_batches(1)
    assert together == alone


def test_queries_are_spread_evenly_where_videos_are_few():
    # 75 videos with up to 208 queries, as in TACoS, on eight processes with batches of 32 each.
    sizes = [208] + [200 - 2 * number for number in range(74)]
    batches = UniqueVideoBatchSampler(videos(sizes), 32, 0, 8, 0).global_batches(0)
    assert len(batches) == 208
    full = math.ceil(sum(sizes) / 208)
    assert sum(len(batch) == full for batch in batches) > 180


def test_large_videos_do_not_pile_up_at_the_end():
    # One video with 20 queries among 40 others: all batches but the last are full.
    sizes = Counter(map(len, UniqueVideoBatchSampler(videos([20] + [1] * 40), 3).global_batches(0)))
    assert sizes == {3: 20}


def test_order_follows_seed_and_epoch():
    vids = videos([2] * 20)

    def order(seed, epoch):
        sampler = UniqueVideoBatchSampler(vids, 4, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert [[row for _, row in batch] for batch in order(0, 1)] != [[row for _, row in batch] for batch in order(0, 2)]
    assert order(0, 1) != order(1, 1)


def test_accelerate_must_not_take_the_batches_for_equally_large():
    assert not hasattr(UniqueVideoBatchSampler(["a", "b"], 2), "batch_size")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], 0), "at least 1"),
        (([], 2), "`video_ids` is empty"),
        ((["a", "b"], 2, 0, 2, 2), "below `num_processes`"),
        ((["a", "a", "a", "b"], 2, 0, 2, 0), "train on fewer processes"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        UniqueVideoBatchSampler(*arguments)


def test_batches_of_similar_length_need_less_padding_and_are_others_in_every_epoch():
    clips = {f"v{number}": 20 + number % 21 for number in range(200)}
    vids = [vid for vid in clips for _ in range(3)]

    def padding(batches):
        return sum(max(clips[vids[row]] for row in batch) - clips[vids[row]] for batch in batches for row in batch)

    random = UniqueVideoBatchSampler(vids, 16, 0)
    grouped = UniqueVideoBatchSampler(vids, 16, 0, lengths=[clips[vid] for vid in vids])
    assert padding(grouped.global_batches(0)) < padding(random.global_batches(0)) / 3
    together = [{frozenset(vids[row] for row in batch) for batch in grouped.global_batches(epoch)} for epoch in (0, 1)]
    assert not together[0] & together[1]


def test_lengths_are_those_of_the_rows():
    with pytest.raises(ValueError, match="`lengths` must have one entry per row, received 1 for 2 rows"):
        UniqueVideoBatchSampler(["a", "b"], 2, lengths=[3])
