"""`bmdetr train`: from a table and a folder of videos to a model, and what is said of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from annotation_samples import write_video
from tiny_pretrained import IMAGE_MODELS, write_model

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval, BMDetrProcessor
from modeling_bmdetr.cli import main
from modeling_bmdetr.data import FeatureStore, read_rows
from modeling_bmdetr.data.rows.importers import ImportOptions
from modeling_bmdetr.evaluation.baselines import best_fixed_span, whole_video
from modeling_bmdetr.files_bmdetr import replacing_path
from modeling_bmdetr.recipes import own_data
from modeling_bmdetr.recipes.own_data import choose_recipe, with_content_qids
from modeling_bmdetr.recipes.verdict import answers_alike, judge, picture_name

VIDEOS, DURATION_S = 6, 20.0
SMALL = [
    "model.hidden_size=16",
    "model.intermediate_size=16",
    "model.num_attention_heads=2",
    "training.num_train_epochs=1",
]
ENCODERS = ["--video-encoder", "pixel-grid", "--text-encoder", "hashed-words"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six videos, and a table with two sentences about each."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "videos").mkdir()
    lines = ["video,start,end,sentence"]
    for number in range(VIDEOS):
        write_video(folder / "videos" / f"v{number}.mp4", DURATION_S)
        lines += [
            f"v{number}.mp4,{number},{number + 5},It gets brighter.",
            f"v{number}.mp4,0:10,0:15,It darkens {number}.",
        ]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder


def train(world, out, *more):
    arguments = ["train", str(world / "table.csv"), "--videos", str(world / "videos"), "--out", str(out)]
    return main([*arguments, *more])


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "model_of_mine"
    assert train(world, out, *ENCODERS, "--override", *SMALL) == 0
    return out


def test_a_table_and_videos_become_a_model_with_a_report(trained):
    report = json.loads((trained / "report.json").read_text())
    assert set(report["baselines"]) == {"whole video", "best fixed span"}
    assert "10 training queries are few" in " ".join(report["verdict"]["words"])
    assert "2 validation queries are few" in " ".join(report["verdict"]["words"])
    assert any("1 of 6 videos are held out" in note for note in report["notes"])
    text = (trained / "report.md").read_text()
    assert report["verdict"]["words"][0] in text
    assert "| best fixed span |" in text
    assert (trained / "model" / "README.md").is_file()
    model = BMDetrForMomentRetrieval.from_pretrained(trained / "model")
    assert model.config.feature_contract.video_encoders[0]["name"] == "pixel-grid"
    train_videos, val_videos = (
        {row["vid"] for row in read_rows(trained / "data" / f"{n}.jsonl")} for n in ("train", "val")
    )
    assert not train_videos & val_videos


def test_the_model_answers_a_video(trained, world, capsys):
    video = str(world / "videos" / "v0.mp4")
    assert main(["predict", video, "It gets brighter.", "--model", str(trained / "model"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answers"][0]["moments"]


def test_the_recipe_lies_beside_the_model_and_runs_again(trained, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    import train as script

    assert script.main([str(trained / "recipe.yaml"), "--out", str(tmp_path / "again")]) == 0  # the overrides are in it
    first, again = (json.loads((out / "result.json").read_text())["metrics"] for out in (trained, tmp_path / "again"))
    assert first == again


def test_a_second_run_is_refused_and_features_are_kept_by_content(world, trained, monkeypatch, capsys, tmp_path):
    assert train(world, trained, *ENCODERS) == 2
    assert "holds a run: pass --resume" in capsys.readouterr().err
    counts = []
    extract = own_data.extract_features

    def counting(*arguments, **options):
        report = extract(*arguments, **options)
        counts.append((report.videos_encoded, report.videos_present))
        return report

    monkeypatch.setattr(own_data, "extract_features", counting)
    monkeypatch.setattr(own_data, "train_runs", lambda *_, **__: pytest.fail("not to be reached"))
    monkeypatch.setattr(own_data, "choose_recipe", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert train(world, trained, *ENCODERS, "--resume") == 130
    record = trained / "features" / "contents.json"
    kept = record.read_text()
    record.write_text(kept.replace('"v0": "', '"v0": "0'))  # as if the file of v0 had been another one
    assert train(world, trained, *ENCODERS, "--resume") == 130
    assert counts == [(0, VIDEOS), (VIDEOS, 0)]
    assert record.read_text() == kept


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def unfinished(trained, world, tmp_path):
    """A world of its own with a run that was stopped after a checkpoint in `out`."""
    shutil.copytree(world / "videos", tmp_path / "videos")
    shutil.copy(world / "table.csv", tmp_path)
    shutil.copytree(trained, tmp_path / "out")
    (tmp_path / "out" / "result.json").unlink()
    return tmp_path


def test_a_run_that_is_refused_changes_nothing(unfinished, capsys):
    before = contents(unfinished / "out")
    (unfinished / "table.csv").write_text((unfinished / "table.csv").read_text().replace("darkens", "fades"))
    write_video(unfinished / "videos" / "v1.mp4", DURATION_S + 4)
    assert train(unfinished, unfinished / "out", *ENCODERS) == 2
    assert "holds a run: pass --resume to go on with it" in capsys.readouterr().err
    assert contents(unfinished / "out") == before


def test_what_is_read_is_not_written_over(trained, world, capsys):
    rows = trained / "data" / "train.jsonl"
    command = ["train", str(rows), "--videos", str(world / "videos"), "--out", str(trained), "--resume"]
    before = rows.read_bytes()
    assert main(command) == 2
    assert "train.jsonl' is what is read, and would be lost" in capsys.readouterr().err
    assert rows.read_bytes() == before


def test_a_run_that_may_not_go_on_keeps_its_rows_and_its_recipe(unfinished, capsys):
    before = contents(unfinished / "out")
    override = ["--override", *SMALL, "training.seed=7"]
    assert train(unfinished, unfinished / "out", *ENCODERS, "--resume", *override) == 2
    assert "was begun with training.seed = 42, not 7" in capsys.readouterr().err
    assert contents(unfinished / "out") == before


@pytest.mark.parametrize(("old", "new"), [("0:15", "0:16"), ("darkens", "fades")])
@pytest.mark.parametrize("done", [True, False])
def test_a_run_does_not_go_on_with_other_rows(trained, unfinished, capsys, old, new, done):
    out = unfinished / "out"
    if done:
        shutil.copy(trained / "result.json", out)
    table = (unfinished / "table.csv").read_text()
    (unfinished / "table.csv").write_text(table.replace(old, new))
    before = {path: text for path, text in contents(out).items() if path.parent.name != "features"}
    assert train(unfinished, out, *ENCODERS, "--resume", "--override", *SMALL) == 2
    said = capsys.readouterr().err
    assert "holds a run on other rows: those of train, eval have changed since" in said
    assert "another --out to train on these" in said
    assert before.items() <= contents(out).items()


def test_a_run_that_does_not_know_its_rows_goes_on(unfinished):
    """As one of an earlier version."""
    (unfinished / "out" / "rows.json").unlink()
    assert train(unfinished, unfinished / "out", *ENCODERS, "--resume", "--override", *SMALL) == 0
    assert set(json.loads((unfinished / "out" / "rows.json").read_text())) == {"train", "eval"}


def test_a_video_that_is_replaced_after_a_stop_is_encoded_anew(world, monkeypatch, tmp_path):
    videos, out = shutil.copytree(world / "videos", tmp_path / "videos"), tmp_path / "out"
    command = ["train", str(world / "table.csv"), "--videos", str(videos), "--out", str(out), *ENCODERS]
    monkeypatch.setattr(own_data, "choose_recipe", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    extract = own_data.extract_features

    def stopped(rows, *arguments, **options):
        extract([row for row in rows if row["vid"] in ("v0", "v1")], *arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(own_data, "extract_features", stopped)
        assert main(command) == 130
    before = FeatureStore.from_packed(out / "features").video("v0")
    write_video(videos / "v0.mp4", DURATION_S + 4)
    assert main(command) == 130
    assert len(FeatureStore.from_packed(out / "features").video("v0")) > len(before)


@pytest.mark.parametrize(("processors", "workers"), [(1, 0), (2, 0), (3, 1), (64, 4)])
def test_a_recipe_leaves_processors_to_the_training_itself(processors, workers, monkeypatch):
    monkeypatch.setattr(own_data, "usable_processors", lambda: processors)
    recipe = choose_recipe([{"vid": "v", "qid": "q"}], "out", 1.0, 20.0)
    assert recipe["training"]["dataloader_num_workers"] == workers


def test_a_checkpoint_is_trained_further(trained, world, tmp_path, capsys, package_log):
    source = str(trained / "model")
    few = world / "few.csv"
    few.write_text("\n".join((world / "table.csv").read_text().splitlines()[:3]) + "\n")
    more = ["--val", str(few), "--json", "--override", "training.num_train_epochs=1"]
    capsys.readouterr()
    assert train(world, tmp_path / "on", "--from", source, *more) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == json.loads((tmp_path / "on" / "report.json").read_text())
    assert "eval_MR-full-mAP" in shown.err  # what the Trainer tells
    assert "1 videos are in both files, so that the figures flatter the model" in package_log.text
    recipe = yaml.safe_load((tmp_path / "on" / "recipe.yaml").read_text())
    assert recipe["model"] == {"checkpoint": source}
    before, after = (BMDetrForMomentRetrieval.from_pretrained(path) for path in (source, tmp_path / "on" / "model"))
    assert after.config.hidden_size == before.config.hidden_size == 16
    assert train(world, tmp_path / "no", "--from", source, *ENCODERS) == 2
    assert "--from brings its own encoders" in capsys.readouterr().err


def test_a_checkpoint_that_reads_rows_of_padding_is_trained_further(world, tmp_path):
    """As checkpoints of the released code read CLIP: all rows of the text tower, those of padding too."""
    clip = write_model(tmp_path / "clip", *IMAGE_MODELS["clip"])
    config = BMDetrConfig.released(
        video_dim=12,
        text_dim=16,
        video_encoders=[{"name": f"clip:{clip}", "dim": 12, "frames_per_clip": 1, "clips": "nearest"}],
        text_encoder={"name": f"clip:{clip}", "dim": 16},
        clip_length=2.0,
        text_rows="all",
        max_tokens=20,
        alignment_dim=8,
        encoder_layers=1,
        decoder_layers=1,
        **dict.fromkeys(("hidden_size", "intermediate_size"), 16),
        num_attention_heads=2,
    )
    source = tmp_path / "released"
    BMDetrForMomentRetrieval(config).save_pretrained(source)
    BMDetrProcessor(config).save_pretrained(source)
    few = ["--override", "training.num_train_epochs=1"]
    assert train(world, tmp_path / "on", "--from", str(source), *few) == 0
    store = FeatureStore.from_packed(tmp_path / "on" / "features")
    assert {len(store.text(qid)) for qid in store.query_ids} == {20}
    assert BMDetrConfig.from_pretrained(tmp_path / "on" / "model").text_rows == "all"


def test_a_checkpoint_of_other_features_is_refused(trained, world, tmp_path, capsys):
    assert train(world, tmp_path / "other", "--video-encoder", "pixel-grid", "--text-encoder", "hashed-words",
                 "--clip-length", "2", "--override", f"model.checkpoint={trained / 'model'}") == 2  # fmt: skip
    assert "do not fit the checkpoint" in capsys.readouterr().err


def test_absent_queries_teach_presence_and_unlabelled_ones_are_left_out(world, tmp_path, capsys):
    """Rows with `relevant_windows: []` are trained on, validated on and calibrated by; rows without it are not."""
    lines = []
    for number in range(VIDEOS):
        row = {"vid": f"v{number}", "duration": DURATION_S}
        lines += [
            {
                **row,
                "qid": 3 * number,
                "query": f"It gets brighter {number}.",
                "relevant_windows": [[number, number + 5]],
            },
            {**row, "qid": 3 * number + 1, "query": f"An elephant sings {number}.", "relevant_windows": []},
            {**row, "qid": 3 * number + 2, "query": f"Nobody knows {number}."},
        ]
        lines[-3]["neg_query_ids"] = [3 * number + 1, 3 * number + 2]  # the second is left out
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    command = ["train", str(rows), "--videos", str(world / "videos"), "--out", str(out), *ENCODERS]
    assert main([*command, "--override", *SMALL, "model.presence_head=true", "training.logging_steps=1"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert any(note.startswith("6 queries do not say where their moments are") for note in report["notes"])
    assert any(note.startswith("6 queries are about what their videos do not show") for note in report["notes"])
    windows = [
        row["relevant_windows"] for name in ("train", "val") for row in read_rows(out / "data" / f"{name}.jsonl")
    ]
    assert len(windows) == 12
    assert sum(not each for each in windows) == 6
    assert report["data"]["moments_a_query"] == {"0": 5, "1": 5}
    assert "PR-AUROC" in report["runs"][0]["metrics"]["eval"]
    assert "Telling what a video does not show" in (out / "report.md").read_text()
    assert "On 1 validation queries" in (out / "report.md").read_text()
    assert "presence" in capsys.readouterr().out  # what the calibration says of it


def test_a_table_of_absent_queries_alone_is_refused(world, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    row = {"duration": DURATION_S, "relevant_windows": []}
    lines = [{**row, "qid": n, "vid": f"v{n}", "query": f"An elephant sings {n}."} for n in range(VIDEOS)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["train", str(rows), "--videos", str(world / "videos"), "--out", str(tmp_path / "out"), *ENCODERS]
    assert main(command) == 2
    assert "no queries with a moment are left to train on" in capsys.readouterr().err


def test_a_single_video_cannot_be_held_out(world, tmp_path, capsys):
    (tmp_path / "one.csv").write_text("video,start,end,sentence\nv0.mp4,1,2,a\n")
    arguments = ["train", str(tmp_path / "one.csv"), "--videos", str(world / "videos"), "--out", str(tmp_path / "out")]
    assert main([*arguments, *ENCODERS]) == 2
    assert "at least two videos are needed, one to hold out, received 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_annotations_are_read_with_every_option_of_import(world, tmp_path, monkeypatch, capsys):
    given = []
    monkeypatch.setattr(
        own_data, "train_own_data", lambda data: given.append(data.options) or {"verdict": {"words": []}}
    )
    words = (
        "--format table --columns query=Text --header 2 --times frames --decimal , --delimiter ; --encoding latin-1 "
    )
    words += "--sheet A --fps 25 --video v --tier x --tier y --attribute z --past-end clip"
    assert train(world, tmp_path / "out", *ENCODERS, *words.split()) == 0
    assert given == [
        ImportOptions(
            "table", {"query": "Text"}, 2, "frames", ",", ";", "latin-1", "A", 25.0, "v", ["x", "y"], "z", "clip"
        )
    ]
    assert train(world, tmp_path / "out", *ENCODERS) == 0
    assert given[1] == ImportOptions()


def test_a_table_with_decimal_commas_is_read_as_the_error_says(world, tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("video;start;end;sentence\nv0.mp4;1,5;4,5;It gets brighter.\n")
    command = ["train", str(table), "--videos", str(world / "videos"), "--out", str(tmp_path / "out"), *ENCODERS]
    assert main(command) == 2
    assert "--decimal ," in capsys.readouterr().err
    assert main([*command, "--decimal", ","]) == 2
    assert "at least two videos are needed" in capsys.readouterr().err  # it was read


def test_files_that_count_their_queries_from_1_can_share_a_store():
    row = {"vid": "a", "duration": 9.0, "relevant_windows": [[1, 2]]}
    first = with_content_qids(
        [{**row, "qid": "1", "query": "x"}, {**row, "qid": "2", "query": "y", "neg_query_ids": ["1"]}]
    )
    other = with_content_qids([{**row, "qid": "1", "query": "z"}, {**row, "qid": "2", "query": "x"}])
    assert first[1]["neg_query_ids"] == [first[0]["qid"]]
    assert len({first[0]["qid"], first[1]["qid"], other[0]["qid"]}) == 3
    assert first[0]["qid"] == other[1]["qid"]  # the same sentence about the same video


def test_negative_queries_that_are_left_out_go_with_their_weights():
    row = {"vid": "a", "duration": 9.0, "relevant_windows": [[1, 2]]}
    known, _ = with_content_qids(
        [
            {**row, "qid": "1", "query": "x", "neg_query_ids": ["9", "2"], "neg_query_weights": [0.1, 0.2]},
            {**row, "qid": "2", "query": "y"},
        ]
    )
    assert known["neg_query_weights"] == [0.2]
    assert len(known["neg_query_ids"]) == 1


@pytest.mark.parametrize(
    ("queries", "videos", "hidden", "batch", "epochs"),
    [(30, 10, 128, 10, 200), (1_500, 300, 128, 32, 32), (9_000, 2_000, 128, 32, 18), (20_000, 5_000, None, 32, 60)],
)
def test_settings_follow_the_size_of_the_data(queries, videos, hidden, batch, epochs):
    rows = [{"qid": str(n), "vid": f"v{n % videos}"} for n in range(queries)]
    recipe = choose_recipe(rows, "out", 1.0, 60.0)
    assert recipe["model"].get("hidden_size") == hidden
    assert recipe["training"]["per_device_train_batch_size"] == batch
    assert recipe["training"]["num_train_epochs"] == epochs


def figures(r5, miou):
    return {"MR-full-R1@0.5": r5, "MR-full-mIoU": miou}


def test_the_verdict_is_in_words():
    baselines = {"whole video": figures(10.0, 25.0), "best fixed span": figures(30.0, 30.0)}
    better = judge(figures(60.0, 50.0), baselines, 200, False, 2_000)
    assert better["beats_baselines"] is True
    assert better["words"] == [
        "The model beats the baselines: R1@0.5 60.0 % against 30.0 % of the best fixed span, on 200 validation queries."
    ]
    worse = judge(figures(20.0, 28.0), baselines, 200, True, 35)
    assert worse["beats_baselines"] is False
    assert worse["words"][0].startswith("The model does not beat the baselines")
    assert "the same part of the video" in worse["words"][1]
    assert worse["words"][2].startswith("35 training queries are few")
    unclear = judge(figures(33.0, 31.0), baselines, 20, False, 2_000)
    assert unclear["beats_baselines"] is None
    assert "by less than chance may give" in unclear["words"][0]
    assert "20 validation queries are few" in unclear["words"][1]
    lucky = judge(figures(75.0, 58.0), baselines, 4, False, 4)  # on four queries, on which the checkpoint was chosen
    assert lucky["beats_baselines"] is None
    assert lucky["words"][0].startswith("The model is ahead of the baselines, but")


@pytest.mark.parametrize("vid", ["v0", "v" * 247, "電" * 82, "電" * 82 + "話"])
def test_a_picture_has_a_name_that_can_be_written(vid, tmp_path):
    with replacing_path(tmp_path / picture_name(vid)) as aside:
        aside.touch()
    assert (tmp_path / picture_name(vid)).is_file()
    assert picture_name(vid).startswith(f"answers_{vid[:30]}")
    assert picture_name(vid) != picture_name(f"{vid}x")


def test_a_picture_that_cannot_be_written_leaves_the_verdict(unfinished, monkeypatch, caplog):
    pytest.importorskip("matplotlib")
    out = unfinished / "out"
    monkeypatch.setattr("modeling_bmdetr.recipes.verdict.picture_name", lambda vid: f"nowhere/{vid}.png")
    assert train(unfinished, out, *ENCODERS, "--resume", "--override", *SMALL) == 0
    assert "there is no picture of the answers about 'v" in caplog.text
    report = json.loads((out / "report.json").read_text())
    assert report["pictures"] == []
    assert report["verdict"]["words"][0] in (out / "report.md").read_text()


def test_one_answer_for_every_sentence_is_noticed():
    rows = [{"qid": str(n), "duration": 10.0 * (n + 1)} for n in range(4)]
    same = [
        {"qid": row["qid"], "pred_relevant_windows": [[0.2 * row["duration"], 0.6 * row["duration"], 0.9]]}
        for row in rows
    ]
    assert answers_alike(same, rows)
    other = [{**row, "pred_relevant_windows": [[n * 2.0, n * 2.0 + 3, 0.9]]} for n, row in enumerate(same)]
    assert not answers_alike(other, rows)


def test_the_best_fixed_span_is_the_best_of_the_grid():
    generator = np.random.default_rng(0)
    starts = generator.uniform(0, 0.6, 40)
    rows = [
        {"qid": str(n), "vid": "v", "query": "q", "duration": 10.0, "relevant_windows": [[10 * s, 10 * s + 3.0]]}
        for n, s in enumerate(starts)
    ]

    def hits(start, end):
        count = 0
        for row in rows:
            left, right = (time / 10 for time in row["relevant_windows"][0])
            overlap = max(0.0, min(end, right) - max(start, left))
            count += overlap / (max(end, right) - min(start, left)) >= 0.7
        return count

    window = best_fixed_span(rows, rows[:1])[0]["pred_relevant_windows"][0]
    grid = [step / 20 for step in range(21)]
    assert hits(window[0] / 10, window[1] / 10) == max(hits(s, e) for s in grid for e in grid if e > s)
    assert whole_video(rows)[0]["pred_relevant_windows"] == [[0.0, 10.0, 1.0]]
