"""The report of `bench.py`: its figures as Markdown, and growth as a plot.

A part's figures are `rows`: by label, a unit (where it is the same in every
column) and the values of every run by side. Some have `differences` between the
sides, `notes`, and `growth`: by what grows, the sizes and, for each quantity, a value per size.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modeling_bmdetr.tables import markdown_table

TITLES = {
    "commands": "Cold start of each command",
    "answer": "First answer about an mp4 file, in a fresh process",
    "queries": "Many queries about one encoded video",
    "videos": "One query about each of many video files",
    "batch": "Making one training batch from the files",
    "update": "Training update",
    "epoch": "Epoch",
    "evaluation": "Evaluation",
    "metrics": "Metrics of what was evaluated",
    "submission": "Metrics of a submission",
    "memory": "Peak memory, a fresh process for each figure",
    "forms": "A training update in other forms",
    "growth": "Growth",
}
REFERENCE = "released code"


def report(results: Mapping[str, Any]) -> str:
    """The whole report; numerical differences between the sides come first."""
    lines = ["# Benchmarks", "", f"Machine: {results['machine']}.", ""]
    if results["quick"]:
        lines += ["Measured with `--quick`: a test that everything runs; the figures mean nothing.", ""]
    for part in results["parts"].values():
        if differences := part.get("differences"):
            lines += ["Both sides with the same weights on the same batch, largest differences:", ""]
            lines += [f"- {name}: {value:.2g}" for name, value in differences.items()] + [""]
            break
    for name, part in results["parts"].items():
        lines += [f"## {TITLES[name]}", "", *table(part.get("rows", {})), *growth_tables(part.get("growth", {}))]
        busy = " to ".join(f"{load:g}" for load in part["load"])
        lines += [*part.get("notes", []), f"Load average while measuring: {busy}.", ""]
    return "\n".join(lines)


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Median and range of every row, a column for each side, and how many times as fast as the reference each is."""
    if not rows:
        return []
    sides = list(dict.fromkeys(side for row in rows.values() for side in row["values"]))
    labels = [f"{label}, {row['unit']}" if "unit" in row else label for label, row in rows.items()]
    cells = [[cell(row["values"], side) for side in sides] for row in rows.values()]
    lines = [[label, *line] for label, line in zip(labels, cells, strict=True)]
    return [markdown_table(["median (lowest..highest)", *sides], lines), ""]


def cell(values: Mapping[str, Sequence[float]], side: str) -> str:
    if not values.get(side):
        return "-"
    runs = values[side]
    median = statistics.median(runs)
    text = number(median) if len(runs) == 1 else f"{number(median)} ({number(min(runs))}..{number(max(runs))})"
    if side != REFERENCE and values.get(REFERENCE) and median:
        text += f", {statistics.median(values[REFERENCE]) / median:.2f}x"
    return text


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def growth_tables(growth: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, series in growth.items():
        columns = [key for key in series if key != "sizes"]
        by_size = zip(series["sizes"], *(series[key] for key in columns), strict=True)
        rows = [[f"{size:,}", *("-" if v is None else number(v) for v in values)] for size, *values in by_size]
        lines += [markdown_table([name, *columns], rows), ""]
    return lines


def plot_growth(growth: Mapping[str, Any], path: Path) -> None:
    """A row of axes for what grows: time to the left, memory to the right, both logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3 * len(growth)), layout="constrained")
    axes = figure.subplots(len(growth), 2, squeeze=False)
    for (name, series), (seconds, memory) in zip(growth.items(), axes, strict=True):
        for key, values in series.items():
            if key == "sizes":
                continue
            axis = memory if key.endswith("MiB") else seconds
            drawn = [(size, value) for size, value in zip(series["sizes"], values, strict=True) if value is not None]
            axis.plot(*zip(*drawn, strict=True), marker="o", label=key)
        for axis, unit in ((seconds, "ms"), (memory, "MiB")):
            axis.set(xscale="log", yscale="log", xlabel=name, ylabel=unit)
            axis.grid(alpha=0.3)
            axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)
