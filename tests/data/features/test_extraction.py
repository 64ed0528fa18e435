"""Extraction from real video files with the weightless encoders: once each, resumable, and what does not decode."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from factories import write_pictures
from tiny_pretrained import TEXT_MODELS, write_model

from modeling_bmdetr.contract_bmdetr import FeatureContract
from modeling_bmdetr.data import FeatureStore, extract_features
from modeling_bmdetr.encoders_bmdetr import HashedWordTextEncoder, PixelGridVideoEncoder, build_text_encoder

VIDEO, TEXT = {"name": "pixel-grid", "grid": 8}, "hashed-words"


def render(path, seconds=3.0, fps=8, level=0):
    """A small video whose brightness rises over time, from `level`."""
    pictures = (np.full((24, 32, 3), (level + 3 * number) % 256, np.uint8) for number in range(round(seconds * fps)))
    write_pictures(path, pictures, fps)


def make_rows(vids, queries_per_video=2):
    return [
        {"qid": f"{vid}_{number}", "vid": vid, "query": f"scene {number} gets brighter", "duration": 3.0}
        for vid in vids
        for number in range(queries_per_video)
    ]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Four videos, with different suffixes and lengths."""
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(["a.mp4", "b.mkv", "c.avi", "d.mp4"]):
        render(folder / name, seconds=2.0 + number, level=40 * number)
    return folder


def extract(rows, videos, out, **options):
    return extract_features(rows, videos, out, VIDEO, TEXT, 1.0, **{"progress": False, **options})


class CountingVideoEncoder(PixelGridVideoEncoder):
    """Counts the videos it encodes, and can stop at one."""

    def __init__(self, stop_at=None):
        super().__init__(grid=8)
        self.encoded, self.stop_at = [], stop_at

    def encode_video(self, video, clip_length_s, **options):
        if len(self.encoded) == self.stop_at:
            raise KeyboardInterrupt
        self.encoded.append(os.path.basename(video))
        return super().encode_video(video, clip_length_s, **options)


class CountingTextEncoder(HashedWordTextEncoder):
    def __init__(self):
        super().__init__()
        self.sentences = []

    def encode_text(self, sentences, max_tokens=32):
        self.sentences += sentences
        return super().encode_text(sentences, max_tokens)


class DyingVideoEncoder(PixelGridVideoEncoder):
    """Takes its process down at one video, as a decoder may that trips over a damaged file."""

    def encode_video(self, video, clip_length_s, **options):
        if os.path.basename(video) == "b.mkv":
            os._exit(9)
        return super().encode_video(video, clip_length_s, **options)


def test_the_store_holds_what_the_encoders_give(videos, tmp_path):
    rows = make_rows("abcd")
    report = extract(rows, videos, tmp_path)
    store = FeatureStore.from_packed(tmp_path)
    store.require(rows, check_values=True)
    assert store.video_ids == list("abcd")
    encoder = PixelGridVideoEncoder(grid=8)
    for vid, path, clips in (("a", "a.mp4", 2), ("b", "b.mkv", 3), ("c", "c.avi", 4)):
        np.testing.assert_array_equal(store.video(vid), encoder.encode_video(videos / path, 1.0).features)
        assert store.num_clips(vid) == clips
    for row in rows:
        expected = HashedWordTextEncoder().encode_text([row["query"]])[0]
        np.testing.assert_array_equal(store.text(row["qid"]), expected)
        assert store.sentence(row["qid"]) == row["query"]
    assert (report.videos_encoded, report.queries_encoded, report.complete) == (4, 8, True)
    assert report.to_dict()["complete"] is True


def test_the_contract_says_how_it_was_made(videos, tmp_path):
    preparation = FeatureContract(clip_length=9.0, max_clips=50, max_tokens=2, normalize_text=False)
    extract(make_rows("a"), videos, tmp_path, contract=preparation)
    store = FeatureStore.from_packed(tmp_path)
    assert store.contract == FeatureContract(
        video_encoders=({"name": "pixel-grid", "dim": 472, "grid": 8, "frames_per_clip": 4, "raster": 8},),
        text_encoder={"name": "hashed-words", "dim": 256},
        clip_length=1.0,
        max_clips=50,
        max_tokens=2,
        normalize_text=False,
    )
    assert store.text("a_0").shape == (2, 256)


def test_rows_of_padding_are_stored_where_the_contract_asks_for_them(videos, tmp_path):
    folder = write_model(tmp_path / "clip", TEXT_MODELS["clip"])
    contract = FeatureContract(text_rows="all", max_tokens=20)
    extract_features(
        make_rows("a"), videos, tmp_path / "store", VIDEO, f"clip:{folder}", 1.0, contract=contract, progress=False
    )
    store = FeatureStore.from_packed(tmp_path / "store")
    assert store.contract.text_rows == "all"
    expected = build_text_encoder(f"clip:{folder}").encode_text([store.sentence("a_0")], 20, padding=True)[0]
    assert expected.shape == (20, 16)
    np.testing.assert_allclose(store.text("a_0"), expected, atol=1e-6)


def test_rows_of_padding_that_an_encoder_lacks_are_refused_before_anything_is_written(videos, tmp_path):
    with pytest.raises(ValueError, match=r"'hashed-words' has no rows of padding, which text_rows='all' asks for"):
        extract(make_rows("a"), videos, tmp_path / "store", contract=FeatureContract(text_rows="all"))
    assert not (tmp_path / "store").exists()


def test_each_video_and_each_sentence_is_encoded_once(videos, tmp_path):
    video_encoder, text_encoder = CountingVideoEncoder(), CountingTextEncoder()
    rows = make_rows("ab", queries_per_video=3)
    extract_features(rows, videos, tmp_path, video_encoder, text_encoder, 1.0, progress=False)
    assert sorted(video_encoder.encoded) == ["a.mp4", "b.mkv"]
    assert sorted(text_encoder.sentences) == sorted({row["query"] for row in rows})
    assert FeatureStore.from_packed(tmp_path).query_ids == sorted(row["qid"] for row in rows)


def test_several_video_encoders_are_concatenated(videos, tmp_path):
    specs = [VIDEO, {"name": "pixel-grid", "grid": 9}]
    extract_features(make_rows("a"), videos, tmp_path, specs, TEXT, 1.0, progress=False)
    video = FeatureStore.from_packed(tmp_path).video("a")
    parts = [PixelGridVideoEncoder(grid).encode_video(videos / "a.mp4", 1.0).features for grid in (8, 9)]
    np.testing.assert_array_equal(video, np.concatenate(parts, axis=1))


def test_the_video_path_of_a_row_is_followed(videos, tmp_path):
    (tmp_path / "videos").mkdir()
    render(tmp_path / "videos" / "clip 1.mp4")
    rows = [{**row, "video": "videos/clip 1.mp4"} for row in make_rows("x")]
    assert extract(rows, tmp_path, tmp_path / "out").complete
    rows[1]["video"] = "another.mp4"
    with pytest.raises(ValueError, match=r"video 'x' name different files: .*clip 1.*another"):
        extract(rows, tmp_path, tmp_path / "out")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_videos_that_do_not_decode_are_listed_and_the_rest_is_encoded(videos, tmp_path, workers):
    folder = tmp_path / "videos"
    folder.mkdir()
    render(folder / "good.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is not a video\n" * 50)
    whole = (videos / "d.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    rows = make_rows(["good", "empty", "text", "cut", "absent"])
    report = extract(rows, folder, tmp_path / "out", workers=workers)
    assert sorted(report.failed_videos) == ["absent", "cut", "empty", "text"]
    assert "there is no video 'absent{.mp4," in report.failed_videos["absent"]
    assert not report.complete
    assert str(report).count("\n  video ") == 4
    store = FeatureStore.from_packed(tmp_path / "out")
    assert store.video_ids == ["good"]
    assert store.failures == report.failed_videos
    with pytest.raises(FileNotFoundError, match=r"4 of 5 videos are missing.*4 could not be encoded"):
        store.require(rows)


def test_failed_videos_are_tried_again(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    assert not extract(make_rows("a"), tmp_path, tmp_path / "out").complete
    render(tmp_path / "a.mp4")
    report = extract(make_rows("a"), tmp_path, tmp_path / "out")
    assert (report.complete, report.videos_encoded, report.queries_present) == (True, 1, 2)
    assert FeatureStore.from_packed(tmp_path / "out").failures == {}


def test_sentences_that_cannot_be_encoded_do_not_spoil_the_others(videos, tmp_path):
    rows = make_rows("a", queries_per_video=3)
    rows[1]["query"] = "  "
    report = extract(rows, videos, tmp_path)
    assert list(report.failed_queries) == ["a_1"]
    assert "empty" in report.failed_queries["a_1"]
    assert FeatureStore.from_packed(tmp_path).query_ids == ["a_0", "a_2"]


def test_an_interrupted_extraction_goes_on_where_it_stopped(videos, tmp_path):
    rows = make_rows("abcd")
    with pytest.raises(KeyboardInterrupt):
        extract_features(rows, videos, tmp_path, CountingVideoEncoder(stop_at=2), TEXT, 1.0, progress=False)
    with pytest.raises(ValueError, match="unfinished"):
        FeatureStore.from_packed(tmp_path)
    encoder = CountingVideoEncoder()
    report = extract_features(rows, videos, tmp_path, encoder, TEXT, 1.0, progress=False)
    assert encoder.encoded == ["c.avi", "d.mp4"]
    assert (report.videos_present, report.videos_encoded, report.queries_present) == (2, 2, 8)
    FeatureStore.from_packed(tmp_path).require(rows, check_values=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_extraction_goes_on_where_it_stopped(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for number in range(12):
        render(videos / f"v{number}.mp4", seconds=1.0, level=10 * number)
    script = textwrap.dedent(
        """
        import sys
        import time

        import modeling_bmdetr.data.features.writer as feature_writer
        from modeling_bmdetr.data import extract_features
        from modeling_bmdetr.encoders_bmdetr import PixelGridVideoEncoder

        class Slow(PixelGridVideoEncoder):
            def encode_video(self, video, clip_length_s, **options):
                time.sleep(0.2)
                return super().encode_video(video, clip_length_s, **options)

        feature_writer._COMMIT_SECONDS = 0.1
        rows = [{"qid": f"q{n}", "vid": f"v{n}", "query": f"scene {n}", "duration": 1.0} for n in range(12)]
        extract_features(rows, sys.argv[1], sys.argv[2], Slow(grid=8), "hashed-words", 1.0, progress=False)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(videos), str(out)])
    index, deadline = out / "video.index.jsonl", time.monotonic() + 120
    while not index.is_file() or index.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, "the extraction ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(ValueError, match="unfinished"):
        FeatureStore.from_packed(out)
    rows = [{"qid": f"q{n}", "vid": f"v{n}", "query": f"scene {n}", "duration": 1.0} for n in range(12)]
    report = extract(rows, videos, out)
    assert report.videos_present >= 3
    assert report.videos_present + report.videos_encoded == 12
    store = FeatureStore.from_packed(out)
    store.require(rows, check_values=True)
    whole = extract(rows, videos, tmp_path / "at once")
    assert whole.videos_encoded == 12
    at_once = FeatureStore.from_packed(tmp_path / "at once")
    for n in range(12):
        np.testing.assert_array_equal(store.video(f"v{n}"), at_once.video(f"v{n}"))
        np.testing.assert_array_equal(store.text(f"q{n}"), at_once.text(f"q{n}"))


def test_more_rows_are_added_and_changed_sentences_refused(videos, tmp_path):
    extract(make_rows("a"), videos, tmp_path)
    report = extract(make_rows("ab"), videos, tmp_path)
    assert (report.videos_present, report.videos_encoded) == (1, 1)
    changed = make_rows("a")
    changed[0]["query"] = "something else"
    with pytest.raises(ValueError, match=r"qid 'a_0' for the sentence 'scene 0 gets brighter'.*something else"):
        extract(changed, videos, tmp_path)
    changed[1]["qid"] = "a_0"
    with pytest.raises(ValueError, match="qid 'a_0' has two sentences"):
        extract(changed, videos, tmp_path / "new")


def test_another_clip_length_needs_another_folder(videos, tmp_path):
    extract(make_rows("a"), videos, tmp_path)
    with pytest.raises(ValueError, match=r"(?s)clip_length: 2.0 against 1.0.*another folder"):
        extract_features(make_rows("a"), videos, tmp_path, VIDEO, TEXT, 2.0, progress=False)


def test_arguments_are_checked(videos, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`video_dir` .*nowhere"):
        extract(make_rows("a"), tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="unknown video encoder 'no-such'"):
        extract_features(make_rows("a"), videos, tmp_path / "out", "no-such", TEXT, 1.0, progress=False)
    with pytest.raises(ValueError, match="`workers` must not be negative"):
        extract(make_rows("a"), videos, tmp_path / "out", workers=-1)


@pytest.mark.slow
def test_workers_give_the_same_features(videos, tmp_path):
    rows = make_rows("abcd")
    extract(rows, videos, tmp_path / "one")
    assert extract(rows, videos, tmp_path / "two", workers=2).complete
    one, two = FeatureStore.from_packed(tmp_path / "one"), FeatureStore.from_packed(tmp_path / "two")
    for vid in "abcd":
        np.testing.assert_allclose(one.video(vid), two.video(vid), rtol=1e-6)


@pytest.mark.slow
def test_a_worker_that_dies_costs_one_video(videos, tmp_path):
    encoder = DyingVideoEncoder(grid=8)
    report = extract_features(make_rows("abcd"), videos, tmp_path, encoder, TEXT, 1.0, workers=2, progress=False)
    assert list(report.failed_videos) == ["b"]
    assert "ended its process" in report.failed_videos["b"]
    assert FeatureStore.from_packed(tmp_path).video_ids == ["a", "c", "d"]
