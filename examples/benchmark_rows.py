"""Tells the recipes of the benchmarks of `dataset_scripts`; importing this is enough."""

from collections.abc import Mapping
from typing import Any

from dataset_scripts.builder import BenchmarkBuilder
from dataset_scripts.registry import BENCHMARKS, builder_class, open_benchmark
from modeling_bmdetr.recipes import register_benchmarks
from modeling_bmdetr.recipes.recipe import DATA, suggestion


def benchmark_of(data: Mapping[str, Any], split: str) -> BenchmarkBuilder:
    """The builder of a split, from the section `data` of a recipe."""
    if data["benchmark"] not in BENCHMARKS:
        hint = suggestion(data["benchmark"], BENCHMARKS)
        raise ValueError(
            f"`data.benchmark` must be one of {', '.join(BENCHMARKS)}, received {data['benchmark']!r}{hint}"
        )
    if not data.get("data_dir"):
        raise ValueError(f"`data.data_dir` is missing: {DATA['data_dir']}")
    released = data.get("released_jsonl") or None
    return open_benchmark(data["benchmark"], data["data_dir"], splits=(split,), released_jsonl=released)


register_benchmarks(lambda data, split: benchmark_of(data, split).rows(split), lambda name: builder_class(name).TITLE)
