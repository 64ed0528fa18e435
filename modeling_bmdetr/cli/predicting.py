"""Asking a model about videos: `predict`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..packages_bmdetr import needed_module
from . import answers as forms
from .common import (
    PICTURE_SUFFIXES,
    Bar,
    Commands,
    add_checkpoint,
    check_model,
    check_output,
    complain,
    count,
    is_file,
    load_pipeline,
    printable,
    share,
)
from .faults import is_expected, message_of

CLIP_SUFFIXES = (".mp4", ".mkv", ".mov")
SCORE_THRESHOLD = 0.05


def predict(args: argparse.Namespace) -> int:
    form = forms.form_of(args)
    videos, queries = videos_and_queries(args)
    if form == "vtt":
        forms.require_one_video(len(videos))
    check_model(args.model)
    plots = _numbered(args.plot, len(videos), PICTURE_SUFFIXES, ".png")
    clips = _numbered(args.clip, len(videos) * len(queries), CLIP_SUFFIXES, ".mp4")
    for target in (args.out, *plots, *clips):
        check_output(target, read=(*videos, args.queries))
    if plots:
        from ..visualization import NO_MATPLOTLIB

        needed_module("matplotlib", NO_MATPLOTLIB)  # before the video is encoded
    pipe = load_pipeline(args)
    names = ("top_k", "score_threshold", "nms_threshold", "min_presence")
    options = {name: getattr(args, name) for name in names}
    results, failed = [], 0
    for i, video in enumerate(videos):
        bar = Bar("encoding the video" if len(videos) == 1 else f"encoding video {i + 1} of {len(videos)}")
        try:
            encoded = pipe.encode_video(video, progress=bar, long_video=args.long_video)
            answers = pipe(encoded, queries, long_video=args.long_video, **options)
        except Exception as error:
            if len(videos) == 1 or not is_expected(error):
                raise
            complain(args, message_of(error))
            failed += 1
            continue
        finally:
            bar.close()
        results.append({"video": video, "answers": answers})
        if form == "text" and not args.out:
            shown = forms.as_text(results[-1], args.score_threshold, args.min_presence, named=len(videos) > 1)
            print(shown, flush=True)
    if form != "text" or args.out:
        limits = {"threshold": args.score_threshold, "min_presence": args.min_presence}
        forms.write(results, form, args.out, single=len(videos) == 1, **limits)
    if plots or clips:
        _draw_and_cut(results, videos, queries, plots, clips)
    return 1 if failed else 0


def videos_and_queries(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Tells videos from sentences: the first is a video, and so are files and names of video files that follow it.

    A video that is named twice is asked once.

    Raises:
        FileNotFoundError: a video does not exist.
        ValueError: there is no sentence.
    """
    from ..data.rows.schema import VIDEO_SUFFIXES

    videos, rest = args.video_or_query[:1], args.video_or_query[1:]
    while rest and (Path(rest[0]).suffix.lower() in VIDEO_SUFFIXES or is_file(rest[0])):
        videos.append(rest.pop(0))
    queries = [*rest, *(read_queries(args.queries) if args.queries else [])]
    for video in videos:
        if not is_file(video):
            raise FileNotFoundError(f"there is no video file '{video}'")
    if not queries:
        raise ValueError(
            'there is no sentence: give one or more in quotes after the video ("she opens the door"), or '
            "a file with one per line by --queries"
        )
    if blank := [i for i, query in enumerate(queries, start=1) if not query.strip()]:
        raise ValueError(f"sentence {blank[0]} is empty: say what to look for")
    return list(dict.fromkeys(videos)), queries


def read_queries(name: str) -> list[str]:
    """The sentences of a text file, one per line; "-" reads standard input."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{name}' is not UTF-8 text: save it as UTF-8") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _numbered(name: str | None, files: int, suffixes: tuple[str, ...], default: str) -> list[str]:
    """The name of the file to write; with several, each has a number before the suffix. All of them can be written."""
    if name is None:
        return []
    path = Path(name if Path(name).suffix else f"{name}{default}")
    names = [str(path)] if files == 1 else [str(path.with_stem(f"{path.stem}-{i}")) for i in range(1, files + 1)]
    for each in names:
        check_output(each, suffixes)
    return names


def _draw_and_cut(
    results: list[dict[str, Any]], videos: list[str], queries: list[str], plots: list[str], clips: list[str]
) -> None:
    """Pictures of the answers, and the best moment of each as a video; the answers have been shown before."""
    for result in results:
        i = videos.index(result["video"])
        if plots:
            from ..visualization import plot_moments

            plot_moments(result["answers"], result["video"], path=plots[i])
            print(f"picture: {printable(plots[i])}", file=sys.stderr)
        for j, answer in enumerate(result["answers"] if clips else ()):
            if not answer["moments"]:
                print(f"no clip of “{printable(answer['query'])}”: no moment was found", file=sys.stderr)
                continue
            from ..cutting import cut_clip

            best, out = answer["moments"][0], clips[i * len(queries) + j]
            cut_clip(result["video"], best["start"], best["end"], out)
            print(f"clip: {printable(out)}", file=sys.stderr)


def add_commands(commands: Commands) -> None:
    what = "find the moments that sentences describe in videos"
    command = commands.add("predict", predict, what, further="video_or_query")
    wanted = "one or more video files, then one or more sentences, each in quotes"
    command.add_argument("video_or_query", nargs="+", metavar="VIDEO... QUERY", help=wanted)
    command.add_argument("--queries", metavar="FILE", help="text file with one sentence per line (-: standard input)")
    add_checkpoint(command)
    command.add_argument("--csv", action="store_true", help="print a table: one line per moment")
    command.add_argument("--vtt", action="store_true", help="print WebVTT, which players show as chapters; one video")
    command.add_argument("--out", metavar="FILE", help="write the result here; .json, .csv and .vtt say in which form")
    command.add_argument("--plot", metavar="FILE", help="draw the answers to a picture (.png, .pdf, .svg)")
    command.add_argument("--clip", metavar="FILE", help="cut the best moment of each answer out of its video (.mp4)")
    command.add_argument("--top-k", type=count, default=3, help="at most so many moments per answer (3)")
    least = f"leave out moments that score less ({SCORE_THRESHOLD})"
    command.add_argument("--score-threshold", type=share, default=SCORE_THRESHOLD, help=least)
    command.add_argument("--min-presence", type=share, default=0.0, help="no moments where presence is lower (0)")
    command.add_argument("--nms-threshold", type=share, help="leave out moments that overlap a better one by more")
    command.add_argument("--long-video", choices=["window", "truncate", "resample"], help="for a long video (contract)")
