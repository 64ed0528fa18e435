"""Batches in which no two queries share a video, as the semantic alignment loss (Eq. 17) needs."""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

LENGTH_NOISE = 0.1  # by which lengths count as larger, at most: the same videos shall not always meet


class UniqueVideoBatchSampler(Sampler[list[tuple[int, int]]]):
    """Every query once per epoch, at most one per video in a batch; reads no features.

    Each batch is filled from the videos with the most queries left, ties in random order, so that no query is left
    over; the batches then come in random order, smaller ones last. There are as few batches as the batch size and the
    video with the most queries allow, and the queries are spread evenly over them: TACoS has 75 videos, one of them
    with 230 queries, so that batches of 256 cannot be had; there are 230 of 42 or 43.

    With several processes, each yields its share of the same global batches, so that queries are unique across
    processes as well and every process has equally many batches, none of them empty.

    With `lengths`, equally full videos come in the order of their length, with a little chance in it, so that most
    batches hold videos of similar length and little padding.

    A batch is a list of (epoch, row) pairs: the collator draws negatives and shifts from the seed, the epoch and the
    row, so that they do not depend on workers, processes or where a run was resumed.

    Args:
        video_ids: The video of each row.
        batch_size: Queries a batch, on each process; at most.
        seed: Seed of the order.
        num_processes, process_index: The share that this process yields.
        lengths: The number of clips of each row's video.

    Raises:
        ValueError: an empty data set, sizes below 1, too few videos for the processes, or not a length for every row.
    """

    # There is no attribute `batch_size`: Accelerate reads that as a promise that all batches have it.
    def __init__(
        self,
        video_ids: Sequence[str],
        batch_size: int,
        seed: int = 0,
        num_processes: int = 1,
        process_index: int = 0,
        lengths: Sequence[int] | None = None,
    ):
        if batch_size < 1 or not 0 <= process_index < num_processes:
            raise ValueError(
                f"`batch_size` must be at least 1 and `process_index` below `num_processes`, received {batch_size}, "
                f"{process_index} and {num_processes}"
            )
        if not len(video_ids):
            raise ValueError("`video_ids` is empty: there is nothing to train on")
        if lengths is not None and len(lengths) != len(video_ids):
            raise ValueError(
                f"`lengths` must have one entry per row, received {len(lengths)} for {len(video_ids)} rows"
            )
        rows_of: dict[str, list[int]] = defaultdict(list)
        for row, video in enumerate(video_ids):
            rows_of[video].append(row)
        self.video_of = list(video_ids)
        self.rows_of = list(rows_of.values())
        self.length_of = None if lengths is None else [lengths[rows[0]] for rows in self.rows_of]
        self.seed, self.num_processes, self.process_index = seed, num_processes, process_index
        self.epoch = 0
        most = max(map(len, self.rows_of))
        self._num_batches = max(most, math.ceil(len(video_ids) / (batch_size * num_processes)))
        self.global_batch_size = math.ceil(len(video_ids) / self._num_batches)
        if self._num_batches * num_processes > len(video_ids):
            raise ValueError(
                f"{len(video_ids)} queries, {most} of them of one video, cannot be spread over {num_processes} "
                f"processes so that each of {self._num_batches} steps has queries of different videos on every "
                "process; train on fewer processes or with a larger batch"
            )

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order and draws the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        for batch in self.global_batches(epoch):
            yield [(epoch, row) for row in batch[self.process_index :: self.num_processes]]

    def global_batches(self, epoch: int) -> list[list[int]]:
        """The row indices of every batch of an epoch, over all processes."""
        rng = np.random.default_rng((self.seed, epoch))
        left = [list(rng.permutation(rows)) for rows in self.rows_of]

        def tie_break(video: int) -> float:
            chance = float(rng.random())
            return chance if self.length_of is None else self.length_of[video] * (1 + LENGTH_NOISE * chance)

        # (minus the rows left, tie-break, video): the smallest is the fullest video.
        heap = [(-len(rows), tie_break(video), video) for video, rows in enumerate(left)]
        heapq.heapify(heap)
        batches: list[list[int]] = []
        while heap:
            drawn = [heapq.heappop(heap)[2] for _ in range(min(self.global_batch_size, len(heap)))]
            batches.append([int(left[video].pop()) for video in drawn])
            for video in drawn:
                if left[video]:
                    heapq.heappush(heap, (-len(left[video]), tie_break(video), video))
        full = [batch for batch in batches if len(batch) == self.global_batch_size]
        short = [batch for batch in batches if len(batch) < self.global_batch_size]
        ordered = [full[i] for i in rng.permutation(len(full))] + sorted(short, key=len, reverse=True)
        self._fill_up(batches)
        return ordered

    def _fill_up(self, batches: list[list[int]]) -> None:
        """Gives every batch at least one row per process, taken from larger batches."""
        for batch in [batch for batch in batches if len(batch) < self.num_processes]:
            videos = {self.video_of[row] for row in batch}
            while len(batch) < self.num_processes:
                donors = (
                    (donor, row)
                    for donor in sorted(batches, key=len, reverse=True)
                    for row in donor
                    if len(donor) > self.num_processes and self.video_of[row] not in videos
                )
                donor, row = next(donors)
                donor.remove(row)
                batch.append(row)
                videos.add(self.video_of[row])
