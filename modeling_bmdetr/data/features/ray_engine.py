"""Extraction on a Ray cluster: each actor holds the encoders and encodes one video after the other."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ...packages_bmdetr import needed_module

Result: TypeAlias = tuple[str, "np.ndarray | str"]
ATTEMPTS = 2
"""How often a video may take its worker down before it is listed as failed."""


def encode_on_ray(
    encode: Callable[[Path], "np.ndarray | str"],
    todo: Sequence[tuple[str, Path]],
    workers: int,
    address: str | None = None,
    accelerators: bool = False,
) -> Iterator[Result]:
    """Rows of each video, or why it has none, as they come.

    A worker that dies costs the video that it was at: another worker takes its place and that video is tried once
    more. The videos must lie where every machine of the cluster finds them, and so must this package.

    Args:
        encode: gives the rows of a file; it is pickled, once per worker.
        todo: names and files of the videos.
        workers: actors, each with one core, or with one accelerator.
        address: of a running cluster; by default one is started on this machine.
        accelerators: whether each worker needs an accelerator.

    Raises:
        ImportError: if Ray is not installed.
        ConnectionError: if there is no cluster at `address`.
        RuntimeError: if workers cannot start there, such as where this package is not installed.
    """
    ray = needed_module("ray", "extraction on a cluster needs Ray (pip install ray)")
    died = ray.exceptions.RayActorError
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, num_cpus=None if address else workers, log_to_driver=False, include_dashboard=False)
    actor_class: Any = ray.remote(num_cpus=1, num_gpus=1 if accelerators else 0, max_restarts=0)(_Worker)
    packed = ray.put(encode)
    waiting, attempts = deque(todo), dict.fromkeys((vid for vid, _ in todo), 0)
    running: dict[Any, tuple[Any, tuple[str, Path]]] = {}
    try:
        idle = [actor_class.remote(packed) for _ in range(min(workers, len(todo)))]
        try:
            ray.get(idle[0].ready.remote())
        except died as error:
            raise RuntimeError(f"workers of the cluster cannot start: {' '.join(str(error).split())}") from error
        while waiting or running:
            while waiting and idle:
                actor, item = idle.pop(), waiting.popleft()
                running[actor.encode.remote(item[1])] = (actor, item)
            done, _ = ray.wait(list(running), num_returns=1)
            actor, (vid, path) = running.pop(done[0])
            try:
                yield vid, ray.get(done[0])
                idle.append(actor)
            except died:
                attempts[vid] += 1
                idle.append(actor_class.remote(packed))
                if attempts[vid] < ATTEMPTS:
                    waiting.append((vid, path))
                else:
                    yield vid, f"encoding '{path}' ended its worker {ATTEMPTS} times: damaged, or memory ran out"
    finally:
        if started:
            ray.shutdown()


class _Worker:
    """Holds what encodes a file; becomes an actor."""

    def __init__(self, encode: Callable[[Path], "np.ndarray | str"]) -> None:
        import torch

        torch.set_num_threads(1)
        self._encode = encode

    def ready(self) -> bool:
        """Answers once the worker has started."""
        return True

    def encode(self, path: Path) -> "np.ndarray | str":
        """Rows of a video, or why it has none."""
        return self._encode(path)
