"""The parts of `bench.py` that can have the released code beside them: each side is a process, and they take turns."""

import json
import os
import subprocess
import sys
from argparse import Namespace
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


class Process:
    """A side in a process of its own."""

    def __init__(self, side: str, folder: Path, options: Namespace):
        given = {"side": side, "folder": str(folder), "options": vars(options)}
        script = Path(__file__).with_name("speed_sides.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(options.threads)},
        )
        self.side = side
        self.idle_mib: float = self._answer()["peak_mib"]

    def ask(self, operation: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(operation, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"the process of '{self.side}' ended; what it says of it stands above")
        return json.loads(line)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process: it reads operations until there are no more."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


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
        with Process("equality", folder, options) as both:
            result["differences"] = both.ask("compare")["returned"]
    running: dict[str, Process] = {}
    peaks: list[dict[str, float]] = []
    try:
        for name in names:
            running[name] = Process(SIDE_NAMES[name], folder, options)
            if part == "metrics":
                running[name].ask("evaluate")
        for number in range(runs):
            for place in range(len(names)):  # another side goes first each time
                name = names[(place + number) % len(names)]
                answers[name].append(running[name].ask(operation))
            if part == "update":
                peaks.append(running[PACKED].ask("matrix_peak")["returned"])
        flops = running[PACKED].ask("flops")["returned"]["flops"] if part == "update" else None
    finally:
        for side in running.values():
            side.__exit__()
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
            with Process(SIDE_NAMES[name], folder, options) as side:
                idle = side.idle_mib
                values[name] = [side.ask(OPERATIONS[part][0])["peak_mib"]]
            rows.setdefault("loaded, before the first run", {"unit": "MiB", "values": {}})["values"][name] = [idle]
        rows[part] = {"unit": "MiB", "values": values}
    return rows
