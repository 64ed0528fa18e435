"""Windows over long videos: where they lie, and how their answers become one."""

import pytest
import torch

from modeling_bmdetr.windows_bmdetr import mean_over_windows, merge_windows, presence_over_windows, window_starts


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


class TestMerging:
    def test_what_two_windows_found_is_kept_once_where_it_scores_best(self):
        first = torch.tensor([[8.0, 12.0, 0.6], [0.0, 3.0, 0.2]])  # the second half of it lies past the window's end
        second = torch.tensor([[2.0, 6.5, 0.9], [9.0, 11.0, 0.3]])
        merged = merge_windows([first, second], [0.0, 6.0])
        expected = [[8.0, 12.5, 0.9], [15.0, 17.0, 0.3], [0.0, 3.0, 0.2]]
        torch.testing.assert_close(merged, torch.tensor(expected))

    def test_moments_that_overlap_little_stay_apart(self):
        merged = merge_windows([torch.tensor([[0.0, 4.0, 0.6]]), torch.tensor([[0.0, 4.0, 0.9]])], [0.0, 2.0])
        assert len(merged) == 2
        assert len(merge_windows([merged[:1], merged[1:]], [0.0, 0.0], iou_threshold=0.2)) == 1

    def test_one_window_is_ranked_and_nothing_else(self):
        moments = torch.tensor([[0.0, 4.0, 0.6], [0.0, 4.0, 0.9]])
        torch.testing.assert_close(merge_windows([moments], [10.0]), moments[[1, 0]] + torch.tensor([10.0, 10.0, 0.0]))


class TestPresence:
    @pytest.mark.parametrize("value", [0.0, 0.03, 0.5, 0.97, 1.0])
    def test_one_window_keeps_its_presence_and_equal_windows_agree(self, value):
        for windows in (1, 2, 30):
            found = float(presence_over_windows(torch.full((windows,), value)))
            assert found == pytest.approx(value, abs=2e-6)

    def test_absent_sentences_do_not_rise_with_windows_and_one_sure_window_is_seen(self):
        """Windows of an absent sentence scatter: their maximum rises with their number, the rule's value hardly does,
        and it is taken for shown no more often.
        """
        generator = torch.Generator().manual_seed(0)
        means, alarms, highest = [], [], []
        for windows in (1, 2, 4, 10, 30):
            absent = torch.sigmoid(torch.randn(4000, windows, generator=generator) - 1.2)
            presences = [float(presence_over_windows(row)) for row in absent]
            means.append(sum(presences) / len(presences))
            alarms.append(sum(presence > 0.5 for presence in presences))
            highest.append(float(absent.amax(dim=1).mean()))
        assert max(means) - min(means) < 0.05
        assert alarms == sorted(alarms, reverse=True)
        assert highest[-1] - highest[0] > 0.3
        sure = torch.full((10,), 0.2)
        sure[3] = 0.99
        assert float(presence_over_windows(sure)) > 2 * 0.2

    def test_the_power_mean_of_the_odds(self):
        # odds 1/4 and 4, to the power of 0.8: 0.329877 and 3.031433, mean 1.680655; to the power of 1.25: 1.913587
        assert float(presence_over_windows(torch.tensor([0.2, 0.8]))) == pytest.approx(1.913587 / 2.913587, abs=1e-6)
