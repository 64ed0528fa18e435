"""Processes that are forked from a test's, and end early in ways that are drawn from a seed."""

import builtins
import faulthandler
import gc
import hashlib
import io
import itertools
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from tqdm import tqdm

# Calls that touch files; between two of them bytes are written.
_CALLS = [(os, name) for name in ("open", "replace", "rename", "unlink", "mkdir", "rmdir", "fsync", "chmod")]
_CALLS += [(builtins, "open"), (io, "open")]
_HANGS_S = 300


def contents(folder: Path, timed: Callable[[str], bool] = lambda path: False) -> dict[str, str]:
    """A digest of every file in a folder, hidden ones included; of those that are `timed`, that they are there."""
    digests = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        digests[name] = "timed" if timed(name) else hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


def give_own_lock(bars: type[tqdm]) -> None:
    """The lock of progress bars that a fork inherits is shared: a process that dies would keep it for ever."""
    bars.set_lock(threading.RLock())
    for kind in bars.__subclasses__():
        give_own_lock(kind)


def fork(function: Callable[[], None]) -> int:
    """Runs a function in a process forked from this one; its exit code, negative for the signal that ended it.

    One that hangs fails. Not to be called in a process that was forked by it: the watch over that one cannot be forked.
    """
    sys.stdout.flush()
    process = os.fork()
    if not process:
        code = 1
        os.setpgid(0, 0)  # what it starts can be told from other processes
        gc.freeze()  # the parent's objects are none of its garbage
        try:
            with tempfile.TemporaryFile() as kept:  # shown where the function fails
                os.dup2(kept.fileno(), 2)
            give_own_lock(tqdm)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            faulthandler.dump_traceback_later(_HANGS_S, exit=True, file=sys.__stdout__)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            function()
            code = 0
        except BaseException as error:
            code = error.code if isinstance(error, SystemExit) else 1
            os.write(1, f"{type(error).__name__}: {error}\n".encode(errors="replace") + os.pread(2, 2000, 0))
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    require_no_orphans(process)
    return code


def require_no_orphans(group: int, within_s: float = 20.0) -> None:
    """Fails where a process of the group still runs after so long."""
    patience = time.monotonic() + within_s
    while left := _living(group):
        assert time.monotonic() < patience, f"outlive the process that started them: {left}"
        time.sleep(0.05)


def _living(group: int) -> list[int]:
    """The group's processes, but those that ended and wait for somebody to ask for their exit code."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return []
    living = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                living.append(process.pid)
        except ProcessLookupError:
            continue
    return living


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
        watch_calls(lambda seen: os.kill(os.getpid(), how) if seen == number else None)
        function()

    return run


def killed_after(function: Callable[[], None], seconds: float, how: signal.Signals) -> Callable[[], None]:
    """The function, in a process that gets a signal after so long, whatever it is doing."""

    def run() -> None:
        process, ends = os.getpid(), time.monotonic() + seconds
        if not os.fork():
            while os.getppid() == process and time.monotonic() < ends:  # no longer than the process itself
                time.sleep(0.005)
            with suppress(ProcessLookupError):
                if os.getppid() == process:
                    os.kill(process, how)
            os._exit(0)
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
    """The function, where writing more than so many bytes to a file fails, as on a full disk.

    The process exits with 2 where the function raises `OSError`, as `bmdetr` does.
    """

    def run() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
        try:
            function()
        except OSError as error:
            raise SystemExit(2) from error

    return run


def interruptions(
    function: Callable[[], None], events: int, sizes: list[int], duration_s: float, number: int, seed: int
) -> list[tuple[str, Callable[[], None]]]:
    """So many ways in which a run may end early, drawn from a seed: signals between writes, in one, or at any moment.

    Args:
        events: How often the function touches files.
        sizes: Of the files that it writes.
        duration_s: How long it takes.
    """
    draw = random.Random(seed)
    chosen: list[tuple[str, Callable[[], None]]] = []
    for index in range(number):
        kind = index % 5
        if kind == 3:
            limit = draw.randrange(1, max(2, draw.choice(sizes)))
            chosen.append((f"died after {limit} bytes", cut_off_at(function, limit)))
        elif kind == 4:
            how = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            seconds = draw.uniform(0, duration_s)
            chosen.append(
                (f"{how.name} after {seconds:.3f} s of {duration_s:.3f}", killed_after(function, seconds, how))
            )
        else:
            how = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)[kind]
            event = draw.randrange(1, events + 1)
            chosen.append((f"{how.name} at call {event} of {events}", killed_at(function, event, how)))
    return chosen


def clear(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
