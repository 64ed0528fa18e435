"""While one batch of clips is encoded the next one is decoded, one batch ahead: what is seen does not change by it."""

import os
import threading
import weakref
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from annotation_samples import write_video

from modeling_bmdetr import encoder_interface_bmdetr
from modeling_bmdetr.encoders_bmdetr import PixelGridVideoEncoder, build_video_encoder, encode_video


class InTurn:
    """A pool that does what it is given at once, in the thread that asks: nothing overlaps."""

    def __init__(self, *_) -> None: ...

    def __enter__(self) -> "InTurn":
        return self

    def __exit__(self, *_) -> None: ...

    def submit(self, function, *arguments) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*arguments))
        except ValueError as error:
            future.set_exception(error)
        return future


class ByClip(PixelGridVideoEncoder):
    """One clip per batch, so that a short video has many batches; notes who encodes."""

    clips_per_batch = 1

    def __init__(self) -> None:
        super().__init__(grid=8)
        self.threads: list[threading.Thread] = []

    def _encode_clips(self, frames):
        self.threads.append(threading.current_thread())
        return super()._encode_clips(frames)


@pytest.fixture
def video_file(tmp_path: Path) -> Path:
    path = tmp_path / "video.mp4"
    write_video(path, 7.3)
    return path


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decoding")]


def videos() -> list[str]:
    shared = os.environ.get("BMDETR_SHARED")
    real = ("charades_example.mp4", "v_GGSY1Qvo990.mp4") if shared else ()
    return ["rendered", *(str(Path(shared or "", "videos", name)) for name in real)]


@pytest.mark.parametrize("video", videos(), ids=lambda path: Path(path).stem)
@pytest.mark.parametrize("names", [["pixel-grid"], ["moving-things", "pixel-grid"]], ids="+".join)
def test_rows_are_those_of_decoding_and_encoding_in_turn(names, video, video_file, monkeypatch):
    path = video_file if video == "rendered" else video
    encoders = [build_video_encoder(name) for name in names]
    ahead = encode_video(path, encoders, 1.0).features
    monkeypatch.setattr(encoder_interface_bmdetr, "ThreadPoolExecutor", InTurn)
    np.testing.assert_array_equal(ahead, encode_video(path, encoders, 1.0).features)


def test_the_next_batch_is_decoded_while_one_is_encoded_and_none_beyond_it(video_file, monkeypatch):
    decoded, second = [], threading.Event()
    batches = encoder_interface_bmdetr._batches

    def noted(*arguments):
        for batch in batches(*arguments):
            decoded.append(threading.current_thread())
            if len(decoded) > 1:
                second.set()
            yield batch

    monkeypatch.setattr(encoder_interface_bmdetr, "_batches", noted)
    encoder = ByClip()
    most_ahead = []

    def encode_clips(frames):
        if not encoder.threads:
            assert second.wait(30), "the second batch was not decoded while the first one was encoded"
        rows = ByClip._encode_clips(encoder, frames)
        most_ahead.append(len(decoded) - len(encoder.threads))
        return rows

    monkeypatch.setattr(encoder, "_encode_clips", encode_clips)
    assert encode_video(video_file, [encoder], 1.0).features.shape[0] == 8
    assert max(most_ahead) == 1
    assert set(encoder.threads) == {threading.current_thread()}
    assert len(set(decoded)) == 1
    assert threading.current_thread() not in decoded
    assert not decoding_threads()


@pytest.mark.parametrize("way", ["ahead", "in turn"])
def test_a_file_that_is_cut_off_is_refused_by_the_same_error(way, tmp_path, monkeypatch):
    if way == "in turn":
        monkeypatch.setattr(encoder_interface_bmdetr, "ThreadPoolExecutor", InTurn)
    whole, path = tmp_path / "whole.mkv", tmp_path / "half.mkv"
    write_video(whole, 40.0, fps=8)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"cannot read the video .*half\.mkv: it is cut off: 40\.00 s are stated"):
        encode_video(path, [ByClip()], 1.0)
    assert not decoding_threads()


def test_an_error_of_the_encoder_ends_decoding_before_the_file_is_closed(video_file, monkeypatch):
    encoder = ByClip()

    def encode_clips(frames):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(encoder, "_encode_clips", encode_clips)
    with pytest.raises(RuntimeError, match="out of memory"):
        encode_video(video_file, [encoder], 1.0)
    assert not decoding_threads()
    assert not encoder.threads


def test_arrays_of_single_batches_do_not_stay(video_file, monkeypatch):
    """One for every batch, between the large ones that come and go, added 300 MB to the memory of a two-hour film."""
    encoder, made = ByClip(), []

    def encode_clips(frames):
        assert sum(reference() is not None for reference in made) <= 1
        rows = ByClip._encode_clips(encoder, frames).copy()
        made.append(weakref.ref(rows))
        return rows

    monkeypatch.setattr(encoder, "_encode_clips", encode_clips)
    encode_video(video_file, [encoder], 1.0)
    assert len(made) == 8
    assert not any(reference() is not None for reference in made)
