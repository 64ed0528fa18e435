"""Pictures from decoded frames: which are wanted, when, and in what size; and frames that were decoded elsewhere."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeGuard

import numpy as np

from .containers_bmdetr import Container, import_av

INTERPOLATIONS = ("fast_bilinear", "bilinear", "bicubic", "area", "point", "lanczos", "spline")
_OWN_INTERPOLATIONS = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class FramePlan:
    """Which frames to take, and their size.

    Attributes:
        times_s: Non-decreasing, non-negative times in seconds. Where two times fall on one frame, it is taken twice.
        size: None for the size of the video, one number for the shorter side in pixels (the aspect ratio stays), or
            (width, height).
        interpolation: `area`, `bilinear`, `bicubic`, or another scaling method of libswscale. All but `point` average
            over the pixels they merge.
    """

    times_s: Sequence[float] | np.ndarray
    size: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"


class FrameArray(AbstractContextManager):
    """Frames that were decoded elsewhere, read as a [`VideoFile`] is.

    Args:
        array: `(frames, height, width, 3)` uint8 RGB at a constant rate.
        fps: The rate.

    Raises:
        ValueError: another shape or type, or no rate.
    """

    name = "the video"

    def __init__(self, array: np.ndarray, fps: float | None) -> None:
        if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or not len(array):
            raise ValueError(
                f"frames must be a (frames, height, width, 3) uint8 array with at least one frame, received "
                f"{array.dtype} {array.shape}; scale to 0..255 and put the channels last"
            )
        if not is_rate(fps):
            raise ValueError(f"fps must be the frame rate of the frames given, received {fps!r}")
        self.array, self.fps = array, float(fps)
        self.duration_s = len(array) / self.fps

    def __exit__(self, *error: object) -> None:
        """Nothing is open."""

    def frames(self, plans: Sequence[FramePlan]) -> Iterator[tuple[int, float, np.ndarray]]:
        """As [`VideoFile.frames`], resized by the same means."""
        converters = [FrameConverter(plan.size, plan.interpolation) for plan in plans]
        for time_s, owner in zip(*merged_times(plans), strict=True):
            picture = self.array[min(int(time_s * self.fps), len(self.array) - 1)]
            if plans[owner].size is not None:
                picture = converters[owner].resized(picture, picture.shape[1], picture.shape[0])
            yield owner, time_s, picture


def is_rate(fps: Any) -> TypeGuard[float]:
    """Whether a value is a frame rate: a number above 0 that float64 holds, such as 25 or `Fraction(30000, 1001)`."""
    rate: Any = fps
    return isinstance(rate, Real) and not isinstance(rate, bool) and 0 < rate <= sys.float_info.max  # type: ignore[operator]


def merged_times(plans: Sequence[FramePlan]) -> tuple[list[float], list[int]]:
    """The times of all plans in one order, and whose each is."""
    times = [checked_times(plan.times_s) for plan in plans]
    joined = np.concatenate(times) if times else np.empty(0)
    order = np.argsort(joined, kind="stable")
    owners = np.repeat(np.arange(len(plans)), [len(part) for part in times])
    return joined[order].tolist(), owners[order].tolist()


def checked_times(times_s: Sequence[float] | np.ndarray) -> np.ndarray:
    times = np.asarray(times_s, dtype=np.float64)
    if times.ndim != 1:
        raise ValueError(
            f"times_s must be one-dimensional, received shape {times.shape}; flatten clip_times(...) first"
        )
    if not np.isfinite(times).all() or (times < 0).any() or (np.diff(times) < 0).any():
        raise ValueError(f"times_s must be finite, non-negative and non-decreasing seconds, received {times.tolist()}")
    return times


class FrameConverter:
    """Turns decoded frames into upright RGB arrays of the wanted size, with square pixels."""

    def __init__(
        self, size: int | tuple[int, int] | None, interpolation: str, container: Container | None = None
    ) -> None:
        sides = size if isinstance(size, tuple) else (size,)
        if size is not None and not (len(sides) in (1, 2) and all(isinstance(n, int) and n > 0 for n in sides)):
            raise ValueError(f"size must be None, one positive int or a pair (width, height), received {size!r}")
        if interpolation.lower() not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, received {interpolation!r}")
        self.size, self.interpolation, self.container = size, interpolation.lower(), container
        self._to_rgb: Any = None
        self._last: tuple[Any, np.ndarray] | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        """A frame of PyAV."""
        if self._last is not None and self._last[0] is frame:  # shown for longer than one time
            return self._last[1]
        if self._to_rgb is None:
            self._to_rgb = import_av().video.reformatter.VideoReformatter()
        # Colours first, then the size: as one does who decodes the frames and has them resized here.
        picture = self._to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
        if quarter_turns := round(frame.rotation / 90) % 4:
            picture = np.ascontiguousarray(np.rot90(picture, quarter_turns))
        width, height = display_size(frame, self.container.stream if self.container else None)
        picture = self.resized(picture, width, height)
        self._last = frame, picture
        return picture

    def resized(self, picture: np.ndarray, width: int, height: int) -> np.ndarray:
        """An RGB array in the wanted size, if it is shown as `width` x `height`."""
        if isinstance(self.size, tuple):
            width, height = self.size
        elif self.size is not None:
            scale = self.size / min(width, height)
            width, height = max(1, round(width * scale)), max(1, round(height * scale))
        if picture.shape[:2] == (height, width):
            return picture
        if self.interpolation in _OWN_INTERPOLATIONS:
            return _resize(picture, width, height, self.interpolation)
        av = import_av()
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        return frame.reformat(width=width, height=height, interpolation=self.interpolation.upper()).to_ndarray()


def _resize(picture: np.ndarray, width: int, height: int, interpolation: str) -> np.ndarray:
    """Frames are resized by torch where it can, so that the same frames give the same features with or without PyAV."""
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].contiguous().float()
    options = {} if interpolation == "area" else {"antialias": True}
    small = torch.nn.functional.interpolate(pixels, size=(height, width), mode=interpolation, **options)
    return small[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).contiguous().numpy()


def display_size(frame: Any, stream: Any) -> tuple[int, int]:
    """(width, height) of a decoded frame with square pixels, after the rotation stored with it (counter-clockwise)."""
    width, height = frame.width, frame.height
    shape = stream.sample_aspect_ratio if stream is not None else None  # width to height of a pixel
    if shape and 1 / 16 <= shape <= 16:
        width, height = (round(width * shape), height) if shape > 1 else (width, round(height / shape))
    return (height, width) if round(frame.rotation / 90) % 2 else (width, height)
