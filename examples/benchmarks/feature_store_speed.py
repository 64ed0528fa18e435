"""Packed against published features: reading speed side by side, and memory over an epoch with several workers.

    python examples/benchmarks/feature_store_speed.py --json speed.json

Writes random features of the size of SlowFast + CLIP (75 clips, 2,304 + 512 wide) in the layouts in which such features
are published, in the packed form and, to compare with, in safetensors shards, and reads each in the same random order,
in this process, one thread:

- cold: the files are dropped from the page cache before (where the system allows it);
- warm: they are in the page cache;
- cpu: warm, by processor time in place of the clock, which other programs on the machine disturb less.

Then a data loader with several workers reads a warm epoch of each, while the memory of every worker is watched. What
counts is the growth from the tenth part of the epoch to its end: a store that keeps what it has read grows by it.
"""

import argparse
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_clock import timed
from safetensors import safe_open
from safetensors.numpy import save_file
from torch.utils.data import DataLoader, Dataset

from modeling_bmdetr.contract_bmdetr import FeatureContract
from modeling_bmdetr.data import FeatureStore, pack_features
from modeling_bmdetr.files_bmdetr import write_json
from modeling_bmdetr.tables import markdown_table

CLIPS = 75
SHARD_BYTES = 64 * 2**20
WIDTHS = {"slowfast": 2304, "clip": 512}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse_arguments(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        stores, folders = write_layouts(Path(folder), options.videos)
        results = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "videos": options.videos,
            "shape": [CLIPS, sum(WIDTHS.values())],
            "mib": {name: round(sum(map(folder_mib, parts)), 1) for name, parts in folders.items()},
            "speed": measure_speed(stores, folders, options.repeats),
            "memory": [measure_memory(name, store, options) for name, store in stores.items()],
        }
    print_tables(results)
    if options.json:
        write_json(options.json, results)
    return results


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=600, help="videos to write; 600 take 1.9 GB (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the median counts (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="data loader workers (%(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="times the videos are read for memory (%(default)s)")
    parser.add_argument("--dir", help="where to write the features; a disk, not a memory file system")
    parser.add_argument("--json", help="file for the figures")
    return parser.parse_args(arguments)


def write_layouts(folder: Path, videos: int) -> tuple[dict[str, FeatureStore], dict[str, list[Path]]]:
    """The stores to compare, and the folders that each reads. The first is what the others are compared with."""
    rng = np.random.default_rng(0)
    places = {name: folder / name for name in ("slowfast", "clip", "npy", "packed32", "packed16", "shards")}
    for name in ("slowfast", "clip", "npy"):
        places[name].mkdir()
    for number in range(videos):
        parts = {name: rng.standard_normal((CLIPS, dim), dtype=np.float32) for name, dim in WIDTHS.items()}
        for name, part in parts.items():
            np.savez(places[name] / f"v{number}.npz", features=part)
        np.save(places["npy"] / f"v{number}.npy", np.concatenate(list(parts.values()), axis=1))
    contract = FeatureContract(clip_length=2.0)
    published = FeatureStore.from_files([places["slowfast"], places["clip"]], contract=contract)
    stores = {
        "files: npz per encoder": published,
        "files: one npy": FeatureStore.from_files(places["npy"], contract=contract),
        "packed float32": pack_features(published, places["packed32"], progress=False),
        "packed float16": pack_features(published, places["packed16"], dtype="float16", progress=False),
    }
    shards = places["shards"]
    shards.mkdir()
    write_shards(shards, published)
    stores["safetensors shards"] = FeatureStore(stores["packed float32"].contract, ShardArrays(shards), None)
    folders = [[places["slowfast"], places["clip"]], [places["npy"]], [places["packed32"]], [places["packed16"]]]
    return stores, dict(zip(stores, [*folders, [shards]], strict=True))


def write_shards(folder: Path, store: FeatureStore) -> None:
    """Videos in safetensors files of 64 MiB, each of which a writer that resumes would write whole or not at all."""
    shard: dict[str, np.ndarray] = {}
    for number, vid in enumerate(store.video_ids, 1):
        shard[vid] = store.video(vid)
        if sum(rows.nbytes for rows in shard.values()) >= SHARD_BYTES or number == len(store.video_ids):
            save_file(shard, folder / f"{number:08d}.safetensors")
            shard = {}


class ShardArrays:
    """Arrays in safetensors files by name; a file is opened on first use and stays open."""

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._open: dict[Path, Any] = {}
        self._shard_of: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            with safe_open(path, framework="numpy") as file:
                self._shard_of.update(dict.fromkeys(file.keys(), path))

    @property
    def names(self) -> list[str]:
        return sorted(self._shard_of)

    def __contains__(self, name: object) -> bool:
        return name in self._shard_of

    def num_rows(self, name: str) -> int:
        return self._slice(name).get_shape()[0]

    def read(self, name: str, max_rows: int | None = None) -> np.ndarray:
        return self._slice(name)[:max_rows]

    def _slice(self, name: str) -> Any:
        path = self._shard_of[name]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="numpy")
        return self._open[path].get_slice(name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


def measure_speed(
    stores: dict[str, FeatureStore], folders: dict[str, list[Path]], repeats: int
) -> dict[str, dict[str, float]]:
    """Videos a second, by kind of run. Layouts take turns, so that a slow moment of the machine hits all of them."""
    order = [str(vid) for vid in np.random.default_rng(1).permutation(stores[next(iter(stores))].video_ids)]
    rates: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": [], "cpu": []} for name in stores}
    for _ in range(repeats):
        for name, store in stores.items():
            if drop_from_cache(folders[name]):
                rates[name]["cold"].append(videos_per_second(store, order)[0])
            videos_per_second(store, order)
            for kind, rate in zip(("warm", "cpu"), videos_per_second(store, order), strict=True):
                rates[name][kind].append(rate)
    return {
        name: {kind: statistics.median(values) for kind, values in kinds.items() if values}
        for name, kinds in rates.items()
    }


def folder_mib(folder: Path) -> float:
    """Size of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 2**20


def videos_per_second(store: FeatureStore, order: Sequence[str]) -> tuple[float, float]:
    """By the clock, and by processor time."""
    seconds, processor_seconds, _ = timed(lambda: [store.video(vid) for vid in order])
    return len(order) / seconds, len(order) / processor_seconds


def drop_from_cache(folders: Sequence[Path]) -> bool:
    """Asks the system to forget the files; False where it cannot be asked."""
    advise: Callable[..., None] | None = getattr(os, "posix_fadvise", None)
    if advise is None:
        return False
    for path in (path for folder in folders for path in folder.iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            advise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return True


class StoreDataset(Dataset):
    """Every video of a store, `epochs` times over, in random order."""

    def __init__(self, store: FeatureStore, epochs: int) -> None:
        rng = np.random.default_rng(2)
        self.store = store
        self.order = [vid for _ in range(epochs) for vid in rng.permutation(store.video_ids)]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.store.video(self.order[index]))


def measure_memory(name: str, store: FeatureStore, options: argparse.Namespace) -> dict[str, Any]:
    """Resident memory of the largest worker, in MiB: at a tenth of the epoch, at its end, and the growth."""
    import psutil

    dataset = StoreDataset(store, options.epochs)
    before = {child.pid for child in psutil.Process().children()}
    batches = iter(DataLoader(dataset, batch_size=16, num_workers=options.workers))
    workers = [child for child in psutil.Process().children() if child.pid not in before]
    total = -(-len(dataset) // 16)
    early = late = 0.0
    for number, _ in enumerate(batches):
        # The last few batches are left out: workers that are done leave.
        if number in (total // 10, total - 4 * options.workers):
            resident = max(worker.memory_info().rss for worker in workers) / 2**20
            early, late = (resident, late) if number == total // 10 else (early, resident)
    return {
        "store": name,
        "workers": options.workers,
        "read_mib": round(len(dataset) * CLIPS * store.contract.video_dim * 4 / 2**20),
        "resident_early_mib": round(early, 1),
        "resident_late_mib": round(late, 1),
        "growth_mib": round(late - early, 1),
    }


def print_tables(results: dict[str, Any]) -> None:
    speed, (clips, width) = results["speed"], results["shape"]
    base, kinds = next(iter(speed.values())), ("cold", "warm", "cpu")
    print(f"\n{results['videos']} videos of {clips} x {width} float32; {results['machine']}\n")
    rows = []
    for name, rates in speed.items():
        cells = (f"{rates[k]:,.0f} ({rates[k] / base[k]:.1f}x)" if k in rates else "-" for k in kinds)
        rows.append([name, *cells, f"{results['mib'][name]:,.0f}"])
    print(markdown_table(["store", *(f"{kind} /s" for kind in kinds), "MiB"], rows))
    memory = [[name, *(f"{value:,}" for value in figures)] for name, *figures in map(dict.values, results["memory"])]
    print("\n" + markdown_table(["store", "workers", "read MiB", "early MiB", "late MiB", "growth"], memory))


if __name__ == "__main__":
    main()
