"""Extraction in shards and on a Ray cluster: the same features, whoever encodes them and whoever dies."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from annotation_samples import write_video

from modeling_bmdetr.data import FeatureStore, extract_features
from modeling_bmdetr.encoders_bmdetr import PixelGridVideoEncoder

VIDEOS = 6


class MortalEncoder(PixelGridVideoEncoder):
    """Ends its process at the video `v1`, once, and at `v2` every time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(grid=8)
        self.folder = folder

    def encode_video(self, video, *arguments, **options):
        name = Path(video).stem
        died = self.folder / f"{name}.died"
        if name == "v2" or (name == "v1" and not died.exists()):
            died.touch()
            os._exit(9)
        (self.folder / f"{name}.{os.getpid()}").touch()
        return super().encode_video(video, *arguments, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    rows = []
    for number in range(VIDEOS):
        write_video(folder / f"v{number}.mp4", 6.0)
        rows.append({"qid": f"q{number}", "vid": f"v{number}", "query": f"It is number {number}.", "duration": 6.0})
    return folder, rows


def extract(world, out, encoder="pixel-grid", **options):
    folder, rows = world
    return extract_features(rows, folder, out, encoder, "hashed-words", 1.0, progress=False, **options)


def test_shards_hold_every_video_once_and_open_as_one_store(world, tmp_path):
    reports = [extract(world, tmp_path / str(index), shard=(index, 3)) for index in (1, 2, 3)]
    assert sum(report.videos_encoded for report in reports) == VIDEOS
    assert sum(report.queries_encoded for report in reports) == VIDEOS
    extract(world, tmp_path / "whole")
    whole = FeatureStore.from_packed(tmp_path / "whole")
    shards = FeatureStore.from_packed([tmp_path / str(index) for index in (1, 2, 3)])
    shards.require(world[1])
    for row in world[1]:
        np.testing.assert_array_equal(shards.video(row["vid"]), whole.video(row["vid"]))
    again = extract(world, tmp_path / "1", shard=(1, 3))
    assert (again.videos_encoded, again.videos_present) == (0, reports[0].videos_encoded)


def test_shards_of_other_encoders_do_not_open_together(world, tmp_path):
    extract(world, tmp_path / "1", shard=(1, 2))
    extract(world, tmp_path / "2", {"name": "pixel-grid", "raster": 4}, shard=(2, 2))
    with pytest.raises(ValueError, match="pixel-grid"):
        FeatureStore.from_packed([tmp_path / "1", tmp_path / "2"])


@pytest.mark.parametrize("shard", [(0, 2), (3, 2)])
def test_a_shard_that_is_none_is_refused(world, tmp_path, shard):
    with pytest.raises(ValueError, match="`shard` must be"):
        extract(world, tmp_path / "out", shard=shard)
    with pytest.raises(ValueError, match="`workers` must be at least 1 on a cluster"):
        extract(world, tmp_path / "out", engine="ray")


@pytest.mark.slow
def test_a_worker_of_a_cluster_that_dies_costs_its_own_video_only(world, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # workers import this module
    marks = tmp_path / "marks"
    marks.mkdir()
    report = extract(world, tmp_path / "ray", MortalEncoder(marks), engine="ray", workers=2)
    assert list(report.failed_videos) == ["v2"]
    assert "ended its worker 2 times" in report.failed_videos["v2"]
    assert report.videos_encoded == VIDEOS - 1
    encoded = sorted(path.name.split(".")[0] for path in marks.iterdir() if not path.name.endswith(".died"))
    assert encoded == ["v0", "v1", "v3", "v4", "v5"]  # each once, though workers died beside them
    extract(world, tmp_path / "here", PixelGridVideoEncoder(grid=8))
    stores = [FeatureStore.from_packed(tmp_path / name) for name in ("ray", "here")]
    for vid in encoded:
        np.testing.assert_array_equal(stores[0].video(vid), stores[1].video(vid))
    again = extract(world, tmp_path / "ray", PixelGridVideoEncoder(grid=8), engine="ray", workers=2)
    assert (again.videos_encoded, again.videos_present, again.complete) == (1, VIDEOS - 1, True)
