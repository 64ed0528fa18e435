"""Searching a folder of videos: size of the index, seconds per query, memory, and how often the right video is first.

    python examples/benchmarks/search_speed.py outputs/quickstart --videos 1000 --json search.json

Two measurements. The test videos of the quickstart are indexed as they are, and asked for by sentences that fit one of
them only. Then an index of many videos is simulated: placeholder files whose features are those of all the quickstart's
videos, repeated and moved by a little noise, so that times, sizes and memory are those of a real index of that many
videos while decoding is left out.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from bench_clock import fresh_process, load_pipeline, timed
from transformers.utils import logging

from dataset_scripts.moving_shapes import draw_videos
from dataset_scripts.shapes_sentences import fits
from modeling_bmdetr.data import FeatureStore
from modeling_bmdetr.files_bmdetr import write_json
from modeling_bmdetr.index import VideoIndex
from modeling_bmdetr.pipeline_bmdetr import EncodedVideo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("quickstart", type=Path, help="folder that examples/quickstart.py wrote")
    parser.add_argument("--model", type=Path, help="another model of the same features (the quickstart's)")
    parser.add_argument("--videos", type=int, default=1000, help="videos of the simulated index (1000)")
    parser.add_argument("--queries", type=int, default=8, help="sentences timed one by one (8)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--only", choices=["first", "speed"], help=argparse.SUPPRESS)  # one measurement per process
    args = parser.parse_args()
    args.model = args.model or args.quickstart / "model"
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if args.only:
        measure = right_video_first if args.only == "first" else speed
        print(json.dumps(measure(args)))
        return
    # Each in a fresh process, so that memory is its own.
    figures: dict[str, Any] = {"threads": args.threads}
    for name in ("first", "speed"):
        figures.update(fresh_process([__file__, *sys.argv[1:], "--only", name]))
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):<42}{value}")
    if args.json:
        write_json(args.json, figures)


def right_video_first(args: argparse.Namespace) -> dict[str, Any]:
    """How often the right video is first, and in the first five, for sentences that fit one test video only."""
    films = draw_videos(args.quickstart / "videos", "test")
    asked: list[tuple[str, str]] = []
    for film in films:
        for told in film.told:
            words = (told.colour, told.shape, told.action)
            fitting = {
                other.vid for other in films if any(fits(other.scene, event, *words) for event in other.scene.events)
            }
            if fitting == {film.vid}:
                asked.append((told.sentence, f"{film.vid}.mp4"))
    with tempfile.TemporaryDirectory() as folder:
        index = VideoIndex(Path(folder) / "index", load_pipeline(args.model))
        report = index.update(args.quickstart / "videos" / "test")
        found = index.search([sentence for sentence, _ in asked], top=5)
    videos = [[hit.video for hit in hits] for hits in found]
    right = [names.index(name) + 1 if name in names else 0 for names, (_, name) in zip(videos, asked, strict=True)]
    return {
        "test_videos": report.videos,
        "seconds_to_encode_one": round(report.seconds / report.videos, 3),
        "sentences_that_fit_one_video": len(asked),
        "right_video_first_percent": round(100 * sum(rank == 1 for rank in right) / len(right), 1),
        "right_video_in_first_5_percent": round(100 * sum(rank > 0 for rank in right) / len(right), 1),
    }


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Size, seconds and memory of an index of many simulated videos."""
    pipe, process = load_pipeline(args.model), psutil.Process()
    store = FeatureStore.from_packed(args.quickstart / "features")
    videos = store.source("video")
    names, rng = videos.names, np.random.default_rng(0)

    def simulated(path: Any, **_: Any) -> EncodedVideo:
        rows = videos.read(names[int(Path(path).stem) % len(names)])
        rows = rows + 1e-3 * rng.standard_normal(rows.shape).astype(np.float32)
        return EncodedVideo(rows, len(rows) * pipe.processor.contract.clip_length, Path(path).name)

    pipe.encode_video = simulated
    films = draw_videos(args.quickstart / "videos", "test")
    sentences = [told.sentence for film in films for told in film.told][: args.queries]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "videos").mkdir()
        for number in range(args.videos):
            (Path(folder) / "videos" / f"{number:06d}.mp4").write_text(str(number))
        index = VideoIndex(Path(folder) / "index", pipe)
        report = index.update(Path(folder) / "videos")
        opened, _, _ = timed(lambda: VideoIndex(Path(folder) / "index", pipe).search("a warm-up", top=1))
        before = process.memory_info().rss
        seconds = [timed(lambda sentence=sentence: index.search(sentence))[0] for sentence in sentences]
        together, _, _ = timed(lambda: index.search(sentences))
        again = VideoIndex(Path(folder) / "index", pipe).update(Path(folder) / "videos")
    peak = process.memory_info().rss
    return {
        "simulated_videos": report.videos,
        "clips": report.clips,
        "index_mb": round(report.bytes / 1e6, 1),
        "seconds_to_check_an_unchanged_folder": round(again.seconds, 2),
        "seconds_of_the_first_query": round(opened, 2),
        "seconds_per_query_median": round(float(np.median(seconds)), 2),
        f"seconds_per_query_of_{len(sentences)}_at_once": round(together / len(sentences), 2),
        "memory_mb_after_searching": round(peak / 1e6),
        "memory_mb_added_by_searching": round((peak - before) / 1e6),
    }


if __name__ == "__main__":
    main()
