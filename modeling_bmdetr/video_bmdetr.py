"""Reads video files: what a file holds, and its frames at given moments, one at a time, in one opening of the file.

Frames are chosen by time stamp, never by index, so a variable frame rate, dropped frames and a start other than zero
change nothing. Time 0 is that of a player: the first picture or the first sound, whichever comes first. The frame at
time `t` is the one a player shows at `t`: the last that starts at or before it, and the first of all before that.
Decoding streams: two frames are held, however long the video is.
"""

import io
import itertools
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from .containers_bmdetr import (
    MAX_DURATION_S,
    MAX_FPS,
    MIN_BYTES_PER_S,
    Container,
    existing_file,
    import_av,
    unreadable,
)
from .frames_bmdetr import (
    FrameArray,
    FrameConverter,
    FramePlan,
    checked_times,
    display_size,
    is_rate,
    merged_times,
)

# A stated duration may exceed the frames by this much before the file counts as cut off.
END_TOLERANCE_S = 1.0
END_TOLERANCE_SHARE = 0.02
# A seek pays for itself when it skips at least this much decoding.
SEEK_FROM_S = 10.0
# Path of a file, its bytes, an open file, or what columns of videos of `datasets` hold; or frames (frames, height,
# width, 3) as an array, a tensor or a list.
Video: TypeAlias = str | os.PathLike | bytes | bytearray | BinaryIO | Mapping[str, Any] | np.ndarray | Sequence[Any]


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says about its pictures.

    `duration_s` is the end of the last picture (not of the sound), in seconds from time 0. `fps` is the average frame
    rate. `width` and `height` are in pixels, as displayed (after the rotation that phones store, with square pixels).
    `num_frames` is None where the container does not say.
    """

    duration_s: float
    fps: float
    width: int
    height: int
    num_frames: int | None


class VideoFile(AbstractContextManager):
    """A video file, opened once for all that is asked of it.

    ```python
    with VideoFile("kitchen.mp4") as video:
        times_s = np.arange(0.5, video.info.duration_s, 1.0)
        for _, time_s, frame in video.frames([FramePlan(times_s, size=224)]):
            ...
    ```

    Args:
        file: Path of a video file, its bytes, or an open binary file (which stays open).
        decode_threads: Threads of the decoder, 0 for as many as there are cores. Take 1 where several processes decode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no video that can be read; the message names file, reason and remedy.
        ImportError: PyAV is not installed.
    """

    def __init__(self, file: str | os.PathLike | bytes | BinaryIO, decode_threads: int = 0) -> None:
        import_av()
        self._owned = isinstance(file, (str, os.PathLike, bytes))
        if isinstance(file, (str, os.PathLike)):
            self._file: BinaryIO = existing_file(file).open("rb")
            name = str(file)
        else:
            self._file = io.BytesIO(file) if isinstance(file, bytes) else file
            name = str(getattr(file, "name", "that was given"))
        try:
            self._container = Container(self._file, name, decode_threads)
        except BaseException:
            self._close_file()
            raise
        self._last_start_s: float | None = None  # of the last frame, where the container finds it by seeking

    def __exit__(self, *error: object) -> None:
        self._container.close()
        self._close_file()

    def _close_file(self) -> None:
        if self._owned:
            self._file.close()

    @property
    def name(self) -> str:
        """What messages call the video."""
        return self._container.name

    @property
    def duration_s(self) -> float:
        """Seconds from time 0 to the end of the last picture."""
        return self.info.duration_s

    @property
    def fps(self) -> float:
        """Average frame rate."""
        return self.info.fps

    @cached_property
    def info(self) -> VideoInfo:
        """Duration, frame rate and size.

        Where the container states no duration (streams recorded by browsers, raw streams, streams joined end to end),
        the file is read through once, and decoded if its packets carry no time stamps; nothing is kept.
        """
        container = self._container
        first = next(container.decode(), None)
        if first is None:
            raise unreadable(container.name, "it holds no frame")
        width, height = display_size(first, container.stream)
        num_frames = container.stream.frames or None
        duration_s = self._duration_by_seeking()
        if duration_s is None:
            duration_s, num_frames = self._duration_by_reading()
        container.rewind()
        if not 0 < duration_s <= MAX_DURATION_S:
            raise unreadable(container.name, f"it states {duration_s:.0f} s, expected at most {MAX_DURATION_S:.0f} s")
        if duration_s > max(60.0, container.size / MIN_BYTES_PER_S):
            raise unreadable(container.name, f"it states {duration_s:.0f} s in {container.size} bytes")
        stream = container.stream
        fps = float(stream.average_rate or stream.guessed_rate or 0) or (num_frames or 1) / duration_s
        return VideoInfo(duration_s, fps, width, height, num_frames)

    def frames(self, plans: Sequence[FramePlan]) -> Iterator[tuple[int, float, np.ndarray]]:
        """The frames of one or several plans, in one pass over the file.

        Yields:
            `(plan, time_s, frame)` in the order of time: the plan's index, the time it asked for, and a
            `(height, width, 3)` uint8 RGB array.

        Raises:
            ValueError: a plan is out of range; the file cannot be decoded, or ends before a requested time. The last
                two are raised while iterating, when the fault is reached.
        """
        converters = [FrameConverter(plan.size, plan.interpolation, self._container) for plan in plans]
        times_s, owners = merged_times(plans)
        return self._converted(times_s, owners, converters)

    def _converted(
        self, times_s: list[float], owners: list[int], converters: "list[FrameConverter]"
    ) -> Iterator[tuple[int, float, np.ndarray]]:
        shown_frames = self._frames_shown(iter(times_s), seek_s=times_s[0] if times_s else 0.0)
        for owner, (time_s, frame) in zip(owners, shown_frames, strict=True):
            yield owner, time_s, converters[owner](frame)

    def frames_at_rate(self, fps: float, convert: Callable[[Any], np.ndarray]) -> Iterator[tuple[float, np.ndarray]]:
        """Converted frames at times 0, 1/fps, 2/fps, ... to the end of the video."""
        times = itertools.takewhile(lambda time_s: time_s < self.info.duration_s, (i / fps for i in itertools.count()))
        return ((time_s, convert(frame)) for time_s, frame in self._frames_shown(times))

    def _frames_shown(self, times: Iterator[float], seek_s: float = 0.0) -> Iterator[tuple[float, Any]]:
        """Pairs each time with the frame shown then."""
        duration_s, name = self.info.duration_s, self._container.name
        shown: Any = None
        start_s = end_s = 0.0
        time_s = next(times, None)
        if time_s is None:
            return
        for start_s, frame_end_s, frame in self._timed_frames(seek_s):
            while shown is not None and time_s is not None and time_s < start_s:
                yield time_s, shown
                time_s = next(times, None)
            shown, end_s = frame, frame_end_s
            if time_s is None:
                break
        self._container.check_damage()
        if time_s is None:
            return
        if shown is None:
            raise unreadable(name, "it holds no frame")
        if self._last_start_s is not None and start_s > self._last_start_s - 1e-3:
            end_s = max(end_s, duration_s)  # the last picture stays to the end
        tolerance_s = _tolerance_s(end_s)
        if duration_s > end_s + tolerance_s:
            reason = f"it is cut off: {duration_s:.2f} s are stated, but its frames end at {end_s:.2f} s"
            raise unreadable(name, reason)
        while time_s is not None and time_s < end_s + tolerance_s:
            yield time_s, shown
            time_s = next(times, None)
        if time_s is not None:
            raise ValueError(
                f"times_s must lie inside the video, received {time_s:.2f} s, but {name} ends at {end_s:.2f} s"
            )

    def _timed_frames(self, seek_s: float = 0.0) -> Iterator[tuple[float, float, Any]]:
        """Decoded frames with the seconds at which each begins and ends, from the one shown at `seek_s` or earlier."""
        container = self._container
        container.rewind()
        origin, time_base = container.origin, container.time_base
        # Where frames get their times by counting packets, all packets are needed.
        may_seek = origin is not None and not container.shown_as_decoded
        seeking = seek_s >= SEEK_FROM_S and may_seek and container.seek_s(seek_s)
        end_s = 0.0
        for frame in container.decode():
            if frame.pts is None:  # raw streams carry no time stamps: one frame after the other
                start_s = end_s
            else:
                origin = frame.pts if origin is None else origin
                start_s = (frame.pts - origin) * time_base
            if seeking and start_s > seek_s:
                break
            seeking = False
            end_s = start_s + (frame.duration * time_base if frame.duration else container.frame_length_s)
            yield start_s, end_s, frame
        if seeking:  # nothing at or before seek_s was found: the index is broken, so read from the beginning
            yield from self._timed_frames()

    def _duration_by_seeking(self) -> float | None:
        """End of the last picture from the packets after the last key frame, or as stated; None if neither is known."""
        container = self._container
        origin, time_base, stated_s = container.origin, container.time_base, container.stated_end_s
        if container.may_be_joined or origin is None or not time_base:
            return None
        packets = []
        if container.seek_s(stated_s or MAX_DURATION_S):
            packets = [packet for packet in container.demux() if packet.pts is not None]
        if not packets:
            return stated_s
        last = max(packets, key=lambda packet: packet.pts)
        length_s = (last.duration or math.inf) * time_base
        if last is not packets[-1] or not last.duration:
            # The duration of a packet is the distance to the next one in decoding order, which is not shown next.
            length_s = min(length_s, container.frame_length_s)
        self._last_start_s = (last.pts - origin) * time_base
        end_s = self._last_start_s + length_s
        if stated_s is not None and not container.stream.duration and stated_s > end_s + _tolerance_s(end_s):
            self._last_start_s = None
            return stated_s  # its pictures end early: reading them will say so
        return end_s

    def _duration_by_reading(self) -> tuple[float, int]:
        """Duration and number of frames, from the packets' time stamps or, if some have none, from decoded frames."""
        container = self._container
        container.rewind()
        first, last, num_frames, timed = math.inf, -math.inf, 0, 0
        time_base = container.time_base
        for packet in container.demux():
            num_frames += packet.size > 0
            if packet.pts is not None:
                length = packet.duration or container.frame_length_s / time_base
                first, last, timed = min(first, packet.pts), max(last, packet.pts + length), timed + 1
        if timed and timed >= num_frames:
            origin = first if container.origin is None else min(first, container.origin)
            return (last - origin) * time_base, num_frames
        ends_s = [end_s for _, end_s, _ in self._timed_frames()]
        return ends_s[-1], len(ends_s)


def is_one_video(video: Any) -> bool:
    """Whether this is one video in itself; if not, it may be a sequence of several."""
    if isinstance(video, (list, tuple)):
        return bool(video) and all(getattr(frame, "ndim", 3) == 3 and _is_array(frame) for frame in video)
    video = _of_datasets(video)
    is_file = isinstance(video, (str, os.PathLike, bytes, bytearray)) or hasattr(video, "read")
    return is_file or getattr(video, "ndim", 0) == 4


def open_video(video: Video, fps: float | None = None, decode_threads: int = 0) -> VideoFile | FrameArray:
    """A video as something to take frames from: a file, see [`VideoFile`], or decoded frames at `fps`.

    Raises:
        FileNotFoundError, ValueError: see [`VideoFile`] and [`FrameArray`]; or `fps` was given for a file.
        TypeError: another kind of object.
    """
    video = _of_datasets(video)
    if isinstance(video, bytearray):
        video = bytes(video)
    if isinstance(video, (list, tuple)) and is_one_video(video):
        return FrameArray(np.stack([_as_array(frame) for frame in video]), fps)
    if _is_array(video):
        return FrameArray(_as_array(video), fps)
    if not isinstance(video, (str, os.PathLike, bytes)) and not hasattr(video, "read"):
        raise TypeError(
            "a video is the path of a file, its bytes, an open file, or frames (frames, height, width, 3) as an "
            f"array, a tensor or a list; received {type(video).__name__}"
        )
    if fps is not None:
        raise ValueError("fps belongs to decoded frames only; a video file carries its own times")
    if isinstance(video, str) and re.match(r"[a-z][a-z0-9+.-]*://", video, re.IGNORECASE) and not os.path.exists(video):
        raise ValueError(f"{video!r} is an address: download the video first, and pass the path of the file")
    return VideoFile(video, decode_threads)  # type: ignore[arg-type]


def _of_datasets(video: Any) -> Any:
    """Of a video in a column of `datasets`, decoded or not, the bytes or else the path; others as they are."""
    encoded = getattr(video, "_hf_encoded", video)
    if not isinstance(encoded, Mapping) or not set(encoded) <= {"path", "bytes"}:
        return video
    return next((part for part in (encoded.get("bytes"), encoded.get("path")) if part is not None), video)


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def _as_array(value: Any) -> np.ndarray:
    """NumPy arrays, tensors on any device, pictures of Pillow."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def probe_video(path: str | os.PathLike) -> VideoInfo:
    """Duration, frame rate and size of a video file; errors as [`VideoFile`]."""
    with VideoFile(path) as video:
        return video.info


def iter_frames(
    path: str | os.PathLike,
    times_s: Sequence[float] | np.ndarray | None = None,
    *,
    fps: float | None = None,
    size: int | tuple[int, int] | None = None,
    interpolation: str = "bilinear",
    decode_threads: int = 0,
) -> Iterator[tuple[float, np.ndarray]]:
    """Yields the frames shown at `times_s`, or at a regular rate of `fps`, resized while decoding.

    Args:
        path: a video file.
        times_s, size, interpolation: see [`FramePlan`].
        fps: instead of `times_s`: times 0, 1/fps, 2/fps, ... to the end of the video.
        decode_threads: see [`VideoFile`].

    Yields:
        `(time_s, frame)`: the requested time and a `(height, width, 3)` uint8 RGB array.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the arguments are out of range, if the file cannot be decoded, or if it ends before a requested
            time. The last two are raised while iterating, when the fault is reached.
        ImportError: if PyAV is not installed.
    """
    path = existing_file(path)
    if (times_s is None) == (fps is None):
        raise ValueError(f"give either times_s or fps, received times_s={times_s!r} and fps={fps!r}")
    FrameConverter(size, interpolation)
    if fps is not None and not (is_rate(fps) and fps <= MAX_FPS):
        raise ValueError(f"fps must be a positive number of at most {MAX_FPS:g}, received {fps!r}")
    if times_s is not None:
        times_s = checked_times(times_s)
    return _iter_frames(path, times_s, fps, size, interpolation, decode_threads)


def _iter_frames(path: Any, times_s: Any, fps: Any, size: Any, interpolation: str, decode_threads: int) -> Any:
    with VideoFile(path, decode_threads) as video:
        if fps is not None:
            yield from video.frames_at_rate(fps, FrameConverter(size, interpolation, video._container))
        else:
            for _, time_s, frame in video.frames([FramePlan(times_s, size, interpolation)]):
                yield time_s, frame


def _tolerance_s(end_s: float) -> float:
    return max(END_TOLERANCE_S, END_TOLERANCE_SHARE * end_s)


def __getattr__(name: str) -> Any:
    if name not in ("clip_count", "clip_times"):
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from .contract_bmdetr import clip_count, clip_times

    warnings.warn(f"{__name__}.{name} has moved to contract_bmdetr", DeprecationWarning, stacklevel=2)
    return {"clip_count": clip_count, "clip_times": clip_times}[name]
