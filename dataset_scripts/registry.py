"""The data sets by name. Their modules are imported when asked for, not before.

`open_benchmark` is the one way to a data set: the command line, recipes and `load_benchmark` all go through it, so that
all read the same rows.
"""

from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets

# Module in this package -> class in it. `moving_shapes` renders its videos into the folder that the others read.
BENCHMARKS: dict[str, str] = {
    "charades_sta": "CharadesSTA",
    "charades_cd": "CharadesCD",
    "activitynet_captions": "ActivityNetCaptions",
    "tacos": "TACoS",
    "qvhighlights": "QVHighlights",
    "moving_shapes": "MovingShapes",
}


def builder_class(name: str) -> type[datasets.DatasetBuilder]:
    """The builder of a data set by its name in snake case.

    Raises:
        ValueError: there is no data set of that name; the message lists those there are.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"Unknown data set {name!r}. Known: {', '.join(BENCHMARKS)}.")
    return getattr(import_module(f".{name}", __package__), BENCHMARKS[name])


def open_benchmark(name: str, data_dir: str | Path | None, **options: Any) -> Any:
    """The builder of a data set over its files in `data_dir`; those of the benchmarks have `rows(split)`.

    `options` are those of the builder: `cache_dir`, and `splits`, `train_rules`, `released_jsonl`, `absent_share` and
    `absent_seed` for the benchmarks. Those that are None are left out.

    Raises:
        ValueError: there is no such data set, or it has no such option.
        FileNotFoundError: files are missing from `data_dir`.
    """
    builder = builder_class(name)
    given = {option: value for option, value in options.items() if value is not None}
    known = {"cache_dir", *(field.name for field in fields(builder.BUILDER_CONFIG_CLASS))}
    if unknown := sorted(set(given) - known):
        why = "" if "splits" in known else "; it is rendered, not read: export it, and name the JSONL files"
        raise ValueError(f"the data set {name} has no options {', '.join(unknown)}{why}")
    return builder(data_dir=data_dir, **given)


def load_benchmark(name: str, data_dir: str | Path | None, **options: Any) -> datasets.DatasetDict:
    """Build a data set from its files in `data_dir` and return its splits; `options` as in `open_benchmark`."""
    builder = open_benchmark(name, data_dir, **options)
    builder.download_and_prepare()
    return builder.as_dataset()
