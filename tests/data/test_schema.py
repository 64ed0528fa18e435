"""The canonical row: reading, writing, validating and cleaning it, and checking it against files."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_bmdetr.configuration_bmdetr import FeatureContract
from modeling_bmdetr.data import (
    CleaningRules,
    RowFile,
    check_text_features,
    clean_rows,
    read_rows,
    validate_file,
    validate_rows,
    write_rows,
)
from modeling_bmdetr.data.features.writer import FeatureWriter
from modeling_bmdetr.data.rows.schema import ROW_FIELDS


def row(**changes):
    base = {
        "qid": "q1",
        "vid": "v1",
        "query": "A door opens.",
        "duration": 20.0,
        "relevant_windows": [[2.0, 6.0], [10.0, 12.0]],
    }
    return {key: value for key, value in {**base, **changes}.items() if value is not ...}


def write_lines(path: Path, *records) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return path


# --------------------------------------------------------------------------------------------------- reading, writing


def test_reading_keeps_line_numbers_and_turns_integer_qids_into_strings(tmp_path):
    path = tmp_path / "rows.jsonl"
    first, second = row(qid=7, neg_query_ids=["a"]), row(qid="a", neg_query_ids=[7])
    path.write_bytes(b"\xef\xbb\xbf" + f"{json.dumps(first)}\n\n  \n{json.dumps(second)}".encode())
    rows = read_rows(path)
    assert isinstance(rows, RowFile)
    assert [entry["qid"] for entry in rows] == ["7", "a"]
    assert rows[1]["neg_query_ids"] == ["7"]
    assert rows.line_numbers == [1, 4]
    assert (rows.original_qid("7"), rows.original_qid("a")) == (7, "a")


def test_written_qids_have_the_type_they_were_read_with(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", row(qid=7, neg_query_ids=["8"]), row(qid="8", neg_query_ids=[7]))
    write_rows(tmp_path / "out.jsonl", read_rows(source))
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        row(qid=7, neg_query_ids=["8"]),
        row(qid="8", neg_query_ids=[7]),
    ]


def test_fields_without_a_value_are_not_written(tmp_path):
    write_rows(tmp_path / "out.jsonl", [row(relevant_windows=None, video=None)])
    assert json.loads((tmp_path / "out.jsonl").read_text()) == row(relevant_windows=...)


QIDS = st.one_of(st.integers(0, 10**9), st.text("abc-_", min_size=1, max_size=5))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(qids=st.lists(QIDS, min_size=1, max_size=8), query=st.text(min_size=1))
def test_reading_and_writing_are_inverse(tmp_path_factory, qids, query):
    folder = tmp_path_factory.mktemp("rows")
    records = [row(qid=qid, query=query) for qid in qids]
    source = write_lines(folder / "in.jsonl", *records)
    write_rows(folder / "out.jsonl", read_rows(source))
    assert [json.loads(line) for line in (folder / "out.jsonl").open(encoding="utf-8")] == records


def test_every_unreadable_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"qid": 1\n[1, 2]\n\xff\xfe\n' + json.dumps(row()).encode())
    with pytest.raises(ValueError, match="3 errors") as raised:
        read_rows(path)
    for line, text in ((1, "is not JSON"), (2, "expected a JSON object, received list"), (3, "is not UTF-8")):
        assert f"line {line}: {text}" in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        read_rows(tmp_path / "nowhere.jsonl")


# --------------------------------------------------------------------------------------------------------- validation


def test_good_rows_have_no_problems():
    rows = [
        row(),
        row(qid=2, neg_query_ids=["q1"], query="Another", video="videos/v1.mp4"),
        row(qid="3", query="c", relevant_clip_ids=[1, 2], saliency_scores=[[1, 2, 3], [4, 3, 2]]),
        row(qid="4", query="d", relevant_clip_ids=None, saliency_scores=None, neg_query_ids=None, video=None),
        row(qid="5", query="whole video", relevant_windows=[[0, 20.0004]]),
    ]
    report = validate_rows(rows, clip_length_s=2.0)
    assert report.problems == []
    assert report.ok
    assert "5 rows, 0 errors, 0 warnings" in report.format()


ERRORS = {
    "qid missing": ({"qid": ...}, "qid", "is missing"),
    "qid float": ({"qid": 1.5}, "qid", "received 1.5"),
    "qid bool": ({"qid": True}, "qid", "received True"),
    "qid empty": ({"qid": " "}, "qid", "cannot name a file"),
    "qid a path": ({"qid": "a/b"}, "qid", "cannot name a file"),
    "vid missing": ({"vid": ...}, "vid", "is missing"),
    "vid integer": ({"vid": 12}, "vid", "expected a string, received 12"),
    "query empty": ({"query": "  "}, "query", "is empty"),
    "duration missing": ({"duration": ...}, "duration", "is missing"),
    "duration text": ({"duration": "20"}, "duration", "received '20'"),
    "duration zero": ({"duration": 0}, "duration", "above 0"),
    "duration NaN": ({"duration": float("nan")}, "duration", "above 0"),
    "windows missing": ({"relevant_windows": ...}, "relevant_windows", "is missing; expected"),
    "absent with clips": (
        {"relevant_windows": [], "relevant_clip_ids": [1]}, "relevant_clip_ids", "nothing is relevant"
    ),
    "absent kind no name": ({"relevant_windows": [], "absent_kind": 3}, "absent_kind", "expected a name, received 3"),
    "absent kind of a moment": ({"absent_kind": "unrelated"}, "absent_kind", "relevant_windows has some"),
    "windows flat": ({"relevant_windows": [2, 6]}, "relevant_windows", "write [[2, 6]]"),
    "windows text": ({"relevant_windows": "2-6"}, "relevant_windows", "received '2-6'"),
    "window of three": ({"relevant_windows": [[1, 2, 3]]}, "relevant_windows[0]", "expected [start, end]"),
    "window infinite": ({"relevant_windows": [[1, float("inf")]]}, "relevant_windows[0]", "expected [start, end]"),
    "window reversed": ({"relevant_windows": [[0, 1], [6, 2]]}, "relevant_windows[1]", "is reversed"),
    "window negative": ({"relevant_windows": [[-1, 2]]}, "relevant_windows[0]", "begins before 0"),
    "clips not integers": ({"relevant_clip_ids": [0.5]}, "relevant_clip_ids", "expected integers"),
    "clip twice": ({"relevant_clip_ids": [1, 1]}, "relevant_clip_ids", "names a clip twice"),
    "clip past the end": ({"relevant_clip_ids": [10]}, "relevant_clip_ids", "20.0 s hold 10 clips of 2.0 s"),
    "scores without clips": ({"saliency_scores": [[1]]}, "saliency_scores", "needs relevant_clip_ids"),
    "scores too few": (
        {"relevant_clip_ids": [1, 2], "saliency_scores": [[1]]}, "saliency_scores", "1 entries for 2"
    ),
    "annotators differ": (
        {"relevant_clip_ids": [1, 2], "saliency_scores": [[1], [1, 2]]}, "saliency_scores", "as many annotators"
    ),
    "scores flat": ({"relevant_clip_ids": [1], "saliency_scores": [3]}, "saliency_scores", "one list"),
    "scores text": ({"relevant_clip_ids": [1], "saliency_scores": [["a"]]}, "saliency_scores", "finite numbers"),
    "negative unknown": ({"neg_query_ids": ["q9"]}, "neg_query_ids", "not in these rows: q9"),
    "negative is itself": ({"neg_query_ids": ["q1"]}, "neg_query_ids", "names the query itself"),
    "too few weights": (
        {"neg_query_ids": ["q0"], "neg_query_weights": []},
        "neg_query_weights",
        "for each of 1 `neg_query_ids`",
    ),
    "negative twice": ({"neg_query_ids": ["q0", "q0"]}, "neg_query_ids", "names a query more than once"),
    "weight above 1": ({"neg_query_ids": ["q0"], "neg_query_weights": [1.5]}, "neg_query_weights", "in [0, 1]"),
    "negatives not a list": ({"neg_query_ids": "q0"}, "neg_query_ids", "expected a list of qids"),
    "video not a path": ({"video": 3}, "video", "expected a path"),
    "qid again": ({"qid": "q0"}, "qid", "already used on line 10"),
    "other duration": ({"vid": "v0"}, "duration", "line 10 gives video v0 8.0 s"),
}  # fmt: skip

WARNINGS = {
    "window without length": ({"relevant_windows": [[2, 2]]}, "relevant_windows[0]", "has no length"),
    "window past the end": ({"relevant_windows": [[18, 21.5]]}, "relevant_windows[0]", "ends 1.50 s past the end"),
    "window wholly past": ({"relevant_windows": [[20, 21]]}, "relevant_windows[0]", "lies wholly past the end"),
    "window twice": ({"relevant_windows": [[2, 3], [2, 3]]}, "relevant_windows[1]", "is given twice"),
    "blanks": ({"query": " A  door"}, "query", "has extra white space"),
    "misspelt field": ({"relevant_window": []}, "relevant_window", "did you mean 'relevant_windows'?"),
}


@pytest.mark.parametrize(
    ("severity", "case"),
    [("error", case) for case in ERRORS.values()] + [("warning", case) for case in WARNINGS.values()],
    ids=[*ERRORS, *WARNINGS],
)
def test_each_problem_is_found_alone_with_its_line(severity, case):
    changes, field, text = case
    other = row(qid="q0", vid="v0", duration=8.0, relevant_windows=[[0.0, 1.0]])
    report = validate_rows([other, row(**changes)], line_numbers=[10, 30], clip_length_s=2.0)
    assert [(problem.severity, problem.line, problem.field) for problem in report.problems] == [(severity, 30, field)]
    assert text in report.problems[0].message
    assert report.ok == (severity == "warning")


def test_a_repeated_row_is_a_warning_that_names_the_first():
    report = validate_rows([row(), row(qid="q2")])
    assert [str(problem) for problem in report.problems] == [
        "warning: line 2, qid q2: repeats line 1: the same video, query and windows"
    ]


def test_every_problem_of_every_row_is_reported():
    report = validate_rows([row(duration=-1, query=""), row(vid=3, relevant_windows=[[4, 1], "x"]), "text"])
    found = [(problem.line, problem.field) for problem in report.errors]
    assert found == [
        (1, "query"), (1, "duration"), (2, "vid"), (2, "relevant_windows[0]"), (2, "relevant_windows[1]"), (3, ""),
        (2, "qid"),
    ]  # fmt: skip
    assert report.format(limit=2).splitlines()[2] == f"... and {len(report.problems) - 2} more"
    assert report.to_dict()["problems"][0]["line"] == 1
    with pytest.raises(ValueError, match="7 errors"):
        report.raise_for_errors()


def test_labels_are_optional_where_asked():
    assert validate_rows([row(relevant_windows=...)], require_windows=False).ok
    assert not validate_rows([row(relevant_windows=[[3, 1]])], require_windows=False).ok


def test_no_rows_and_wrong_line_numbers_are_refused():
    assert validate_rows([]).errors[0].message == "there are no rows"
    with pytest.raises(ValueError, match="2 entries for 1 rows"):
        validate_rows([row()], line_numbers=[1, 2])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text("ab /", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2),
    max_leaves=6,
)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    rows=st.lists(
        st.fixed_dictionaries({}, optional=dict.fromkeys([*ROW_FIELDS, "extra"], JSON)),
        max_size=4,
    )
)  # fmt: skip
def test_validation_reports_and_never_fails(rows):
    report = validate_rows(rows, clip_length_s=2.0)
    assert report.rows == len(rows)
    assert len(report.format().splitlines()) >= 1
    for entry in rows:
        if not {"qid", "vid", "query", "duration", "relevant_windows"} <= set(entry):
            assert not report.ok


# ----------------------------------------------------------------------------------------------------------- cleaning


def dirty_rows():
    return [
        row(qid="clean"),
        row(qid="reversed", relevant_windows=[[9, 4]]),
        row(qid="empty", relevant_windows=[[5, 5]]),
        row(qid="over", relevant_windows=[[18, 25], [1, 2]]),
        row(qid="beyond", relevant_windows=[[30, 21]]),
        row(qid="blanks", query=" A  door opens. "),
        row(qid="copy"),
        row(qid="unlabelled", query="?", relevant_windows=None),
    ]


def test_the_default_rules_keep_every_row_and_swap_reversed_windows():
    rows = dirty_rows()
    cleaned, report = clean_rows(rows)
    assert [entry["qid"] for entry in cleaned] == [entry["qid"] for entry in rows]
    windows = {entry["qid"]: entry["relevant_windows"] for entry in cleaned}
    assert windows["reversed"] == [[4.0, 9.0]]
    assert windows["beyond"] == [[21.0, 30.0]]
    assert windows["over"] == [[18.0, 25.0], [1.0, 2.0]]
    assert windows["unlabelled"] is None
    assert cleaned[5]["query"] == "A door opens."
    assert report.counts() == {
        "rows": 8, "windows": 11, "reversed": 2, "zero_length": 1, "past_end": 2, "wholly_past_end": 1,
        "duplicates": 1, "duplicates_once_cleaned": 1, "white_space": 1,
        "dropped_rows": 0, "dropped_windows": 0, "clipped_windows": 0,
    }  # fmt: skip
    assert report.examples["reversed"] == ["v1 [9, 4]", "v1 [30, 21]"]
    assert "wholly past end: 1 (v1 [30, 21])" in report.format()
    assert rows == dirty_rows(), "the rows given must not change"


def test_rows_are_dropped_and_windows_clipped_on_request_and_counted():
    strict = CleaningRules(past_end="clip", zero_length="drop", duplicates="drop")
    cleaned, report = clean_rows(dirty_rows(), strict)
    assert [entry["qid"] for entry in cleaned] == ["clean", "reversed", "over", "unlabelled"]
    assert cleaned[2]["relevant_windows"] == [[18.0, 20.0], [1.0, 2.0]]
    counts = report.counts()
    assert (counts["dropped_rows"], counts["dropped_windows"], counts["clipped_windows"]) == (4, 2, 1)
    _, default = clean_rows(dirty_rows())
    found = ("windows", "reversed", "zero_length", "past_end", "duplicates", "white_space")
    assert [counts[kind] for kind in found] == [default.counts()[kind] for kind in found]


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="past_end must be one of keep, clip, received 'cut'"):
        CleaningRules(past_end="cut")


TIMES = st.floats(0, 40, allow_nan=False).map(lambda value: round(value, 1))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    windows=st.lists(st.lists(st.lists(TIMES, min_size=2, max_size=2), min_size=1, max_size=3), min_size=1, max_size=5)
)
def test_cleaned_rows_are_valid_and_clean(windows):
    rows = [row(qid=str(index), relevant_windows=entry) for index, entry in enumerate(windows)]
    cleaned, _ = clean_rows(rows, CleaningRules(past_end="clip", zero_length="drop", duplicates="drop"))
    if cleaned:
        report = validate_rows(cleaned)
        assert all("is given twice" in problem.message for problem in report.problems), report.format()
    again, second = clean_rows(cleaned)
    assert again == cleaned
    assert not second.reversed + second.zero_length + second.past_end + second.duplicates


# ------------------------------------------------------------------------------------------------------ file checks


def test_a_file_is_checked_line_by_line_even_if_some_cannot_be_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps(row()), "{", "", json.dumps(row(qid=2, vid=9))]))
    report = validate_file(path, video_dir=tmp_path, progress=False)
    assert [(problem.line, problem.field) for problem in report.errors] == [(2, ""), (4, "vid"), (1, "vid")]
    assert report.format().splitlines()[-1] == f"{path}: 2 rows, 3 errors, 0 warnings"


def test_folders_that_do_not_exist_are_named(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", row())
    with pytest.raises(FileNotFoundError, match=r"video_dir .*nowhere"):
        validate_file(path, video_dir=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"feature_dir .*nowhere"):
        validate_file(path, feature_dir=tmp_path / "nowhere")


def make_video(path: Path, seconds: int) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for _ in range(5 * seconds):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))


def test_videos_are_looked_up_opened_and_measured(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    make_video(videos / "good.mp4", 3)
    make_video(videos / "short.mkv", 3)
    make_video(tmp_path / "beside.mp4", 3)
    (videos / "broken.mp4").write_bytes(b"not a video")
    rows = [
        row(qid=name, vid=name, duration=duration, relevant_windows=[[0, 1]], video=video)
        for name, duration, video in (
            ("good", 3.2, None), ("short", 20.0, None), ("broken", 3.0, None), ("absent", 3.0, None),
            ("elsewhere", 3.0, "beside.mp4"),
        )
    ]  # fmt: skip
    report = validate_file(write_lines(tmp_path / "rows.jsonl", *rows), video_dir=videos, progress=False)
    found = {problem.qid: problem for problem in report.problems}
    assert set(found) == {"short", "broken", "absent"}
    assert (found["short"].severity, found["short"].line) == ("warning", 2)
    assert "is 20.0 s, but" in found["short"].message
    assert "broken.mp4" in found["broken"].message
    assert "there is no video 'absent" in found["absent"].message
    assert not report.ok


def sentence_feature(sentence: str) -> np.ndarray:
    seed = sum(ord(letter) * (place + 1) for place, letter in enumerate(sentence))
    return np.random.default_rng(seed).standard_normal((len(sentence.split()), 8)).astype(np.float32)


def write_text_features(folder: Path, sentences: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for qid, sentence in sentences.items():
        np.savez(folder / f"qid{qid}.npz", last_hidden_state=sentence_feature(sentence))
    return folder


SENTENCES = ["A dog runs.", "A man sits down.", "A dog runs.", "She opens a door.", "A man sits down.", "A dog runs."]
TEXT_ROWS = [row(qid=str(index), query=sentence) for index, sentence in enumerate(SENTENCES)]


def test_text_features_of_these_sentences_pass(tmp_path):
    folder = write_text_features(tmp_path / "text", {str(i): sentence for i, sentence in enumerate(SENTENCES)})
    problems, note = check_text_features(TEXT_ROWS, folder, progress=False)
    assert problems == []
    assert note.endswith("6 of 6 queries; 2 repeated sentences compared by their features")


def test_rows_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [row(qid="a")])
    before = path.read_text()
    with pytest.raises(KeyError):
        write_rows(path, [row(qid="b"), {"vid": "no qid"}])
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    write_rows(link, [row(qid="c")])
    assert not link.is_symlink()
    assert read_rows(link)[0]["qid"] == "c"
    assert path.read_text() == before


def test_small_numerical_differences_are_no_mismatch(tmp_path):
    folder = write_text_features(tmp_path / "text", {str(i): sentence for i, sentence in enumerate(SENTENCES)})
    np.savez(folder / "qid5.npz", last_hidden_state=sentence_feature(SENTENCES[5]).astype(np.float16))
    assert check_text_features(TEXT_ROWS, folder, progress=False)[0] == []


@pytest.mark.parametrize("shift", [1, 2])
def test_features_in_another_order_are_detected_by_repeated_sentences(tmp_path, shift):
    sentences = {str((index + shift) % 6): sentence for index, sentence in enumerate(SENTENCES)}
    folder = write_text_features(tmp_path / "text", sentences)
    problems, _ = check_text_features(TEXT_ROWS, folder, progress=False)
    assert problems
    assert "made from other sentences" in problems[0].message


def test_features_in_another_order_are_all_detected_with_the_reference(tmp_path):
    folder = write_text_features(tmp_path / "text", dict(zip("012345", SENTENCES[1:] + SENTENCES[:1], strict=True)))
    reference = [row(qid=qid, query=q) for qid, q in zip("012345", SENTENCES[1:] + SENTENCES[:1], strict=True)]
    problems, note = check_text_features(TEXT_ROWS, folder, reference_rows=reference, progress=False)
    assert [problem.qid for problem in problems] == list("01234")
    assert "made from 'A man sits down.', the row says 'A dog runs.'" in problems[0].message
    assert "compared with 6 reference rows" in note
    missing, _ = check_text_features(TEXT_ROWS[:1], folder, reference_rows=reference[1:], progress=False)
    assert "not in the reference" in missing[0].message


def test_one_feature_for_two_sentences_is_detected(tmp_path):
    folder = write_text_features(tmp_path / "text", dict.fromkeys("012345", "A dog runs."))
    problems, _ = check_text_features(TEXT_ROWS, folder, progress=False)
    assert ["has the same text feature as qid 0" in problem.message for problem in problems] == [True]


def test_the_note_says_when_nothing_could_be_compared(tmp_path):
    folder = write_text_features(tmp_path / "text", {"0": "anything"})
    problems, note = check_text_features(TEXT_ROWS[:2], folder, progress=False)
    assert [problem.message for problem in problems] == [f"'{folder}' lacks 1 of 2 queries: 1"]
    assert "was not checked" in note


def test_a_text_feature_without_its_array_is_an_error(tmp_path):
    folder = write_text_features(tmp_path / "text", {str(i): sentence for i, sentence in enumerate(SENTENCES)})
    np.savez(folder / "qid0.npz", pooler_output=np.zeros(3))
    with pytest.raises(ValueError, match="no array 'last_hidden_state', only pooler_output"):
        check_text_features(TEXT_ROWS, folder, progress=False)


def test_feature_folders_are_found_and_what_they_lack_is_listed_at_once(tmp_path):
    features = tmp_path / "features"
    for folder, name in (("clip", "v1.npz"), ("c3d", "v1.npy"), ("c3d", "v2.avi.npy")):
        (features / folder).mkdir(parents=True, exist_ok=True)
        (features / folder / name).touch()
    write_text_features(features / "text", {"0": "A", "1": "B"})
    rows = write_lines(tmp_path / "rows.jsonl", row(qid=0), row(qid=1, vid="v2", query="B"))
    report = validate_file(rows, feature_dir=features, progress=False)
    assert [problem.message for problem in report.errors] == [f"'{features / 'clip'}' lacks 1 of 2 videos: v2"]
    assert len(report.notes) == 3
    (features / "text" / "qid1.npz").unlink()
    report = validate_file(rows, feature_dir=features, progress=False)
    assert any("lacks 1 of 2 queries: 1" in problem.message for problem in report.errors)


def test_a_folder_without_features_is_an_error(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", row())
    (tmp_path / "empty").mkdir()
    report = validate_file(path, feature_dir=tmp_path / "empty", progress=False)
    assert "hold no .npz or .npy" in report.errors[0].message


def test_a_packed_store_is_checked_against_the_rows(tmp_path):
    contract = FeatureContract(
        video_encoders=({"name": "made", "dim": 4},), text_encoder={"name": "made", "dim": 4}, clip_length=2.0
    )
    with FeatureWriter(tmp_path / "packed", contract) as writer:
        writer.add_video("v1", np.ones((10, 4), np.float32))
        writer.add_text("q1", np.ones((3, 4), np.float32), "A door opens.")
        writer.finish()
    report = validate_file(write_lines(tmp_path / "rows.jsonl", row()), feature_dir=tmp_path / "packed", progress=False)
    assert report.ok, report.format()
    assert "packed features of every video and query" in report.notes[0]
    rows = write_lines(tmp_path / "rows.jsonl", row(query="A window opens."), row(qid="q2", vid="v2", query="?"))
    report = validate_file(rows, feature_dir=tmp_path / "packed", progress=False)
    message = report.errors[0].message
    for text in ("1 of 2 videos are missing", "1 of 2 queries are missing", "another sentence"):
        assert text in message
