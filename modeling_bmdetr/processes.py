"""Worker processes that do not outlive the process they work for."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


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
