"""The parts of `bench.py`. Run as a program it is one part in a process of its own: a part and its options as
arguments, the figures as one JSON object on standard output."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench_clock import Seconds, fresh_process, load_pipeline, milliseconds, peak_memory_mib, timed
from bench_sides import OPERATIONS, compare_sides, memory_of_sides

OWN = "this package"
COMMAND = "import sys; from modeling_bmdetr.cli import main; sys.exit(main(sys.argv[1:]))"
QUERIES = "queries about one video"
GROWTH = {  # sizes by what grows, and the others then; (clips, batch, queries)
    "clips per video": ((75, 150, 300, 600, 1200, 2400), lambda size: (size, 1, 1)),
    "pairs per batch": ((1, 2, 4, 8, 16, 32, 64), lambda size: (75, size, 1)),
    QUERIES: ((1, 3, 10, 30, 100), lambda size: (75, 1, size)),
}
MOST_UPDATED = 1200  # clips; an update on more takes minutes


def commands(options: Namespace) -> dict[str, Any]:
    """From nothing to the help of every command, and the memory that it took."""
    from modeling_bmdetr.cli import build_parser

    choices = next(action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    rows = {}
    for name in ["", *choices]:
        clock, processor, memory = [], [], []
        for number in range(options.repeats + 1):
            started = time.perf_counter()
            words = [sys.executable, "-c", COMMAND, *name.split(), "--help"]
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise RuntimeError(f"`bmdetr {name} --help` ended with {process.returncode}")
            if number:
                clock.append(time.perf_counter() - started)
                processor.append(used.ru_utime + used.ru_stime)
                memory.append(used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))
        times = {"time, ms": milliseconds(clock), "processor time, ms": milliseconds(processor)}
        rows[f"bmdetr {name} --help".replace("  ", " ")] = {"values": {**times, "peak memory, MiB": memory}}
    return {"rows": rows}


def answer(options: Namespace) -> dict[str, Any]:
    """The first answer in a fresh process, again and again."""
    with world(options, films=1) as (model, films):
        runs = [fresh("first_answer", {"model": str(model), "film": str(films[0])}) for _ in range(options.repeats)]
    stages = [key for key in runs[0] if key != "peak_mib"]
    rows = {}
    for stage in [*stages, "all"]:
        parts = [[run[name] for name in ([stage] if stage != "all" else stages)] for run in runs]
        clock, processor = ([sum(one[i] for one in part) for part in parts] for i in (0, 1))
        rows[stage] = row("ms", milliseconds(clock))
        rows[f"{stage}, processor time"] = row("ms", milliseconds(processor))
    rows["peak memory"] = row("MiB", [run["peak_mib"] for run in runs])
    return {"rows": rows}


def first_answer(given: dict[str, str]) -> dict[str, Any]:
    """Seconds of each stage of the first answer, by the clock and of processor time."""
    times = [Seconds.now()]
    import torch

    from modeling_bmdetr import BMDetrForMomentRetrieval, BMDetrProcessor, MomentRetrievalPipeline  # noqa: F401

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    times.append(Seconds.now())
    pipe = load_pipeline(given["model"])
    times.append(Seconds.now())
    encoding = Seconds(0, 0)
    for encoder in pipe.processor.video_encoders:
        encode = encoder._encode_clips

        def timed(frames: list, encode: Callable = encode) -> Any:
            nonlocal encoding
            started = Seconds.now()
            rows = encode(frames)
            encoding += Seconds.now() - started
            return rows

        encoder._encode_clips = timed
    video = pipe.encode_video(given["film"])
    times.append(Seconds.now())
    pipe(video, "a red circle slides to the left")
    times.append(Seconds.now())
    imported, loaded, encoded, grounded = (later - earlier for earlier, later in itertools.pairwise(times))
    stages = {
        "import": imported,
        "load the model": loaded,
        "decode the video": encoded - encoding,
        "encode the frames": encoding,
        "ground the query": grounded,
    }
    return {**stages, "peak_mib": peak_memory_mib()}


def queries(options: Namespace) -> dict[str, Any]:
    """Many queries about one encoded video."""
    from bench_data import SENTENCES

    with world(options, films=1) as (model, films):
        pipe = pipeline_of(model, options)
        video = pipe.encode_video(films[0])
        asked = [f"{SENTENCES[i % len(SENTENCES)]} {i}" for i in range(options.questions)]
        ways = {"at once": lambda: pipe(video, asked), "one by one": lambda: [pipe(video, one) for one in asked]}
        rows: dict[str, Any] = {}
        for title, way in ways.items():
            rows |= both_times(f"{options.questions} queries {title}", way, options.repeats)
    return {"rows": rows | peak_memory()}


def videos(options: Namespace) -> dict[str, Any]:
    """One query about each of many files: decoded, encoded and grounded."""
    with world(options, options.films) as (model, films):
        pipe = pipeline_of(model, options)
        started = Seconds.now()
        encoded = [pipe.encode_video(film) for film in films]
        read = Seconds.now()
        for video in encoded:
            pipe(video, "a red circle slides to the left")
        done = Seconds.now()
    figures = {"decode and encode": read - started, "ground": done - read, "all": done - started}
    rows = {}
    for name, seconds in figures.items():
        for kind, value in zip(("", ", processor time"), seconds, strict=True):
            rows[f"{name}, {len(films)} videos{kind}"] = row("s", [value])
    rows["length of the videos"] = row("s", [sum(video.duration_s for video in encoded)])
    return {"rows": rows | peak_memory()}


def submission(options: Namespace) -> dict[str, Any]:
    """`evaluate_submission` on random predictions, from rows in memory and from files."""
    from bench_data import random_submission

    from modeling_bmdetr.evaluation import evaluate_submission, write_jsonl

    predictions, annotations = random_submission(options.submitted)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "predictions.jsonl"), Path(folder, "annotations.jsonl")
        write_jsonl(predictions, files[0])
        write_jsonl(annotations, files[1])
        rows: dict[str, Any] = {}
        for name, given in (("rows in memory", (predictions, annotations)), ("JSON lines files", files)):
            evaluated = partial(evaluate_submission, *given)
            rows |= both_times(f"{options.submitted} queries, {name}", evaluated, options.repeats)
    return {"rows": rows | peak_memory()}


def beside(part: str, options: Namespace) -> dict[str, Any]:
    """A part that has the released code beside it."""
    with features(options) as folder:
        return compare_sides(part, folder, options)


def memory(options: Namespace) -> dict[str, Any]:
    """The peaks of training and evaluation; the other parts tell their own."""
    with features(options) as folder:
        return {"rows": memory_of_sides(folder, options)}


def forms(options: Namespace) -> dict[str, Any]:
    """An update in float32 and bfloat16, as it is and through `torch.compile`, on the device asked for."""
    from bench_forms import DEVICE, FORMS

    rows: dict[str, Any] = {}
    notes = []
    asked = {"device": options.device or DEVICE, "repeats": options.repeats, "batch_size": options.batch_size}
    for form in [form for form in FORMS if not (options.quick and "compiled" in form)]:  # compiling takes minutes
        given = {"form": form, "clips": options.clips, "tokens": options.tokens, **asked}
        try:
            figures = fresh("form_of_update", given)
        except subprocess.CalledProcessError as error:  # its output says why
            if "compiled" not in form:
                raise
            notes.append(f"{form}: ended with {error.returncode}, so it was not measured.")
            continue
        for label, unit, values in (
            ("time of an update", "ms", figures["ms"]),
            ("processor time of an update", "ms", figures["processor_ms"]),
            ("the first update, compiling included", "s", [figures["first_s"]]),
            ("the first of other lengths", "s", [figures["other_s"]]),
            ("peak memory", "MiB", [figures["peak_mib"]]),
        ):
            rows.setdefault(label, {"unit": unit, "values": {}})["values"][form] = values
    return {"rows": rows, "notes": [f"Device: {figures['device']}.", *notes, ""]}


def form_of_update(given: dict[str, Any]) -> dict[str, Any]:
    from bench_forms import form_of_update as measured

    return measured(given)


def growth(options: Namespace) -> dict[str, Any]:
    """Time and memory of an update and of an answer, by what grows; a fresh process for every size."""
    result: dict[str, Any] = {}
    for name, (sizes, cases) in GROWTH.items():
        sizes = sizes[:2] if options.quick else sizes
        series: dict[str, list[Any]] = {}
        for size in sizes:
            clips, batch, asked = cases(size)
            for kind in ("answer", "update"):
                skipped = kind == "update" and (name == QUERIES or clips > MOST_UPDATED)
                given = {"kind": kind, "clips": clips, "pairs": batch * asked, "repeats": min(options.repeats, 3)}
                figures = {} if skipped else fresh("grown", given)
                for label, key in (("ms", "ms"), ("processor ms", "processor_ms"), ("peak MiB", "peak_mib")):
                    series.setdefault(f"{kind}, {label}", []).append(figures.get(key))
        series = {key: values for key, values in series.items() if any(value is not None for value in values)}
        result[name] = {"sizes": list(sizes), **series}
    notes = ["A model of the released size; an update has a negative query and a shifted view for each pair.", ""]
    return {"growth": result, "notes": notes}


def grown(given: dict[str, Any]) -> dict[str, float]:
    """One size of one kind."""
    import statistics

    import torch
    from bench_forms import random_pairs

    from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval
    from modeling_bmdetr.processes import keep_freed_memory

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    clips, pairs, is_update = given["clips"], given["pairs"], given["kind"] == "update"
    config = BMDetrConfig.released(video_dim=2816, text_dim=512, max_clips=clips)
    model = BMDetrForMomentRetrieval(config).train(is_update)
    inputs = random_pairs(pairs, clips, 20, training=is_update)
    if is_update:
        keep_freed_memory()

        def run() -> None:
            model.zero_grad()
            model(**inputs).loss.backward()
    else:

        def run() -> None:
            with torch.inference_mode():
                model(**inputs)

    runs = [timed(run)[:2] for _ in range(given["repeats"] + 1)][1:]  # the first does not count
    clock, processor = (1000 * statistics.median(seconds) for seconds in zip(*runs, strict=True))
    return {"ms": clock, "processor_ms": processor, "peak_mib": peak_memory_mib()}


# Worlds


@contextmanager
def features(options: Namespace) -> Iterator[Path]:
    """A folder of random features, gone afterwards."""
    from bench_data import write_features

    with tempfile.TemporaryDirectory(prefix="bmdetr-bench-") as folder:
        write_features(Path(folder), options)
        yield Path(folder)


@contextmanager
def world(options: Namespace, films: int) -> Iterator[tuple[Path, list[Path]]]:
    """A checkpoint and rendered videos; the videos are kept beside the report for the next part."""
    from bench_data import write_model, write_videos

    with tempfile.TemporaryDirectory(prefix="bmdetr-bench-") as folder:
        paths = write_videos(Path(options.out) / f"videos-{films}", films)
        yield Path(options.model) if options.model else write_model(Path(folder)), paths


def pipeline_of(model: Path, options: Namespace) -> Any:
    import torch

    torch.set_num_threads(options.threads)
    return load_pipeline(model)


def fresh(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """What a function of this file returns in a process of its own."""
    return fresh_process([__file__, name, json.dumps(given)])


def row(unit: str, values: list[float]) -> dict[str, Any]:
    """A row of the report with this package's values alone."""
    return {"unit": unit, "values": {OWN: values}}


def both_times(label: str, function: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Rows of a function's times, by the clock and of processor time; a first run does not count."""
    clock, processor = zip(*[timed(function)[:2] for _ in range(repeats + 1)][1:], strict=True)
    return {
        label: row("ms", milliseconds(clock)),
        f"{label}, processor time": row("ms", milliseconds(processor)),
    }


def peak_memory() -> dict[str, Any]:
    """The row that every part of this process ends with."""
    return {"peak memory": row("MiB", [peak_memory_mib()])}


PARTS: dict[str, Callable[[Namespace], dict[str, Any]]] = {
    "commands": commands,
    "answer": answer,
    "queries": queries,
    "videos": videos,
    **{part: partial(beside, part) for part in OPERATIONS},
    "submission": submission,
    "memory": memory,
    "forms": forms,
    "growth": growth,
}
SINGLE = {"first_answer": first_answer, "form_of_update": form_of_update, "grown": grown}


def main() -> None:
    name, given = sys.argv[1], json.loads(sys.argv[2])
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes to standard error
    result = SINGLE[name](given) if name in SINGLE else PARTS[name](Namespace(**given))
    os.write(answers, (json.dumps(result) + "\n").encode())


if __name__ == "__main__":
    main()
