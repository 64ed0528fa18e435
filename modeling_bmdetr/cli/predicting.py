"""Asking a model about videos: `predict`."""

import argparse
import sys

from .common import Bar, Commands, show


def predict(args: argparse.Namespace) -> int:
    from .. import BMDetrForMomentRetrieval, BMDetrProcessor, MomentRetrievalPipeline

    model = BMDetrForMomentRetrieval.from_pretrained(args.model, revision=args.revision)
    processor = BMDetrProcessor.from_pretrained(args.model, revision=args.revision)
    pipe = MomentRetrievalPipeline(model, processor=processor, device=args.device)
    bar = Bar("clips")
    video = pipe.encode_video(args.video, progress=bar)
    bar.close()
    options = {"top_k": args.top_k, "score_threshold": args.score_threshold, "nms_threshold": args.nms_threshold}
    answers = pipe(video, args.query, long_video=args.long_video, **options)
    if args.plot:
        from ..visualization import plot_moments

        plot_moments(answers, args.video, path=args.plot)
        print(f"picture: {args.plot}", file=sys.stderr)
    lines = []
    for answer in answers:
        lines.append(answer["query"])
        lines += [f"  {m['start']:8.2f} s - {m['end']:8.2f} s   score {m['score']:.3f}" for m in answer["moments"]]
        lines += ["  no moment above the score threshold"] * (not answer["moments"])
    show(args, {"video": args.video, "answers": answers}, "\n".join(lines))
    return 0


def add_commands(commands: Commands) -> None:
    """Declares the commands of this group."""
    command = commands.add("predict", predict, "find the moments that sentences describe in a video")
    command.add_argument("video", help="a video file")
    command.add_argument("query", nargs="+", help="sentences, each in quotes")
    command.add_argument("--model", required=True, help="checkpoint: a folder, or a name on the Hub")
    command.add_argument("--revision", help="branch, tag or commit on the Hub")
    command.add_argument("--plot", metavar="FILE", help="draw the answers to a picture (.png, .pdf, .svg)")
    command.add_argument("--top-k", type=int, default=3, help="moments an answer (3)")
    command.add_argument("--score-threshold", type=float, default=0.0, help="leave out moments that score less (0)")
    command.add_argument("--nms-threshold", type=float, help="leave out moments that overlap a better one by more")
    command.add_argument("--long-video", choices=["window", "truncate", "resample"], help="for a long video (contract)")
    command.add_argument("--device", help="such as cuda:0 (the first accelerator, else the CPU)")
