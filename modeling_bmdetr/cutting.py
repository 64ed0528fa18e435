"""A moment cut out of its video: copied where key frames allow, else encoded anew from its first frame to its last."""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .containers_bmdetr import Container, existing_file, import_av
from .files_bmdetr import replacing_path
from .video_bmdetr import iter_frames, probe_video

AUDIO_RATE = 48000
SHORTEST_S = 0.04


def cut_clip(video: str | os.PathLike, start_s: float, end_s: float, out: str | os.PathLike) -> bool:
    """Writes the part of a video from `start_s` to `end_s`, with its sound, to a new file.

    Where a key frame stands at the start and another one at the end (or the video ends there), the packets are copied,
    and nothing is lost. Else the pictures shown in the span are encoded anew, so that the clip begins and ends exactly
    where it should. The file is written whole or not at all.

    Args:
        video: The video file.
        start_s, end_s: Seconds from the start of the video, as answers have them.
        out: The file to write; its suffix (.mp4, .mkv, .mov) says in which container.

    Returns:
        Whether the packets were copied.

    Raises:
        FileNotFoundError: there is no such video.
        ValueError: the span does not lie in the video, or the video cannot be read.
        ImportError: PyAV is not installed.
        OSError: the file cannot be written.
    """
    path, info = existing_file(video), probe_video(video)
    if Path(out).exists() and path.samefile(out):
        raise ValueError(f"the clip would take the place of its video '{out}': write it to another file")
    try:
        start_s, end_s = start_s + 0.0, end_s + 0.0
    except OverflowError as error:
        raise ValueError("a clip is cut between seconds of its video, received a number beyond any float") from error
    if not 0 <= start_s < end_s:
        raise ValueError(f"a clip must end after it starts, received {start_s} s to {end_s} s")
    if start_s >= info.duration_s:
        raise ValueError(f"the clip would start at {start_s:.2f} s, after {path} ends ({info.duration_s:.2f} s)")
    end_s = min(max(end_s, start_s + SHORTEST_S), info.duration_s)
    with replacing_path(out) as aside, open(path, "rb") as file:
        source = Container(file, str(path))
        try:
            ends = _key_frames_at(source, start_s, end_s, info.duration_s)
            if ends is not None and _copy(source, *ends, aside):
                return True
            source.rewind()
            _encode(source, path, info.fps, start_s, end_s, aside)
            return False
        finally:
            source.close()


def _key_frames_at(source: Container, start_s: float, end_s: float, duration_s: float) -> tuple[int, int | None] | None:
    """Time stamps of the key frames at both ends (None: the end of the video), or None where one is missing."""
    base, near_s = source.time_base, source.frame_length_s / 2
    if not base or source.origin is None:
        return None
    keys = [packet.pts for packet in source.demux() if packet.is_keyframe and packet.pts is not None]
    if source.shown_as_decoded or source.is_joined:  # packets as they lie in the file have other times
        return None
    times = {key: (key - source.origin) * base for key in keys}
    first = [key for key in keys if abs(times[key] - start_s) <= near_s]
    last = [key for key in keys if abs(times[key] - end_s) <= near_s]
    if not first or (not last and end_s < duration_s - near_s):
        return None
    return first[0], last[0] if last else None


def _copy(source: Container, first: int, last: int | None, out: Path) -> bool:
    """Copies the packets between two key frames; False where the container of `out` does not take their codec."""
    av = import_av()
    source.rewind()
    video, audio = source.stream, source.audio
    start = Fraction(first) * video.time_base
    end = None if last is None else Fraction(last) * video.time_base
    with av.open(str(out), "w") as target:
        try:
            streams = {stream.index: target.add_stream_from_template(stream) for stream in (video, audio) if stream}
        except (av.error.FFmpegError, ValueError):
            return False
        for packet in source.demux_all():
            if packet.stream.index not in streams or packet.pts is None or packet.dts is None:
                continue
            time = Fraction(packet.pts) * packet.time_base
            if time < start or (end is not None and time >= end):
                continue
            shift = round(start / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = streams[packet.stream.index]
            target.mux(packet)
    return True


def _encode(source: Container, path: Path, fps: float, start_s: float, end_s: float, out: Path) -> None:
    """Encodes the pictures that are shown in the span, at the video's frame rate, and the sound."""
    av = import_av()
    rate = Fraction(fps).limit_denominator(1001)
    # A little later than each frame begins, so that no rounding takes the one before.
    times = start_s + (np.arange(max(1, round((end_s - start_s) * float(rate)))) + 0.02) / float(rate)
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(out), "w") as target:
        stream: Any = target.add_stream(codec, rate=rate)
        sound: Any = target.add_stream("aac", rate=AUDIO_RATE) if source.audio is not None else None
        stream.pix_fmt = "yuv420p"
        for i, (_, frame) in enumerate(iter_frames(path, times)):
            even = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
            if i == 0:
                stream.height, stream.width = even.shape[:2]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            picture.pts, picture.time_base = i, 1 / rate
            target.mux(stream.encode(picture))
        target.mux(stream.encode(None))
        if sound is not None:
            for samples in _sound(source, start_s, end_s):
                target.mux(sound.encode(samples))
            target.mux(sound.encode(None))


def _sound(source: Container, start_s: float, end_s: float) -> Iterator[Any]:
    """Stereo samples of the span, cut to the sample, with time stamps that begin at 0."""
    av = import_av()
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=AUDIO_RATE)
    origin_s = source.origin * source.time_base if source.origin is not None else 0.0
    for decoded in source.decode_audio():
        if decoded.pts is None:
            continue
        if float(decoded.pts * decoded.time_base) - origin_s >= end_s:
            break
        for frame in resampler.resample(decoded):
            at = round((float(frame.pts * frame.time_base) - origin_s - start_s) * AUDIO_RATE)
            samples = frame.to_ndarray()
            left, right = max(0, -at), min(samples.shape[1], round((end_s - start_s) * AUDIO_RATE) - at)
            if left >= right:
                continue
            part = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[:, left:right]), "fltp", "stereo")
            part.sample_rate, part.pts, part.time_base = AUDIO_RATE, at + left, Fraction(1, AUDIO_RATE)
            yield part
