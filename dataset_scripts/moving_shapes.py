"""Moving Shapes: a small moment-retrieval data set that renders itself as real mp4 files, offline and from a seed.

    python -m dataset_scripts export moving_shapes --data-dir videos --out exported

Each video is 20-40 s of H.264 and shows four or five coloured shapes. They are on screen all the time; now and then one
of them, or two at once, slides, grows, spins, blinks or bounces for 5-15 s (`shapes_scenes.py`). Every such
event has a sentence (`shapes_sentences.py`), and every video sentences about what it does not show
(`shapes_absent.py`). Each shape shares its colour or its form with another one of the video,
and the same few actions recur in it, so one word of a sentence does not find the moment.

Two ways in: `render_moving_shapes(folder)` returns canonical rows by split, and `MovingShapes(data_dir=folder)` is a
builder of `datasets` that yields the same rows.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Features, List, Value
from tqdm.auto import tqdm

from modeling_bmdetr.data import write_rows
from modeling_bmdetr.files_bmdetr import write_json
from modeling_bmdetr.processes import end_with_parent

from .shapes_absent import AbsentQuery, absent_queries, other_forms
from .shapes_rendering import render_scene
from .shapes_scenes import Scene, sample_scene
from .shapes_sentences import Description, describe_scene

FPS = 4  # the weightless encoders look at four frames of a second
# Raised whenever the same settings would give other videos or rows.
VERSION = "1.2.0"
NUM_VIDEOS = {"train": 400, "val": 60, "test": 70}
MANIFEST = "manifest.json"

Row = dict[str, Any]
RenderJob = tuple[Path, Scene, tuple[int, ...], int]  # the arguments of render_scene


def render_moving_shapes(
    out_dir: str | os.PathLike,
    seed: int = 0,
    num_videos: Mapping[str, int] | None = None,
    *,
    workers: int = 1,
    progress: bool = True,
    overwrite: bool = False,
    absent: bool = False,
) -> dict[str, list[Row]]:
    """Renders the data set into a folder, or what is missing of it, and returns its rows.

    Every video has a random generator of its own, so neither the number of workers nor that of the other videos
    changes it. A video appears under its name once it is complete; run again after an interruption, only the others are
    rendered.

    Args:
        out_dir: gets `<split>/<vid>.mp4`, one `<split>.jsonl` of the rows, one `<split>_absent.jsonl` of the queries
            about what the videos do not show, and `manifest.json` with the settings.
        seed: of everything that is random.
        num_videos: videos by split, from `train`, `val` and `test`; 400, 60 and 70 if None.
        workers: processes that render; 1 renders in this one.
        progress: whether to show a progress bar.
        overwrite: whether to replace a data set with other settings in `out_dir`.
        absent: whether the rows returned include the absent queries, after all others of their split; they have
            `relevant_windows: []` and their kind as `absent_kind`.

    Returns:
        Canonical rows by split, in the order of the events; `video` is the path of the file relative to `out_dir`.

    Raises:
        ValueError: if `num_videos` names another split or fewer than no videos, if `workers` is less than 1, or if the
            folder holds a data set with other settings and `overwrite` is false.
        ImportError: if PyAV or Pillow is not installed.
    """
    counts = dict(NUM_VIDEOS if num_videos is None else num_videos)
    if unknown := sorted(set(counts) - set(NUM_VIDEOS)):
        raise ValueError(f"num_videos must name some of {', '.join(NUM_VIDEOS)}, received {', '.join(unknown)}.")
    if negative := {split: count for split, count in counts.items() if count < 0}:
        raise ValueError(f"num_videos must be at least 0 for every split, received {negative}.")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, received {workers}.")
    out = Path(out_dir)
    _prepare_folder(out, {"version": VERSION, "seed": seed, "fps": FPS, "num_videos": counts}, overwrite)

    rows: dict[str, list[Row]] = {}
    absent_rows: dict[str, list[Row]] = {}
    missing: list[RenderJob] = []
    for split in sorted(counts, key=list(NUM_VIDEOS).index):
        rows[split], absent_rows[split] = [], []
        for drawn in _drawn(seed, split, counts[split]):
            video = f"{split}/{drawn.vid}.mp4"
            for number, told in enumerate(drawn.told):
                rows[split].append(_row(drawn, f"{number}", told.sentence, [[told.start_s, told.end_s]], video=video))
            for number, query in enumerate(drawn.absent):
                more = {"absent_kind": query.kind, "video": video}
                absent_rows[split].append(_row(drawn, f"absent_{number}", query.sentence, [], **more))
            if not (out / video).is_file():
                missing.append((out / video, drawn.scene, (*drawn.key, 1), FPS))
    _render_all(missing, workers, progress)
    for split, split_rows in rows.items():
        write_rows(out / f"{split}.jsonl", split_rows)
        write_rows(out / f"{split}_absent.jsonl", absent_rows[split])
    return {split: rows[split] + absent_rows[split] for split in rows} if absent else rows


@dataclass(frozen=True)
class DrawnVideo:
    """What happens in a video, what is said about it, and what is said that it does not show; `key` seeds it."""

    key: tuple[int, int, int]
    vid: str
    scene: Scene
    told: list[Description]
    absent: list[AbsentQuery]


def _row(drawn: DrawnVideo, number: str, query: str, windows: list[list[float]], **more: str) -> Row:
    names = {"qid": f"{drawn.vid}_{number}", "vid": drawn.vid, "query": query}
    return {**names, "duration": drawn.scene.duration_s, "relevant_windows": windows, **more}


def draw_videos(folder: str | os.PathLike, split: str) -> list[DrawnVideo]:
    """The videos of a split that was rendered into a folder, drawn again from their seed; nothing is rendered.

    Raises:
        FileNotFoundError: the folder holds no Moving Shapes.
        ValueError: they were rendered by another version, or without this split.
    """
    manifest = Path(folder) / MANIFEST
    if not manifest.is_file():
        raise FileNotFoundError(f"'{folder}' holds no Moving Shapes: it has no {MANIFEST}")
    settings = json.loads(manifest.read_text(encoding="utf-8"))
    if settings["version"] != VERSION or split not in settings["num_videos"]:
        raise ValueError(
            f"'{folder}' holds the splits {sorted(settings['num_videos'])} of version {settings['version']}, expected "
            f"{split!r} of version {VERSION}: render it again"
        )
    return list(_drawn(settings["seed"], split, settings["num_videos"][split]))


def _drawn(seed: int, split: str, number: int) -> Iterator[DrawnVideo]:
    for index in range(number):
        key = (seed, list(NUM_VIDEOS).index(split), index)
        rng = np.random.default_rng(key)
        scene = sample_scene(rng, FPS)
        told = describe_scene(rng, scene)
        rng = np.random.default_rng((*key, 2))
        absent = absent_queries(rng, scene) + (other_forms(rng, scene) if split == "train" else [])
        yield DrawnVideo(key, f"{split}_{index:04d}", scene, told, absent)


def _prepare_folder(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Makes the folders and the manifest, or checks that a manifest found there says the same."""
    manifest = out / MANIFEST
    if manifest.is_file():
        found = json.loads(manifest.read_text(encoding="utf-8"))
        if found != settings:
            if not overwrite:
                differing = [name for name in settings if found.get(name) != settings[name]]
                raise ValueError(
                    f"out_dir {out} holds Moving Shapes with other settings: "
                    + ", ".join(f"{name} {found.get(name)!r}, not {settings[name]!r}" for name in differing)
                    + ". Choose another folder, or pass overwrite=True to replace it."
                )
            for split in NUM_VIDEOS:
                shutil.rmtree(out / split, ignore_errors=True)
                for name in (f"{split}.jsonl", f"{split}_absent.jsonl"):
                    (out / name).unlink(missing_ok=True)
    for split in settings["num_videos"]:
        (out / split).mkdir(parents=True, exist_ok=True)
    write_json(manifest, settings)


def _render_all(jobs: list[RenderJob], workers: int, progress: bool) -> None:
    with tqdm(total=len(jobs), desc="rendering videos", unit="video", disable=not progress) as bar:
        if workers == 1 or len(jobs) < 2:
            for job in jobs:
                render_scene(*job)
                bar.update()
            return
        # Spawned, not forked: the caller may have started threads, of torch for example.
        with ProcessPoolExecutor(
            min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=end_with_parent
        ) as pool:
            for done in as_completed([pool.submit(render_scene, *job) for job in jobs]):
                done.result()
                bar.update()


@dataclass
class MovingShapesConfig(datasets.BuilderConfig):
    """Options of `MovingShapes`: the seed, the videos of each split, how many processes render them, and whether the
    queries about what a video does not show are among the rows.
    """

    seed: int = 0
    train_videos: int = NUM_VIDEOS["train"]
    val_videos: int = NUM_VIDEOS["val"]
    test_videos: int = NUM_VIDEOS["test"]
    workers: int = 1
    absent: bool = False


class MovingShapes(datasets.GeneratorBasedBuilder):
    """Moving Shapes: rendered videos of coloured shapes, with sentences about what they do. Needs no files.

    Args:
        data_dir: where the videos are rendered, or were by an earlier call with the same options; `video` in the rows
            is relative to it.
        cache_dir: where `datasets` keeps the prepared Arrow files.
        options: fields of `MovingShapesConfig`.

    Raises:
        ValueError: if there is no `data_dir`, or if it holds videos made with other options.
    """

    BUILDER_CONFIG_CLASS = MovingShapesConfig
    VERSION = datasets.Version(VERSION)

    def __init__(self, data_dir: str | Path | None = None, cache_dir: str | Path | None = None, **options: Any) -> None:
        if data_dir is None:
            raise ValueError("data_dir is missing: the folder to render the videos of Moving Shapes into.")
        cache = None if cache_dir is None else str(cache_dir)
        super().__init__(data_dir=str(Path(data_dir).absolute()), cache_dir=cache, **options)

    def _info(self) -> datasets.DatasetInfo:
        names = ("qid", "vid", "query", "video", *(["absent_kind"] if self.config.absent else []))
        text = {name: Value("string") for name in names}
        return datasets.DatasetInfo(
            description="Videos of moving shapes, rendered from a seed, with one sentence per event.",
            features=Features({**text, "duration": Value("float64"), "relevant_windows": List(List(Value("float64")))}),
            license="MIT",
        )

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """Renders what is missing, then prepares the rows; a cache of the rows alone is not enough."""
        self._render()
        super().download_and_prepare(*args, **kwargs)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:  # noqa: ARG002
        splits = self._render()
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"rows": rows}) for split, rows in splits.items() if rows
        ]

    def _generate_examples(self, rows: list[Row]) -> Iterator[tuple[int, Row]]:
        features = self.info.features or {}
        for index, row in enumerate(rows):
            yield index, {name: row.get(name) for name in features}

    def _render(self) -> dict[str, list[Row]]:
        config = self.config
        counts = {"train": config.train_videos, "val": config.val_videos, "test": config.test_videos}
        return render_moving_shapes(config.data_dir, config.seed, counts, workers=config.workers, absent=config.absent)
