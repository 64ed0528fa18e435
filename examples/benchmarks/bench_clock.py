"""What the benchmarks share: time and memory of a process, fresh processes, a pipeline. Imports nothing heavy."""

import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Seconds(NamedTuple):
    """Of the clock, and of the processor time of this process and of those that it started and that have ended."""

    clock: float
    processor: float

    @classmethod
    def now(cls) -> "Seconds":
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime)

    def __add__(self, other: "Seconds") -> "Seconds":  # type: ignore[override]
        return Seconds(self.clock + other.clock, self.processor + other.processor)

    def __sub__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.clock - other.clock, self.processor - other.processor)


def seconds_of(function: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of every run, after one that is not counted."""
    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        function()
        taken.append(time.perf_counter() - started)
    return taken[1:]


def timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of the clock and of processor time that a call takes, child processes included, and its result."""
    started = Seconds.now()
    result = function()
    return *(Seconds.now() - started), result


def milliseconds(seconds: Sequence[float]) -> list[float]:
    return [1000 * value for value in seconds]


def peak_memory_mib() -> float:
    """The most memory that this process has had resident.

    `ru_maxrss` is inherited from the process that started this one, so the system's own figure comes first.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def fresh_process(words: Sequence[str], **options: Any) -> Any:
    """What a script prints as its last line, read as JSON, when it runs in a process of its own."""
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True, check=True, **options)
    return json.loads(done.stdout.splitlines()[-1])


def load_pipeline(folder: str | Path) -> Any:
    """A checkpoint as a pipeline on the CPU."""
    from modeling_bmdetr import BMDetrForMomentRetrieval, BMDetrProcessor, MomentRetrievalPipeline

    model, processor = (kind.from_pretrained(folder) for kind in (BMDetrForMomentRetrieval, BMDetrProcessor))
    return MomentRetrievalPipeline(model, processor=processor, device="cpu")
