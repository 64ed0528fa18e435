"""Pictures of answers: what is drawn, and that nothing overlaps, lies outside or is taken for something else."""

import itertools
import math
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.offsetbox import AnnotationBbox
from test_video import coded_frame, regular, write_video

from modeling_bmdetr.visualization import LEFT_TO_RIGHT, plot_moments


def answer(query: str = "a dog barks", duration: float = 20.0, clips: int = 20, **fields: Any) -> dict[str, Any]:
    p = np.linspace(0.1, 0.9, clips)
    moments = [{"start": 1.0, "end": 4.0, "score": 0.9}, {"start": 18.0, "end": 20.0, "score": 0.2}]
    return {
        "query": query,
        "moments": moments,
        "saliency": p.tolist(),
        "frame_probabilities": p.tolist(),
        "frame_attention": (np.exp(p) / np.exp(p).sum()).tolist(),
        "duration": duration,
        "clip_length": duration / clips,
        **fields,
    }


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", regular(20.0))


def tick_labels(axis) -> list[str]:
    return [label.get_text() for label in axis.get_yticklabels()]


def test_bars_lines_and_frames(video: Path, tmp_path: Path) -> None:
    answers = [answer(), answer("a cat sleeps", moments=[])]
    figure = plot_moments(answers, video, [[[2.0, 6.0]], [[1.0, 3.0], [9.0, 12.0]]], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    strip, bars, attention, other_bars, _ = figure.axes
    assert [patch.get_width() for patch in bars.patches] == pytest.approx([4.0, 3.0, 2.0])
    assert tick_labels(bars) == [
        "described  2.0 - 6.0 s",
        "1.  1.0 - 4.0 s  score 0.90",
        "2.  18.0 - 20.0 s  score 0.20",
    ]
    assert tick_labels(other_bars) == ["described  1.0 - 3.0 s, 9.0 - 12.0 s", "no moment found"]
    assert bars.get_title(loc="left") == "“a dog barks”"
    np.testing.assert_allclose(attention.patches[0].get_data().values, answers[0]["frame_probabilities"])
    assert [child for child in strip.get_children() if isinstance(child, AnnotationBbox)]


def test_frames_keep_their_aspect_ratio_and_their_place(video: Path, tmp_path: Path) -> None:
    figure = plot_moments(answer(), video, path=tmp_path / "a.png")
    strip = figure.axes[0]
    figure.draw_without_rendering()
    boxes = [child.get_window_extent() for child in strip.get_children() if isinstance(child, AnnotationBbox)]
    shape = coded_frame(0).shape
    room = strip.get_window_extent()
    for box in boxes:
        assert box.width / box.height == pytest.approx(shape[1] / shape[0], rel=0.03)
        assert room.x0 - 1 <= box.x0
        assert box.x1 <= room.x1 + 1
    for left, right in itertools.pairwise(boxes):
        assert left.x1 <= right.x0 + 1
    assert len(boxes) > 5


def test_scores_that_read_as_zero_are_not_drawn() -> None:
    moments = [{"start": 1.0, "end": 4.0, "score": 0.5}, {"start": 5.0, "end": 6.0, "score": 0.001}]
    bars = plot_moments(answer(moments=moments)).axes[0]
    assert len(bars.patches) == 1
    assert not any("0.00" in label for label in tick_labels(bars))


def test_the_strip_has_the_same_scale_for_flat_and_for_peaked_attention() -> None:
    flat = answer(frame_probabilities=[0.5] * 20, frame_attention=[0.05] * 20)
    for one in (flat, answer()):
        mesh = plot_moments(one).axes[1].collections[0]
        assert mesh.get_clim() == (1.0, pytest.approx(math.e)), "an even share is the palest"
    values = plot_moments(flat).axes[1].collections[0].get_array()
    np.testing.assert_allclose(values, 1.0)


def test_the_legend_is_in_words() -> None:
    figure = plot_moments(answer(), ground_truth=[[[1.0, 2.0]]])
    words = " ".join(text.get_text() for text in figure.legends[0].get_texts())
    assert "described moment" in words
    assert "probability that a frame belongs to the moment" in words
    without_p = {name: value for name, value in answer().items() if not name.startswith("frame_")}
    assert "saliency" in " ".join(text.get_text() for text in plot_moments(without_p).legends[0].get_texts())


@pytest.mark.parametrize(
    ("duration", "labels", "unit"),
    [
        (20.0, ["0", "2", "4"], "seconds"),
        (300.0, ["0:00", "0:30", "1:00"], "time (m:ss)"),
        (7200.0, ["0:00", "15:00", "30:00"], "time (h:mm:ss)"),
    ],
)
def test_long_axes_count_in_minutes(duration: float, labels: list[str], unit: str) -> None:
    axis = plot_moments(answer(duration=duration)).axes[-1]
    assert [label.get_text() for label in axis.get_xticklabels()][:3] == labels
    assert axis.get_xlabel() == unit


@pytest.mark.parametrize(
    ("query", "drawn"),
    [
        ("$\\frac{$", "$\\frac{$"),
        ("$x^$ and $$", "$x^$ and $$"),
        ("it costs $5 and not $6", "it costs $5 and not $6"),
        ("\ud800 dog", "\\ud800 dog"),
        ("a\x1b[31m dog\n\tbarks", "a\\x1b[31m dog  barks"),
        ("السيارة أمام المنزل", "السيارة أمام المنزل"),
        ("紫色的三角形", "紫色的三角形"),
    ],
)
def test_sentences_are_drawn_as_they_are(query: str, drawn: str, tmp_path: Path) -> None:
    figure = plot_moments(answer(query), path=tmp_path / "a.png", title=query)
    assert figure.axes[0].get_title(loc="left").replace(LEFT_TO_RIGHT, "") == f"“{drawn}”"
    assert (tmp_path / "a.png").is_file()


def test_presence_stands_right_of_a_sentence_that_is_written_from_right_to_left() -> None:
    title = plot_moments(answer("السيارة أمام المنزل", presence=0.9)).axes[0].get_title(loc="left")
    assert title.startswith(f"{LEFT_TO_RIGHT}“")
    assert title.endswith(f"”{LEFT_TO_RIGHT}   presence 0.90")
    assert LEFT_TO_RIGHT not in plot_moments(answer()).axes[0].get_title(loc="left")


@pytest.mark.parametrize(
    ("duration", "label"),
    [
        (5.0, "1.  1.00 - 4.00 s  score 0.90"),
        (60.0, "1.  1.0 - 4.0 s  score 0.90"),
        (300.0, "1.  0:01.0 - 0:04.0  score 0.90"),
        (7200.0, "1.  0:01 - 0:04  score 0.90"),
    ],
)
def test_moments_are_told_in_the_units_of_the_axis(duration: float, label: str) -> None:
    assert tick_labels(plot_moments(answer(duration=duration)).axes[0])[0] == label


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_probabilities_at_the_limits_are_lines_beside_the_frame(level: float) -> None:
    axis = plot_moments(answer(frame_probabilities=[level] * 20, frame_attention=[0.05] * 20)).axes[1]
    low, high = axis.get_ylim()
    assert low < -0.02
    assert high > 1.02


def test_many_moments_and_labels_lie_inside_and_apart() -> None:
    moments = [{"start": 500.0 * i, "end": 500.0 * i + 60, "score": 1 - i / 14} for i in range(14)]
    figure = plot_moments(answer(duration=7200.0, moments=moments), ground_truth=[[[1.0, 2.0]] * 3], max_moments=14)
    figure.draw_without_rendering()
    labels = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == 15
    for box in labels:
        assert 0 <= box.x0 < box.x1 <= figure.axes[0].get_window_extent().x0
    for above, below in itertools.pairwise(labels):
        assert below.y1 <= above.y0 + 1
    times = [label.get_window_extent() for label in figure.axes[-1].get_xticklabels()]
    for left, right in itertools.pairwise(times):
        assert left.x1 < right.x0
    assert times[-1].x1 <= figure.bbox.x1


def test_more_answers_than_a_picture_holds_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"a picture of 500 answers would be .* pixels high.*draw fewer answers"):
        plot_moments([answer()] * 500)


def test_a_long_sentence_makes_the_picture_higher_and_stays_inside() -> None:
    short, long = plot_moments(answer()), plot_moments(answer("a very long sentence " * 50))
    assert long.get_figheight() > short.get_figheight() + 1
    long.draw_without_rendering()
    title = long.axes[0].title if long.axes[0].get_title() else long.axes[0]._left_title
    box = title.get_window_extent()
    assert box.x1 <= long.bbox.x1
    assert box.y1 <= long.bbox.y1


def test_a_moment_of_a_second_can_be_seen_in_a_video_of_hours() -> None:
    moments = [{"start": 7199.5, "end": 7200.0, "score": 0.5}]
    (bar,) = plot_moments(answer(duration=7200.0, moments=moments)).axes[0].patches
    assert bar.get_width() >= 7200 / 400
    assert bar.get_x() + bar.get_width() <= 7200 + 1e-6


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_suffix_says_the_format(suffix: str, tmp_path: Path) -> None:
    plot_moments(answer(), path=tmp_path / f"a.{suffix}")
    content = (tmp_path / f"a.{suffix}").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_text("before")

    def fails(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    with pytest.raises(OSError, match="no space"):
        plot_moments(answer(), path=path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="empty"):
        plot_moments([])
    with pytest.raises(ValueError, match="1 lists of moments for 2 answers"):
        plot_moments([answer(), answer()], ground_truth=[[]])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clip_length": ...}, "an answer lacks 'clip_length'"),
        ({"frame_attention": ...}, "an answer lacks 'frame_attention'"),
        ({"query": 3}, "`query` of an answer must be a sentence, received 3"),
        ({"duration": float("nan")}, "`duration` of an answer must be a positive number"),
        ({"clip_length": 0}, "`clip_length` of an answer must be a positive number"),
        ({"presence": "high"}, "`presence` of an answer must be a number or None"),
        ({"moments": [{"start": 1.0}]}, "`moments` of an answer must be a list of dicts"),
        ({"frame_probabilities": [[0.5]]}, "`frame_probabilities` of an answer must be finite numbers"),
        ({"frame_probabilities": []}, "`frame_probabilities` of an answer must be finite numbers"),
        ({"frame_probabilities": [0.5]}, "must have as many numbers"),
    ],
)
def test_an_answer_without_what_is_drawn_is_refused_by_name(change, said) -> None:
    changed = {name: value for name, value in {**answer(), **change}.items() if value is not ...}
    with pytest.raises(ValueError, match=said):
        plot_moments(changed)


def test_the_picture_is_not_blank(tmp_path: Path) -> None:
    plot_moments(answer(), path=tmp_path / "a.png")
    picture = matplotlib.image.imread(tmp_path / "a.png")
    assert picture.std() > 0.05
