"""Command line `bmdetr`: each subcommand is a thin layer over the function that does the work.

Results go to standard output (as JSON with `--json`), progress and messages to standard error. A fault that can be
expected ends with one line on standard error and exit code 2.

Each group of commands has a file of its own. Nothing heavy is imported until a command runs, and a command needs only
the extras of its own task.
"""

import argparse
import sys
from collections.abc import Sequence

from . import checkpoints, evaluating, features, predicting, rows, searching
from .common import Commands


def build_parser() -> argparse.ArgumentParser:
    """The parser of every subcommand."""
    parser = argparse.ArgumentParser(prog="bmdetr", description="BM-DETR: moments in videos, found by sentences.")
    commands = Commands(parser)
    for group in (predicting, searching, features, rows, evaluating, checkpoints):
        group.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; the exit code is 0, 1 when the task found problems, or 2 on bad input."""
    args = build_parser().parse_args(argv)
    try:
        if getattr(args, "imports", []):
            from ..encoders_bmdetr import import_plugins

            import_plugins(args.imports)
        return int(args.function(args))
    except (ValueError, ImportError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"bmdetr {args.command}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"bmdetr {args.command}: interrupted", file=sys.stderr)
        return 130
