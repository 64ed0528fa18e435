"""One report of how long things take and how much memory they need: `make bench`.

    python examples/benchmarks/bench.py                                   # everything, into outputs/bench
    python examples/benchmarks/bench.py --only update memory --released-code RELEASED
    python examples/benchmarks/bench.py --quick                           # whether it runs; its figures mean nothing

Parts, each a process of its own, whose figures are kept as `parts/PART.json` and taken from there by the next run that
has the same options (`--again` measures anew):

- commands: the start of every command of `bmdetr`, from nothing to its help;
- answer: the first answer about an mp4 file in a fresh process, by stage;
- queries: many queries about one encoded video, at once and one by one; videos: one query about each of many files;
- update, epoch, evaluation, batch, metrics: training and evaluation at released sizes, on random features of the layout
  of the released Charades-STA ones. `--released-code DIR` (a clone of github.com/minjoong507/BM-DETR) puts the authors'
  code beside it on the same arrays: the sides take turns, so that a slow moment of the machine hits both, and their
  numerical differences are measured first. `update` also tells the share of the machine's matrix-product peak,
  measured in the same process, that is reached;
- submission: metrics and highlights of a file of predictions in the shape of QVHighlights' validation split;
- memory: the peak of each of these, a fresh process for each figure;
- forms: a training update in float32 and bfloat16, as it is and through `torch.compile`, on a GPU where there is one
  (`--device`), there with CUDA graphs;
- growth: time and memory of an update and of an answer by clips, batch and queries.

Writes `report.json`, `report.md` and `growth.png`. Every table says how busy the machine was (load average); on a busy
one, read the processor time.
"""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Neither torch nor numpy is imported here: the memory of a process counts as that of the commands it starts.
from bench_clock import fresh_process
from bench_report import TITLES, plot_growth, report

from modeling_bmdetr.files_bmdetr import write_json

PARTS = tuple(TITLES)
QUICK = {
    "queries": 6,
    "videos": 3,
    "eval_queries": 3,
    "batch_size": 2,
    "clips": 12,
    "tokens": 5,
    "repeats": 1,
    "questions": 3,
    "films": 2,
    "submitted": 12,
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse_arguments(arguments)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    results = {"machine": machine, "quick": options.quick, "parts": {}}
    for part in options.only:
        results["parts"][part] = measured(part, options)
    write_report(options.out, results)
    return results


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="parts (all)")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"), help="folder of the report (%(default)s)")
    parser.add_argument("--released-code", metavar="DIR", help="a clone of github.com/minjoong507/BM-DETR")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, one run of each: a test that it works")
    parser.add_argument("--again", action="store_true", help="measures parts again that have been measured")
    parser.add_argument("--repeats", type=int, default=5, help="runs that count, of every figure (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="data loader workers (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="training queries per batch (%(default)s)")
    parser.add_argument("--clips", type=int, default=75, help="clips of every video (%(default)s)")
    parser.add_argument("--tokens", type=int, default=20, help="tokens of every query (%(default)s)")
    parser.add_argument("--queries", type=int, default=256, help="training queries (%(default)s)")
    parser.add_argument("--videos", type=int, default=100, help="their videos (%(default)s)")
    parser.add_argument("--eval-queries", type=int, default=200, help="queries evaluated (%(default)s)")
    parser.add_argument("--questions", type=int, default=100, help="queries about one video (%(default)s)")
    parser.add_argument("--films", type=int, default=100, help="video files answered from (%(default)s)")
    parser.add_argument("--submitted", type=int, default=1550, help="queries of the submission (%(default)s)")
    parser.add_argument("--device", help="of the forms of an update (a GPU where there is one)")
    parser.add_argument("--model", type=Path, help="checkpoint that answers (one as large as the quickstart's)")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(QUICK)
    if not options.batch_size <= options.videos <= options.queries / 2 or options.eval_queries > options.queries:
        parser.error(
            "expected batch size <= videos, two queries per video, so that each can have a negative of its video, and "
            "no more queries to evaluate than to train on"
        )
    if min(options.repeats, options.threads, options.batch_size, options.eval_queries, options.tokens) < 1:
        parser.error("expected at least one run, thread, query and token")
    if options.clips < 6:
        parser.error("expected at least 6 clips per video")
    if options.released_code and not (Path(options.released_code) / "bm_detr" / "train.py").is_file():
        parser.error(f"'{options.released_code}' has no bm_detr/train.py: clone github.com/minjoong507/BM-DETR there")
    return options


def measured(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of a part: those that a run with the same options left, or new ones."""
    asked = {name: value if value is None else str(value) for name, value in sorted(vars(options).items())}
    for name in ("only", "out", "again"):
        del asked[name]
    kept = options.out / "parts" / f"{part}.json"
    if kept.is_file() and not options.again:
        result = json.loads(kept.read_text(encoding="utf-8"))
        if result["options"] == asked:
            print(f"{part}: taken from {kept}", flush=True)
            return result
    print(f"{part}: measuring", flush=True)
    load = [round(os.getloadavg()[0], 1)]
    script = Path(__file__).with_name("bench_parts.py")
    given = json.dumps({**vars(options), "out": str(options.out), "model": options.model and str(options.model)})
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    figures = fresh_process([str(script), part, given], env=environment)
    load.append(round(os.getloadavg()[0], 1))
    result = {"options": asked, "load": load, **figures}
    write_json(kept, result)
    return result


def write_report(folder: Path, results: dict[str, Any]) -> None:
    """The figures as JSON, as Markdown and, where growth was measured, as a plot."""
    write_json(folder / "report.json", results)
    text = report(results)
    if "growth" in results["parts"]:
        plot_growth(results["parts"]["growth"]["growth"], folder / "growth.png")
    (folder / "report.md").write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {folder}")


if __name__ == "__main__":
    main()
