"""The benchmark builders: on small files in the original formats with each kind of dirt, and on the real files."""

import json
import os
from pathlib import Path

import pytest

from dataset_scripts import builder as builder_module
from dataset_scripts.activitynet_captions import ActivityNetCaptions
from dataset_scripts.charades_cd import CharadesCD
from dataset_scripts.charades_sta import CharadesSTA
from dataset_scripts.qvhighlights import QVHighlights
from dataset_scripts.registry import BENCHMARKS, builder_class, load_benchmark
from dataset_scripts.released_qids import adopt_released_qids
from dataset_scripts.split_statistics import builder_statistics
from dataset_scripts.tacos import TACoS
from modeling_bmdetr.data import CleaningRules, read_rows, validate_rows

# ---------------------------------------------------------------------------------------- files in the original formats


def write_charades_sta(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "charades_sta_train.txt").write_text(
        "AAAAA 0.0 6.9##a person is putting a book on a shelf.\n"
        "BBBBB 20.9 12.0##person closes the  door.\n"  # reversed, white space
        "BBBBB 24.0 31.5##person runs. person laughs.\n"  # past the end
        "AAAAA 0.0 6.9##a person is putting a book on a shelf.\n"  # repeated
        "AAAAA 35.0 34.0##person sits.\n"  # reversed and wholly past the end
    )
    (folder / "charades_sta_test.txt").write_text("CCCCC 2 5.5##person sits.\r\nCCCCC 2 5.5##person sits.\r\n\r\n")
    (folder / "Charades_v1_train.csv").write_text('id,script,length\nAAAAA,"a, b",33.67\nBBBBB,c,30.00\n')
    (folder / "Charades_v1_test.csv").write_text("id,script,length\nCCCCC,d,12.5\n")
    return folder


def write_charades_cd(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    records = {
        "train": {
            "BBBBB": ([[12.0, 20.9], [24.0, 31.5]], ["person closes the door", "person runs person laughs"], 30.06),
            "AAAAA": ([[0.0, 6.9]], ["a person is putting a book on a shelf"], 33.6),
        },
        "val": {"CCCCC": ([[2.0, 5.5]], ["person sits"], 12.5)},
        "test_iid": {"CCCCC": ([[2.0, 5.5]], ["person sits"], 12.5)},
        "test_ood": {"AAAAA": ([[34.0, 35.0]], ["person sits"], 33.6)},
    }
    for split, videos in records.items():
        content = {
            vid: {"timestamps": times, "sentences": sentences, "video_duration": length_s, "decode_fps": 16.0}
            for vid, (times, sentences, length_s) in videos.items()
        }
        (folder / f"charades_{split}.json").write_text(json.dumps(content))
    return folder


def write_activitynet(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    train = {
        "v_one": {
            "duration": 66.22,
            "timestamps": [[0, 2.78], [34.77, 34.77], [61.29, 60.71], [60, 66.23]],
            "sentences": ["It's a red-hot start.", " They stop.", "  They  go on. ", " The end."],
        },
        "v_two": {"duration": 9.57, "timestamps": [[0.83, 9.57]], "sentences": ["A café."]},
    }
    val = {"v_three": {"duration": 55.15, "timestamps": [[0.28, 55.149999999999999]], "sentences": ["One lifts."]}}
    for name, content in (("train", train), ("val_1", val), ("val_2", val)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_tacos(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "timestamps": [[0, 147], [147, 294], [0, 147], [0, 147], [280, 301]],
        "sentences": ["He cuts.", "He waits.", "He cuts.", " He cuts.", "He leaves."],
        "fps": 29.4,
        "num_frames": 294,
    }
    for name in ("train", "val", "test"):
        (folder / f"{name}.json").write_text(json.dumps({f"s1-{name}.avi": record}))
    return folder


def write_qvhighlights(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    queries = {"train": 11, "val": 22, "test": 33}
    for split, qid in queries.items():
        record = {"qid": qid, "query": "A man  cooks", "duration": 150, "vid": f"{split}_0.0_150.0"}
        labels = {
            "relevant_clip_ids": [1, 2, 9],
            "saliency_scores": [[1, 2, 3], [4, 4, 4], [0, 0, 1]],
            "relevant_windows": [[2, 6], [18, 20]],
        }
        full = json.dumps({**record, **labels}) + "\n"
        released = json.dumps(record) + "\n" if split == "test" else full
        (folder / f"highlight_{split}_release.jsonl").write_text(released)
        if split == "test":
            (folder / "highlight_test_with_gt.jsonl").write_text(full)
    return folder


BUILDERS = {
    "charades_sta": (CharadesSTA, write_charades_sta),
    "charades_cd": (CharadesCD, write_charades_cd),
    "activitynet_captions": (ActivityNetCaptions, write_activitynet),
    "tacos": (TACoS, write_tacos),
    "qvhighlights": (QVHighlights, write_qvhighlights),
}


@pytest.fixture
def build(tmp_path):
    """build(name, **options): a builder over small files of that benchmark."""

    def make(name, **options):
        cls, write = BUILDERS[name]
        folder = tmp_path / name
        if not folder.exists():
            write(folder)
        return cls(data_dir=folder, cache_dir=tmp_path / "cache", **options)

    return make


# ------------------------------------------------------------------------------------------------------- every builder


@pytest.mark.parametrize("name", BUILDERS)
def test_the_data_set_holds_the_canonical_rows_of_every_split(build, name):
    builder = build(name)
    builder.download_and_prepare()
    data = builder.as_dataset()
    assert tuple(data) == builder.splits == builder.all_splits()
    for split in data:
        rows = data[split].to_list()
        assert rows == [{**dict.fromkeys(builder.FEATURES), **row} for row in builder.rows(split)]
        report = validate_rows(rows, require_windows=split != "test" or name != "qvhighlights")
        assert report.ok, report.format()


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "qvhighlights"])
def test_qids_differ_between_all_queries_and_do_not_depend_on_options(build, name):
    builder = build(name)
    qids = {split: [row["qid"] for row in builder.rows(split)] for split in builder.splits}
    together = [qid for part in qids.values() for qid in part]
    assert len(set(together)) == len(together)
    assert qids["train"][:2] == [f"{name}_train_0", f"{name}_train_1"]
    strict = CleaningRules(past_end="clip", zero_length="drop", duplicates="drop")
    last = build(name, splits=["train", builder.splits[-1]], train_rules=strict)
    assert {row["qid"] for row in last.rows("train")} <= set(qids["train"])
    assert [row["qid"] for row in last.rows(builder.splits[-1])] == qids[builder.splits[-1]]


@pytest.mark.parametrize("name", BUILDERS)
def test_missing_files_are_all_named_with_origin_and_licence(build, tmp_path, name):
    cls, _ = BUILDERS[name]
    with pytest.raises(FileNotFoundError) as raised:
        cls(data_dir=tmp_path / "nothing")
    for file in cls.FILES:
        assert f"{file.name}  from {file.origin}" in str(raised.value)
    assert "github.com/" in str(raised.value)
    assert cls.LICENCE in str(raised.value)
    builder = build(name)
    builder.path(cls.FILES[0].name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{cls.TITLE}: 1 of {len(cls.FILES)} files"):
        build(name)


def test_only_the_files_of_the_chosen_splits_are_needed(build):
    builder = build("qvhighlights")
    builder.path("highlight_test_with_gt.jsonl").unlink()
    chosen = build("qvhighlights", splits=("val", "train"))
    chosen.download_and_prepare()
    assert set(chosen.as_dataset()) == {"val", "train"}


def test_wrong_options_are_refused(build):
    with pytest.raises(ValueError, match="splits train, val_1, val_2; received splits=\\('val',\\)"):
        build("activitynet_captions", splits=["val"])
    with pytest.raises(ValueError, match="data_dir is missing"):
        TACoS()
    with pytest.raises(ValueError, match="applies to Charades-STA and Charades-CD, not to TACoS"):
        build("tacos", released_jsonl="somewhere")


@pytest.mark.parametrize("name", BUILDERS)
def test_an_edited_file_is_not_answered_from_the_cache(build, name):
    first = build(name)
    first.download_and_prepare()
    file = next(file for file in first.FILES if file.split == "val" or file.split == "test" or file.split == "val_1")
    path = first.path(file.name)
    path.write_text(path.read_text().replace("person", "robot").replace("He ", "It ").replace("lifts", "sinks"))
    path.write_text(path.read_text().replace("A man", "A dog"))
    second = build(name)
    second.download_and_prepare()
    before, after = first.as_dataset(file.split)["query"], second.as_dataset(file.split)["query"]
    assert len(before) == len(after)
    assert list(before) != list(after)


def test_changed_code_or_options_are_not_answered_from_the_cache(build, monkeypatch, tmp_path):
    builder = build("tacos")
    other_code = tmp_path / "cleaning.py"
    other_code.write_text("# other rules")
    monkeypatch.setattr(builder_module.cleaning, "__file__", str(other_code))
    assert build("tacos").hash != builder.hash
    assert build("tacos", train_rules=CleaningRules(duplicates="drop")).config_id != builder.config_id
    assert build("tacos").config_id == builder.config_id


def test_files_are_compared_with_the_copies_that_were_measured(build):
    entries = build("tacos").file_hashes()
    assert set(entries) == {"train.json", "val.json", "test.json"}
    assert not any(entry["as_documented"] for entry in entries.values())


def test_a_name_that_is_no_data_set_is_refused():
    with pytest.raises(ValueError, match="Unknown data set 'tvr'"):
        builder_class("tvr")
    assert builder_class("tacos") is TACoS
    assert set(BUILDERS) < set(BENCHMARKS)


def test_load_benchmark_returns_the_splits(tmp_path):
    data = load_benchmark("tacos", write_tacos(tmp_path / "tacos"), cache_dir=tmp_path / "cache", splits=["val"])
    assert data["val"].num_rows == 5


# ------------------------------------------------------------------------------------------------------- each builder


def test_charades_sta(build):
    builder = build("charades_sta")
    rows = builder.rows("train")
    assert rows[0] == {
        "qid": "charades_sta_train_0",
        "vid": "AAAAA",
        "query": "a person is putting a book on a shelf.",
        "duration": 33.67,
        "relevant_windows": [[0.0, 6.9]],
    }
    assert (rows[1]["query"], rows[1]["relevant_windows"]) == ("person closes the door.", [[12.0, 20.9]])
    assert [row["relevant_windows"] for row in rows[2:]] == [[[24.0, 31.5]], [[0.0, 6.9]], [[34.0, 35.0]]]
    counts = builder.cleaning_report("train").counts()
    assert {kind: number for kind, number in counts.items() if number} == {
        "rows": 5, "windows": 5, "reversed": 2, "past_end": 2, "wholly_past_end": 1, "duplicates": 1, "white_space": 1,
    }  # fmt: skip
    assert [row["query"] for row in builder.rows("test")] == ["person sits.", "person sits."]
    assert builder.cleaning_report("test").duplicates == 1


def test_duplicates_are_dropped_from_the_training_split_only(build):
    builder = build("charades_sta", train_rules=CleaningRules(duplicates="drop"))
    assert [row["qid"][-1] for row in builder.rows("train")] == ["0", "1", "2", "4"]
    assert len(builder.rows("test")) == 2
    assert builder.cleaning_report("train").dropped_rows == 1


def test_malformed_charades_lines_are_named(build):
    builder = build("charades_sta")
    path = builder.path("charades_sta_train.txt")
    for line, text in (
        ("AAAAA 0.0##x", "expected 'VID start end##sentence'"),
        ("AAAAA 0.0 one##x", "expected 'VID start end##sentence'"),
        ("AAAAA 0.0 1.0 x", "expected 'VID start end##sentence'"),
        ("ZZZZZ 0.0 1.0##x", "video ZZZZZ is in neither of Charades_v1_train.csv and Charades_v1_test.csv"),
    ):
        path.write_text(f"AAAAA 0.0 1.0##fine.\n{line}\n")
        with pytest.raises(ValueError, match=f"charades_sta_train.txt' line 2: {text}"):
            build("charades_sta").rows("train")
    for content, text in (
        ("name,seconds\nCCCCC,1\n", "expected the columns id and length"),
        ("id,length\nCCCCC,\n", "video CCCCC: expected a length in seconds, received ''"),
    ):
        builder.path("Charades_v1_test.csv").write_text(content)
        with pytest.raises(ValueError, match=text):
            build("charades_sta").rows("test")


def test_charades_cd(build):
    builder = build("charades_cd")
    assert builder.rows("train")[1] == {
        "qid": "charades_cd_train_1",
        "vid": "BBBBB",
        "query": "person runs person laughs",
        "duration": 30.06,
        "relevant_windows": [[24.0, 31.5]],
    }
    assert builder.cleaning_report("test_ood").wholly_past_end == 1


def test_activitynet_captions(build):
    builder = build("activitynet_captions")
    rows = builder.rows("train")
    assert [row["query"] for row in rows] == [
        "It's a red-hot start.", "They stop.", "They go on.", "The end.", "A café.",
    ]  # fmt: skip
    assert [row["relevant_windows"][0] for row in rows[1:4]] == [[34.77, 34.77], [60.71, 61.29], [60.0, 66.23]]
    assert rows[4]["vid"] == "v_two"
    counts = builder.cleaning_report("train").counts()
    assert (counts["reversed"], counts["zero_length"], counts["past_end"], counts["white_space"]) == (1, 1, 1, 3)
    assert builder.cleaning_report("val_1").past_end == 0, "binary fractions of one time are no dirt"
    train = build("activitynet_captions", train_rules=CleaningRules(zero_length="drop", past_end="clip")).rows("train")
    assert [row["qid"][-1] for row in train] == ["0", "2", "3", "4"]
    assert train[2]["relevant_windows"] == [[60.0, 66.22]]


def test_tacos_frames_become_seconds(build):
    builder = build("tacos")
    rows = builder.rows("train")
    assert {row["vid"] for row in rows} == {"s1-train"}
    assert rows[0]["duration"] == pytest.approx(10.0)
    assert rows[1]["relevant_windows"] == [[pytest.approx(5.0), pytest.approx(10.0)]]
    counts = builder.cleaning_report("train").counts()
    assert (counts["past_end"], counts["duplicates"], counts["duplicates_once_cleaned"]) == (1, 1, 1)
    assert len(build("tacos", train_rules=CleaningRules(duplicates="drop")).rows("train")) == 3


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[]", "expected an object"),
        ("{", "is not JSON"),
        (
            '{"a.avi": {"timestamps": [[0, 1]], "sentences": [], "fps": 1, "num_frames": 2}}',
            "video a.avi: 1 timestamps",
        ),
        ('{"a.avi": {"timestamps": [], "sentences": [], "num_frames": 2}}', "video a.avi: the record is incomplete"),
        (
            '{"a.avi": {"timestamps": [], "sentences": [], "fps": 0, "num_frames": 2}}',
            "a.avi: the record is incomplete",
        ),
    ],
)
def test_malformed_json_files_are_named(build, content, text):
    build("tacos").path("train.json").write_text(content)
    with pytest.raises(ValueError, match=text) as raised:
        build("tacos").rows("train")
    assert "train.json" in str(raised.value)


def test_qvhighlights_keeps_qids_saliency_and_unlabelled_rows(build):
    builder = build("qvhighlights")
    builder.download_and_prepare()
    data = builder.as_dataset()
    assert data["train"][0] == {
        "qid": "11",
        "vid": "train_0.0_150.0",
        "query": "A man cooks",
        "duration": 150.0,
        "relevant_windows": [[2.0, 6.0], [18.0, 20.0]],
        "relevant_clip_ids": [1, 2, 9],
        "saliency_scores": [[1, 2, 3], [4, 4, 4], [0, 0, 1]],
    }
    test, labelled = data["test"][0], data["test_with_gt"][0]
    assert test["relevant_windows"] is test["relevant_clip_ids"] is test["saliency_scores"] is None
    assert test["qid"] == labelled["qid"] == "33"
    assert labelled["relevant_windows"] == [[2.0, 6.0], [18.0, 20.0]]
    assert builder.integer_qids


# -------------------------------------------------------------------------------------------------------- released qids


@pytest.fixture
def released(tmp_path):
    """The Charades-STA rows as a release would hold them: shuffled, numbered, reversed windows swapped."""
    folder = tmp_path / "released"
    folder.mkdir()
    rows = [
        ("train", 0, "BBBBB", "person runs. person laughs.", [24.0, 31.5]),
        ("train", 1, "AAAAA", "person sits.", [34.0, 35.0]),
        ("train", 2, "AAAAA", "a person is putting a book on a shelf.", [0.0, 6.9]),
        ("train", 3, "BBBBB", "person closes the  door.", [12.0, 20.9]),
        ("test", 4, "CCCCC", "person sits.", [2.0, 5.5]),
    ]
    for split in ("train", "test"):
        lines = [
            json.dumps({"qid": qid, "query": query, "duration": 30.0, "vid": vid, "relevant_windows": [window]})
            for name, qid, vid, query, window in rows
            if name == split
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def without_repeats(folder: Path) -> None:
    """Leave only the first of every repeated line: published numbers name each row once."""
    for path in folder.glob("charades_sta_*.txt"):
        path.write_text("\n".join(dict.fromkeys(path.read_text().splitlines())) + "\n")


def test_rows_take_the_qids_of_the_released_rows_that_say_the_same(build, released):
    without_repeats(build("charades_sta").path("charades_sta_train.txt").parent)
    builder = build("charades_sta", released_jsonl=released)
    assert [row["qid"] for row in builder.rows("train")] == ["2", "3", "0", "1"]
    assert [row["qid"] for row in builder.rows("test")] == ["4"]
    assert builder.rows("train")[0]["duration"] == 33.67
    assert builder.integer_qids


def test_a_join_that_leaves_rows_over_is_refused(build, released):
    without_repeats(build("charades_sta").path("charades_sta_train.txt").parent)
    path = released / "train.jsonl"
    path.write_text(path.read_text().replace("[34.0, 35.0]", "[34.0, 35.5]"))
    with pytest.raises(ValueError, match="1 of 4 rows are not in the released files"):
        build("charades_sta", released_jsonl=released).rows("train")
    with pytest.raises(FileNotFoundError, match=r"holds no \.jsonl file"):
        build("charades_sta", released_jsonl=released.parent / "tacos").rows("train")


def test_released_rows_that_cannot_be_told_apart_are_refused(build, released):
    path = released / "test.jsonl"
    path.write_text(path.read_text() + "\n" + path.read_text().replace('"qid": 4', '"qid": 5'))
    with pytest.raises(ValueError, match="Released rows 4 and 5 have the same video"):
        build("charades_cd", released_jsonl=released).rows("val")


def test_a_join_up_to_full_stops_is_reported(build, released, caplog):
    builder = build("charades_cd", released_jsonl=released)
    assert [row["qid"] for row in builder.rows("train")] == ["3", "0", "2"]
    assert "3 of 3 rows were joined to released sentences that have full stops" in caplog.text
    stored = build("charades_cd").stored_rows("train")
    assert adopt_released_qids(stored, released)[1] == ["3", "0", "2"]


def test_the_released_rows_are_part_of_the_cache_key(build, released):
    before = build("charades_cd", released_jsonl=released).hash
    path = released / "train.jsonl"
    path.write_text(path.read_text().replace('"qid": 3', '"qid": 30'))
    assert build("charades_cd", released_jsonl=released).hash != before


# ----------------------------------------------------------------------------------------------------- statistics


def test_statistics_by_hand(build):
    train = builder_statistics(build("activitynet_captions"))["train"]
    assert (train.videos, train.queries, train.windows) == (2, 5, 5)
    assert train.moment_stored_s == pytest.approx((2.78 + 0 - 0.58 + 6.23 + 8.74) / 5)
    assert train.moment_s == pytest.approx((2.78 + 0 + 0.58 + 6.23 + 8.74) / 5)
    assert train.moment_clipped_s == pytest.approx((2.78 + 0 + 0.58 + 6.22 + 8.74) / 5)
    assert train.video_s == pytest.approx((66.22 + 9.57) / 2)
    assert train.video_per_query_s == pytest.approx((4 * 66.22 + 9.57) / 5)
    assert train.words == pytest.approx((4 + 2 + 3 + 2 + 2) / 5)
    assert train.words_and_marks == pytest.approx((6 + 3 + 4 + 3 + 3) / 5)  # It | 's | a | red-hot | start | .
    assert train.dirt["white_space"] == 3


def test_totals_count_shared_videos_once_and_unlabelled_splits_have_no_moments(build):
    activitynet = builder_statistics(build("activitynet_captions"))
    assert list(activitynet) == ["train", "val_1", "val_2", "train + val_1", "all"]
    assert (activitynet["all"].videos, activitynet["all"].queries) == (3, 7)
    qvhighlights = builder_statistics(build("qvhighlights"))
    assert qvhighlights["test"].moment_s is None
    assert qvhighlights["train"].moment_s == pytest.approx(3.0)
    assert "all" not in builder_statistics(build("tacos", splits=["val"]))


# ------------------------------------------------------------------------------------------------------ the real files

real = pytest.mark.skipif("BMDETR_SHARED" not in os.environ, reason="BMDETR_SHARED is not set")

# split: videos, queries, moment as stored, video, video per query, words, reversed + zero length, past the end
MEASURED = {
    "charades_sta": {
        "train": (5338, 12408, 8.30, 30.87, 31.29, 6.21, 4, 1805),
        "test": (1334, 3720, 7.97, 29.48, 29.84, 6.23, 0, 562),
        "all": (6672, 16128, 8.22, 30.59, 30.96, 6.21, 4, 2367),
    },
    "charades_cd": {
        "train": (4564, 11071, 7.91, 30.46, 30.78, 6.23, 0, 1652),
        "val": (333, 859, 8.20, 30.92, 31.12, 6.27, 0, 135),
        "test_iid": (333, 823, 7.78, 30.11, 30.42, 6.23, 0, 151),
        "test_ood": (1442, 3375, 9.40, 31.77, 32.39, 6.16, 0, 348),
    },
    "activitynet_captions": {
        "train": (10009, 37421, 35.45, 117.30, 125.24, 13.48, 4, 29),
        "val_1": (4917, 17505, 37.73, 118.23, 125.01, 13.58, 0, 5),
        "val_2": (4885, 17031, 40.25, 118.20, 122.05, 12.02, 0, 1),
        "train + val_1": (14926, 54926, 36.18, 117.60, 125.17, 13.52, 4, 34),
        "all": (14926, 71957, 37.14, 117.60, 124.43, 13.16, 4, 35),
    },
    "tacos": {
        "train": (75, 9790, 23.34, 223.62, 267.71, 8.41, 0, 43),
        "val": (27, 4436, 34.32, 386.92, 415.86, 8.67, 0, 0),
        "test": (25, 4001, 31.87, 367.15, 402.64, 8.53, 0, 5),
        "all": (127, 18227, 27.88, 286.59, 333.38, 8.50, 0, 48),
    },
    "qvhighlights": {
        "train": (7100, 7218, 25.08, 149.55, 149.55, 10.46, 0, 0),
        "val": (1519, 1550, 23.22, 149.62, 149.62, 10.49, 0, 0),
        "test": (1529, 1542, None, 149.56, 149.57, 10.51, 0, 0),
        "test_with_gt": (1529, 1542, 23.82, 149.56, 149.57, 10.51, 0, 0),
        "train + val + test_with_gt": (10148, 10310, 24.61, 149.56, 149.56, 10.47, 0, 0),
    },
}
WORDS_AND_MARKS = {
    ("charades_sta", "all"): 7.22,
    ("activitynet_captions", "all"): 14.41,
    ("activitynet_captions", "train + val_1"): 14.78,
    ("tacos", "all"): 9.42,
    ("qvhighlights", "train + val + test_with_gt"): 11.27,
}


def real_builder(name, tmp_path, **options):
    folder = Path(os.environ["BMDETR_SHARED"]) / "annotations"
    return builder_class(name)(data_dir=folder / name, cache_dir=tmp_path, **options)


@real
@pytest.mark.parametrize("name", MEASURED)
def test_the_real_files_have_the_measured_statistics(name, tmp_path):
    builder = real_builder(name, tmp_path)
    assert all(entry["as_documented"] for entry in builder.file_hashes().values())
    statistics = builder_statistics(builder)
    for split, expected in MEASURED[name].items():
        entry = statistics[split]
        figures = (entry.moment_stored_s, entry.video_s, entry.video_per_query_s, entry.words)
        rounded = tuple(None if figure is None else round(figure, 2) for figure in figures)
        measured = (entry.videos, entry.queries, *rounded, entry.dirt["reversed"] + entry.dirt["zero_length"])
        assert (*measured, entry.dirt["past_end"]) == expected, split
    for (benchmark, split), words in WORDS_AND_MARKS.items():
        if benchmark == name:
            assert round(statistics[split].words_and_marks, 2) == words


@real
def test_the_real_dirt_is_counted(tmp_path):
    sta = real_builder("charades_sta", tmp_path)
    report = sta.cleaning_report("train")
    assert report.examples["reversed"] == [
        "LEOL6 [8, 7]", "IOL8Q [20.9, 12]", "AKKWU [38, 13]", "AKKWU [38, 13]",
    ]  # fmt: skip
    assert report.wholly_past_end == 3
    statistics = builder_statistics(sta)
    assert round(statistics["all"].moment_clipped_s, 2) == 8.09
    assert real_builder("charades_cd", tmp_path).cleaning_report("test_ood").wholly_past_end == 3
    activitynet = real_builder("activitynet_captions", tmp_path).cleaning_report("train")
    assert (activitynet.reversed, activitynet.zero_length, activitynet.duplicates) == (2, 2, 0)
    tacos = real_builder("tacos", tmp_path)
    assert [tacos.cleaning_report(split).duplicates for split in tacos.splits] == [1201, 516, 567]
    dropped = real_builder("tacos", tmp_path, train_rules=CleaningRules(duplicates="drop"))
    assert (len(dropped.rows("train")), len(dropped.rows("test"))) == (9790 - 1210, 4001)
    windows = [len(row["relevant_windows"]) for row in real_builder("qvhighlights", tmp_path).rows("train")]
    assert sum(windows) == 12803


@real
def test_the_real_rows_join_the_released_rows_one_to_one(tmp_path):
    folder = Path(os.environ["BMDETR_SHARED"]) / "annotations" / "charades_released_jsonl"
    builder = real_builder("charades_sta", tmp_path, released_jsonl=folder)
    for split, numbers in (("train", range(12408)), ("test", range(12408, 16128))):
        rows = {row["qid"]: row for row in builder.rows(split)}
        assert set(rows) == set(map(str, numbers))
        for released in read_rows(folder / f"{split}.jsonl"):
            row = rows[released["qid"]]
            assert row["vid"] == released["vid"]
            assert row["query"] == " ".join(released["query"].split())
            assert row["relevant_windows"] == released["relevant_windows"]
            assert abs(row["duration"] - released["duration"]) < 0.27
    counterfactual = real_builder("charades_cd", tmp_path, released_jsonl=folder)
    qids = [row["qid"] for split in counterfactual.splits for row in counterfactual.rows(split)]
    assert sorted(map(int, qids)) == list(range(16128))


@real
@pytest.mark.parametrize("name", MEASURED)
def test_the_real_rows_are_valid_in_every_split(name, tmp_path):
    builder = real_builder(name, tmp_path)
    seen: set[str] = set()
    for split in builder.splits:
        rows = builder.rows(split)
        assert validate_rows(rows, require_windows=(name, split) != ("qvhighlights", "test")).ok
        if split != "test_with_gt":
            qids = {row["qid"] for row in rows}
            assert len(qids) == len(rows)
            assert not seen & qids
            seen |= qids
