"""Windows over long videos: where they lie, and how their answers become one."""

import torch

from modeling_bmdetr.windows_bmdetr import mean_over_windows, window_starts


def test_windows_overlap_by_half_and_end_with_the_video():
    assert window_starts(10, 12) == [0]
    assert window_starts(30, 12) == [0, 6, 12, 18]
    assert window_starts(31, 12) == [0, 6, 12, 18, 19]
    for clips in range(1, 80):
        covered = {i for start in window_starts(clips, 12) for i in range(start, min(start + 12, clips))}
        assert covered == set(range(clips))


def test_overlapping_windows_are_averaged():
    mean = mean_over_windows([torch.tensor([1.0, 2.0]), torch.tensor([4.0, 6.0])], [0, 1])
    assert mean.tolist() == [1.0, 3.0, 6.0]
