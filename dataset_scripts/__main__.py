"""Command line of the data sets: `python -m dataset_scripts list|stats|export`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from modeling_bmdetr.data import CleaningRules, check_text_features
from modeling_bmdetr.files_bmdetr import require_writable, write_json

from .builder import BenchmarkBuilder
from .export import export, push_to_hub
from .registry import BENCHMARKS, builder_class, open_benchmark
from .split_statistics import builder_statistics, format_statistics, statistics_as_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or 2 on bad input, with one message on standard error."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except datasets.exceptions.DatasetGenerationError as error:
        print(f"error: {error.__cause__ or error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dataset_scripts", description="The benchmarks as data sets.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="name the data sets, their splits, files and licences")
    listing.set_defaults(run=_list)

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("name", choices=list(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS))
    files = "folder with the original files; for moving_shapes, where to render the videos"
    shared.add_argument("--data-dir", required=True, help=files)
    shared.add_argument("--splits", nargs="+", help="read only these splits")
    shared.add_argument("--cache-dir", help="where prepared data are kept (default: the cache of `datasets`)")
    released = "Charades only: folder of the annotation files that text features were made from"
    shared.add_argument("--released-jsonl", help=released)

    stats = commands.add_parser("stats", parents=[shared], help="print statistics and dirt of every split")
    stats.add_argument("--format", choices=("table", "markdown", "json"), default="table")
    stats.add_argument("--out", type=Path, help="also write the statistics as JSON to this file")
    stats.set_defaults(run=_stats)

    exporting = commands.add_parser("export", parents=[shared], help="write Parquet and JSONL for load_dataset")
    exporting.add_argument("--out", type=Path, required=True, help="folder to write to")
    exporting.add_argument("--drop-duplicates", action="store_true", help="drop repeated rows from the training split")
    exporting.add_argument("--drop-zero-length", action="store_true", help="drop empty windows from the training split")
    exporting.add_argument("--clip-windows", action="store_true", help="cut windows of the training split at the end")
    exporting.add_argument("--absent-share", type=float, help="add absent rows by rule, per row that has a moment (0)")
    exporting.add_argument("--absent-seed", type=int, help="seed of these draws (0)")
    exporting.add_argument("--text-features", help="folder of qid<qid>.npz; refuse to export rows it does not fit")
    exporting.add_argument("--push-to-hub", metavar="REPO", help="upload the export to this data set repository")
    exporting.add_argument("--public", action="store_true", help="make a new repository public; mind the licence")
    exporting.set_defaults(run=_export)
    return parser


def _list(options: argparse.Namespace) -> None:  # noqa: ARG001
    for name in BENCHMARKS:
        builder = builder_class(name)
        print(name)
        if issubclass(builder, BenchmarkBuilder):
            print(f"  splits: {', '.join(builder.all_splits())}\n{builder.describe_files()}")
        else:
            print(f"  {(builder.__doc__ or '').strip().splitlines()[0]}")


def _builder(options: argparse.Namespace, **more: Any) -> datasets.DatasetBuilder:
    shared = {name: getattr(options, name) for name in ("cache_dir", "splits", "released_jsonl")}
    return open_benchmark(options.name, options.data_dir, **shared, **more)


def _stats(options: argparse.Namespace) -> None:
    if options.out is not None:
        require_writable(options.out.parent)
    statistics = builder_statistics(_builder(options))
    plain = statistics_as_json(statistics)
    if options.out is not None:
        write_json(options.out, plain)
    markdown = options.format == "markdown"
    print(json.dumps(plain, indent=2) if options.format == "json" else format_statistics(statistics, markdown=markdown))


def _export(options: argparse.Namespace) -> None:
    require_writable(options.out)
    rules = CleaningRules(
        past_end="clip" if options.clip_windows else "keep",
        zero_length="drop" if options.drop_zero_length else "keep",
        duplicates="drop" if options.drop_duplicates else "keep",
    )
    more = {"absent_share": options.absent_share, "absent_seed": options.absent_seed}
    builder = _builder(options, train_rules=None if rules == CleaningRules() else rules, **more)
    if isinstance(builder, BenchmarkBuilder):
        for split in builder.splits:
            print(f"{split}: {builder.cleaning_report(split).format()}")
            if options.text_features is not None:
                _refuse_other_features(builder, split, options.text_features)
    for path in export(builder, options.out):
        print(path)
    if options.push_to_hub is not None:
        print(push_to_hub(options.out, options.push_to_hub, private=not options.public))


def _refuse_other_features(builder: BenchmarkBuilder, split: str, folder: str) -> None:
    problems, note = check_text_features(builder.rows(split), folder)
    if problems:
        listed = "\n".join(str(problem) for problem in problems[:10])
        more = f"\n... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"the text features do not fit the rows of {split}:\n{listed}{more}")
    print(f"{split}: {note}")


if __name__ == "__main__":
    sys.exit(main())
