"""Folders of videos: `index` and `search`."""

import argparse
import sys
from contextlib import closing
from pathlib import Path

from ..files_bmdetr import require_writable
from .common import Bar, Commands, add_checkpoint, count, load_pipeline, printable, show


def index(args: argparse.Namespace) -> int:
    require_writable(args.out)

    from ..index import VideoIndex

    videos = VideoIndex(args.out, load_pipeline(args), _lasting_name(args.model))
    with closing(Bar("indexing", "video")) as progress:
        report = videos.update(args.folder, dtype=args.dtype, progress=progress)
    show(args, report.to_dict(), f"index '{args.out}': {report}")
    return 1 if report.failed else 0


def search(args: argparse.Namespace) -> int:
    from ..index import VideoIndex, read_index

    if args.model is None:
        args.model = read_index(args.index)["model"]
        where = "a folder here" if Path(args.model).is_dir() else "looked up on the Hub, which learns of it"
        if not args.quiet:  # the index of somebody else may name any
            said = f"the index names the model {args.model}, {where}; --model names another"
            print(printable(said), file=sys.stderr)
    videos = VideoIndex(args.index, load_pipeline(args), _lasting_name(args.model))
    with closing(Bar("searching", "video")) as progress:
        found = videos.search(args.query, args.top, prefilter=args.prefilter, progress=progress)
    lines = []
    for query, hits in zip(args.query, found, strict=True):
        lines += [printable(query)] * (len(args.query) > 1)
        for hit in hits:
            presence = "" if hit.presence is None else f"   presence {hit.presence:.3f}"
            lines.append(
                f"{hit.start:9.2f} s - {hit.end:9.2f} s   score {hit.score:.3f}{presence}   {printable(hit.video)}"
            )
    answers = [{"query": q, "hits": [vars(hit) for hit in hits]} for q, hits in zip(args.query, found, strict=True)]
    show(args, {"index": args.index, "answers": answers}, "\n".join(lines))
    return 0


def _lasting_name(model: str) -> str:
    """A folder's name from wherever a later command is given; a name on the Hub as it is."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def add_commands(commands: Commands) -> None:
    text = "encode the videos of a folder, to be searched; run again, only what changed"
    command = commands.add("index", index, text)
    command.add_argument("folder", help="folder of the video files, searched with its subfolders")
    command.add_argument("--out", required=True, help="the index")
    add_checkpoint(command)
    command.add_argument("--dtype", choices=["float16", "float32"], help="number type of a new index (float16)")

    command = commands.add("search", search, "find the moments that sentences describe in all videos of an index")
    command.add_argument("index", help="what `bmdetr index` wrote")
    command.add_argument("query", nargs="+", help="sentences, each in quotes")
    command.add_argument("--top", type=count, default=10, help="moments per sentence, one per video at most (10)")
    text = "ask the whole model about the N videos with clips most similar to the sentence only (all)"
    command.add_argument("--prefilter", type=count, metavar="N", help=text)
    add_checkpoint(command, default="the one that the index was made with")
