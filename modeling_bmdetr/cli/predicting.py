"""Asking a model about videos: `predict`."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from .common import Bar, Commands, add_plugins, show

ABSENT_BELOW = 0.5  # presence below which an answer says that the video does not show it


def predict(args: argparse.Namespace) -> int:
    from .. import BMDetrForMomentRetrieval, BMDetrProcessor, MomentRetrievalPipeline

    model = BMDetrForMomentRetrieval.from_pretrained(args.model, revision=args.revision)
    processor = BMDetrProcessor.from_pretrained(args.model, revision=args.revision)
    pipe = MomentRetrievalPipeline(model, processor=processor, device=args.device)
    bar = Bar("clips")
    video = pipe.encode_video(args.video, progress=bar)
    bar.close()
    names = ("top_k", "score_threshold", "nms_threshold", "min_presence")
    options = {name: getattr(args, name) for name in names}
    answers = pipe(video, args.query, long_video=args.long_video, **options)
    if args.plot:
        from ..visualization import plot_moments

        plot_moments(answers, args.video, path=args.plot)
        print(f"picture: {args.plot}", file=sys.stderr)
    lines = []
    for answer in answers:
        lines.append(answer["query"] + told_presence(answer, args.min_presence))
        lines += [f"  {m['start']:8.2f} s - {m['end']:8.2f} s   score {m['score']:.3f}" for m in answer["moments"]]
        lines += ["  no moment above the thresholds"] * (not answer["moments"])
    if not pipe.is_calibrated:
        print("scores are not calibrated: they rank, but are no probabilities (bmdetr calibrate)", file=sys.stderr)
    show(args, {"video": args.video, "answers": answers}, "\n".join(lines))
    return 0


def told_presence(answer: Mapping[str, Any], min_presence: float) -> str:
    """What the head of an answer says of presence: nothing where the model does not tell."""
    presence = answer.get("presence")
    if presence is None:
        return ""
    return f" ({'not in this video, ' if presence < max(min_presence, ABSENT_BELOW) else ''}presence {presence:.2f})"


def add_commands(commands: Commands) -> None:
    """Declares the commands of this group."""
    command = commands.add("predict", predict, "find the moments that sentences describe in a video")
    add_plugins(command)
    command.add_argument("video", help="a video file")
    command.add_argument("query", nargs="+", help="sentences, each in quotes")
    command.add_argument("--model", required=True, help="checkpoint: a folder, or a name on the Hub")
    command.add_argument("--revision", help="branch, tag or commit on the Hub")
    command.add_argument("--plot", metavar="FILE", help="draw the answers to a picture (.png, .pdf, .svg)")
    command.add_argument("--top-k", type=int, default=3, help="moments an answer (3)")
    command.add_argument("--score-threshold", type=float, default=0.0, help="leave out moments that score less (0)")
    command.add_argument("--min-presence", type=float, default=0.0, help="no moments where presence is lower (0)")
    command.add_argument("--nms-threshold", type=float, help="leave out moments that overlap a better one by more")
    command.add_argument("--long-video", choices=["window", "truncate", "resample"], help="for a long video (contract)")
    command.add_argument("--device", help="such as cuda:0 (the first accelerator, else the CPU)")
