"""The data sets by name. Their modules are imported when asked for, not before."""

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


def load_benchmark(name: str, data_dir: str | Path, **options: Any) -> datasets.DatasetDict:
    """Build a data set from its files in `data_dir` and return its splits.

    `options` are those of the builder: `cache_dir`, `splits`, `train_rules`, `released_jsonl` for the benchmarks.
    """
    builder = builder_class(name)(data_dir=str(data_dir), **options)
    builder.download_and_prepare()
    return builder.as_dataset()
