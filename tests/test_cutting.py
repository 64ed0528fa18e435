"""Moments cut out of their videos: copied between key frames, exact otherwise, with their sound."""

from pathlib import Path

import av
import numpy as np
import pytest
from test_video import number_of, regular, write_b_frames, write_video

from modeling_bmdetr.cutting import cut_clip
from modeling_bmdetr.video_bmdetr import iter_frames, probe_video


def numbers(path: Path, rate: int = 10) -> list[int]:
    info = probe_video(path)
    times = np.arange(round(info.duration_s * rate)) / rate + 0.02
    return [number_of(frame) for _, frame in iter_frames(path, times)]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds at 10 frames per second, each with its number, and several key frames."""
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", regular(10.0), codec="mpeg4")


def key_times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [float(p.pts * p.time_base) for p in container.demux(stream) if p.is_keyframe and p.pts is not None]


def test_between_key_frames_the_packets_are_copied(video: Path, tmp_path: Path) -> None:
    _, start_s, _, end_s, *_ = key_times(video)
    out = tmp_path / "clip.mp4"
    assert cut_clip(video, start_s, end_s, out)
    first, last = round(start_s * 10), round(end_s * 10)
    assert numbers(out) == list(range(first, last))

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]

    assert packets(out) == packets(video)[first:last]


def test_from_a_key_frame_to_the_end_of_the_video(video: Path, tmp_path: Path) -> None:
    start_s = key_times(video)[-1]
    assert cut_clip(video, start_s, 10.0, tmp_path / "clip.mp4")
    assert numbers(tmp_path / "clip.mp4") == list(range(round(start_s * 10), 100))


@pytest.mark.parametrize(("start_s", "end_s"), [(1.3, 4.7), (2.0, 4.7), (0.5, 0.6), (9.3, 12.0)])
def test_elsewhere_the_clip_is_encoded_exactly(video: Path, tmp_path: Path, start_s: float, end_s: float) -> None:
    out = tmp_path / "clip.mp4"
    assert not cut_clip(video, start_s, end_s, out)
    assert numbers(out) == list(range(round(start_s * 10), min(100, round(end_s * 10))))
    assert probe_video(out).duration_s == pytest.approx(min(end_s, 10.0) - start_s, abs=0.02)


@pytest.mark.parametrize(("start_s", "end_s"), [(1.0, 3.5), (2.0, 6.0)])
def test_sound_is_cut_with_the_pictures(tmp_path: Path, start_s: float, end_s: float) -> None:
    video = write_video(tmp_path / "a.mp4", regular(8.0), codec="mpeg4", sound_s=8.0)
    cut_clip(video, start_s, end_s, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.audio
        stream = container.streams.audio[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(end_s - start_s, abs=0.2)


@pytest.mark.parametrize("suffix", ["mkv", "mov"])
def test_other_containers(video: Path, tmp_path: Path, suffix: str) -> None:
    cut_clip(video, 1.3, 2.3, tmp_path / f"clip.{suffix}")
    assert numbers(tmp_path / f"clip.{suffix}") == list(range(13, 23))


@pytest.mark.parametrize("start_s", [0.0, 1.2])
def test_pictures_of_a_format_with_times_of_decoding_alone(tmp_path: Path, start_s: float) -> None:
    video = write_b_frames(tmp_path / "a.avi", 4.0)
    cut_clip(video, start_s, start_s + 1.0, tmp_path / "clip.mkv")
    assert numbers(tmp_path / "clip.mkv", 25) == list(range(round(start_s * 25), round(start_s * 25) + 25))


def test_a_part_of_the_second_of_two_recordings_has_its_pictures_and_sound(tmp_path: Path) -> None:
    parts = [write_video(tmp_path / f"{i}.ts", regular(5.0), codec="mpeg4", sound_s=5.0).read_bytes() for i in (0, 1)]
    (tmp_path / "joined.ts").write_bytes(b"".join(parts))
    cut_clip(tmp_path / "joined.ts", 6.0, 8.0, tmp_path / "clip.mp4")
    assert numbers(tmp_path / "clip.mp4") == pytest.approx(list(range(10, 30)), abs=2)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.audio[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(2.0, abs=0.2)


def test_odd_sizes_and_rotation(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", regular(3.0), rotation=90)
    cut_clip(video, 0.7, 2.2, tmp_path / "clip.mp4")
    info, original = probe_video(tmp_path / "clip.mp4"), probe_video(video)
    assert (info.width, info.height) == (original.width, original.height)


@pytest.mark.parametrize(
    ("start_s", "end_s", "message"),
    [
        *((4.0, 3.0, "must end after it starts"), (-1.0, 3.0, "must end after"), (11.0, 12.0, "after .* ends")),
        pytest.param(10**400, np.inf, "beyond any float", id="hundreds of digits"),
        pytest.param(10**400, np.float64(3), "beyond any float", id="hundreds of digits and NumPy"),
    ],
)
def test_a_span_outside_the_video_is_refused(video, tmp_path: Path, start_s: float, end_s: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut_clip(video, start_s, end_s, tmp_path / "clip.mp4")
    assert not list(tmp_path.iterdir())


def test_no_video_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    with pytest.raises(ValueError, match="cannot read the video"):
        cut_clip(tmp_path / "a.mp4", 0.0, 1.0, tmp_path / "clip.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
