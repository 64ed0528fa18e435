"""This package beside the authors' released code: training, evaluation and memory, measured in one run.

    git clone https://github.com/minjoong507/BM-DETR RELEASED
    python examples/benchmarks/training_speed.py --released-code RELEASED --json speed.json

Writes random features in the layout and size of the released Charades-STA ones (SlowFast 2,304 and CLIP 512 wide, one
npz file a video and encoder; text of 77 rows; videos of 30 s, a clip a second) and lets each side do the same work on
the same rows: model and losses as released (`BMDetrConfig.released`), one negative query a row, temporal shifting, the
same batches and threads. Each side is a process of its own; they take turns, so that a slow moment of the machine hits
all of them. Before that, both get the same weights and the same batch, and their largest difference is printed.

- update: forward, backward, clipping and AdamW step on one batch that stays the same;
- batch: making that batch from the files;
- epoch: a pass over the training rows as each side trains, data loading included. The released sampler leaves out
  queries that collide with another of their video, so the time is also given for each query trained;
- evaluation: reading, forward pass, loss, and ranked windows; metrics: from windows to figures.

Without --released-code this package is measured alone.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from speed_sides import (
    ENCODERS,
    OPERATIONS,
    PACKED_DIR,
    TEXT_DIM,
    TEXT_DIR,
    UPDATES,
    VIDEO_DIRS,
    make_side,
    measure,
    quiet,
)
from tqdm.auto import tqdm

CLIPS, TEXT_ROWS = 30, 77
SIDES = {"released": "released code", "files": "this package, same files", "packed": "this package, packed store"}
TITLES = {
    "step": "update on one batch, ms",
    "prepare": "making that batch, ms",
    "epoch": "epoch, ms a query trained",
    "evaluate": "evaluation, ms a query",
    "metrics": "metrics, ms in all",
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse_arguments(arguments)
    sides = list(SIDES) if options.released_code else list(SIDES)[1:]
    with tempfile.TemporaryDirectory(prefix="bmdetr-speed-", dir=options.dir) as name:
        folder = Path(name)
        write_data(folder, options)
        results: dict[str, Any] = {"machine": machine(), "options": vars(options), "differences": None}
        if options.released_code:
            with Process("equality", folder, options) as both:
                results["differences"] = both.ask("compare")["returned"]
        results["sides"] = run_sides(sides, folder, options)
    print(report(results))
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--released-code", metavar="DIR", help="a clone of github.com/minjoong507/BM-DETR")
    parser.add_argument("--queries", type=int, default=512, help="training queries (default %(default)s)")
    parser.add_argument("--videos", type=int, default=200, help="their videos (default %(default)s)")
    parser.add_argument("--eval-queries", type=int, default=256, help="queries to evaluate (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="training queries per batch (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of everything but the epoch (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="runs of the epoch (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each side (default %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="data loader workers of each side (default %(default)s)")
    parser.add_argument("--dir", help="where to write the features, 150 MB by default")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument(
        "--one-process", action="store_true", help="no process for each side, for a profiler; memory is not measured"
    )
    options = parser.parse_args(arguments)
    if not options.batch_size <= options.videos <= options.queries or options.eval_queries > options.queries:
        parser.error("expected batch size <= videos <= queries, and no more queries to evaluate than to train on")
    if min(options.repeats, options.epochs, options.threads, options.batch_size, options.eval_queries) < 1:
        parser.error("expected at least one run, thread and query")
    if options.released_code and not (Path(options.released_code) / "bm_detr" / "train.py").is_file():
        parser.error(f"'{options.released_code}' has no bm_detr/train.py: clone github.com/minjoong507/BM-DETR there")
    return options


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


# Data


def write_data(folder: Path, options: argparse.Namespace) -> None:
    """Rows and features as released, and the packed store made of them."""
    from modeling_bmdetr import BMDetrConfig
    from modeling_bmdetr.data import FeatureStore, pack_features, read_rows

    rng = np.random.default_rng(0)
    for name, width in VIDEO_DIRS.items():
        (folder / name).mkdir()
        for video in range(options.videos):
            np.savez(folder / name / f"v{video}.npz", features=rng.standard_normal((CLIPS, width), dtype=np.float32))
    (folder / TEXT_DIR).mkdir()
    for qid in range(options.queries):
        text = rng.standard_normal((TEXT_ROWS, TEXT_DIM), dtype=np.float32)
        np.savez(folder / TEXT_DIR / f"qid{qid}.npz", last_hidden_state=text)
    rows = random_rows(options.queries, options.videos, rng)
    for name, part in (("train", rows), ("test", rows[: options.eval_queries])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)), encoding="utf-8")

    contract = BMDetrConfig.released(video_dim=sum(VIDEO_DIRS.values()), text_dim=TEXT_DIM, **ENCODERS).feature_contract
    store = FeatureStore.from_files([folder / name for name in VIDEO_DIRS], folder / TEXT_DIR, contract=contract)
    pack_features(store, folder / PACKED_DIR, rows=read_rows(folder / "train.jsonl"), progress=False)


def random_rows(queries: int, videos: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """One moment a query, on whole seconds, so that both sides have the same foreground clips; as negative queries
    those of the same video whose moment overlaps by an IoU below 0.5."""
    of_video = np.concatenate([np.arange(videos), rng.integers(videos, size=queries - videos)])
    starts = rng.integers(0, CLIPS - 14, size=queries)
    ends = starts + rng.integers(4, 14, size=queries)
    rows = []
    for qid in range(queries):
        shared = np.minimum(ends, ends[qid]) - np.maximum(starts, starts[qid])
        covered = np.maximum(ends, ends[qid]) - np.minimum(starts, starts[qid])
        negatives = np.flatnonzero((of_video == of_video[qid]) & (shared < 0.5 * covered))
        rows.append(
            {
                "qid": qid,
                "vid": f"v{of_video[qid]}",
                "query": f"query number {qid}",
                "duration": float(CLIPS),
                "relevant_windows": [[float(starts[qid]), float(ends[qid])]],
                "neg_query_ids": negatives.tolist(),
            }
        )
    return rows


# Runs


class Process:
    """A side in a process of its own."""

    def __init__(self, side: str, folder: Path, options: argparse.Namespace):
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
        self.idle_mib: float | None = self._answer()["peak_mib"]

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


class Here:
    """A side in this process."""

    idle_mib: float | None = None

    def __init__(self, side: str, folder: Path, options: argparse.Namespace):
        with quiet():
            self.side = make_side(side, folder, options)

    def ask(self, operation: str) -> dict[str, Any]:
        with quiet():
            return {**measure(self.side, operation), "peak_mib": None}

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None: ...


def run_sides(names: Sequence[str], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every operation of every side, in turns. The first run of each is not counted, but for the epoch."""
    results: dict[str, Any] = {}
    running: dict[str, Process | Here] = {}
    times = {operation: options.epochs if operation == "epoch" else options.repeats + 1 for operation in OPERATIONS}
    plan = [(number, o) for number in range(max(times.values())) for o in OPERATIONS if number < times[o]]
    try:
        for name in names:
            running[name] = (Here if options.one_process else Process)(name, folder, options)
            results[name] = {"idle_mib": running[name].idle_mib, **{operation: [] for operation in OPERATIONS}}
        with tqdm(total=len(plan) * len(names), unit="run") as progress:
            for number, operation in plan:
                # Another side goes first each time.
                for place in range(len(names)):
                    name = names[(place + number) % len(names)]
                    progress.set_description(f"{name}: {operation}")
                    answer = running[name].ask(operation)
                    results[name]["peak_mib"] = answer.pop("peak_mib")
                    if number or operation == "epoch":
                        results[name][operation].append(answer)
                    progress.update()
    finally:
        for side in running.values():
            side.__exit__()
    return results


# Report


def per_unit(result: Mapping[str, Any], operation: str, kind: str, options: Mapping[str, Any]) -> list[float]:
    """Milliseconds of each run, for an update or a query where that is the unit."""
    units = {"step": UPDATES, "evaluate": options["eval_queries"]}
    return [
        1000 * run[kind] / (run["returned"]["queries"] if operation == "epoch" else units.get(operation, 1))
        for run in result[operation]
    ]


def report(results: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    sides, options = results["sides"], results["options"]
    lines = [
        f"{options['queries']} queries of {options['videos']} videos, {CLIPS} clips of {sum(VIDEO_DIRS.values()):,} "
        f"values, batches of {options['batch_size']}, {options['eval_queries']} queries evaluated; "
        f"{options['threads']} thread(s), {options['workers']} worker(s); {results['machine']}.",
        f"Median of {options['repeats']} runs ({options['epochs']} of the epoch), lowest to highest in brackets"
        + ("; x: times as fast as the released code." if "released" in sides else "."),
        "",
    ]
    for kind, title in (("clock_s", "by the clock"), ("cpu_s", "processor time")):
        lines += [f"| {title} | " + " | ".join(SIDES[name] for name in sides) + " |", "|---" * (len(sides) + 1) + "|"]
        for operation in OPERATIONS:
            runs = {name: per_unit(result, operation, kind, options) for name, result in sides.items()}
            lines.append(f"| {TITLES[operation]} | " + " | ".join(cell(runs, name) for name in runs) + " |")
        lines.append("")
    lines += ["| | " + " | ".join(SIDES[name] for name in sides) + " |", "|---" * (len(sides) + 1) + "|"]
    trained = [f"{result['epoch'][-1]['returned']['queries']}" for result in sides.values() if result["epoch"]]
    lines.append("| queries trained in the last epoch | " + " | ".join(trained) + " |")
    for key, title in (("peak_mib", "peak memory, MiB"), ("idle_mib", "of it before the first run, MiB")):
        values = [result[key] for result in sides.values()]
        lines.append(f"| {title} | " + " | ".join("-" if v is None else f"{v:,.0f}" for v in values) + " |")
    lines.append("")
    if results["differences"] is None:
        lines.append("The released code was not measured: --released-code names no folder.")
    else:
        lines.append("Same weights and batch, largest difference between the sides:")
        lines += [f"- {name}: {value:.2g}" for name, value in results["differences"].items()]
    return "\n".join(lines)


def cell(runs: Mapping[str, Sequence[float]], name: str) -> str:
    """Median, range, and how many times as fast as the released code."""
    values = runs[name]
    median = statistics.median(values)
    text = f"{median:,.3g} ({min(values):,.3g}..{max(values):,.3g})" if median < 100 else ""
    text = text or f"{median:,.0f} ({min(values):,.0f}..{max(values):,.0f})"
    if name != "released" and "released" in runs:
        text += f", {statistics.median(runs['released']) / median:.1f}x"
    return text


if __name__ == "__main__":
    main()
