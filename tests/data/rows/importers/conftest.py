"""The videos of the samples, and a short way to import one."""

from pathlib import Path

import pytest
from annotation_samples import DURATIONS_S, SAMPLES, write_video

from modeling_bmdetr.data.rows.importers import ImportOptions, import_annotations


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, duration_s in DURATIONS_S.items():
        write_video(folder / f"{name}.mp4", duration_s)
    return folder


@pytest.fixture
def read(videos):
    """Imports a sample, or a file by its path, and returns {(vid, sentence): windows}."""

    def importing(file, video_dir=videos, **options):
        rows, _ = import_annotations(SAMPLES / file, video_dir, ImportOptions(**options))
        return {(row["vid"], row["query"]): row["relevant_windows"] for row in rows}

    return importing
