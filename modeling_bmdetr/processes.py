"""What processes at work need: how many fit, workers that end with the process they work for, freed memory kept."""

import ctypes
import multiprocessing
import os
import sys
import threading
from multiprocessing.connection import wait

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def usable_processors() -> int:
    """How many processors this process may use, which in a container or a job may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_with_parent(worker_id: int = 0) -> None:  # noqa: ARG001  (data loaders pass it to a `worker_init_fn`)
    """Ends this worker process as soon as its parent has ended, however that happened. Call it first in a worker.

    A parent that is killed can tell nobody; but a pipe that it held closes, and a thread here waits for that. PyTorch's
    own workers look for their parent only while they wait for work: one with a full queue would stay for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), name="end_with_parent", daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def keep_freed_memory() -> bool:
    """Lets the C library keep large blocks that are freed, where it is glibc; elsewhere it does nothing.

    By default large tensors are mapped anew, and their pages are made and zeroed on first use: a fifth of the processor
    time of an update on the CPU, and of an encoder there. The process keeps its highest memory until it ends.

    Returns:
        Whether anything was changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
