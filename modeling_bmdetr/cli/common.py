"""What the commands share: how one is declared, how results are shown, a progress bar."""

import argparse
import json
from collections.abc import Callable
from typing import Any


class Commands:
    """The subcommands of a parser; each has `--json` and a function from its arguments to the exit code."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(self, name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        """Adds a subcommand and returns its parser; `text` says in one line what the command does."""
        command = self.subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(function=function)
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        return command


def add_plugins(command: argparse.ArgumentParser) -> None:
    """Declares `--import`: modules that register encoders, imported by `main` before the command runs."""
    plugins = "modules that register further encoders, imported first"
    command.add_argument("--import", dest="imports", nargs="+", default=[], metavar="MODULE", help=plugins)


class Bar:
    """A progress bar that `encode_video` can call with (done, total); it appears with the first call."""

    def __init__(self, unit: str):
        self.unit = unit
        self.bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        from tqdm.auto import tqdm

        if self.bar is None:
            self.bar = tqdm(total=total, unit=self.unit, desc="encoding the video")
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def show(args: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    """Prints a result: as JSON if the command was asked to, else as text."""
    print(json.dumps(result, indent=2, default=str) if args.json else text)
