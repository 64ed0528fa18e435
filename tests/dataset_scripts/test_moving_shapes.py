"""Moving Shapes: real files, rows, determinism, and what makes the task what it is."""

import hashlib
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from dataset_scripts import moving_shapes
from dataset_scripts.moving_shapes import FPS, NUM_VIDEOS, MovingShapes, draw_videos, render_moving_shapes
from dataset_scripts.shapes_rendering import SPECK_RADIUS_PX, _specks, draw_frames, shape_outline, write_video
from dataset_scripts.shapes_scenes import (
    ACTIONS,
    AT_ONCE,
    CANVAS_PX,
    COLOURS,
    EVENT_RANGE_S,
    SHAPES,
    SLIDES,
    VIDEO_RANGE_S,
    Event,
    Scene,
    ShapeObject,
    sample_scene,
    trajectories,
)
from dataset_scripts.shapes_sentences import (
    ACTION_FAMILIES,
    LARGEST_JITTER_S,
    SHAPE_WORDS,
    SHORTEST_MOMENT_S,
    TEMPLATES,
    describe_scene,
    fits,
)
from modeling_bmdetr.data import validate_rows
from modeling_bmdetr.video_bmdetr import iter_frames, probe_video

SMALL = {"train": 2, "val": 1, "test": 1}
SCENES = 150


def hashes(folder: Path) -> dict[str, str]:
    """Content of every file by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("moving_shapes")
    return folder, render_moving_shapes(folder, 3, SMALL, progress=False)


@pytest.fixture(scope="module")
def scenes() -> list[tuple[Scene, list]]:
    """Scenes with their descriptions, not rendered."""
    made = []
    for index in range(SCENES):
        rng = np.random.default_rng((7, index))
        scene = sample_scene(rng, FPS)
        made.append((scene, describe_scene(rng, scene)))
    return made


@pytest.fixture
def no_rendering(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files appear empty; the paths asked for are listed."""
    asked: list[Path] = []

    def touch(path: Path, *_) -> None:
        asked.append(path)
        path.touch()

    monkeypatch.setattr(moving_shapes, "render_scene", touch)
    return asked


# Files and rows


def test_videos_are_drawn_again_as_they_were_rendered(rendered, tmp_path):
    folder, rows = rendered
    for split, some in rows.items():
        drawn = draw_videos(folder, split)
        told = [
            (f"{one.vid}_{i}", told.sentence, one.scene.duration_s) for one in drawn for i, told in enumerate(one.told)
        ]
        assert told == [(row["qid"], row["query"], row["duration"]) for row in some]
        absent = [query.sentence for one in drawn for query in one.absent]
        lines = (folder / f"{split}_absent.jsonl").read_text().splitlines()
        assert absent == [json.loads(line)["query"] for line in lines]
    with pytest.raises(FileNotFoundError, match="holds no Moving Shapes"):
        draw_videos(tmp_path, "test")
    with pytest.raises(ValueError, match="'other' of version"):
        draw_videos(folder, "other")


def test_rows_are_canonical_and_name_real_videos(rendered) -> None:
    folder, splits = rendered
    assert list(splits) == ["train", "val", "test"]
    for split, rows in splits.items():
        validate_rows(rows, source=split).raise_for_errors()
        assert [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()] == rows
        assert len({row["vid"] for row in rows}) == SMALL[split]
        for row in rows:
            assert set(row) == {"qid", "vid", "query", "duration", "relevant_windows", "video"}
            info = probe_video(folder / row["video"])
            assert info.duration_s == pytest.approx(row["duration"], abs=1e-3)
            assert (info.width, info.height, info.fps) == (CANVAS_PX, CANVAS_PX, FPS)
            assert info.num_frames == round(row["duration"] * FPS)
    with av.open(str(folder / splits["test"][0]["video"])) as container:
        assert container.streams.video[0].codec_context.name == "h264"


def test_the_same_seed_gives_the_same_bytes_with_any_workers(rendered, tmp_path: Path) -> None:
    folder, splits = rendered
    again = render_moving_shapes(tmp_path, 3, SMALL, workers=2, progress=False)
    assert again == splits
    assert hashes(tmp_path) == hashes(folder)


def test_a_video_does_not_depend_on_the_others(rendered, tmp_path: Path) -> None:
    folder, splits = rendered
    fewer = render_moving_shapes(tmp_path, 3, {"train": 1}, progress=False)
    assert fewer["train"] == [row for row in splits["train"] if row["vid"] == "train_0000"]
    assert hashes(tmp_path)["train/train_0000.mp4"] == hashes(folder)["train/train_0000.mp4"]


def test_another_seed_gives_other_videos_and_sentences(rendered, tmp_path: Path, no_rendering: list[Path]) -> None:
    _, splits = rendered
    other = render_moving_shapes(tmp_path, 4, SMALL, progress=False)
    assert [row["query"] for row in other["train"]] != [row["query"] for row in splits["train"]]


def test_what_is_complete_is_not_rendered_again(rendered, tmp_path: Path, no_rendering: list[Path]) -> None:
    folder, splits = rendered
    before = hashes(folder)
    missing = folder / "train" / "train_0001.mp4"
    kept = missing.read_bytes()
    missing.unlink()
    try:
        assert render_moving_shapes(folder, 3, SMALL, progress=False) == splits
        assert no_rendering == [missing]
    finally:
        missing.write_bytes(kept)
    assert hashes(folder) == before


def test_a_broken_off_rendering_leaves_no_half_file(tmp_path: Path) -> None:
    scene = sample_scene(np.random.default_rng(0), FPS)

    def interrupted():
        for number, frame in enumerate(draw_frames(np.random.default_rng(1), scene, FPS)):
            if number == 20:
                raise KeyboardInterrupt
            yield frame

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", interrupted(), FPS)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_settings_is_refused_or_replaced(tmp_path: Path, no_rendering: list[Path]) -> None:
    render_moving_shapes(tmp_path, 0, SMALL, progress=False)
    with pytest.raises(ValueError, match=r"other settings: seed 0, not 1\. Choose another folder, or pass overwrite"):
        render_moving_shapes(tmp_path, 1, SMALL, progress=False)
    rows = render_moving_shapes(tmp_path, 1, {"val": 1}, progress=False, overwrite=True)
    assert list(rows) == ["val"]
    assert not (tmp_path / "train").exists()
    assert not (tmp_path / "train.jsonl").exists()
    assert json.loads((tmp_path / "manifest.json").read_text())["seed"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_videos": {"dev": 3}}, "num_videos must name some of train, val, test, received dev"),
        ({"num_videos": {"train": -1}}, "at least 0"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_moving_shapes(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_default_sizes_are_large_enough_and_share_no_video(tmp_path: Path, no_rendering: list[Path]) -> None:
    splits = render_moving_shapes(tmp_path, progress=False)
    videos = {split: {row["vid"] for row in rows} for split, rows in splits.items()}
    assert {split: len(vids) for split, vids in videos.items()} == NUM_VIDEOS
    assert len(videos["test"]) >= 60
    assert len(splits["test"]) >= 300
    assert not videos["train"] & videos["test"]
    assert not videos["train"] & videos["val"]
    assert not videos["val"] & videos["test"]
    # Different scenes too, not only different names: no two videos have the same windows.
    windows = Counter(
        tuple(tuple(row["relevant_windows"][0]) for row in rows if row["vid"] == vid)
        for rows in splits.values()
        for vid in sorted({row["vid"] for row in rows})
    )
    assert max(windows.values()) == 1
    assert len({row["qid"] for rows in splits.values() for row in rows}) == sum(map(len, splits.values()))


def test_builder_renders_and_yields_the_same_rows(tmp_path: Path) -> None:
    options = {"train_videos": 1, "val_videos": 0, "test_videos": 1, "seed": 5}
    builder = MovingShapes(data_dir=tmp_path / "videos", cache_dir=tmp_path / "cache", **options)
    builder.download_and_prepare()
    data = builder.as_dataset()
    assert set(data) == {"train", "test"}
    rows = render_moving_shapes(tmp_path / "videos", 5, {"train": 1, "val": 0, "test": 1}, progress=False)
    for split, part in data.items():
        assert part.to_list() == rows[split]
        validate_rows(part.to_list(), source=split).raise_for_errors()
        assert all((tmp_path / "videos" / row["video"]).is_file() for row in part)
    # Rows from the cache are of no use without their videos, so these come back.
    lost = tmp_path / "videos" / "test" / "test_0000.mp4"
    lost.unlink()
    MovingShapes(data_dir=tmp_path / "videos", cache_dir=tmp_path / "cache", **options).download_and_prepare()
    assert lost.is_file()


def test_builder_without_a_folder_is_refused() -> None:
    with pytest.raises(ValueError, match="data_dir is missing"):
        MovingShapes()


# The scenes


def test_scenes_keep_their_ranges(scenes) -> None:
    for scene, _ in scenes:
        assert VIDEO_RANGE_S[0] <= scene.duration_s <= VIDEO_RANGE_S[1]
        assert scene.duration_s * FPS == round(scene.duration_s * FPS)
        assert 4 <= len(scene.objects) <= 5
        for event in scene.events:
            assert 0 <= event.start_s < event.end_s <= scene.duration_s
            assert EVENT_RANGE_S[0] - 1e-6 <= event.end_s - event.start_s <= EVENT_RANGE_S[1] + 1e-6
        moments = [event.start_s for event in scene.events]
        assert all(sum(e.start_s <= t < e.end_s for e in scene.events) <= AT_ONCE for t in moments)
        for index in range(len(scene.objects)):
            own = [event for event in scene.events if event.object_index == index]
            assert all(a.end_s < b.start_s for a, b in itertools.pairwise(own))
            assert len({event.action for event in own}) == len(own)


def test_scenes_are_varied(scenes) -> None:
    events = [event for scene, _ in scenes for event in scene.events]
    assert 4 <= len(events) / SCENES <= 8
    shares = Counter(event.action for event in events)
    assert set(shares) == set(ACTIONS)
    assert min(shares.values()) > 0.04 * len(events)
    assert {o.colour for scene, _ in scenes for o in scene.objects} == set(COLOURS)
    assert {o.shape for scene, _ in scenes for o in scene.objects} == set(SHAPES)
    lengths = np.array([event.end_s - event.start_s for event in events])
    assert np.quantile(lengths, 0.9) > 1.5 * np.quantile(lengths, 0.1)
    middles = np.array([(e.start_s + e.end_s) / 2 / scene.duration_s for scene, _ in scenes for e in scene.events])
    assert middles.min() < 0.2
    assert middles.max() > 0.8
    shares_of_time = np.zeros(AT_ONCE + 1)  # with no event, one, two
    for scene, _ in scenes:
        times_s = np.arange(0, scene.duration_s, 0.1)
        at_once = sum(((e.start_s <= times_s) & (times_s < e.end_s)).astype(int) for e in scene.events)
        shares_of_time += np.bincount(at_once, minlength=AT_ONCE + 1) / len(times_s) / SCENES
    assert (shares_of_time > 0.08).all()
    assert (shares_of_time < 0.7).all()


def test_one_word_does_not_find_the_moment(scenes) -> None:
    """The object of an event shares its colour or shape with another; its action often recurs in the video."""
    shares_action = []
    for scene, _ in scenes:
        looks = [(o.colour, o.shape) for o in scene.objects]
        assert len(set(looks)) == len(looks)
        for look in looks:
            assert any((look[0] == other[0]) != (look[1] == other[1]) for other in looks)
        for event in scene.events:
            shares_action.append(any(o.action == event.action for o in scene.events if o is not event))
    assert np.mean(shares_action) > 0.3
    # Objects do more than one thing, and some do nothing: neither the object alone nor its presence tells.
    assert np.mean([max(Counter(e.object_index for e in s.events).values()) > 1 for s, _ in scenes]) > 0.8
    assert np.mean([len({e.object_index for e in s.events}) < len(s.objects) for s, _ in scenes]) > 0.2


def test_everything_stays_on_screen_and_comes_to_rest(scenes) -> None:
    for scene, _ in scenes[:40]:
        times_s = np.arange(round(scene.duration_s * FPS)) / FPS
        states = trajectories(scene, times_s)
        x, y, radius, _, visible = np.moveaxis(states, -1, 0)
        assert (x - radius > 0).all()
        assert (x + radius < CANVAS_PX).all()
        assert (y - radius > -1).all()
        assert (y + radius < CANVAS_PX).all()
        for index, of_object in enumerate(states):
            acting = np.zeros(len(times_s), bool)
            for event in scene.events:
                if event.object_index == index:
                    acting |= (times_s >= event.start_s - 1 / FPS) & (times_s <= event.end_s + 1 / FPS)
            still = ~acting[1:] & ~acting[:-1]
            np.testing.assert_allclose(np.diff(of_object, axis=0)[still], 0.0, atol=1e-6)
            assert visible[index][~acting].all()


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_does_what_it_says(action: str) -> None:
    amount = {**dict.fromkeys(SLIDES, 30.0), "grow": 1.6, "spin": 0.5, "blink": 1.0, "bounce": 1.0}[action]
    obj = ShapeObject("square", "red", 56.0, 56.0, 12.0)
    scene = Scene(10.0, [obj], [Event(0, action, 2.0, 8.0, amount)])
    states = trajectories(scene, np.arange(80) / 8)[0]
    before, during, after = states[:16], states[16:64], states[64:]
    np.testing.assert_array_equal(before, np.broadcast_to([56, 56, 12, 0, 1], before.shape))
    np.testing.assert_allclose(after, np.broadcast_to(after[0], after.shape))
    moved = after[0, :2] - before[0, :2]
    if action in SLIDES:
        np.testing.assert_allclose(moved, np.array(SLIDES[action]) * amount)
        np.testing.assert_allclose(np.diff(during[:, :2], axis=0).std(axis=0), 0.0, atol=1e-9)
    else:
        np.testing.assert_allclose(moved, 0.0, atol=1e-9)
    assert (np.diff(during[:, 2]) > 0).all() == (action == "grow")
    assert (during[:, 4] == 0).any() == (action == "blink")
    assert after[0, 4] == 1
    assert (np.abs(during[:, 3]).max() > 3) == (action == "spin")
    if action == "bounce":
        assert during[:, 1].min() < 45
        assert (np.diff(np.sign(np.diff(during[:, 1]))) > 0).sum() >= 4  # it lands several times
    np.testing.assert_allclose(after[0, 2] / before[0, 2], amount if action == "grow" else 1.0)


# The sentences


def test_sentences_are_true_of_their_event_alone_when_they_leave_something_out(scenes) -> None:
    vague, unique = 0, 0
    for scene, descriptions in scenes:
        assert [told.event_index for told in descriptions] == list(range(len(scene.events)))
        for told in descriptions:
            event = scene.events[told.event_index]
            matching = [e for e in scene.events if fits(scene, e, told.colour, told.shape, told.action)]
            assert event in matching
            left_out = told.colour is None or told.shape is None or told.action != event.action
            vague += left_out
            unique += len(matching) == 1
            if left_out:
                assert len(matching) == 1
    total = sum(len(descriptions) for _, descriptions in scenes)
    assert 0.1 < vague / total < 0.35
    assert unique / total > 0.99  # an object does nothing twice


def test_sentences_say_what_their_description_says(scenes) -> None:
    for _, descriptions in scenes:
        for told in descriptions:
            sentence = told.sentence.lower()
            assert {c for c in COLOURS if c in sentence} == ({told.colour} if told.colour else set())
            named = {shape for shape, words in SHAPE_WORDS.items() if any(w in sentence for w in words)}
            assert named == ({told.shape} if told.shape else set())
            directions = {d for d in ("left", "right", "up", "down") if re.search(rf"\b{d}(wards)?\b", sentence)}
            assert directions == ({told.action.split()[1]} if told.action in SLIDES else set())
            assert told.action in (*ACTIONS, *ACTION_FAMILIES.values())
    sentences = [told.sentence for _, descriptions in scenes for told in descriptions]
    assert len(set(sentences)) > 0.7 * len(sentences)
    openings = Counter(sentence.split()[0] for sentence in sentences)
    assert {"The", "A", "We", "Now"} <= set(openings)
    assert len(TEMPLATES) >= 5


def test_boundaries_are_off_by_a_little(scenes) -> None:
    errors = []
    for scene, descriptions in scenes:
        for told in descriptions:
            event = scene.events[told.event_index]
            assert 0 <= told.start_s < told.end_s <= scene.duration_s
            assert told.end_s - told.start_s >= SHORTEST_MOMENT_S - 1e-6
            errors += [told.start_s - event.start_s, told.end_s - event.end_s]
    errors = np.array(errors)
    assert np.abs(errors).max() <= LARGEST_JITTER_S + 0.051  # and the rounding to a tenth
    assert 0.2 < errors.std() < 0.5
    assert abs(errors.mean()) < 0.05


# The pictures


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_have_about_the_same_size(shape: str) -> None:
    x, y = shape_outline(shape).T
    area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    assert 1.5 < area < 3.5
    assert np.hypot(x, y).max() < 1.3
    np.testing.assert_allclose([x.mean(), y.mean()], 0.0, atol=1e-6)


def test_specks_are_discs_of_their_radius_wherever_they_are() -> None:
    centres = np.random.default_rng(0).uniform(0, CANVAS_PX, size=(2, 50, 2))
    centres[0, 0], centres[0, 1] = 0, np.nextafter(CANVAS_PX, 0)
    corners, coverage = _specks(centres)
    side = coverage.shape[2]
    assert corners.min() >= 0
    assert corners.max() + side <= CANVAS_PX + side - 1  # inside the picture with its rim
    areas = coverage.sum(axis=(2, 3, 4))
    np.testing.assert_allclose(areas, np.pi * SPECK_RADIUS_PX**2, rtol=0.05)
    places = np.arange(side) + 0.5 - side // 2
    x = corners[..., 0] + (coverage[..., 0].sum(axis=2) * places).sum(axis=2) / areas
    y = corners[..., 1] + (coverage[..., 0].sum(axis=3) * places).sum(axis=2) / areas
    np.testing.assert_allclose(np.stack((x, y), axis=2), centres, atol=0.05)


def test_unknown_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shape must be circle, square"):
        shape_outline("hexagon")


def test_the_video_shows_the_scene(tmp_path: Path) -> None:
    """What is decoded from the file is where the trajectories say, in its colour, and gone while it blinks."""
    objects = [ShapeObject("square", "red", 30.0, 30.0, 12.0), ShapeObject("circle", "blue", 30.0, 85.0, 12.0)]
    events = [Event(0, "slide right", 1.0, 5.0, 50.0), Event(1, "blink", 2.0, 6.0, 1.0)]
    scene = Scene(8.0, objects, events)
    write_video(tmp_path / "a.mp4", draw_frames(np.random.default_rng(0), scene, FPS), FPS)
    starts_s = np.arange(8 * FPS) / FPS
    times_s = starts_s + 0.5 / FPS
    states = trajectories(scene, starts_s)
    for (_, frame), state in zip(iter_frames(tmp_path / "a.mp4", times_s), states.swapaxes(0, 1), strict=True):
        for (x, y, _, _, visible), obj in zip(state, objects, strict=True):
            shown = frame[round(y) - 3 : round(y) + 3, round(x) - 3 : round(x) + 3].mean(axis=(0, 1))
            off = np.abs(shown - COLOURS[obj.colour]).max()
            assert off < 40 if visible else off > 60
    background = next(iter_frames(tmp_path / "a.mp4", [0.5]))[1][60:70, 90:110]
    assert background.max() < 160  # dim
    assert background.std() > 1  # and not plain
