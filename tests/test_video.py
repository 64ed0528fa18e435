"""Decoding: frames by time stamp, odd containers, and one clear error for every file that is no video."""

import itertools
import os
import re
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_bmdetr.contract_bmdetr import clip_count, clip_times
from modeling_bmdetr.video_bmdetr import FrameArray, FramePlan, VideoFile, iter_frames, probe_video

needs_shared = pytest.mark.skipif("BMDETR_SHARED" not in os.environ, reason="BMDETR_SHARED is not set")

WIDTH, HEIGHT = 64, 48
CODE_BITS = 8


def coded_frame(number: int) -> np.ndarray:
    """A frame that carries `number` as eight black or white columns, which survive compression."""
    columns = [255 * (number >> bit & 1) for bit in range(CODE_BITS)]
    return np.repeat(np.array(columns, np.uint8), WIDTH // CODE_BITS)[None, :, None].repeat(HEIGHT, 0).repeat(3, 2)


def number_of(frame: np.ndarray) -> int:
    means = frame.reshape(frame.shape[0], CODE_BITS, -1).mean(axis=(0, 2))
    return sum(int(mean > 127) << bit for bit, mean in enumerate(means))


def write_video(
    path: Path,
    starts_s: list[float],
    *,
    codec: str = "libx264",
    frames: list[np.ndarray] | None = None,
    sound_s: float = 0.0,
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Writes one coded frame per start, with exactly these time stamps (to the millisecond)."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = 20
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=8000, layout="mono") if sound_s else None
        for number, start_s in enumerate(starts_s):
            picture = frames[number] if frames else coded_frame(number)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(start_s * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            for block in range(int(sound_s * 8)):
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
                samples.sample_rate, samples.pts, samples.time_base = 8000, block * 1000, Fraction(1, 8000)
                container.mux(sound.encode(samples))
            container.mux(sound.encode(None))
    return path


def write_b_frames(path: Path, seconds: float, *, codec: str = "libx264", late_s: float = 0.0) -> Path:
    """Coded frames at 25 per second, with B frames, and with sound from 0 where the pictures are `late_s`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"bf": "2"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 25)
        sound = container.add_stream("mp3", rate=44100, layout="mono") if late_s else None
        packets = []
        for number in range(round(seconds * 25)):
            frame = av.VideoFrame.from_ndarray(coded_frame(number), format="rgb24")
            frame.pts, frame.time_base = round(late_s * 25) + number, Fraction(1, 25)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for block in range(round((late_s + seconds) * 44100 / 1152) if sound else 0):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = 44100, block * 1152, Fraction(1, 44100)
            packets += sound.encode(samples)
        packets += sound.encode(None) if sound else []
        for packet in sorted(packets, key=lambda packet: float(packet.dts * packet.time_base)):
            container.mux(packet)
    return path


def regular(seconds: float, fps: float = 10.0, start_s: float = 0.0) -> list[float]:
    return [start_s + i / fps for i in range(round(seconds * fps))]


def numbers_at(path: Path, times_s: list[float], **options) -> list[int]:
    return [number_of(frame) for _, frame in iter_frames(path, times_s, **options)]


# Clips


def test_clip_rule_on_worked_examples() -> None:
    assert clip_count(30.7, 1.0) == 31
    assert clip_count(30.7, 2.0) == 16
    assert clip_count(150.05, 2.0) == 75
    assert clip_count(0.2, 2.0) == 1
    assert clip_count(30.0, 1.0) == 30
    np.testing.assert_allclose(clip_times(5.0, 2.0, 2), [[0.5, 1.5], [2.5, 3.5], [4.25, 4.75]])


@settings(deadline=None, derandomize=True)
@given(
    duration_s=st.floats(0.01, 5000),
    clip_length_s=st.floats(0.05, 100),
    frames_per_clip=st.integers(1, 8),
)
def test_clip_times_lie_in_order_inside_their_clips(duration_s, clip_length_s, frames_per_clip) -> None:
    times_s = clip_times(duration_s, clip_length_s, frames_per_clip)
    assert times_s.shape == (clip_count(duration_s, clip_length_s), frames_per_clip)
    flat = times_s.ravel()
    assert (np.diff(flat) > 0).all()
    assert flat[0] > 0
    assert flat[-1] < duration_s
    starts_s = np.arange(len(times_s)) * clip_length_s
    assert (times_s > starts_s[:, None]).all()
    assert (times_s < starts_s[:, None] + clip_length_s).all()
    # What is left over is shorter than a tenth of a clip.
    assert duration_s - len(times_s) * clip_length_s <= 0.1 * clip_length_s * (1 + 1e-6)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_clip_lengths_must_be_positive(bad: float) -> None:
    with pytest.raises(ValueError, match="duration_s"):
        clip_times(bad, 1.0)
    with pytest.raises(ValueError, match="clip_length_s"):
        clip_times(1.0, bad)
    with pytest.raises(ValueError, match="frames_per_clip"):
        clip_times(1.0, 1.0, 0)


def test_more_clips_and_frames_than_a_video_has_are_refused_before_memory_is_taken() -> None:
    for duration_s, clip_length_s in ((1e12, 1.0), (1.0, 1e-300), (1e300, 1e-300), (10**300, 1)):
        with pytest.raises(ValueError, match="a video has at most 1,000,000"):
            clip_count(duration_s, clip_length_s)
    with pytest.raises(ValueError, match="more than 10,000,000 frames"):
        clip_times(100.0, 1.0, 10**9)
    with pytest.raises(ValueError, match="duration_s must be a positive number"):
        clip_count(10**400, 1.0)


# Sampling


def test_frames_follow_time_stamps_at_a_variable_frame_rate(tmp_path: Path) -> None:
    starts_s = [0.0, 0.1, 0.2, 1.5, 1.6, 4.0, 4.05, 7.0, 7.1]
    path = write_video(tmp_path / "vfr.mp4", starts_s)
    times_s = [0.0, 0.05, 0.15, 0.9, 1.49, 1.55, 3.99, 4.01, 5.5, 6.99, 7.05, 7.15]
    expected = [max(i for i, start_s in enumerate(starts_s) if start_s <= time_s) for time_s in times_s]
    assert numbers_at(path, times_s) == expected
    assert probe_video(path).num_frames == len(starts_s)
    assert probe_video(path).duration_s == pytest.approx(7.2, abs=0.11)
    # Sampling by index at the average rate would be far off: the middle frame is shown from 1.6 s, not 3.6 s.
    assert expected[6] != round(3.99 * len(starts_s) / 7.2)


def test_time_zero_is_the_first_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "late.ts", regular(4.0, start_s=5.0))
    with av.open(str(path)) as container:
        assert container.streams.video[0].start_time * container.streams.video[0].time_base > 4
    assert numbers_at(path, [0.05, 1.05, 3.95]) == [0, 10, 39]
    assert probe_video(path).duration_s == pytest.approx(4.0, abs=0.11)


def test_b_frames_come_in_presentation_order(tmp_path: Path) -> None:
    path = write_video(tmp_path / "b.mp4", regular(6.0))
    assert numbers_at(path, [i / 10 + 0.05 for i in range(60)]) == list(range(60))


def test_one_frame_answers_several_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", regular(2.0, fps=2.0))
    answers = list(iter_frames(path, [0.0, 0.1, 0.1, 0.4, 0.6]))
    assert [time_s for time_s, _ in answers] == [0.0, 0.1, 0.1, 0.4, 0.6]
    assert [number_of(frame) for _, frame in answers] == [0, 0, 0, 0, 1]


def test_starting_late_seeks_and_gives_the_same_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", regular(25.0))
    late = [14.85, 15.05, 24.95]
    assert numbers_at(path, late) == [148, 150, 249]
    for (_, sought), (_, read) in zip(iter_frames(path, late), list(iter_frames(path, [0.0, *late]))[1:], strict=True):
        np.testing.assert_array_equal(sought, read)


def test_regular_rate_runs_to_the_end(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", regular(3.0))
    for fps in (0, -1, 1e300, 10**400, float("nan"), "4"):  # a huge one would give frames without end
        with pytest.raises(ValueError, match="fps must be a positive number"):
            iter_frames(path, fps=fps)
    answers = list(iter_frames(path, fps=4.0))
    assert [time_s for time_s, _ in answers] == [i / 4 for i in range(12)]
    assert [number_of(frame) for _, frame in answers] == [int(i / 4 * 10 + 1e-6) for i in range(12)]
    for arguments in ({}, {"times_s": [0.0], "fps": 1.0}, {"fps": 0.0}):
        with pytest.raises(ValueError, match="fps"):
            iter_frames(path, **arguments)


def test_no_times_give_no_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", regular(1.0))
    assert list(iter_frames(path, [])) == []


def test_sizes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", regular(1.0))
    shapes = {size: next(iter(iter_frames(path, [0.5], size=size)))[1].shape for size in (None, 24, (30, 10))}
    assert shapes == {None: (HEIGHT, WIDTH, 3), 24: (24, 32, 3), (30, 10): (10, 30, 3)}
    _, frame = next(iter_frames(path, [0.5], size=(CODE_BITS, 4), interpolation="area"))
    assert frame.dtype == np.uint8
    assert number_of(frame) == 5


def test_stored_rotation_is_applied(tmp_path: Path) -> None:
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:, : WIDTH // 2] = (250, 10, 10)  # red on the left
    path = write_video(tmp_path / "phone.mp4", regular(1.0), frames=[picture] * 10, rotation=90)
    info = probe_video(path)
    assert (info.width, info.height) == (HEIGHT, WIDTH)
    _, frame = next(iter_frames(path, [0.5], size=(24, 32)))
    assert frame.shape == (32, 24, 3)
    top, bottom = frame[:12].mean(axis=(0, 1)), frame[20:].mean(axis=(0, 1))
    assert bottom[0] > 200 > 50 > top[0]  # turned counter-clockwise, the left side lies at the bottom


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    peaks = []
    for seconds in (2, 20):
        path = write_video(tmp_path / f"{seconds}.mp4", regular(seconds))
        frames = iter_frames(path, [i / 10 for i in range(seconds * 10)])
        next(frames)
        tracemalloc.start()
        for _ in frames:
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 20 * WIDTH * HEIGHT * 3  # a tenth of the 200 frames


# Containers


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_duration_is_the_pictures_not_the_sounds(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, regular(3.0), sound_s=6.0)
    info = probe_video(path)
    assert info.duration_s == pytest.approx(3.0, abs=0.11)
    assert (info.width, info.height) == (WIDTH, HEIGHT)
    assert info.fps == pytest.approx(10.0, rel=0.05)
    assert numbers_at(path, [0.05, 2.95]) == [0, 29]


@pytest.mark.parametrize("name", ["stream.webm", "stream.mkv"])
def test_missing_duration_is_measured(tmp_path: Path, name: str) -> None:
    codec = "libvpx" if name.endswith("webm") else "libx264"
    path = write_video(tmp_path / name, regular(3.0), codec=codec, options={"live": "1"})
    with av.open(str(path)) as container:
        assert container.duration is None
        assert container.streams.video[0].duration is None
    info = probe_video(path)
    assert info.duration_s == pytest.approx(3.0, abs=0.11)
    assert info.num_frames is None
    assert numbers_at(path, [1.05, 2.95]) == [10, 29]


def test_raw_stream_without_time_stamps_is_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "raw.h264", regular(3.0))
    info = probe_video(path)
    assert info.duration_s == pytest.approx(30 / info.fps, rel=0.1)
    assert numbers_at(path, [(i + 0.5) / info.fps for i in (0, 12, 29)]) == [0, 12, 29]


# Files that cannot be read


def test_missing_file(tmp_path: Path) -> None:
    for function in (probe_video, lambda path: iter_frames(path, [0.0])):
        with pytest.raises(FileNotFoundError, match=r"nothing\.mp4 not found \(no such file\)"):
            function(tmp_path / "nothing.mp4")
        with pytest.raises(FileNotFoundError, match="it is a folder"):
            function(tmp_path)


def broken_file(tmp_path: Path, fault: str) -> Path:
    path = tmp_path / f"{fault}.mp4"
    if fault == "sound":
        with av.open(str(path), "w") as container:
            sound = container.add_stream("aac", rate=8000, layout="mono")
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            samples.sample_rate = 8000
            container.mux(sound.encode(samples))
            container.mux(sound.encode(None))
    elif fault == "empty":
        path.touch()
    elif fault == "text":
        path.write_text("this is not a video\n" * 100)
    elif fault == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(20_000))
    else:
        index_first = {"movflags": "faststart"} if fault in ("half", "no_data") else {}
        data = write_video(path, regular(20.0), options=index_first).read_bytes()
        if fault == "no_index":  # the index of an mp4 comes last unless asked otherwise
            path.write_bytes(data[: len(data) // 2])
        elif fault == "half":
            path.write_bytes(data[: data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2])
        elif fault == "no_data":
            path.write_bytes(data[: data.index(b"mdat") + 8])
    return path


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("sound", r"no video stream \(found: audio\)"),
        ("empty", "it is empty"),
        ("text", "libav says"),
        ("noise", "libav says"),
        ("no_index", "libav says"),
        ("half", "cut off|libav says"),
        ("no_data", "no frame|libav says"),
    ],
)
def test_unreadable_files_give_one_clear_error(tmp_path: Path, fault: str, reason: str) -> None:
    path = broken_file(tmp_path, fault)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        list(iter_frames(path, clip_times(20.0, 1.0).ravel()))
    assert type(caught.value) is ValueError
    assert re.search(reason, str(caught.value))
    assert "re-encode" in str(caught.value)
    if fault != "half":  # the header of a file that is cut off is whole
        with pytest.raises(ValueError, match=reason):
            probe_video(path)


def test_time_past_the_end_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", regular(3.0))
    assert numbers_at(path, [3.5]) == [29]  # stated durations are a little longer than the frames now and then
    with pytest.raises(ValueError, match=r"times_s must lie inside the video, received 9\.00 s"):
        numbers_at(path, [0.5, 9.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"times_s": [[0.0]]}, "one-dimensional"),
        ({"times_s": [1.0, 0.5]}, "non-decreasing"),
        ({"times_s": [-1.0]}, "non-negative"),
        ({"times_s": [float("nan")]}, "finite"),
        ({"times_s": [0.0], "size": 0}, "size must be"),
        ({"times_s": [0.0], "size": (3, 4, 5)}, "size must be"),
        ({"times_s": [0.0], "interpolation": "magic"}, "interpolation must be one of"),
    ],
)
def test_bad_arguments_are_refused_at_once(tmp_path: Path, arguments: dict, message: str) -> None:
    path = write_video(tmp_path / "a.mp4", regular(1.0))
    with pytest.raises(ValueError, match=message):
        iter_frames(path, **arguments)


# Time, as a player has it


def with_late_pictures(path: Path, late_s: float, options: dict[str, str]) -> Path:
    """Sound from 0, and 8 s of pictures from `late_s` on; the packets interleaved as a recorder writes them."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("aac", rate=8000, layout="mono")
        packets = []
        for number in range(80):
            frame = av.VideoFrame.from_ndarray(coded_frame(number), format="rgb24")
            frame.pts, frame.time_base = round((late_s + number / 10) * 1000), Fraction(1, 1000)
            packets += stream.encode(frame)
        for block in range(int((late_s + 8) * 8)):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = 8000, block * 1000, Fraction(1, 8000)
            packets += sound.encode(samples)
        packets += stream.encode(None) + sound.encode(None)
        for packet in sorted(packets, key=lambda packet: float(packet.dts * packet.time_base)):
            container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mov", {}),
        ("a.ts", {}),
        ("a.mkv", {}),
        ("fragments.mp4", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    ],
)
def test_pictures_that_begin_after_the_sound_keep_the_players_seconds(tmp_path: Path, name: str, options: dict) -> None:
    path = with_late_pictures(tmp_path / name, 3.0, options)
    assert probe_video(path).duration_s == pytest.approx(11.0, abs=0.15)
    assert numbers_at(path, [0.5, 2.0]) == [0, 0]  # nothing is shown yet: the first picture stands for it
    assert numbers_at(path, [5.05])[0] == pytest.approx(20, abs=2)


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.ts", "a.mp4"])
def test_pictures_alone_begin_at_zero(tmp_path: Path, name: str) -> None:
    codec = "libvpx" if name.endswith("webm") else "libx264"
    path = write_video(tmp_path / name, regular(6.0, start_s=5.0), codec=codec)
    assert probe_video(path).duration_s == pytest.approx(6.0, abs=0.11)
    assert numbers_at(path, [0.05, 3.05, 5.95]) == [0, 30, 59]


@pytest.mark.parametrize("second_starts_s", [0.0, 1000.0])
def test_transport_streams_joined_end_to_end_play_one_after_the_other(tmp_path: Path, second_starts_s: float) -> None:
    parts = [write_video(tmp_path / f"{s}.ts", regular(6.0, start_s=s)).read_bytes() for s in (0.0, second_starts_s)]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    assert probe_video(path).duration_s == pytest.approx(12.0, abs=0.15)
    assert numbers_at(path, [1.05, 5.05, 7.25, 11.85]) == pytest.approx([10, 50, 12, 58], abs=2)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_distances_of_decoding_are_not_those_of_showing(tmp_path: Path, name: str) -> None:
    """A screen recording: pictures only where something changes, and B frames."""
    rng = np.random.default_rng(0)
    starts_s = [0.0, *np.sort(rng.uniform(0, 60, 150)).round(3).tolist()]
    path = write_video(tmp_path / name, starts_s)
    info = probe_video(path)
    assert info.duration_s == pytest.approx(starts_s[-1], abs=1.0)
    times_s = clip_times(info.duration_s, 1.0).ravel().tolist()
    assert numbers_at(path, times_s) == [max(i for i, start in enumerate(starts_s) if start <= t) for t in times_s]


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        *(("a.avi", "libx264"), ("a.avi", "mpeg4"), ("a.wmv", "libx264"), ("a.asf", "mpeg4"), ("a.mpg", "mpeg2video")),
        *(("a.mkv", "libx264"), ("a.ts", "mpeg2video")),
    ],
)
def test_frames_come_in_the_order_of_showing_where_times_are_those_of_decoding(
    tmp_path: Path, name: str, codec: str
) -> None:
    path = write_b_frames(tmp_path / name, 4.0, codec=codec)
    assert probe_video(path).duration_s == pytest.approx(4.0, abs=0.045)
    assert numbers_at(path, [(number + 0.5) / 25 for number in range(100)]) == list(range(100))


def test_pictures_of_a_windows_video_that_begin_after_its_sound(tmp_path: Path) -> None:
    path = write_b_frames(tmp_path / "a.wmv", 4.0, late_s=2.0)
    assert probe_video(path).duration_s == pytest.approx(6.0, abs=0.1)
    assert numbers_at(path, [1.0, 3.02, 5.02]) == pytest.approx([0, 25, 75], abs=2)


def test_a_flash_video_is_as_long_as_its_pictures(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.flv", regular(6.0))
    assert probe_video(path).duration_s == pytest.approx(6.0, abs=0.05)
    assert len(numbers_at(path, clip_times(probe_video(path).duration_s, 1.0).ravel().tolist())) == 6


# Pictures, as a player shows them


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    path = tmp_path / "anamorphic.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        for number in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(coded_frame(number), format="rgb24")))
        container.mux(stream.encode(None))
    info = probe_video(path)
    assert (info.width, info.height) == (96, 48)
    _, frame = next(iter_frames(path, [0.5], size=24))
    assert frame.shape == (24, 48, 3)
    assert number_of(frame) == 5


def test_a_thumbnail_is_not_the_film(tmp_path: Path) -> None:
    path = tmp_path / "thumbnail.mkv"
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mjpeg", rate=1)
        picture.width, picture.height, picture.pix_fmt = 32, 24, "yuvj420p"
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((24, 32, 3), np.uint8), format="rgb24")))
        container.mux(picture.encode(None))
        for number in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(coded_frame(number), format="rgb24")))
        container.mux(stream.encode(None))
    info = probe_video(path)
    assert (info.width, info.height, info.duration_s) == (WIDTH, HEIGHT, pytest.approx(6.0, abs=0.11))
    assert numbers_at(path, [3.05]) == [30]


@pytest.mark.parametrize("size", [None, 24, (20, 12)])
@pytest.mark.parametrize("interpolation", ["area", "bicubic"])
def test_a_file_and_its_decoded_frames_are_resized_alike(tmp_path: Path, size, interpolation: str) -> None:
    path = write_video(tmp_path / "a.mp4", regular(2.0))
    with av.open(str(path)) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    plan = FramePlan([0.05, 0.55, 1.95], size, interpolation)
    with VideoFile(path) as file, FrameArray(decoded, 10.0) as array:
        for (_, _, one), (_, _, other) in zip(file.frames([plan]), array.frames([plan]), strict=True):
            np.testing.assert_array_equal(one, other)


def test_several_plans_get_their_frames_in_one_pass(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", regular(3.0))
    plans = [FramePlan([0.05, 1.05, 2.05]), FramePlan([1.05, 1.55], size=24)]
    with VideoFile(path) as video:
        found = [(plan, time_s, number_of(frame), len(frame)) for plan, time_s, frame in video.frames(plans)]
    assert [row[:3] for row in found] == [(0, 0.05, 0), (0, 1.05, 10), (1, 1.05, 10), (1, 1.55, 15), (0, 2.05, 20)]
    assert {(plan, height) for plan, _, _, height in found} == {(0, HEIGHT), (1, 24)}


# Damage, and what strangers send


def with_damage(path: Path, packets: range) -> Path:
    """The same file, with noise in place of some packets."""
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for number in packets:
        position, size = places[number]
        data[position : position + size] = np.random.default_rng(number).bytes(size)
    damaged = path.with_stem("damaged")
    damaged.write_bytes(data)
    return damaged


def test_damaged_packets_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = with_damage(write_video(tmp_path / "a.mp4", regular(10.0)), range(45, 48))
    times_s = clip_times(10.0, 1.0).ravel().tolist()
    numbers = numbers_at(path, times_s)
    assert [n for n in numbers if abs(n - 45) > 10] == [n for n in range(5, 100, 10) if abs(n - 45) > 10]
    assert re.search(r"damaged\.mp4: 3 of 100 packets are damaged and were skipped", caplog.text)


def test_too_many_damaged_packets_are_an_error(tmp_path: Path) -> None:
    path = with_damage(write_video(tmp_path / "a.mp4", regular(10.0)), range(40, 60))
    with pytest.raises(ValueError, match="of 100 packets are damaged"):
        numbers_at(path, clip_times(10.0, 1.0).ravel().tolist())


@pytest.mark.parametrize("name", ["absolute.m3u8", "dots.m3u8", "concat.mp4", "playlist.mp4"])
def test_no_file_reads_another(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "uploads").mkdir()
    secret = write_video(tmp_path / "private" / "secret.ts", regular(3.0))
    write_video(tmp_path / "uploads" / "neighbour.ts", regular(3.0))
    target = {"absolute.m3u8": str(secret), "playlist.mp4": str(secret), "dots.m3u8": "../private/secret.ts"}
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:3.0,\n{target.get(name)}\n#EXT-X-ENDLIST\n"
    path = tmp_path / "uploads" / name
    path.write_text("ffconcat version 1.0\nfile neighbour.ts\n" if name == "concat.mp4" else text)
    monkeypatch.chdir(path.parent)
    for place in (path, name):
        with pytest.raises(ValueError, match="cannot read the video"):
            probe_video(place)


@pytest.mark.parametrize("name", ["12:30.mp4", "http:x.mp4", "file:x.mp4", "pipe:0", "concat:a.mp4", "a?b#c%41.mp4"])
def test_a_name_is_never_taken_for_a_protocol(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(Path("a.mp4"), regular(1.0)).rename(name)
    assert probe_video(name).duration_s == pytest.approx(1.0, abs=0.11)


@pytest.mark.parametrize("seconds", [86_400, 20 * 365 * 86_400])
def test_a_small_file_that_states_a_long_time_is_refused(tmp_path: Path, seconds: int) -> None:
    path = write_video(tmp_path / "bomb.mkv", [0.0, 0.1, float(seconds)])
    with pytest.raises(ValueError, match=r"it states \d+ s"):
        probe_video(path)
    hours = write_video(tmp_path / "hours.mkv", [0.0, 0.1, 36_000.0])
    with pytest.raises(ValueError, match=r"it states 36000 s in \d+ bytes"):
        probe_video(hours)


def test_large_pictures_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    side = (16_000).to_bytes(2, "little") * 2
    head = b"GIF89a" + side + b"\x80\x00\x00" + b"\x00\x00\x00\xff\xff\xff"
    path = tmp_path / "bomb.gif"
    path.write_bytes(head + b"\x2c\x00\x00\x00\x00" + side + b"\x00\x02\x02\x44\x01\x00\x3b")
    before = psutil.Process().memory_info().rss
    with pytest.raises(ValueError, match="more than 35,389,440 pixels"):
        probe_video(path)
    assert psutil.Process().memory_info().rss - before < 200 * 2**20


# Real files


@needs_shared
@pytest.mark.parametrize("name", ["charades_example.mp4", "v_GGSY1Qvo990.mp4"])
def test_real_videos(name: str) -> None:
    path = Path(os.environ["BMDETR_SHARED"]) / "videos" / name
    info = probe_video(path)
    assert info.num_frames is not None
    assert info.duration_s == pytest.approx(info.num_frames / info.fps, rel=0.01)
    times_s = clip_times(info.duration_s, 2.0, 2)
    frames = [frame for _, frame in iter_frames(path, times_s.ravel(), size=32)]
    assert len(frames) == times_s.size
    assert {frame.shape for frame in frames} == {(32, round(info.width * 32 / info.height), 3)}
    assert all((a != b).any() for a, b in itertools.pairwise(frames))
