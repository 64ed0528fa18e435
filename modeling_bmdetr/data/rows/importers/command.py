"""`bmdetr import`: its arguments, and what it does with them."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..jsonl import write_rows
from .importing import FORMATS, ImportOptions, import_annotations
from .table import ROLES

TEXT = "turn annotations (tables, captions, Label Studio, VIA, ELAN, JSONL) into rows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bmdetr import`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help=".csv .tsv .xlsx .json .eaf .vtt .srt .jsonl")
    parser.add_argument("--out", required=True, help="JSONL file of canonical rows to write")
    parser.add_argument("--videos", help="folder of the videos, for durations and frame rates that the files lack")
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that reads annotations of any format; `options_of` reads them."""
    parser.add_argument("--format", choices=FORMATS, help="of the files (told from name and content)")
    columns = f"tables: what a column is, by name or number, for {', '.join(ROLES)} (guessed from their names)"
    parser.add_argument("--columns", nargs="+", default=[], metavar="ROLE=NAME", help=columns)
    parser.add_argument("--fps", type=float, help="frames per second that frame numbers count (file, then video)")
    past_end = "a moment that ends more than 1 s after its video (error)"
    parser.add_argument("--past-end", choices=["error", "clip", "keep"], default="error", help=past_end)
    header = "tables: line of the column names, 0 for none (first)"
    parser.add_argument("--header", type=int, metavar="LINE", help=header)
    units = "tables: unit of start and end; seconds include 1:05 and 00:01:05,500 (told from the names, else seconds)"
    parser.add_argument("--times", choices=["seconds", "milliseconds", "frames"], help=units)
    parser.add_argument("--decimal", choices=[".", ","], default=".", help="tables: decimal mark (.)")
    parser.add_argument("--delimiter", help="tables: what separates cells (the most frequent of , ; | and tab)")
    parser.add_argument("--sheet", help="spreadsheets: name of the sheet (the first)")
    parser.add_argument("--encoding", help="of text files (UTF-8, or UTF-16 with its mark)")
    parser.add_argument("--video", help="captions, ELAN: the video that the file is about (by its name)")
    parser.add_argument("--tier", action="append", dest="tiers", help="ELAN: a tier that holds sentences; repeatable")
    parser.add_argument("--attribute", help="VIA: the attribute that holds the sentence")


def options_of(args: argparse.Namespace) -> ImportOptions:
    """What the arguments of `add_reading` say."""
    given = {field.name: getattr(args, field.name) for field in fields(ImportOptions)}
    return ImportOptions(**{**given, "columns": columns_of(args.columns)})


def run(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Imports and writes, whole or not at all; returns the report as data and as text.

    Raises:
        ValueError, OSError, ImportError: see `import_annotations`.
    """
    rows, report = import_annotations(args.files, args.videos, options_of(args))
    write_rows(args.out, rows)
    return {"out": args.out, **report.to_dict()}, f"{report}\nwritten to '{args.out}'"


def columns_of(given: Sequence[str]) -> dict[str, str]:
    """Columns by role, from `ROLE=NAME`."""
    columns = {}
    for entry in given:
        role, equals, name = entry.partition("=")
        if not equals or not name:
            raise ValueError(f"columns must be ROLE=NAME, such as query=Sentence, received {entry!r}")
        columns[role] = name
    return columns
