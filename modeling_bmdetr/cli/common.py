"""What the commands share: how one is declared, the checks that come before anything slow, how results are shown."""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files_bmdetr import is_device, require_writable

DEVICE = re.compile(r"(cpu|cuda|mps|xpu|npu|hpu|xla|meta)(:\d+)?")
PICTURE_SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaint is one line, as that of every other fault.

    Args:
        further: Name of the list that takes words after options too, such as the sentences of `predict`; argparse ends
            a list at the first option.
    """

    def __init__(self, *args: Any, further: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.further = further

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = super().parse_known_args(args, namespace)
        before = rest[: rest.index("--")] if "--" in rest else rest  # all that follows `--` are words
        if rest and (self.further is None or any(word.startswith("-") for word in before)):
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        if self.further is not None:
            getattr(found, self.further).extend([*before, *rest[len(before) + 1 :]])
        return found, []

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: {printable(message)} (see `{self.prog} --help`)\n")


class Commands:
    """The subcommands of a parser; each has `--json`, `--quiet` and a function from its arguments to the exit code."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.subparsers = parser.add_subparsers(
            dest="command", required=True, metavar="COMMAND", parser_class=OneLineParser
        )

    def add(
        self, name: str, function: Callable[[argparse.Namespace], int], text: str, **options: Any
    ) -> argparse.ArgumentParser:
        """Adds a subcommand and returns its parser, an [`OneLineParser`] with `options`.

        Args:
            text: One line that says what the command does.
        """
        description = text[0].upper() + text[1:] + "."
        command = self.subparsers.add_parser(name, help=text, description=description, **options)
        command.set_defaults(function=function)
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        command.add_argument("--quiet", action="store_true", help="no progress bars and no warnings")
        return command


def add_plugins(command: argparse.ArgumentParser) -> None:
    """Declares `--import`: modules that register encoders and losses, imported by `main` before the command runs."""
    plugins = "a module that registers further encoders or losses, imported first; may be given several times"
    command.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE", help=plugins)


def add_checkpoint(command: argparse.ArgumentParser, default: str | None = None) -> None:
    """Declares the checkpoint that answers (`default` says in words which, where it may be left out), its plug-ins, and
    where it runs; `load_pipeline` reads them."""
    add_plugins(command)
    model = f"checkpoint ({default})" if default else "checkpoint: a folder, or a name on the Hub"
    command.add_argument("--model", required=default is None, help=model)
    command.add_argument("--revision", help="branch, tag or commit on the Hub")
    command.add_argument("--device", type=device, help="such as cuda:0 (the first accelerator, else the CPU)")


def load_pipeline(args: argparse.Namespace) -> Any:
    """The pipeline of the arguments that `add_checkpoint` declares."""
    check_device(args.device)
    model, processor = load_checkpoint(args.model, args.revision)

    from .. import MomentRetrievalPipeline

    return MomentRetrievalPipeline(model, processor=processor, device=args.device)


def load_checkpoint(name: str, revision: str | None) -> tuple[Any, Any]:
    """The model and the processor of a checkpoint."""
    check_model(name)

    from .. import BMDetrForMomentRetrieval, BMDetrProcessor

    with model_errors(name):
        kinds: tuple[Any, Any] = (BMDetrForMomentRetrieval, BMDetrProcessor)
        model, processor = (kind.from_pretrained(name, revision=revision) for kind in kinds)
    return model, processor


# ------------------------------------------------------------------------------------------------- values of arguments


def number_type(
    name: str, kind: Callable[[str], Any], fits: Callable[[Any], bool], wanted: str
) -> Callable[[str], Any]:
    """The type of an argument that is a number of this kind and fits; `wanted` says what it must be."""

    def parse(text: str) -> Any:
        if not fits(value := kind(text)):
            raise argparse.ArgumentTypeError(f"must be {wanted}, received {text}")
        return value

    parse.__name__ = name  # argparse names it where the text is no number
    return parse


share = number_type("share", float, lambda value: 0 <= value <= 1, "a number between 0 and 1")
count = number_type("count", int, lambda value: value >= 1, "a whole number of at least 1")
count_or_none = number_type("count_or_none", int, lambda value: value >= 0, "a whole number of at least 0")
port = number_type("port", int, lambda value: 1 <= value <= 65535, "a port from 1 to 65535")
seconds = number_type("seconds", float, lambda value: 0 < value < math.inf, "a positive number of seconds")


def part_of(text: str) -> tuple[int, int]:
    """The I-th of N parts, written `I/N`."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, such as 1/8, received {text!r}")
    return int(index), int(count)


def device(text: str) -> str:
    """A device by PyTorch's name; whether this machine has it is found out by `check_device`."""
    if not DEVICE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be a device such as cpu, cuda or cuda:0, received {text!r}")
    return text


# ------------------------------------------------------------------------------------------ checks before anything slow


def check_model(name: str) -> None:
    """Refuses a name of a checkpoint that can be neither a folder with one nor a repository on the Hub."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"the folder '{name}' is no checkpoint: it holds no config.json")
    elif folder.exists():
        raise NotADirectoryError(f"'{name}' is a file; a checkpoint is the folder that it lies in")
    elif not REPOSITORY.fullmatch(name) or name.startswith("."):
        raise FileNotFoundError(f"there is no model folder '{name}'")


def check_folder(name: str) -> None:
    """Refuses a name that is no folder."""
    if not Path(name).is_dir():
        what = "is a file, not a folder" if Path(name).exists() else "does not exist"
        raise FileNotFoundError(f"the folder '{name}' {what}")


def check_device(name: str | None) -> None:
    """Refuses a device that this machine does not have."""
    if name is None or name == "cpu":
        return
    import torch

    kind, _, index = name.partition(":")
    backend = getattr(torch, kind, None)
    found = backend.device_count() if backend is not None and hasattr(backend, "device_count") else 0
    if found <= int(index or 0):
        raise ValueError(f"there is no device '{name}' on this machine (found {found} of the kind '{kind}'); try cpu")


def check_output(path: str | None, suffixes: tuple[str, ...] = (), read: Iterable[str | None] = ()) -> None:
    """Refuses a file that cannot be written, whose suffix names no format that is known, or that is `read` as well."""
    if path is None:
        return
    file = Path(path)
    check_not_read(file, read)
    if suffixes and file.suffix.lower() not in suffixes:
        raise ValueError(f"'{path}' must end with one of {', '.join(suffixes)}, which says what kind of file it is")
    if file.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder; name a file in it")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no folder '{file.parent}' to write '{file.name}' to")
    if not is_device(file):
        require_writable(file.parent)
    if file.exists() and not os.access(file, os.W_OK):
        raise PermissionError(f"'{path}' cannot be written; choose another place or change its permissions")


def check_not_read(file: Path, read: Iterable[str | None]) -> None:
    """Refuses to replace a file that is `read`."""
    if is_file(str(file)) and any(source and is_file(source) and file.samefile(source) for source in read):
        raise ValueError(f"'{file}' is what is read, and would be lost: write to another file")


def is_file(name: str) -> bool:
    """Whether a text from the command line is the name of a file that is there."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long, or a letter that no file name has
        return False


@contextmanager
def model_errors(name: str) -> Iterator[None]:
    """Says of a name that is no folder here that the Hub was asked for it, in one line."""
    try:
        yield
    except OSError as error:
        if Path(name).is_dir() or isinstance(error, ConnectionError):
            raise
        reason = printable(str(error)).split(". ")[0]
        raise OSError(f"there is no folder '{name}', and the Hub gave no checkpoint of that name: {reason}") from error


def checked_rows(path: str, fields: tuple[str, ...]) -> Any:
    """The rows of a JSONL file, refused where one of the fields that the command reads is missing or wrong."""
    from ..data import read_rows, validate_rows

    rows = read_rows(path)
    report = validate_rows(rows, require_windows=False)
    report.problems = [problem for problem in report.problems if problem.field in fields or not problem.field]
    report.raise_for_errors()
    return rows


# ------------------------------------------------------------------------------------------------------------- showing


class Bar:
    """A progress bar, called with (done, total), or with (what is under way, done, total); it appears with the first
    call."""

    def __init__(self, text: str, unit: str = "clips"):
        self.text, self.unit = text, unit
        self.bar: Any = None

    def __call__(self, *progress: Any) -> None:
        from tqdm.auto import tqdm

        *under_way, done, total = progress
        if self.bar is None:
            self.bar = tqdm(total=total, unit=self.unit, desc=self.text)
        self.bar.total = total
        self.bar.set_postfix_str("".join(under_way)[-40:], refresh=False)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def printable(text: str) -> str:
    """The text on one line, with characters that would steer the terminal, or cannot be encoded, as escapes."""
    words = " ".join(text.split())
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)


def show(args: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    """Prints a result: as JSON if the command was asked to, else as text."""
    print(json.dumps(result, indent=2, default=str) if args.json else text)


def complain(args: argparse.Namespace, message: str) -> None:
    """Prints one line about a fault on standard error."""
    print(f"bmdetr {args.command}: {printable(message)}", file=sys.stderr)


def version() -> str:
    """The version of the installed package."""
    from importlib import metadata

    try:
        return metadata.version("modeling-bmdetr")
    except metadata.PackageNotFoundError:
        return "(not installed)"
