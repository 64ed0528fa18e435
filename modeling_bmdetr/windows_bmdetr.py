"""A long video as windows that overlap by half: where they lie, and how their answers become one."""

from collections.abc import Sequence

import torch
from torch import Tensor

WINDOW_NMS_IOU = 0.7  # moments that two windows found both


def window_starts(clips: int, window: int) -> list[int]:
    """First clips of windows that overlap by half and cover all clips; the last one ends with the video."""
    if clips <= window:
        return [0]
    return [*range(0, clips - window, max(1, window // 2)), clips - window]


def mean_over_windows(values: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    """Per-clip values of overlapping windows, averaged where several cover a clip."""
    total = torch.zeros(starts[-1] + len(values[-1]))
    count = torch.zeros_like(total)
    for value, start in zip(values, starts, strict=True):
        total[start : start + len(value)] += value
        count[start : start + len(value)] += 1
    return total / count
