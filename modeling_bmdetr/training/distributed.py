"""The loss of the global batch: one loss over everything that goes into an update, on however many processes.

An update may see several batches: one on each process, and with gradient accumulation several one after the other.
Gradients of these are averaged, so each batch must divide its sums by the *mean* number of rows (moments, negatives) a
batch: then the average is the gradient of one large batch. The numbers follow from labels and masks alone, so they are
known before the first forward pass and cost one small exchange an update.

Semantic alignment (Eq. 17) compares a video with the queries of its batch. Across processes these are gathered, with
their gradients; accumulated batches stay apart, since they do not exist at the same time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..background_bmdetr import present_negatives
from ..dual_encoder_bmdetr import pair_logits, video_logits
from ..spans_bmdetr import has_moment
from ..targets_bmdetr import COUNTS, VIEWS, GatheredTexts, MomentTargets


def count_targets(batch: Mapping[str, Tensor], num_queries: int) -> Tensor:
    """Rows, moments and negatives per view, the divisors of the losses: `(views, counts)` in the order of `VIEWS` and
    `COUNTS`.

    Args:
        batch: Labels and masks as [`MomentRetrievalCollator`] makes them.
        num_queries: Spans that the model predicts; no more moments than that are matched in a row.
    """
    counts = torch.zeros(len(VIEWS), len(COUNTS))
    negatives = present_negatives(batch["negative_text_mask"]) if "negative_text_mask" in batch else None
    views: dict[str, tuple[Tensor, Tensor | None]] = {
        VIEWS[0]: (batch["labels"], None)
    }  # labels, and rows that take part: all, or those with a moment
    if "shifted_labels" in batch:
        views[VIEWS[1]] = (batch["shifted_labels"], has_moment(batch["shifted_labels"]).any(dim=1))
    if negatives is not None and "negative_labels" in batch:
        views[VIEWS[2]] = (batch["negative_labels"].flatten(0, 1), negatives.flatten())
    for prefix, (labels, given) in views.items():
        rows = torch.ones(len(labels), dtype=torch.bool, device=labels.device) if given is None else given
        moments = has_moment(labels)
        number = counts[VIEWS.index(prefix)]
        number[COUNTS.index("rows")] = rows.sum()
        number[COUNTS.index("present")] = moments.any(dim=1).sum()
        number[COUNTS.index("moments")] = moments.sum(dim=1).clamp(max=num_queries).sum()
        if negatives is not None and prefix != VIEWS[2]:
            number[COUNTS.index("negatives")] = (negatives & rows[:, None]).sum()
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


def gather_texts(outputs: Mapping[str, Any], targets: MomentTargets) -> None:
    """Puts the queries of all processes, where there are several, into `targets`, for what every view contrasts."""
    if num_processes() == 1:
        return
    for prefix, view in targets.views.items():
        if prefix == VIEWS[2]:
            continue  # has no alignment
        sizes = gather_sizes(view.present)
        of_view = outputs["shifted"] if prefix else outputs
        view.texts = GatheredTexts(
            gather_rows(of_view["text_embeds"], sizes),
            gather_rows(view.present.to(torch.uint8), sizes).bool(),
            offset=sum(sizes[: dist.get_rank()]),
        )
        if of_view.get("query_embeds") is not None:
            queries = gather_rows(of_view["query_embeds"], sizes)
            of_videos = video_logits(pair_logits(of_view["clip_embeds"], queries), view.video_mask[:, None])
            view.texts = view.texts._replace(queries=queries, video_logits=gather_rows(of_videos, sizes))


def gather_sizes(rows: Tensor) -> list[int]:
    """The number of rows on each process."""
    size = torch.tensor([len(rows)], device=rows.device)
    sizes = [torch.empty_like(size) for _ in range(num_processes())]
    dist.all_gather(sizes, size)
    return torch.cat(sizes).tolist()


def gather_rows(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows of all processes, in their order, with gradients to each of them: `(sum of sizes, ...)`.

    Args:
        rows: `(n, ...)`, where n may differ between processes.
        sizes: n of every process.
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
