"""Searching a folder of videos: size, seconds, memory, what prefilters keep, and how often the right video is first.

    python examples/benchmarks/search_speed.py outputs/quickstart --videos 1000 --json search.json

Three measurements. The test videos of the quickstart are indexed as they are, and asked for by sentences that fit one
of them only. Then an index of many videos is simulated: placeholder files whose features are those of all the
quickstart's videos, repeated and moved by a little noise, so that times, sizes and memory are those of a real index of
that many videos while decoding is left out. Last, the quickstart's videos, each once, are searched with prefilters,
whose hits are compared with those of the whole search. Seconds are of processor time, which other jobs change least.
"""

import argparse
import json
import sys
import tempfile
from functools import partial
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
from modeling_bmdetr.index import IndexReport, VideoIndex
from modeling_bmdetr.pipeline_bmdetr import EncodedVideo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("quickstart", type=Path, help="folder that examples/quickstart.py wrote")
    parser.add_argument("--model", type=Path, help="another model of the same features (the quickstart's)")
    parser.add_argument("--videos", type=int, default=1000, help="videos of the simulated index (1000)")
    parser.add_argument("--queries", type=int, default=8, help="sentences timed one by one (8)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--only", choices=list(MEASURES), help=argparse.SUPPRESS)  # one measurement per process
    args = parser.parse_args()
    args.model = args.model or args.quickstart / "model"
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if args.only:
        print(json.dumps(MEASURES[args.only](args)))
        return
    # Each in a fresh process, so that memory is its own.
    figures: dict[str, Any] = {"threads": args.threads}
    for name in MEASURES:
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
    sentences = test_sentences(args)[: args.queries]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        index, report = simulated_index(Path(folder), pipe, args, args.videos, noise=1e-3)
        _, opened, _ = timed(lambda: VideoIndex(Path(folder) / "index", pipe).search("a warm-up", top=1))
        before = process.memory_info().rss
        for name, prefilter in (("", None), ("_prefilter_100", 100)):
            search = partial(index.search, prefilter=prefilter)
            seconds = [timed(partial(search, sentence))[1] for sentence in sentences]
            _, together, _ = timed(partial(search, sentences))
            figures[f"seconds_per_query_median{name}"] = round(float(np.median(seconds)), 2)
            figures[f"seconds_per_query_of_{len(sentences)}_at_once{name}"] = round(together / len(sentences), 2)
        again = VideoIndex(Path(folder) / "index", pipe).update(Path(folder) / "videos")
    peak = process.memory_info().rss
    return {
        "simulated_videos": report.videos,
        "clips": report.clips,
        "index_mb": round(report.bytes / 1e6, 1),
        "seconds_to_check_an_unchanged_folder": round(again.seconds, 2),
        "seconds_of_the_first_query": round(opened, 2),
        **figures,
        "memory_mb_after_searching": round(peak / 1e6),
        "memory_mb_added_by_searching": round((peak - before) / 1e6),
    }


def kept_by_prefilters(args: argparse.Namespace) -> dict[str, Any]:
    """How much of what a whole search finds is found by one with a prefilter, among all videos of the quickstart."""
    pipe = load_pipeline(args.model)
    sentences = test_sentences(args)
    chosen = np.random.default_rng(0).permutation(len(sentences))[:60]
    asked = [sentences[i] for i in chosen]
    number = len(FeatureStore.from_packed(args.quickstart / "features").source("video").names)
    figures: dict[str, Any] = {"distinct_videos": number, "sentences": len(asked)}
    with tempfile.TemporaryDirectory() as folder:
        index, _ = simulated_index(Path(folder), pipe, args, number)
        whole = [[hit.video for hit in hits] for hits in index.search(asked)]
        for kept in (25, 50, 100, 200):
            found = [{hit.video for hit in hits} for hits in index.search(asked, prefilter=kept)]
            first = np.mean([names[0] in some for names, some in zip(whole, found, strict=True)])
            ten = np.mean([len(some & set(names)) / len(names) for names, some in zip(whole, found, strict=True)])
            figures[f"first_hits_kept_of_{kept}_percent"] = round(100 * float(first), 1)
            figures[f"ten_hits_kept_of_{kept}_percent"] = round(100 * float(ten), 1)
    return figures


def test_sentences(args: argparse.Namespace) -> list[str]:
    return [told.sentence for film in draw_videos(args.quickstart / "videos", "test") for told in film.told]


def simulated_index(
    folder: Path, pipe: Any, args: argparse.Namespace, number: int, noise: float = 0.0
) -> tuple[VideoIndex, IndexReport]:
    """An index of placeholder files that have the features of the quickstart's videos, moved by a little noise."""
    videos = FeatureStore.from_packed(args.quickstart / "features").source("video")
    names, rng = videos.names, np.random.default_rng(0)

    def simulated(path: Any, **_: Any) -> EncodedVideo:
        rows = videos.read(names[int(Path(path).stem) % len(names)])
        rows = rows + noise * rng.standard_normal(rows.shape).astype(np.float32)
        return EncodedVideo(rows, len(rows) * pipe.processor.contract.clip_length, Path(path).name)

    pipe.encode_video = simulated
    (folder / "videos").mkdir()
    for i in range(number):
        (folder / "videos" / f"{i:06d}.mp4").write_text(str(i))
    index = VideoIndex(folder / "index", pipe)
    return index, index.update(folder / "videos")


MEASURES = {"first": right_video_first, "speed": speed, "kept": kept_by_prefilters}

if __name__ == "__main__":
    main()
