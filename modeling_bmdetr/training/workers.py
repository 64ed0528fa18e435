"""Worker processes of a data loader that end when the process they work for does, however that ends."""

import os
import threading
import time

_SECONDS_BETWEEN_LOOKS = 0.5


def end_with_parent(worker_id: int) -> None:  # noqa: ARG001 - the data loader passes it
    """A `worker_init_fn`: ends the worker soon after its parent was killed.

    PyTorch's own workers look for their parent only while they wait for work: one with a full queue stays for ever.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
