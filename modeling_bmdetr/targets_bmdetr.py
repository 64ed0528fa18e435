"""What a batch is compared with, made once from its labels: moments, foreground clips, pairs of clips, negatives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .background_bmdetr import present_negatives
from .configuration_bmdetr import BMDetrConfig
from .input_checks_bmdetr import check_labels
from .spans_bmdetr import IGNORE, foreground_clips, has_moment

# Log prefixes: the query in both views of a video, and the negative queries where they are answered as well.
VIEWS = ("", "shifted_", "negative_")
COUNTS = ("rows", "present", "moments", "negatives")  # what losses are averaged over


@dataclass
class ViewTargets:
    """What one view of a batch is compared with.

    Attributes:
        spans_cxw: `(batch, moments, 2)`, -100 in label rows without a moment.
        foreground: `(batch, video_len)` bool, the clips that the moments cover.
        video_mask: `(batch, video_len)` bool, real clips.
        margin_pairs: `(batch, video_len, video_len)`, the weight of (foreground clip, background clip) in Eq. 15;
            sums to one in a row that has pairs, to zero in one that has none.
        rows: `(batch,)` bool, rows that take part in this view.
        present: `(batch,)` bool, those of them that have a moment: the others are absent, the video does not show what
            they say.
        negative_foreground: `(batch, negatives, video_len)` bool, the clips of the negative queries' own moments.
        texts: The queries of all processes, which Eq. 17 and the dual encoder contrast with; those of the batch if
            None.
    """

    spans_cxw: Tensor
    foreground: Tensor
    video_mask: Tensor
    margin_pairs: Tensor
    rows: Tensor
    present: Tensor
    negative_foreground: Tensor | None = None
    texts: "GatheredTexts | None" = None

    @classmethod
    def from_labels(
        cls,
        labels_cxw: Tensor,
        video_mask: Tensor,
        saliency_labels: Tensor | None = None,
        negative_labels_cxw: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> "ViewTargets":
        """Targets from the model's label tensors; the shapes are those of `BMDetrForMomentRetrieval.forward`."""
        video_mask = video_mask.bool()
        if not labels_cxw.shape[1]:  # no moment in any row
            labels_cxw = labels_cxw.new_full((len(labels_cxw), 1, 2), IGNORE)
        foreground = foreground_clips(labels_cxw, video_mask)
        negative_foreground = None
        if negative_labels_cxw is not None:
            batch, negatives = negative_labels_cxw.shape[:2]
            masks = video_mask[:, None].expand(-1, negatives, -1).flatten(0, 1)
            flat = foreground_clips(negative_labels_cxw.flatten(0, 1), masks)
            negative_foreground = flat.view(batch, negatives, -1)
        present = has_moment(labels_cxw).any(dim=1)
        return cls(
            spans_cxw=labels_cxw,
            foreground=foreground,
            video_mask=video_mask,
            margin_pairs=margin_pairs(foreground, foreground.logical_not() & video_mask, saliency_labels),
            rows=present if rows is None else rows,
            present=present if rows is None else present & rows,
            negative_foreground=negative_foreground,
        )


class GatheredTexts(NamedTuple):
    """The queries of all processes.

    Attributes:
        embeds: `(texts, dim)` of Eq. 17.
        rows: `(texts,)` bool, those that have a moment.
        offset: Of this process's first one.
        queries: `(texts, dim)` of the dual encoder, and
        video_logits: `(texts, texts)`, its logits of every process's videos and queries; None without one.
    """

    embeds: Tensor
    rows: Tensor
    offset: int
    queries: Any = None
    video_logits: Any = None


@dataclass
class MomentTargets:
    """What a batch is compared with, made once from its labels.

    Attributes:
        views: The targets of each view that has labels, by its prefix in `VIEWS`.
        negative_mask: `(batch, negatives)` bool, negatives that are present; None without negatives.
        negative_weights: `(batch, negatives)`, how much each negative counts; fully when None.
    """

    views: dict[str, ViewTargets]
    negative_mask: Tensor | None = None
    negative_weights: Tensor | None = None

    @classmethod
    def from_inputs(cls, config: BMDetrConfig, inputs: Mapping[str, Any]) -> "MomentTargets":
        """Targets from the arguments of [`BMDetrForMomentRetrieval.forward`].

        Raises:
            ValueError: labels that cannot be right, by name.
        """
        negative_text_mask = inputs.get("negative_text_mask") if config.background_aware else None
        negative_labels = None if negative_text_mask is None else inputs.get("negative_labels")
        labels, video_mask = inputs["labels"], inputs["video_mask"]
        order, shifted_labels = inputs.get("shifted_frame_order"), inputs.get("shifted_labels")
        saliency_labels = inputs.get("saliency_labels")
        num_negatives = 0 if negative_text_mask is None else negative_text_mask.shape[1]
        negative_mask = None if negative_text_mask is None else present_negatives(negative_text_mask)
        check_labels(
            config,
            labels,
            video_mask,
            shifted_frame_order=order,
            shifted_labels=shifted_labels,
            negative_labels=negative_labels,
            saliency_labels=saliency_labels,
            num_negatives=num_negatives,
        )
        every_row = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        original = ViewTargets.from_labels(labels, video_mask, saliency_labels, negative_labels, every_row)
        views = {VIEWS[0]: original}
        if order is not None and shifted_labels is not None:
            shifted = views[VIEWS[1]] = ViewTargets.from_labels(shifted_labels, video_mask)
            if original.negative_foreground is not None:  # the clips of the negatives' moments moved as well
                order = order[:, None].expand_as(original.negative_foreground)
                shifted.negative_foreground = original.negative_foreground.gather(2, order)
        if config.answer_negatives and negative_mask is not None and negative_labels is not None:
            views[VIEWS[2]] = ViewTargets.from_labels(
                negative_labels.transpose(0, 1).flatten(0, 1),
                video_mask.repeat(num_negatives, 1),
                rows=negative_mask.T.flatten(),
            )
        return cls(views, negative_mask, negative_weights=inputs.get("negative_weights"))


def margin_pairs(foreground: Tensor, background: Tensor, saliency_labels: Tensor | None = None) -> Tensor:
    """The pairs of clips that Eq. 15 compares, as weights.

    Every (foreground, background) pair of a row weighs the same: the expectation of drawing pairs at random, without
    its noise. Where clips carry saliency ratings that differ, half of the weight goes to the pair of the highest and
    the lowest rated clip, as QVHighlights' annotations are used since Moment-DETR.

    Args:
        foreground, background: `(batch, video_len)` bool.
        saliency_labels: `(batch, video_len)`, -100 where unknown.

    Returns:
        `(batch, video_len, video_len)`, indexed by (foreground clip, background clip); a row sums to one, or to zero
        when it has no pair.
    """
    pairs = (foreground[:, :, None] & background[:, None, :]).float()
    pairs = pairs / pairs.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    if saliency_labels is None:
        return pairs
    known = (saliency_labels != IGNORE) & (foreground | background)  # never padding
    ratings = saliency_labels.float()
    highest = ratings.masked_fill(~known, -torch.inf).argmax(dim=1)
    lowest = ratings.masked_fill(~known, torch.inf).argmin(dim=1)
    row = torch.arange(len(pairs), device=pairs.device)
    differs = known.any(dim=1) & (ratings[row, highest] > ratings[row, lowest])
    rated = torch.zeros_like(pairs)
    rated[row, highest, lowest] = differs.float()
    return torch.where((differs & (pairs.sum(dim=(1, 2)) > 0))[:, None, None], 0.5 * (pairs + rated), pairs + rated)
