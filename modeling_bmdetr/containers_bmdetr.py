"""Opens video files that may come from strangers: one plain container, its pictures, its packets on one time line.

A file is opened by Python and handed to libav as bytes, never as a name: no name is taken for a protocol, and nothing
else is ever opened. Formats that refer to other files (playlists, lists to concatenate, numbered images) are left out.
What a file states is held against limits before memory is taken for it.

PyAV does the decoding. It is imported when the first file is opened, so this file imports without it.
"""

import logging
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from .packages_bmdetr import needed_module

logger = logging.getLogger(__name__)

# Containers and raw streams that hold their pictures themselves, by libav's names.
FORMATS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "live_flv", "asf", "ogg", "gif", "nut", "mxf"),
    *("rm", "dv", "wtv", "swf", "ivf", "m4v", "h261", "h263", "h264", "hevc", "vvc", "av1", "obu", "vc1", "mjpeg"),
    *("yuv4mpegpipe", "apng", "amv", "roq", "smk", "bink", "nsv", "dirac", "cavsvideo", "gxf", "lxf", "jpeg_pipe"),
)
# 8K, the largest pictures that cameras and screens make.
MAX_PIXELS = 8192 * 4320
MAX_STREAMS = 64
MAX_DURATION_S = 12 * 3600.0
MAX_FPS = 1000.0
# The smallest a file may be for what it states: less than this and it would make much work out of nothing.
MIN_BYTES_PER_S = 1.0
# Raw streams carry neither time stamps nor a rate.
DEFAULT_FPS = 25.0
# Steps of decode times, forward and back, that no recording has: streams that were joined end to end, each with its own
# clock. Smaller steps back come from programs that estimate the times of packets.
JOINED_AFTER_S, JOINED_BACK_S = 10.0, 0.5
# About so long is a packet of sound that does not say how long it is.
SOUND_PACKET_S = 0.02
# Formats that say when packets are decoded, and not when their pictures are shown.
DECODE_TIMES_ONLY = ("avi", "asf")
# Damaged packets are skipped up to this share of all.
DAMAGED_SHARE = 0.05


class Container:
    """An open file and the video stream that a player shows.

    Attributes:
        name: What messages call the file.
        stream: PyAV's video stream.
        time_base: Seconds per unit of the stream's time stamps.
        frame_length_s: Seconds between frames on average.
        damaged: Packets skipped so far, of `packets` read.
        shown_as_decoded: Whether the format has times of decoding alone, which are then those of showing, in order.
        is_joined: Whether what was read so far are several recordings, one after the other.
    """

    def __init__(self, file: BinaryIO, name: str, decode_threads: int = 0) -> None:
        self.file, self.name, self.decode_threads = file, name, decode_threads
        self.size = file.seek(0, os.SEEK_END)
        if not self.size:
            raise unreadable(name, "it is empty")
        self.damaged = self.packets = 0
        self.is_joined = False
        self._container: Any = None
        self._first_packet: tuple | None = None
        self._first_shown: int | None = None
        self._untouched = True
        self._open()

    def rewind(self) -> None:
        """Begins again at the first packet; with a new demuxer where the format does not find its start by seeking."""
        if self._untouched:
            return
        if self.seek_s(0.0):
            first = next(self.demux(), None)
            if first is not None and _identity(first) == self._first_packet and self.seek_s(0.0):
                self._untouched = True
                return
        self.close()
        self._open()

    def _open(self) -> None:
        av = import_av()
        self.file.seek(0)
        limits = {"format_whitelist": ",".join(FORMATS), "max_streams": str(MAX_STREAMS), "max_pixels": str(MAX_PIXELS)}
        with self.errors():
            try:
                self._container = av.open(
                    _Bytes(self.file, Path(self.name).suffix),
                    metadata_errors="ignore",
                    options=limits,
                    io_open=_refuse,
                    buffer_size=1 << 17,
                )
            except av.error.ArgumentError as error:
                raise unreadable(
                    self.name, "it is none of the containers read here (a list of other files, pictures, or a rare one)"
                ) from error
            self._untouched = True
            self.stream = _shown_stream(self._container, self.name)
        self.time_base = float(self.stream.time_base or 0)
        rate = float(self.stream.average_rate or self.stream.guessed_rate or DEFAULT_FPS)
        self.frame_length_s = 1.0 / rate
        self.shown_as_decoded = self._container.format.name in DECODE_TIMES_ONLY
        # Formats whose clock may jump need all packets read in order.
        self.may_be_joined = bool(self._container.format.flags & av.format.Flags.ts_discont.value)
        self.stream.thread_type = "AUTO"
        self.stream.codec_context.thread_count = self.decode_threads
        self.stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        width, height = self.stream.codec_context.width, self.stream.codec_context.height
        if width * height > MAX_PIXELS:
            raise unreadable(self.name, f"its pictures have {width} x {height} pixels, more than {MAX_PIXELS:,}")
        if self.stream.average_rate and rate > MAX_FPS:
            raise unreadable(self.name, f"it states {rate:.0f} frames per second, more than {MAX_FPS:.0f}")

    @property
    def origin(self) -> int | None:
        """Time 0 of a player, in units of the stream: the first picture or sound; None where nothing is stated."""
        if self._start is None or not self.time_base:
            return self._start
        streams = (*self._container.streams.video, *self._container.streams.audio)
        starts_s = [float(s.start_time * s.time_base) for s in streams if s.start_time is not None and s.time_base]
        return min([self._start, *(round(start_s / self.time_base) for start_s in starts_s)])

    @property
    def _start(self) -> int | None:
        """Time of the first picture, in units of the stream: as stated, or as the first frame decoded had it."""
        return self._first_shown if self.stream.start_time is None else self.stream.start_time

    @property
    def stated_end_s(self) -> float | None:
        """End of the pictures, in seconds from time 0, as the container states it."""
        if self.origin is None or not self.time_base:
            return None
        origin_s = self.origin * self.time_base
        if self.stream.duration:
            return float((self._start + self.stream.duration) * self.time_base) - origin_s
        tag = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", self.stream.metadata.get("DURATION", ""))
        if tag and self._container.duration:  # Matroska's; it may be left over from before a cut, so both must say so
            tag_s = int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
            return min(tag_s, self._container.duration / 1_000_000) - origin_s
        return None

    def seek_s(self, time_s: float) -> bool:
        """Goes to the last key frame at or before a time; False where the format cannot."""
        if self.may_be_joined or not self.time_base or self.origin is None:
            return False
        self._untouched = False
        try:
            self._container.seek(self.origin + int(time_s / self.time_base), stream=self.stream)
        except import_av().error.FFmpegError:
            return False
        return True

    def demux(self) -> Iterator[Any]:
        """Packets in decoding order; the clocks of streams that were joined end to end run on as one."""
        self._untouched = False
        with self.errors():
            for packet in self._on_one_clock(self.stream, self.frame_length_s):
                if self._first_packet is None:
                    self._first_packet = _identity(packet)
                if self.shown_as_decoded and packet.dts is not None:
                    packet.pts = packet.dts
                yield packet

    def _on_one_clock(self, stream: Any, length_s: float) -> Iterator[Any]:
        """The packets of a stream, each about so long; where another recording was joined, its times follow the end."""
        base = float(stream.time_base or 0)
        ahead, back = (limit_s / base if base else 0 for limit_s in (JOINED_AFTER_S, JOINED_BACK_S))
        shift, last, end = 0, None, 0
        for packet in self._container.demux(stream):
            clock = packet.pts if packet.dts is None else packet.dts
            if self.may_be_joined and clock is not None and packet.pts is not None:
                if last is not None and not -back <= clock - last <= ahead:
                    shift, self.is_joined = end - packet.pts, True
                last = clock
                packet.pts += shift
                packet.dts = clock + shift
                end = max(end, packet.pts + (packet.duration or round(length_s / base)))
            yield packet

    @property
    def audio(self) -> Any | None:
        """PyAV's first sound stream, if there is one that can be decoded."""
        streams = [stream for stream in self._container.streams.audio if stream.codec_context is not None]
        return streams[0] if streams else None

    def demux_all(self) -> Iterator[Any]:
        """Packets of the pictures and of the sound, as they lie in the file."""
        self._untouched = False
        with self.errors():
            yield from self._container.demux([stream for stream in (self.stream, self.audio) if stream is not None])

    def decode_audio(self) -> Iterator[Any]:
        """Frames of sound from the start of the file; packets that do not decode are skipped."""
        self.rewind()
        self._untouched = False
        broken = import_av().error.InvalidDataError
        with self.errors():
            for packet in self._on_one_clock(self.audio, SOUND_PACKET_S):
                try:
                    frames = packet.decode()
                except broken:
                    continue
                yield from frames

    def decode(self) -> Iterator[Any]:
        """Frames in the order of showing. Packets that do not decode are skipped and counted.

        Decoders give frames in that order whatever their time stamps say. So where a format has times of decoding
        alone, the n-th frame gets that of the n-th packet, and a time that steps back is one frame after the last.
        """
        broken = import_av().error.InvalidDataError
        self.damaged = self.packets = 0
        waiting: deque[int] = deque()  # times of packets whose frames are to come
        last: int | None = None
        for packet in self.demux():
            self.packets += packet.size > 0
            if self.shown_as_decoded and packet.size and packet.pts is not None:
                waiting.append(packet.pts)
            with self.errors():
                try:
                    frames = packet.decode()
                except broken:
                    self.damaged += 1
                    if waiting:
                        waiting.pop()
                    continue
            for frame in frames:
                if waiting:
                    frame.pts = waiting.popleft()
                if frame.pts is not None:
                    if last is not None and frame.pts < last:
                        frame.pts = last + (frame.duration or round(self.frame_length_s / self.time_base))
                    last = frame.pts
                    if self._first_shown is None:
                        self._first_shown = last
                yield frame

    def check_damage(self) -> None:
        """Warns of packets that were skipped since the last rewind.

        Raises:
            ValueError: they are more than `DAMAGED_SHARE` of those read.
        """
        if not self.damaged:
            return
        found = f"{self.damaged} of {self.packets} packets are damaged"
        if self.damaged > max(1, DAMAGED_SHARE * self.packets):
            raise unreadable(self.name, found)
        logger.warning(f"{self.name}: {found} and were skipped; the pictures before them stand in their place")

    def close(self) -> None:
        """Closes the demuxer; the file stays open."""
        if self._container is not None:
            self._container.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Whatever libav objects to becomes one `ValueError`."""
        av = import_av()
        try:
            yield
        except av.error.FFmpegError as error:
            limit = isinstance(error, av.error.ArgumentError)  # what the limit on pixels looks like
            hint = f" (pictures of more than {MAX_PIXELS:,} pixels are not read)" if limit else ""
            raise unreadable(self.name, f"libav says: {error.strerror}{hint}") from error


class _Bytes:
    """A file as libav reads it. A damaged file may send it to places that do not exist: -1, and no exception."""

    def __init__(self, file: BinaryIO, suffix: str) -> None:
        self.read, self.tell = file.read, file.tell
        self._file = file
        self.name = "video" + suffix  # some raw streams are told by it; nothing is opened by it

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, OverflowError, ValueError):
            return -1


def _shown_stream(container: Any, name: str) -> Any:
    """The video stream that is the film: no cover and no thumbnail, and of several the one with the most frames."""
    disposition = import_av().stream.Disposition
    aside = disposition.attached_pic | disposition.timed_thumbnails | disposition.still_image
    streams = [stream for stream in container.streams.video if not stream.disposition & aside]
    if not streams:
        held = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise unreadable(name, f"it holds no video stream (found: {held})")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise unreadable(name, "no decoder for its codec is available")
    return stream


def _identity(packet: Any) -> tuple:
    return packet.pts, packet.dts, packet.pos, packet.size


def _refuse(url: str, flags: int, options: dict) -> BinaryIO:  # noqa: ARG001 - libav's signature
    raise PermissionError(f"the file refers to another one, {url!r}, which is not opened")


def unreadable(name: str | os.PathLike, reason: str) -> ValueError:
    """The error for a file that is no video which can be read: file, reason and remedy."""
    return ValueError(
        f"cannot read the video {name}: {reason}. Check that it plays, fetch it again, or re-encode it, for example "
        f"with `ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4`."
    )


def existing_file(path: str | os.PathLike) -> Path:
    """The path, if a file is there.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path)
    if not path.is_file():
        kind = "it is a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"video {path} not found ({kind}); give the path of a video file.")
    return path


def import_av() -> ModuleType:
    """PyAV.

    Raises:
        ImportError: it is not installed.
    """
    return needed_module("av", "reading videos needs PyAV: pip install av")
