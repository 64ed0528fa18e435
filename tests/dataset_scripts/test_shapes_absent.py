"""What Moving Shapes says of what its videos do not show."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dataset_scripts import moving_shapes
from dataset_scripts.moving_shapes import FPS, VERSION, MovingShapes, render_moving_shapes
from dataset_scripts.shapes_absent import ABSENT_KINDS, ANOTHER_FORM, absent_queries, other_forms
from dataset_scripts.shapes_scenes import sample_scene
from dataset_scripts.shapes_sentences import describe_scene, fits
from modeling_bmdetr.data import validate_rows

# Hash of the rows of this version, seed 3, videos as in `SMALL`: other rows are another version.
SMALL = {"train": 2, "val": 1, "test": 1}
VERSION_HASHED, PRESENT_ROWS_SHA = "1.2.0", "a04d69960c7f97af6380ffdea5722e1e9ee6256b126716bb5503bcaa54c75ad3"


@pytest.fixture
def no_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving_shapes, "render_scene", lambda path, *_: path.touch())


@pytest.mark.usefixtures("no_rendering")
def test_rows_change_with_the_version_only(tmp_path: Path) -> None:
    rows = render_moving_shapes(tmp_path, 3, SMALL, progress=False)
    assert VERSION == VERSION_HASHED
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == PRESENT_ROWS_SHA


@pytest.mark.usefixtures("no_rendering")
def test_absent_rows_follow_the_present_ones(tmp_path: Path) -> None:
    present = render_moving_shapes(tmp_path, 3, SMALL, progress=False)
    everything = render_moving_shapes(tmp_path, 3, SMALL, progress=False, absent=True)
    for split, rows in everything.items():
        validate_rows(rows, source=split).raise_for_errors()
        absent = rows[len(present[split]) :]
        assert rows[: len(present[split])] == present[split]
        assert [json.loads(line) for line in (tmp_path / f"{split}_absent.jsonl").read_text().splitlines()] == absent
        assert {row["vid"] for row in absent} == {row["vid"] for row in present[split]}
        kinds = {*ABSENT_KINDS, ANOTHER_FORM} if split == "train" else ABSENT_KINDS
        assert all(row["relevant_windows"] == [] and row["absent_kind"] in kinds for row in absent)
        assert any(row["absent_kind"] == ANOTHER_FORM for row in absent) == (split == "train")


@pytest.mark.usefixtures("no_rendering")
def test_the_builder_yields_them_on_demand(tmp_path: Path) -> None:
    videos = {"train_videos": 2, "val_videos": 1, "test_videos": 1}
    options = {"data_dir": tmp_path / "v", "cache_dir": tmp_path / "c", **videos}
    plain, full = MovingShapes(**options), MovingShapes(**options, absent=True)
    for builder in (plain, full):
        builder.download_and_prepare()
    assert "absent_kind" not in plain.as_dataset("test").column_names
    kinds = Counter(full.as_dataset("test")["absent_kind"])
    assert kinds[None] == len(plain.as_dataset("test"))
    assert set(kinds) - {None} <= set(ABSENT_KINDS)


def test_nothing_in_the_video_fits_and_the_kinds_are_what_they_say() -> None:
    counts: Counter = Counter()
    for index in range(150):
        rng = np.random.default_rng((7, index))
        scene = sample_scene(rng, FPS)
        before = rng.bit_generator.state
        queries = absent_queries(np.random.default_rng(index), scene)
        assert rng.bit_generator.state == before
        objects = {(obj.colour, obj.shape) for obj in scene.objects}
        actions = {event.action for event in scene.events}
        for query in queries:
            counts[query.kind] += 1
            said = query.colour, query.shape, query.action
            assert not any(fits(scene, event, *said) for event in scene.events)
            assert query.colour in query.sentence.lower()
            is_there, is_done = (query.colour, query.shape) in objects, query.action in actions
            assert (is_there, is_done) == {
                "unrelated": (False, False),
                "no_such_object": (False, True),
                "other_action": (True, False),
                "exchanged": (True, True),
            }[query.kind]
            if query.kind == "unrelated":
                assert query.colour not in {colour for colour, _ in objects}
                assert query.shape not in {shape for _, shape in objects}
        assert queries == absent_queries(np.random.default_rng(index), scene)
        assert not {query.sentence for query in queries} & {told.sentence for told in describe_scene(rng, scene)}
    assert all(counts[kind] > 140 for kind in ABSENT_KINDS)


def test_another_form_does_what_happens_and_is_not_there() -> None:
    found = events = 0
    for index in range(60):
        scene = sample_scene(np.random.default_rng((8, index)), FPS)
        queries = other_forms(np.random.default_rng(index), scene)
        events += len(scene.events[::2])
        found += len(queries)
        for query in queries:
            assert not any(fits(scene, event, query.colour, query.shape, query.action) for event in scene.events)
            assert any(fits(scene, event, query.colour, None, query.action) for event in scene.events)
    assert found > 0.9 * events
