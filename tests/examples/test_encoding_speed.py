"""The benchmark of encoding: the package chooses the frames that a plain loop over all of them chooses."""

from annotation_samples import write_video

from examples.benchmarks import encoding_speed
from modeling_bmdetr.encoders_bmdetr import build_video_encoder

WAYS = {"decoding alone", "encoding alone", "together", "plain loop"}


def test_the_frames_of_a_plain_loop_are_chosen_and_every_way_is_timed(tmp_path):
    path = tmp_path / "video.mp4"
    write_video(path, 7.3)
    result = encoding_speed.measure(path, build_video_encoder("pixel-grid"), 2.0, threads=1, repeats=1)
    assert result["same frames"] is True
    assert result["clips"] == 4
    for unit in ("clips per second", "clips per second of processor time"):
        assert set(result[unit]) == WAYS
        assert all(rate > 0 for rate in result[unit].values())


def test_other_frames_are_noticed(tmp_path, monkeypatch):
    path = tmp_path / "video.mp4"
    write_video(path, 7.3)
    encoder = build_video_encoder("pixel-grid")
    plain = encoding_speed.plain_frames
    late = lambda path, times_s, encoder: plain(path, times_s + 1.0, encoder)  # noqa: E731
    monkeypatch.setattr(encoding_speed, "plain_frames", late)
    assert encoding_speed.measure(path, encoder, 2.0, threads=1, repeats=1)["same frames"] is False
