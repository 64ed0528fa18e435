"""`examples/joined_videos.py`: what is joined, what is asked of it, and that its figures are those of its answers."""

import json

import joined_videos
import numpy as np
import pytest
import torch
from factories import CONTRACT, make_model, make_rows, make_store, write_lines

from dataset_scripts.moving_shapes import MANIFEST, VERSION
from modeling_bmdetr.contract_bmdetr import pad_rows, prepare_text_features, prepare_video_features
from modeling_bmdetr.data.features.writer import FeatureWriter
from modeling_bmdetr.windows_bmdetr import window_starts

ROWS = make_rows(12)
CLIPS = {row["vid"]: int(row["duration"]) for row in ROWS}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model with presence that reads 16 clips, rows, and a packed store of their features."""
    folder = tmp_path_factory.mktemp("joined")
    make_model(max_clips=16).save_pretrained(folder / "model")
    store = make_store(ROWS)
    with FeatureWriter(folder / "features", CONTRACT) as writer:
        for row in ROWS:
            if row["vid"] not in writer.videos:
                writer.add_video(row["vid"], store.video(row["vid"]))
            writer.add_text(row["qid"], store.text(row["qid"]))
        writer.finish()
    write_lines(folder / "test.jsonl", *ROWS)
    return folder


def test_long_videos_are_the_parts_one_after_the_other():
    parts, asked = joined_videos.join(ROWS, CLIPS, 0.6, 1.0, 0, joined_videos.events_by_sentence(ROWS))
    used = [vid for members in parts.values() for vid in members]
    assert len(set(used)) == len(used) >= len(CLIPS) - 3
    for name, members in parts.items():
        lengths = [CLIPS[vid] for vid in members]
        assert sum(lengths[:-1]) < 36 <= sum(lengths)
        for row in (row for row in asked if row["vid"] == name and row["relevant_windows"]):
            own = next(one for one in ROWS if one["qid"] == row["qid"])
            before = sum(lengths[: members.index(own["vid"])])
            moved = [[time_s + before for time_s in window] for window in own["relevant_windows"]]
            assert row["relevant_windows"] == pytest.approx(np.array(moved))
            assert row["duration"] == sum(lengths)
    again = joined_videos.join(ROWS, CLIPS, 0.6, 1.0, 0, joined_videos.events_by_sentence(ROWS))
    other = joined_videos.join(ROWS, CLIPS, 0.6, 1.0, 1, joined_videos.events_by_sentence(ROWS))
    assert again == (parts, asked)
    assert other[0] != parts


def test_what_fits_twice_is_left_out_and_absent_sentences_fit_nothing():
    rows = [{**row, "query": "The same." if row["qid"] in ("vq0", "vq1", "vq9") else row["query"]} for row in ROWS]
    events = joined_videos.events_by_sentence(rows)
    parts, asked = joined_videos.join(rows, CLIPS, 0.6, 1.0, 0, events)
    by_qid = {row["qid"]: row for row in rows}
    for row in asked:
        fitting = sum(by_qid[one["qid"]]["query"] == row["query"] and one["vid"] in parts[row["vid"]] for one in rows)
        assert fitting == (1 if row["relevant_windows"] else 0)
    assert {"vq0", "vq1"}.isdisjoint(row["qid"] for row in asked if row["relevant_windows"]), "both are of one video"
    for name in parts:
        kinds = [bool(row["relevant_windows"]) for row in asked if row["vid"] == name]
        assert 0 < kinds.count(False) <= kinds.count(True)


def test_moving_shapes_are_known_by_their_scenes(tmp_path):
    settings = {"version": VERSION, "seed": 0, "fps": 8, "num_videos": {"test": 6}}
    (tmp_path / MANIFEST).write_text(json.dumps(settings))
    videos = joined_videos.draw_videos(tmp_path, "test")
    events = joined_videos.events_of_shapes(tmp_path / "test.jsonl")
    everything = [video.vid for video in videos]
    for video in videos:
        for number in range(len(video.told)):
            alone = events(f"{video.vid}_{number}", [video.vid])
            assert alone == 1, "a sentence fits one event of its own video"
            assert events(f"{video.vid}_{number}", everything) >= 1


def test_the_script_says_what_it_measured(world, capsys):
    out = world / "figures.json"
    arguments = [str(world / "model"), str(world / "test.jsonl"), "--features", str(world / "features")]
    assert joined_videos.main([*arguments, "--minutes", "0", "0.6", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert list(report["lengths"]) == ["0", "0.6"]
    for entry in report["lengths"].values():
        assert set(entry["rankings"]) == set(joined_videos.RANKINGS)
        assert set(entry["presence"]) == set(joined_videos.PRESENCES)
        assert all(0 <= figure <= 100 for one in entry["rankings"].values() for figure in one.values())
        assert f"{entry['present']} / {entry['absent']}" in printed
    assert report["lengths"]["0"]["videos"] == len(CLIPS)
    first, *others = report["lengths"]["0"]["presence"].values()
    assert all(other == first for other in others), "with one window every rule gives the presence of the model"
    assert joined_videos.main([*arguments, "--minutes", "60"]) == 2
    assert "no video of 60 minutes" in capsys.readouterr().err


def test_the_best_span_of_all_windows_answers(world):
    """Windows of a joined video, searched here one by one, have the moment that the script took."""
    model = joined_videos.BMDetrForMomentRetrieval.from_pretrained(world / "model").eval()
    store = joined_videos.FeatureStore.from_packed(world / "features")
    events = joined_videos.events_by_sentence(ROWS)
    parts, asked = joined_videos.join(ROWS, CLIPS, 0.6, 1.0, 0, events)
    # Asked with all others, in batches of pairs of window and sentence, and without padding below.
    answer = joined_videos.search(model, asked, parts, store)[0]
    video = np.concatenate([store.video(part) for part in parts[asked[0]["vid"]]])
    best = (-1.0, 0.0)
    for start in window_starts(len(video), 16):
        rows = prepare_video_features(video[start : start + 16], model.config.feature_contract)
        text = prepare_text_features(store.text(asked[0]["qid"]), model.config.feature_contract)
        with torch.no_grad():
            outputs = model(*pad_rows([rows]), *pad_rows([text]))
        k = int(outputs["scores"][0].argmax())
        centre, width = outputs["pred_spans"][0, k].tolist()
        left = min(max(centre - width / 2, 0), 1) * len(rows) + start
        best = max(best, (float(outputs["scores"][0, k]), left * CONTRACT.clip_length))
    assert answer["best"]["score"][0][2] == pytest.approx(best[0], abs=1e-5)
    assert answer["best"]["score"][0][0] == pytest.approx(best[1], abs=1e-3)
