"""Metrics: `evaluate`."""

import argparse
import sys

from .common import PICTURE_SUFFIXES, Commands, check_output, seconds, share


def evaluate(args: argparse.Namespace) -> int:
    check_output(args.plot, PICTURE_SUFFIXES, read=(args.predictions, args.ground_truth))

    from ..evaluation import evaluate_submission, format_metrics, submission_reliability

    options = {"clip_length_s": args.clip_length, "presence_threshold": args.presence_threshold}
    metrics = evaluate_submission(args.predictions, args.ground_truth, **options)
    if args.plot:
        from ..visualization import plot_reliability

        plot_reliability(submission_reliability(args.predictions, args.ground_truth), args.plot)
        print(f"picture: {args.plot}", file=sys.stderr)
    print(format_metrics(metrics, "json" if args.json else args.format))
    return 0


def add_commands(commands: Commands) -> None:
    command = commands.add("evaluate", evaluate, "compute the metrics of predictions")
    command.add_argument("predictions", help="JSONL file of predictions")
    command.add_argument("ground_truth", help="JSONL file of canonical rows")
    command.add_argument("--format", choices=["table", "json", "markdown"], default="table", help="(table)")
    command.add_argument("--clip-length", type=seconds, default=2.0, help="seconds per clip, for highlights (2)")
    command.add_argument("--presence-threshold", type=share, default=0.5, help="up to it, queries are rejected (0.5)")
    command.add_argument("--plot", metavar="FILE", help="draw how far scores are probabilities (.png, .pdf, .svg)")
