"""Metrics: `evaluate`."""

import argparse

from .common import Commands


def evaluate(args: argparse.Namespace) -> int:
    from ..evaluation import evaluate_submission, format_metrics

    metrics = evaluate_submission(args.predictions, args.ground_truth, clip_length_s=args.clip_length)
    print(format_metrics(metrics, "json" if args.json else args.format))
    return 0


def add_commands(commands: Commands) -> None:
    """Declares the commands of this group."""
    command = commands.add("evaluate", evaluate, "compute the metrics of predictions")
    command.add_argument("predictions", help="JSONL file of predictions")
    command.add_argument("ground_truth", help="JSONL file of canonical rows")
    command.add_argument("--format", choices=["table", "json", "markdown"], default="table", help="(table)")
    command.add_argument("--clip-length", type=float, default=2.0, help="seconds a clip, for highlights (2)")
