"""Command line `bmdetr`: each subcommand is a thin layer over the function that does the work.

Results go to standard output (as JSON with `--json`), progress and messages to standard error. Exit codes: 0; 1 where
the task found problems, or where the package itself is at fault, which is said; 2 on a fault that can be expected
(input, files, devices, connections), with one line on standard error; 130 when interrupted.

Each group of commands has a file of its own. Nothing heavy is imported until a command runs, and a command needs only
the extras of its own task.
"""

import argparse
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from . import checkpoints, evaluating, features, predicting, rows, searching, serving, training
from .common import Commands, OneLineParser, complain, version
from .faults import is_expected, keep_traceback, message_of


def build_parser() -> argparse.ArgumentParser:
    """The parser of every subcommand."""
    parser = OneLineParser(prog="bmdetr", description="BM-DETR: moments in videos, found by sentences.")
    parser.add_argument("--version", action="version", version=f"bmdetr {version()}")
    commands = Commands(parser)
    for group in (predicting, searching, serving, features, rows, training, evaluating, checkpoints):
        group.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a letter that the console cannot show becomes an escape
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = build_parser().parse_args(arguments)
    try:
        with _quietly() if args.quiet else nullcontext():
            if getattr(args, "imports", []):
                from ..plugins_bmdetr import import_plugins

                import_plugins(args.imports)
            code = int(args.function(args))
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        complain(args, "interrupted")
        return 130
    except Exception as error:
        if is_expected(error):
            complain(args, message_of(error))
            return 2
        place = keep_traceback(error, arguments)
        complain(
            args,
            f"an unexpected {type(error).__name__}: {error}. This is a fault of bmdetr: please report it with the "
            f"traceback, which was written to {place}",
        )
        return 1


@contextmanager
def _quietly() -> Iterator[None]:
    """Without progress bars, logged warnings and Python's warnings."""
    from tqdm.std import tqdm

    level, draw = logging.root.manager.disable, tqdm.__init__

    def draw_nothing(bar: tqdm, *args: Any, **kwargs: Any) -> None:
        draw(bar, *args, **{**kwargs, "disable": True})

    tqdm.__init__ = draw_nothing  # type: ignore[method-assign, assignment]
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(level)
        tqdm.__init__ = draw  # type: ignore[method-assign]
