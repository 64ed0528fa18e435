"""The loss of the global batch: one loss over everything that goes into an update, on however many processes.

An update may see several batches: one on each process, and with gradient accumulation several one after the other.
Gradients of these are averaged, so each batch must divide its sums by the *mean* number of rows (moments, negatives) a
batch: then the average is the gradient of one large batch. The numbers follow from labels and masks alone, so they are
known before the first forward pass and cost one small exchange an update.

Semantic alignment (Eq. 17) compares a video with the queries of its batch. Across processes these are gathered, with
their gradients; accumulated batches stay apart, since they do not exist at the same time.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..configuration_bmdetr import BMDetrConfig
from ..loss_bmdetr import COUNTS, VIEWS, BMDetrLoss, CountReduction, semantic_alignment_loss
from ..spans_bmdetr import has_moment


def count_targets(batch: Mapping[str, Tensor], num_queries: int) -> Tensor:
    """What the loss terms of a batch are means over: `(views, counts)` in the order of `VIEWS` and `COUNTS`.

    Args:
        batch: Labels and masks as [`MomentRetrievalCollator`] makes them.
        num_queries: Spans that the model predicts; no more moments than that are matched in a row.
    """
    labels = batch["labels"]
    counts = torch.zeros(len(VIEWS), len(COUNTS))
    view_rows = [torch.ones(len(labels), dtype=torch.bool, device=labels.device)]
    if "shifted_labels" in batch:
        view_rows.append(has_moment(batch["shifted_labels"]).any(dim=1))
    for view, rows in enumerate(view_rows):
        moments = has_moment(batch["shifted_labels"] if view else labels).sum(dim=1).clamp(max=num_queries)
        counts[view, COUNTS.index("rows")] = rows.sum()
        counts[view, COUNTS.index("moments")] = moments.sum()
        if "negative_text_mask" in batch:
            negatives = batch["negative_text_mask"].any(dim=-1) & rows[:, None]
            counts[view, COUNTS.index("negatives")] = negatives.sum()
    return counts


def mean_counts(batches: Sequence[Mapping[str, Tensor]], num_queries: int, device: torch.device) -> Tensor:
    """`count_targets` averaged over the batches of an update on all processes: `(views, counts)`."""
    counts = torch.stack([count_targets(batch, num_queries) for batch in batches]).mean(dim=0).to(device)
    if num_processes() > 1:
        dist.all_reduce(counts)
        counts /= num_processes()
    return counts


def num_processes() -> int:
    """Processes that train together; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class GlobalBatchLoss(BMDetrLoss):
    """[`BMDetrLoss`] of a batch as its part of the loss of the global batch.

    Outside `over`, in evaluation for one, it is the loss of the batch itself and talks to no other process.

    Args:
        config: The model's configuration.
        gather_alignment: Whether Eq. 17 sees the queries of all processes.
    """

    def __init__(self, config: BMDetrConfig, gather_alignment: bool = True):
        super().__init__(config)
        self.gather_alignment = gather_alignment
        self._counts: Tensor | None = None

    @contextmanager
    def over(self, counts: Tensor | None) -> Iterator[None]:
        """Losses computed inside are parts of the loss over `mean_counts`; None changes nothing."""
        self._counts = counts
        try:
            yield
        finally:
            self._counts = None

    def divisor(self, view: str, what: str) -> CountReduction | None:
        if self._counts is None:
            return super().divisor(view, what)
        count = self._counts[VIEWS.index(view), COUNTS.index(what)]
        return lambda number: count.to(number.dtype)

    def view_weight(self, rows: Tensor, view: str) -> Tensor:
        if self._counts is None:
            return super().view_weight(rows, view)
        numbers = self._counts[:, COUNTS.index("rows")]
        return numbers[VIEWS.index(view)] / numbers[0]

    def alignment(self, video_embeds: Tensor, text_embeds: Tensor, rows: Tensor, view: str = "") -> Tensor:
        cfg = self.config
        together = self._counts is not None and self.gather_alignment and num_processes() > 1
        if not together or not cfg.alignment_loss_weight:
            return super().alignment(video_embeds, text_embeds, rows, view)
        sizes = gather_sizes(rows)
        return semantic_alignment_loss(
            video_embeds,
            gather_rows(text_embeds, sizes),
            cfg.temperature,
            cfg.alignment_denominator,
            rows,
            columns=gather_rows(rows.to(torch.uint8), sizes).bool(),
            offset=sum(sizes[: dist.get_rank()]),
            count=self.divisor(view, "rows"),
        )


def gather_sizes(rows: Tensor) -> list[int]:
    """The number of rows on each process."""
    size = torch.tensor([len(rows)], device=rows.device)
    sizes = [torch.empty_like(size) for _ in range(num_processes())]
    dist.all_gather(sizes, size)
    return torch.cat(sizes).tolist()


def gather_rows(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows of all processes, in the order of the processes, with gradients to each of them.

    Args:
        rows: `(n, ...)`, where n may differ between processes.
        sizes: n of every process.

    Returns:
        `(sum of sizes, ...)`.
    """
    return _GatherRows.apply(rows, sizes)


class _GatherRows(torch.autograd.Function):
    """Concatenation over processes. Its gradient sums what the losses of all processes ask of this one's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.sizes = sizes
        missing = max(sizes) - len(rows)
        padded = F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, missing)).contiguous()
        gathered = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(gathered, padded)
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        rank = dist.get_rank()
        return gradient[sum(ctx.sizes[:rank]) :][: ctx.sizes[rank]], None
