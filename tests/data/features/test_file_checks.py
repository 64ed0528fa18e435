"""An annotation file against the videos and features that it names."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from factories import make_row, write_lines, write_pictures

from modeling_bmdetr.contract_bmdetr import FeatureContract
from modeling_bmdetr.data import (
    check_text_features,
    validate_file,
)
from modeling_bmdetr.data.features.video_files import VideoFiles
from modeling_bmdetr.data.features.writer import FeatureWriter


def row(**changes):
    """Two windows, one of them short, in a video of 20 s."""
    return make_row(**{"relevant_windows": [[2.0, 6.0], [10.0, 12.0]], **changes})


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
    write_pictures(path, np.zeros((5 * seconds, 32, 32, 3), np.uint8), fps=5)


@pytest.mark.parametrize(
    ("vid", "file"),
    [
        *(("x", f"x{suffix}") for suffix in (".MP4", ".MOV", ".ts", ".mpg", ".flv", ".gif", ".m2ts", ".Webm")),
        *(("été", unicodedata.normalize("NFD", "été.mp4")), (unicodedata.normalize("NFD", "été"), "été.mp4")),
        *(("12:30", "12:30.mp4"), ("http:x", "http:x.mp4"), ("a\nb", "a\nb.mp4"), ("caf\udce9", "caf\udce9.mp4")),
    ],
)
def test_videos_are_found_by_every_suffix_and_either_form_of_accents(tmp_path, vid, file):
    (tmp_path / file).touch()
    (tmp_path / "xx.mp4").touch()
    assert VideoFiles([tmp_path]).find({"vid": vid}) == tmp_path / file
    assert VideoFiles([tmp_path]).find({"vid": vid + "2"}) is None


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
    assert "hold no .npz, .npy, .pt" in report.errors[0].message


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
