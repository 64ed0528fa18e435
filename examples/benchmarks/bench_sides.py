"""The parts of `bench.py` that can have the released code beside them: each side is a process, and they take turns."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

RELEASED, FILES, PACKED = "released code", "this package, same files", "this package, packed store"
SIDE_NAMES = {RELEASED: "released", FILES: "files", PACKED: "packed"}
# Of an operation: the part, what its figure is for, and the sides that differ by it.
OPERATIONS = {
    "batch": ("prepare", "a batch", (RELEASED, FILES, PACKED)),
    "update": ("step", "an update on one batch", (RELEASED, PACKED)),
    "epoch": ("epoch", "a query trained", (RELEASED, PACKED)),
    "evaluation": ("evaluate", "a query", (RELEASED, FILES, PACKED)),
    "metrics": ("metrics", "all queries", (RELEASED, PACKED)),
}
EPOCHS = 3  # runs of the epoch, which are long


@contextmanager
def side_process(side: str, folder: Path, options: Namespace) -> Iterator[Callable[[str | None], dict[str, Any]]]:
    """A side in a process of its own, so that its memory can be told from the other's: what measures its operations."""
    from speed_sides import measure, start_side

    with ProcessPoolExecutor(1, get_context("spawn"), start_side, (side, folder, options)) as pool:
        yield lambda operation: pool.submit(measure, operation).result()


def sides_of(part: str, options: Namespace) -> list[str]:
    return [side for side in OPERATIONS[part][2] if side != RELEASED or options.released_code]


def compare_sides(part: str, folder: Path, options: Namespace) -> dict[str, Any]:
    """An operation of every side, in turns; the first run is not counted, but for the epoch."""
    operation, per, _ = OPERATIONS[part]
    names = sides_of(part, options)
    runs = min(options.repeats, EPOCHS) if part == "epoch" else options.repeats + 1
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    result: dict[str, Any] = {}
    if options.released_code:
        with side_process("equality", folder, options) as both:
            result["differences"] = both("compare")["returned"]
    peaks: list[dict[str, float]] = []
    with ExitStack() as stack:
        ask = {name: stack.enter_context(side_process(SIDE_NAMES[name], folder, options)) for name in names}
        for name in names if part == "metrics" else ():
            ask[name]("evaluate")
        for number in range(runs):
            for place in range(len(names)):  # another side goes first each time
                name = names[(place + number) % len(names)]
                answers[name].append(ask[name](operation))
            if part == "update":
                peaks.append(ask[PACKED]("matrix_peak")["returned"])
        flops = ask[PACKED]("flops")["returned"]["flops"] if part == "update" else None
    counted = {name: some if part == "epoch" else some[1:] for name, some in answers.items()}
    result["rows"] = {
        f"{title} of {per}": {
            "unit": "ms",
            "values": {
                name: [1000 * one[kind] / units(part, one, options) for one in some] for name, some in counted.items()
            },
        }
        for title, kind in (("time", "clock_s"), ("processor time", "cpu_s"))
    }
    if part != "metrics":  # its process has evaluated before
        peaks_mib = {name: [some[-1]["peak_mib"]] for name, some in answers.items()}
        result["rows"]["peak memory"] = {"unit": "MiB", "values": peaks_mib}
    if part == "epoch":
        trained = {name: [one["returned"]["queries"] for one in some] for name, some in counted.items()}
        result["rows"]["queries trained"] = {"unit": "number", "values": trained}
    if flops is not None:
        reached = [flops / seconds / 1e6 for seconds in result["rows"][f"time of {per}"]["values"][PACKED]]
        peak = max(one["gflops"] for one in peaks)
        result["rows"]["arithmetic speed"] = {"unit": "GFLOP/s", "values": {PACKED: reached}}
        result["rows"]["matrix-product peak"] = {"unit": "GFLOP/s", "values": {PACKED: [p["gflops"] for p in peaks]}}
        share = {PACKED: [100 * value / peak for value in reached]}
        result["rows"]["share of the highest peak reached"] = {"unit": "%", "values": share}
        result["notes"] = [f"An update of this package is {flops / 1e9:,.0f} GFLOP.", ""]
    return result


def units(part: str, answer: dict[str, Any], options: Namespace) -> int:
    """By what the seconds of an answer are divided."""
    from speed_sides import UPDATES

    if part == "epoch":
        return answer["returned"]["queries"]
    return {"update": UPDATES, "evaluation": options.eval_queries}.get(part, 1)


def memory_of_sides(folder: Path, options: Namespace) -> dict[str, Any]:
    """The peak of one operation of one side, each in a process of its own, and what it needs before it begins."""
    rows: dict[str, Any] = {}
    for part in ("batch", "update", "epoch", "evaluation"):
        values = {}
        for name in sides_of(part, options):
            with side_process(SIDE_NAMES[name], folder, options) as ask:
                idle = ask(None)["peak_mib"]
                values[name] = [ask(OPERATIONS[part][0])["peak_mib"]]
            rows.setdefault("loaded, before the first run", {"unit": "MiB", "values": {}})["values"][name] = [idle]
        rows[part] = {"unit": "MiB", "values": values}
    return rows
