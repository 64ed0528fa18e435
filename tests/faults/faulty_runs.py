"""Tasks that tests kill and run again, each in a process of its own that is forked from the test's."""

import builtins
import faulthandler
import hashlib
import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from factories import make_row, make_rows
from tqdm import tqdm

from dataset_scripts.export import export
from dataset_scripts.moving_shapes import render_moving_shapes
from dataset_scripts.tacos import TACoS
from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval
from modeling_bmdetr.contract_bmdetr import FeatureContract
from modeling_bmdetr.data import extract_features, mine_negative_queries, pack_features, write_rows
from modeling_bmdetr.evaluation import write_jsonl
from modeling_bmdetr.released import convert_to_folder, export_released
from modeling_bmdetr.visualization import plot_moments

SIZES = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "video_dim": 8,
    "text_dim": 8,
}
# Calls that touch files; between two of them bytes are written.
_CALLS = [(os, name) for name in ("open", "replace", "rename", "unlink", "mkdir", "rmdir", "fsync", "chmod")]
_CALLS += [(builtins, "open"), (io, "open")]
_TACOS = {
    "timestamps": [[0, 100], [100, 220], [40, 90]],
    "sentences": ["He cuts bread.", "He waits.", "The tap runs."],
    "fps": 20,
    "num_frames": 240,
}


@dataclass(frozen=True)
class Task:
    """Something that writes to a folder, and what must hold of the folder whenever it is interrupted."""

    run: Callable[[Path, Path], None]  # (inputs, folder to write to)
    unfinished: Callable[[str], bool] = lambda path: False  # files that may be there before the task is done
    prepare: Callable[[Path], None] | None = None  # what is in the folder before


def model(seed: int, **fields: int) -> BMDetrForMomentRetrieval:
    torch.manual_seed(seed)
    return BMDetrForMomentRetrieval(BMDetrConfig.released(**{**SIZES, **fields}))


def make_inputs(folder: Path) -> Path:
    """What the tasks read: three videos, feature files, annotations, a model and a released checkpoint."""
    for name in ("videos", "clip", "text", "tacos"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(3):
        _render(folder / "videos" / f"v{number}.mp4", level=40 * number)
        np.save(folder / "clip" / f"v{number}.npy", rng.standard_normal((20, 64)).astype(np.float32))
        np.savez(folder / "text" / f"qid{number}.npz", last_hidden_state=rng.standard_normal((5, 8)))
    for split in ("train", "val", "test"):
        (folder / "tacos" / f"{split}.json").write_text(json.dumps({f"{split}.avi": _TACOS}))
    model(0).save_pretrained(folder / "model")
    export_released(folder / "model", folder / "released.ckpt")
    return folder


def _render(path: Path, level: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for number in range(24):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), level + number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _extract(inputs: Path, out: Path) -> None:
    rows = [make_row(qid=str(i), vid=f"v{i % 3}", query=f"scene {i} gets brighter", duration=3.0) for i in range(9)]
    encoders = {"name": "pixel-grid", "grid": 8}, "hashed-words"
    extract_features(rows, inputs / "videos", out / "store", *encoders, 1.0, progress=False)


def _pack(inputs: Path, out: Path) -> None:
    contract = FeatureContract(text_rows="all")
    pack_features(inputs / "clip", out / "store", text_dir=inputs / "text", contract=contract, progress=False)


def _mine(inputs: Path, out: Path) -> None:
    rows, _ = mine_negative_queries(make_rows(60, seed=3), encoder="hashed-words", progress=False)
    write_rows(out / "mined.jsonl", rows)


def _export_dataset(inputs: Path, out: Path) -> None:
    export(TACoS(data_dir=inputs / "tacos", cache_dir=inputs / "cache"), out / "export", progress=False)


def _save(inputs: Path, out: Path) -> None:
    model(2).save_pretrained(out / "model")


def _save_older(out: Path) -> None:
    """An older model, whose weights lie in several files."""
    model(1, hidden_size=32).save_pretrained(out / "model", max_shard_size=40_000)


def _render_shapes(inputs: Path, out: Path) -> None:
    render_moving_shapes(out / "shapes", 0, {"train": 1, "val": 0, "test": 0}, progress=False)


def _draw(inputs: Path, out: Path) -> None:
    saliency = np.random.default_rng(0).random(60).tolist()
    moment = {"start": 3.0, "end": 9.0, "score": 0.7}
    answer = {"query": "a", "moments": [moment], "saliency": saliency, "duration": 60.0, "clip_length": 1.0}
    plot_moments(answer, path=out / "picture.png")


def _predict(inputs: Path, out: Path) -> None:
    windows = np.random.default_rng(0).random((300, 5, 3)).round(4)
    write_jsonl([{"qid": i, "pred_relevant_windows": part} for i, part in enumerate(windows)], out / "pred.jsonl")


def _in_store(path: str) -> bool:
    """Files of a store, which grow; its manifest is written whole, and says that the store is unfinished."""
    return path.startswith("store/")


TASKS: dict[str, Task] = {
    "extract": Task(_extract, _in_store),
    "pack": Task(_pack, _in_store),
    "mine": Task(_mine),
    "export_dataset": Task(_export_dataset),
    "save": Task(_save),
    "save_over_an_older_model": Task(_save, prepare=_save_older),
    "convert": Task(lambda inputs, out: convert_to_folder(inputs / "released.ckpt", out / "model")),
    "to_released": Task(lambda inputs, out: export_released(inputs / "model", out / "model.ckpt")),
    "render": Task(_render_shapes),
    "draw": Task(_draw),
    "predict": Task(_predict),
}


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file in a folder, hidden ones included."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def give_own_lock(bars: type[tqdm]) -> None:
    """The lock of progress bars that a fork inherits is shared: a process that dies would keep it for ever."""
    bars.set_lock(threading.RLock())
    for kind in bars.__subclasses__():
        give_own_lock(kind)


def fork(function: Callable[[], None]) -> int:
    """Runs a function in a process forked from this one; its exit code, negative for the signal that ended it."""
    sys.stdout.flush()
    process = os.fork()
    if not process:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            give_own_lock(tqdm)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            faulthandler.dump_traceback_later(60, exit=True, file=sys.__stdout__)  # a task that hangs fails
            function()
            code = 0
        except BaseException as error:
            os.write(1, f"{type(error).__name__}: {error}\n".encode(errors="replace"))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def watch_calls(before_call: Callable[[int], None]) -> None:
    """Has the number of each call that touches files, from 1, told before it is made, for the rest of this process."""
    numbers = itertools.count(1)

    def watched(call: Callable) -> Callable:
        def told(*arguments: object, **options: object) -> object:
            before_call(next(numbers))
            return call(*arguments, **options)

        return told

    for module, name in _CALLS:
        setattr(module, name, watched(getattr(module, name)))


def count_calls(function: Callable[[], None], report: Path) -> None:
    """Runs a function and writes how often it touched files."""
    seen = [0]
    watch_calls(seen.append)
    function()
    count = seen[-1]
    report.write_text(str(count))


def killed_at(function: Callable[[], None], number: int, how: signal.Signals) -> Callable[[], None]:
    """The function, in a process that a signal ends just before it touches files for the `number`-th time."""

    def run() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        watch_calls(lambda seen: os.kill(os.getpid(), how) if seen == number else None)
        function()

    return run


def cut_off_at(function: Callable[[], None], num_bytes: int) -> Callable[[], None]:
    """The function, in a process that dies when it writes more than so many bytes to any file."""

    def run() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
        function()

    return run


def full_at(function: Callable[[], None], num_bytes: int) -> Callable[[], None]:
    """The function, where writing more than so many bytes to a file fails, as on a full disk."""

    def run() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
        function()

    return run


def interruptions(
    function: Callable[[], None], events: int, sizes: list[int], number: int, seed: int
) -> list[tuple[str, Callable[[], None]]]:
    """So many ways in which a run may end early, drawn from a seed: signals between writes, deaths within one."""
    draw = random.Random(seed)
    chosen: list[tuple[str, Callable[[], None]]] = []
    for index in range(number):
        kind = index % 4
        if kind == 3:
            limit = draw.randrange(1, max(2, draw.choice(sizes)))
            chosen.append((f"died after {limit} bytes", cut_off_at(function, limit)))
            continue
        how = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)[kind]
        event = draw.randrange(1, events + 1)
        chosen.append((f"{how.name} at call {event} of {events}", killed_at(function, event, how)))
    return chosen


def clear(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
