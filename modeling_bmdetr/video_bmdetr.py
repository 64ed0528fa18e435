"""Reads video files: what a file holds, and its frames at given moments, one at a time.

Frames are chosen by time stamp, never by index, so a variable frame rate, dropped frames and a start other than zero
change nothing. Time 0 is the first frame of the video stream. The frame at time `t` is the one a player shows at `t`:
the last that starts at or before it. Decoding streams: two frames are held, however long the video is.

PyAV does the decoding. It is imported when the first file is opened, so this file imports without it.
"""

import itertools
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

# A stated duration may exceed the frames by this much before the file counts as cut off.
END_TOLERANCE_S = 1.0
END_TOLERANCE_SHARE = 0.02
# A seek pays for itself when it skips at least this much decoding.
SEEK_FROM_S = 10.0
# For raw streams that carry neither time stamps nor a rate.
DEFAULT_FPS = 25.0
INTERPOLATIONS = ("fast_bilinear", "bilinear", "bicubic", "area", "point", "lanczos", "spline")


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says about its first video stream.

    `duration_s` is the length of the video stream (not of the sound), in seconds. `fps` is the average frame rate.
    `width` and `height` are in pixels, as displayed (after the rotation that phones store). `num_frames` is None where
    the container does not say.
    """

    duration_s: float
    fps: float
    width: int
    height: int
    num_frames: int | None


def probe_video(path: str | os.PathLike) -> VideoInfo:
    """Reads duration, frame rate and size of a video file.

    Where the container states no duration (streams recorded by browsers, raw streams), the file is read through once,
    and decoded if its packets carry no time stamps; nothing is kept.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no video that can be read; the message names file, reason and remedy.
        ImportError: if PyAV is not installed.
    """
    path = _existing_file(path)
    with _opened(path) as (container, stream):
        duration_s = _stated_duration_s(container, stream)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        num_frames = stream.frames or None
        first = next(container.decode(stream), None)
        if first is None:
            raise _unreadable(path, "it holds no frame")
        width, height = _display_size(first)
        if duration_s is not None:
            duration_s = max(duration_s, _end_of_last_packets_s(container, stream))
    if duration_s is None:
        duration_s, num_frames = _measured_duration_s(path)
    return VideoInfo(duration_s, fps or (num_frames or 1) / duration_s, width, height, num_frames)


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
        times_s: non-decreasing, non-negative times in seconds. Where two times fall on one frame, it is yielded twice.
        fps: instead of `times_s`: times 0, 1/fps, 2/fps, ... to the end of the video.
        size: None for the size of the video, one number for the shorter side in pixels (the aspect ratio stays), or
            (width, height).
        interpolation: a scaling method of libswscale, such as `bilinear`, `bicubic` or `area`. All but `point` average
            over the pixels they merge.
        decode_threads: threads of the decoder, 0 for as many as there are cores. Take 1 where several processes decode.

    Yields:
        `(time_s, frame)`: the requested time and a `(height, width, 3)` uint8 RGB array.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the arguments are out of range, if the file cannot be decoded, or if it ends before a requested
            time. The last two are raised while iterating, when the fault is reached.
        ImportError: if PyAV is not installed.
    """
    path = _existing_file(path)
    if (times_s is None) == (fps is None):
        raise ValueError(f"give either times_s or fps, got times_s={times_s!r} and fps={fps!r}.")
    convert = _Converter(size, interpolation)
    if fps is not None:
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps must be a positive number, got {fps!r}.")
        return _frames_shown(path, (i / fps for i in itertools.count()), convert, decode_threads)
    times = np.asarray(times_s, dtype=np.float64)
    if times.ndim != 1:
        raise ValueError(f"times_s must be one-dimensional, got shape {times.shape}; flatten clip_times(...) first.")
    if not np.isfinite(times).all() or (times < 0).any() or (np.diff(times) < 0).any():
        raise ValueError(f"times_s must be finite, non-negative and non-decreasing seconds, got {times.tolist()}.")
    return _frames_shown(
        path, iter(times.tolist()), convert, decode_threads, seek_s=float(times[0]) if times.size else 0.0
    )


def _frames_shown(
    path: Path, times: Iterator[float], convert: "_Converter", decode_threads: int, seek_s: float | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """Pairs each time with the frame shown then; without `seek_s` the times are endless and end with the video."""
    shown: Any = None
    end_s = 0.0
    time_s = next(times, None)
    if time_s is None:
        return
    for start_s, frame_end_s, frame in _timed_frames(path, seek_s or 0.0, decode_threads):
        while shown is not None and time_s < start_s:
            yield time_s, convert(shown)
            time_s = next(times, None)
            if time_s is None:
                return
        shown, end_s = frame, frame_end_s
    if shown is None:
        raise _unreadable(path, "it holds no frame")
    tolerance_s = max(END_TOLERANCE_S, END_TOLERANCE_SHARE * end_s)
    hold_until_s = end_s if seek_s is None else end_s + tolerance_s
    while time_s is not None and time_s < hold_until_s:
        yield time_s, convert(shown)
        time_s = next(times, None)
    if time_s is None:
        return
    duration_s = probe_video(path).duration_s
    if duration_s > end_s + tolerance_s:
        raise _unreadable(path, f"it is cut off: {duration_s:.2f} s are stated, but its frames end at {end_s:.2f} s")
    if seek_s is not None:
        raise ValueError(f"times_s must lie inside the video, got {time_s:.2f} s, but {path} ends at {end_s:.2f} s.")


def _timed_frames(path: Path, seek_s: float = 0.0, decode_threads: int = 0) -> Iterator[tuple[float, float, Any]]:
    """Decoded frames with the seconds at which each begins and ends, from the one shown at `seek_s` or earlier."""
    seeking = seek_s >= SEEK_FROM_S
    with _opened(path, decode_threads) as (container, stream):
        time_base = float(stream.time_base or 0)
        frame_length_s = 1.0 / float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        origin = stream.start_time
        if seeking and origin is not None and time_base:
            container.seek(origin + int(seek_s / time_base), stream=stream)
        else:
            seeking = False
        end_s = 0.0
        for frame in container.decode(stream):
            if frame.pts is None:  # raw streams carry no time stamps: one frame after the other
                start_s = end_s
            else:
                origin = frame.pts if origin is None else origin
                start_s = (frame.pts - origin) * time_base
            if seeking and start_s > seek_s:
                break
            seeking = False
            end_s = start_s + (frame.duration * time_base if frame.duration else frame_length_s)
            yield start_s, end_s, frame
    if seeking:  # nothing at or before seek_s was found: the index is broken, so read from the beginning
        yield from _timed_frames(path, 0.0, decode_threads)


class _Converter:
    """Turns decoded frames into upright RGB arrays of the wanted size."""

    def __init__(self, size: int | tuple[int, int] | None, interpolation: str) -> None:
        sides = size if isinstance(size, tuple) else (size,)
        if size is not None and not (len(sides) in (1, 2) and all(isinstance(n, int) and n > 0 for n in sides)):
            raise ValueError(f"size must be None, one positive int or a pair (width, height) of them, got {size!r}.")
        if interpolation.lower() not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}.")
        self.size = size
        self.interpolation = interpolation.upper()
        self._reformatter: Any = None

    def __call__(self, frame: Any) -> np.ndarray:
        if self._reformatter is None:
            self._reformatter = _import_av().video.reformatter.VideoReformatter()
        width, height = _display_size(frame)
        if isinstance(self.size, tuple):
            width, height = self.size
        elif self.size is not None:
            scale = self.size / min(width, height)
            width, height = max(1, round(width * scale)), max(1, round(height * scale))
        quarter_turns = round(frame.rotation / 90) % 4
        if quarter_turns % 2:
            width, height = height, width
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=self.interpolation, threads=1
        ).to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, quarter_turns)) if quarter_turns else rgb


def _display_size(frame: Any) -> tuple[int, int]:
    """(width, height) of a decoded frame after the rotation stored with it, which counts counter-clockwise degrees."""
    return (frame.height, frame.width) if round(frame.rotation / 90) % 2 else (frame.width, frame.height)


def _stated_duration_s(container: Any, stream: Any) -> float | None:
    """Duration of the video stream as the container states it, or None; that of all streams may be the sound's."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if clock := re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", "")):  # Matroska's tag
        return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
    if container.duration and len(container.streams) == 1:
        return container.duration / 1_000_000
    return None


def _end_of_last_packets_s(container: Any, stream: Any) -> float:
    """End of the packets after the last key frame, or 0: stated durations fall short at a variable frame rate."""
    if stream.start_time is None or not stream.duration or not stream.time_base:
        return 0.0
    try:
        container.seek(stream.start_time + stream.duration, stream=stream)
        ends = [packet.pts + (packet.duration or 0) for packet in container.demux(stream) if packet.pts is not None]
    except _import_av().error.FFmpegError:  # not seekable; a damaged file is refused when its frames are read
        return 0.0
    return float((max(ends) - stream.start_time) * stream.time_base) if ends else 0.0


def _measured_duration_s(path: Path) -> tuple[float, int]:
    """Duration and number of frames, from the packets' time stamps or, where they have none, from decoded frames."""
    first, last, num_frames = math.inf, -math.inf, 0
    with _opened(path) as (container, stream):
        frame_length_s = 1.0 / float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        time_base = float(stream.time_base or 0)
        for packet in container.demux(stream):
            if packet.pts is not None:
                length = packet.duration or frame_length_s / time_base
                first, last, num_frames = min(first, packet.pts), max(last, packet.pts + length), num_frames + 1
    if num_frames:
        return (last - first) * time_base, num_frames
    ends_s = [end_s for _, end_s, _ in _timed_frames(path)]
    return ends_s[-1], len(ends_s)


@contextmanager
def _opened(path: Path, decode_threads: int = 0) -> Iterator[tuple[Any, Any]]:
    """The open container and its first video stream; whatever libav objects to becomes one ValueError."""
    av = _import_av()
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            cover = av.stream.Disposition.attached_pic
            streams = [stream for stream in container.streams.video if not stream.disposition & cover]
            if not streams:
                held = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
                raise _unreadable(path, f"it holds no video stream (found: {held})")
            if streams[0].codec_context is None:
                raise _unreadable(path, "no decoder for its codec is available")
            streams[0].thread_type = "AUTO"
            streams[0].codec_context.thread_count = decode_threads
            yield container, streams[0]
    except av.error.FFmpegError as error:
        raise _unreadable(path, f"libav says: {error.strerror}") from error


def _unreadable(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"cannot read the video {path}: {reason}. Check that it plays, fetch it again, or re-encode it, for example "
        f"with `ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4`."
    )


def _existing_file(path: str | os.PathLike) -> Path:
    path = Path(path)
    if not path.is_file():
        kind = "it is a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"video {path} not found ({kind}); give the path of a video file.")
    return path


def _import_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError('reading videos needs PyAV: pip install "modeling-bmdetr[video]"') from error
    return av


def __getattr__(name: str) -> Any:
    if name not in ("clip_count", "clip_times"):
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from .contract_bmdetr import clip_count, clip_times

    warnings.warn(f"{__name__}.{name} has moved to contract_bmdetr", DeprecationWarning, stacklevel=2)
    return {"clip_count": clip_count, "clip_times": clip_times}[name]
