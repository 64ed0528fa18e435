"""`bmdetr predict`: what is refused before anything slow, the forms of answers, several videos, pictures and clips."""

import csv
import io
import json
import os
import subprocess
import sys

import pytest
from app_world import make_checkpoint
from test_video import regular, write_video

from modeling_bmdetr import BMDetrForMomentRetrieval
from modeling_bmdetr.cli import main
from modeling_bmdetr.cli.answers import as_text, as_vtt
from modeling_bmdetr.video_bmdetr import probe_video

QUERY = "the red star slides to the left"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_video(tmp_path_factory.mktemp("video") / "a.mp4", regular(6.0)))


def predict(*arguments: object) -> int:
    try:
        return main(["predict", *map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args, **kwargs):
        raise AssertionError("a model was loaded before the arguments were checked")

    monkeypatch.setattr(BMDetrForMomentRetrieval, "from_pretrained", load)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--top-k", "-1"], "at least 1"),
        (["--top-k", "0"], "at least 1"),
        (["--score-threshold", "nan"], "between 0 and 1"),
        (["--score-threshold", "1.5"], "between 0 and 1"),
        (["--nms-threshold", "-1"], "between 0 and 1"),
        (["--device", "gpu"], "such as cpu, cuda"),
        (["--device", ""], "such as cpu, cuda"),
        (["--device", "cuda:77"], "there is no device 'cuda:77'"),
        (["--plot", "FOLDER/none/p.png"], "there is no folder"),
        (["--plot", "FOLDER/p.xyz"], "must end with one of"),
        (["--clip", "FOLDER/p.txt"], "must end with one of"),
        (["--out", "FOLDER"], "is a folder"),
        (["--out", "VIDEO"], "is what is read, and would be lost"),
        (["--clip", "VIDEO"], "is what is read, and would be lost"),
        (["--queries", "FOLDER/none.txt"], "No such file"),
        (["--csv", "--json"], "--json and --csv are two forms of one result: choose one"),
        (["--vtt", "--csv"], "--csv and --vtt are two forms"),
        (["--csv", "--out", "FOLDER/a.json"], "--csv asks for another form than the name"),
        (["--queries", "SENTENCES", "--out", "SENTENCES"], "is what is read, and would be lost"),
        (["--model", "FOLDER/no/model"], "there is no model folder"),
        (["--model", "FOLDER"], "holds no config.json"),
        (["--model", "VIDEO"], "is a file"),
        (["--model", "./nowhere"], "there is no model folder"),
    ],
)
def test_what_cannot_work_is_said_before_anything_slow(
    arguments, words, model, video, tmp_path, capsys, nothing_is_loaded
) -> None:
    places = {"FOLDER": str(tmp_path), "VIDEO": video, "SENTENCES": str(tmp_path / "sentences.txt")}
    (tmp_path / "sentences.txt").write_text(QUERY)
    filled = [next((a.replace(k, v) for k, v in places.items() if k in a), a) for a in arguments]
    given = [] if "--model" in arguments else ["--model", model]
    assert predict(video, QUERY, *given, *filled) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bmdetr predict: ")
    assert words in line


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["none.mp4", QUERY], "there is no video file 'none.mp4'"),
        (["VIDEO", "none.mp4", QUERY], "there is no video file 'none.mp4'"),
        (["VIDEO"], "there is no sentence"),
        (["VIDEO", " "], "sentence 1 is empty"),
        (["a" * 5000, QUERY], "there is no video file"),
        (["a\0b", QUERY], "there is no video file"),
    ],
)
def test_videos_and_sentences_are_told_apart(targets, words, model, video, capsys, nothing_is_loaded) -> None:
    assert predict(*[video if target == "VIDEO" else target for target in targets], "--model", model) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("form", [["--vtt"], ["--out", "a.vtt"]])
def test_vtt_of_several_videos_is_refused_before_anything_slow(form, model, video, tmp_path, capsys, nothing_is_loaded):
    (tmp_path / "b.mp4").touch()
    assert predict(video, tmp_path / "b.mp4", QUERY, "--model", model, *form) == 2
    assert "WebVTT belongs to one video" in capsys.readouterr().err


def test_text_json_csv_and_vtt(model, video, tmp_path, capsys) -> None:
    asked = [video, QUERY, 'a, "quoted" dog', "--model", model, "--quiet", "--score-threshold", "0", "--top-k", "2"]
    assert predict(*asked) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("score") == 4
    assert predict(*asked, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["video"] == video
    moments = [moment for answer in result["answers"] for moment in answer["moments"]]
    assert predict(*asked, "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["query"] for row in rows] == [QUERY, QUERY, 'a, "quoted" dog', 'a, "quoted" dog']
    assert [float(row["start"]) for row in rows] == pytest.approx([m["start"] for m in moments], abs=1e-3)
    assert [row["rank"] for row in rows] == ["1", "2", "1", "2"]
    assert predict(*asked, "--vtt") == 0
    cues = capsys.readouterr().out.strip().split("\n\n")
    assert cues[0] == "WEBVTT"
    assert len(cues) == 5
    for suffix, start in (("json", "{"), ("csv", "video,query"), ("vtt", "WEBVTT"), ("txt", QUERY)):
        assert predict(*asked, "--out", tmp_path / f"answer.{suffix}") == 0
        assert (tmp_path / f"answer.{suffix}").read_text(encoding="utf-8").startswith(start)
    assert capsys.readouterr().out == ""


def test_vtt_is_in_the_order_of_time_and_escapes_what_a_player_would_read() -> None:
    moments = [{"start": 3725.5, "end": 3726.0, "score": 0.9}, {"start": 1.0, "end": 2.25, "score": 0.5}]
    text = as_vtt([{"video": "a", "answers": [{"query": "<b> & --> \n dog", "moments": moments}]}])
    assert text == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.250\n&lt;b&gt; &amp; --&gt; dog (0.50)"
        "\n\n01:02:05.500 --> 01:02:06.000\n&lt;b&gt; &amp; --&gt; dog (0.90)"
    )
    with pytest.raises(ValueError, match="one video"):
        as_vtt([{"video": "a", "answers": []}, {"video": "b", "answers": []}])


def test_scores_near_zero_are_not_listed_unless_asked_for() -> None:
    text = as_text({"video": "a", "answers": [{"query": "a dog", "moments": []}]}, 0.05, named=False)
    assert text.splitlines() == ["a dog", "  no moment scores 0.05 or more (--score-threshold 0 lists all)"]


def test_scores_that_are_no_probabilities_are_called_that() -> None:
    answer = {"query": "a", "moments": [{"start": 1.0, "end": 2.0, "score": 0.5}], "presence": 0.6}
    told = "Scores and presence only rank, since the checkpoint is not calibrated (see bmdetr calibrate)."
    for calibrated in (True, False):
        text = as_text({"video": "a", "answers": [{**answer, "calibrated": calibrated}]}, 0.05, named=False)
        assert (told in text) is not calibrated


def test_an_answer_left_out_for_its_presence_says_so() -> None:
    answers = [{"query": query, "moments": [], "presence": presence} for query, presence in (("a", 0.2), ("b", 0.6))]
    text = as_text({"video": "a.mp4", "answers": answers}, 0.05, 0.3, named=False)
    assert text.splitlines() == [
        "a   (not in this video, presence 0.20)",
        "  no moment is listed where presence is below 0.3 (--min-presence)",
        "b   (presence 0.60)",
        "  no moment scores 0.05 or more (--score-threshold 0 lists all)",
    ]


def test_several_videos_at_once(model, video, tmp_path, capsys) -> None:
    other = write_video(tmp_path / "b.mp4", regular(4.0))
    broken = tmp_path / "c.mp4"
    broken.write_bytes(b"no video")
    options = ["--model", model, "--quiet", "--score-threshold", "0"]
    assert predict(video, other, QUERY, *options) == 0
    shown = capsys.readouterr().out
    assert shown.index(video) < shown.index(str(other))
    assert predict(video, broken, other, QUERY, *options, "--json") == 1
    captured = capsys.readouterr()
    assert [result["video"] for result in json.loads(captured.out)["results"]] == [video, str(other)]
    (line,) = captured.err.splitlines()
    assert "c.mp4" in line
    assert predict(broken, QUERY, *options) == 2


def test_sentences_may_stand_after_options_too(model, video, capsys) -> None:
    before, after = [QUERY, "-a b"], ["--model", model, "--json", "--quiet"]
    assert predict(video, *after, "--", *before) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert predict(video, *after, QUERY, "--top-k", "3", "a dog barks") == 0
    assert json.loads(capsys.readouterr().out)["answers"][0] == answers[0]
    assert [answer["query"] for answer in answers] == before
    assert predict(video, *after, QUERY, "--topics") == 2
    assert capsys.readouterr().err.startswith("bmdetr predict: unrecognized arguments:")


def test_queries_from_a_file(model, video, tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "queries.txt").write_bytes("\ufeffa dog\n\n  a cat \n".encode())
    assert predict(video, "a bird", "--queries", tmp_path / "queries.txt", "--model", model, "--json", "--quiet") == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert [answer["query"] for answer in answers] == ["a bird", "a dog", "a cat"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("a fish\n"))
    assert predict(video, "--queries", "-", "--model", model, "--json", "--quiet") == 0
    assert [answer["query"] for answer in json.loads(capsys.readouterr().out)["answers"]] == ["a fish"]
    (tmp_path / "queries.txt").write_bytes("a dog".encode("utf-16"))
    assert predict(video, "--queries", tmp_path / "queries.txt", "--model", model) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err


def test_pictures_and_clips(model, video, tmp_path, capsys) -> None:
    options = ["--model", model, "--score-threshold", "0", "--json"]
    assert predict(video, video, QUERY, "a dog", *options, "--plot", tmp_path / "p", "--clip", tmp_path / "c.mp4") == 0
    captured = capsys.readouterr()
    assert f"picture: {tmp_path / 'p.png'}" in captured.err
    best = json.loads(captured.out)["answers"][1]["moments"][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c-1.mp4", "c-2.mp4", "p.png"]
    assert probe_video(tmp_path / "c-2.mp4").duration_s == pytest.approx(best["end"] - best["start"], abs=0.1)


def test_a_picture_that_fails_comes_after_the_answers(model, video, tmp_path, capsys, monkeypatch) -> None:
    def fails(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("modeling_bmdetr.visualization.plot_moments", fails)
    assert predict(video, QUERY, "--model", model, "--score-threshold", "0", "--plot", tmp_path / "p.png") == 2
    captured = capsys.readouterr()
    assert "score" in captured.out
    assert captured.err.splitlines()[-1] == "bmdetr predict: no space left on device"


def test_a_console_that_cannot_show_a_letter_loses_nothing(model, video) -> None:
    code = """
import sys
from modeling_bmdetr.cli import main

for form in ([], ["--csv"], ["--vtt"], ["--json"]):
    assert main(["predict", sys.argv[1], "紫色 triangle", "--model", sys.argv[2], *form]) == 0
    print("FORM")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, video, model],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    *forms, _ = done.stdout.split(b"FORM")
    assert len(forms) == 4
    assert all(b"\\u7d2b\\u8272 triangle" in form for form in forms)


def test_letters_that_would_steer_the_terminal_are_escaped(model, video, capsys) -> None:
    assert predict(video, "a \x1b[31m dog", "--model", model, "--quiet") == 0
    assert "\x1b" not in capsys.readouterr().out


def test_the_folder_of_a_name_on_the_hub_is_said_to_be_missing(video, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert predict(video, QUERY, "--model", "outputs/model") == 2
    lines = capsys.readouterr().err.splitlines()
    assert "there is no folder 'outputs/model'" in lines[-1]
