"""Checks of what users hand to the model: one clear error each, naming argument, expected, received, remedy.

Shapes and widths are always checked. Values are checked only where looking at them costs no device synchronisation:
on the CPU, outside `torch.compile`. The collator and the processor check the values they make before those travel.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from .configuration_bmdetr import BMDetrConfig
from .spans_bmdetr import IGNORE, spans_cxw_to_se


def check_model_inputs(
    config: BMDetrConfig,
    video_features: Tensor,
    video_mask: Tensor,
    text_features: Tensor,
    text_mask: Tensor,
    negative_text_features: Tensor | None = None,
    negative_text_mask: Tensor | None = None,
    shifted_frame_order: Tensor | None = None,
    negative_weights: Tensor | None = None,
) -> None:
    """Raises `ValueError` unless the inputs can be what [`BMDetrModel.forward`] documents."""
    check_dense(
        video_features,
        video_mask=video_mask,
        text_features=text_features,
        text_mask=text_mask,
        negative_text_features=negative_text_features,
        negative_text_mask=negative_text_mask,
        shifted_frame_order=shifted_frame_order,
        negative_weights=negative_weights,
    )
    check_features("video_features", video_features, 3, config.video_dim, lambda: width_hint(config, video_features))
    check_features("text_features", text_features, 3, config.text_dim)
    check_mask("video_mask", video_mask, video_features)
    check_mask("text_mask", text_mask, text_features)
    check_padding_last("video_mask", video_mask)
    # `len` of a tensor would fix the number of rows in an exported model.
    if video_features.shape[0] != text_features.shape[0]:
        raise ValueError(
            f"`video_features` has {len(video_features)} rows and `text_features` {len(text_features)}; pair each "
            "query with its video (repeat the video for several queries)"
        )
    if (negative_text_features is None) != (negative_text_mask is None):
        raise ValueError("`negative_text_features` and `negative_text_mask` belong together: pass both or neither")
    if negative_text_features is not None and negative_text_mask is not None:
        check_features("negative_text_features", negative_text_features, 4, config.text_dim)
        check_mask("negative_text_mask", negative_text_mask, negative_text_features, may_be_empty=True)
        if negative_text_features.shape[0] != text_features.shape[0]:
            raise ValueError(
                f"`negative_text_features` has {len(negative_text_features)} rows, expected {len(text_features)}, one "
                "for each query; give a query without a negative an all-zero mask"
            )
    if negative_weights is not None:
        check_negative_weights(negative_weights, negative_text_mask)
    if shifted_frame_order is not None:
        check_frame_order(shifted_frame_order, video_mask)


def check_dense(video_features: Tensor, **others: Tensor | None) -> None:
    """Tensors are dense, of real numbers and on the device of the video; anything else is left to other checks."""
    for name, value in {"video_features": video_features, **others}.items():
        if not isinstance(value, Tensor):
            continue
        if value.layout != torch.strided or value.is_complex():
            raise ValueError(f"`{name}` must be a dense tensor of real numbers, received {value.layout} {value.dtype}")
        if isinstance(video_features, Tensor) and value.device != video_features.device:
            raise ValueError(
                f"`{name}` must be on the device of `video_features`, {video_features.device}, received one on "
                f"{value.device}: move all inputs to one device"
            )


def check_negative_weights(weights: Tensor, negative_text_mask: Tensor | None) -> None:
    """One weight in [0, 1] for each negative query."""
    if negative_text_mask is None:
        raise ValueError("`negative_weights` weigh negative queries, but `negative_text_features` is missing")
    expected = tuple(negative_text_mask.shape[:2])
    if not isinstance(weights, Tensor) or tuple(weights.shape) != expected:
        raise ValueError(
            f"`negative_weights` must have the shape (batch, negatives) = {expected}, received {describe(weights)}"
        )
    if reads_values(weights) and not bool(((weights >= 0) & (weights <= 1)).all()):
        raise ValueError(
            f"`negative_weights` must lie in [0, 1], received values from {weights.min():g} to {weights.max():g}"
        )


def check_no_stray_tensors(kwargs: dict) -> None:
    """Raises `TypeError` for a tensor under a name that the model does not know, such as a misspelt one."""
    if stray := sorted(name for name, value in kwargs.items() if isinstance(value, Tensor)):
        raise TypeError(f"unknown model inputs {stray}; see `BMDetrForMomentRetrieval.forward` for the names it takes")


def reads_values(tensor: Tensor) -> bool:
    """Whether looking at values is free: on the CPU, not while compiling."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_features(name: str, features: Tensor, dims: int, width: int, hint: Callable[[], str] = str) -> None:
    """A float tensor with `dims` dimensions, something in each, `width` values per row, all finite.

    `hint` is called for a wrong width only: looking for what it means would break a compiled graph.
    """
    axes = {3: f"(batch, length, {width})", 4: f"(batch, negatives, length, {width})"}[dims]
    if not isinstance(features, Tensor) or features.dim() != dims or not features.is_floating_point():
        raise ValueError(f"`{name}` must be a float tensor of shape {axes}, received {describe(features)}")
    if 0 in features.shape[:-1]:
        raise ValueError(f"`{name}` is empty, received {describe(features)}; expected {axes} with length at least 1")
    if features.shape[-1] != width:
        raise ValueError(f"`{name}` must be {width} values wide, received {describe(features)}{hint()}")
    # One norm is quicker to look at than every value; it overflows where the squares of normalisation would.
    if reads_values(features) and not torch.linalg.vector_norm(features.float()).isfinite():
        norms = torch.linalg.vector_norm(features.float().flatten(1), dim=1)
        if not (rows := (~norms.isfinite()).nonzero().flatten().tolist()):
            return
        what = "values too large to square" if features.isfinite().all() else "NaN or infinite values"
        raise ValueError(
            f"`{name}` holds {what} in batch rows {rows}; the feature files of those rows are damaged or were "
            "extracted with an overflow: extract them again"
        )


def check_mask(name: str, mask: Tensor | None, features: Tensor, may_be_empty: bool = False) -> None:
    """A mask of the features' shape, 0 or 1, at least one real position per row."""
    expected = tuple(features.shape[:-1])
    if mask is None:
        raise ValueError(
            f"`{name}` is missing; expected shape {expected}, 1 = real and 0 = padding. "
            f"Where nothing is padded pass torch.ones{expected}"
        )
    if not isinstance(mask, Tensor) or tuple(mask.shape) != expected:
        raise ValueError(f"`{name}` must have shape {expected} like its features, received {describe(mask)}")
    if not reads_values(mask):
        return
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"`{name}` must hold 1 for real and 0 for padded positions, received other values")
    if not may_be_empty and not (real := mask.any(dim=-1)).all():
        rows = (~real).nonzero().flatten().tolist()
        what = "video has no clip" if name.startswith("video") else "query has no token"
        raise ValueError(
            f"`{name}` is all zero in batch rows {rows}: the {what}; leave these rows out of the batch "
            "(masks are 1 = real: check that yours is not inverted)"
        )


def check_padding_last(name: str, mask: Tensor) -> None:
    """Real positions before padding: positions, endpoint features and labels count clips from the first column."""
    if not reads_values(mask):
        return
    gaps = (mask.bool()[:, 1:] & ~mask.bool()[:, :-1]).any(dim=1)
    if gaps.any():
        raise ValueError(
            f"`{name}` has padding before a real position in batch rows {gaps.nonzero().flatten().tolist()}; expected "
            "1, ..., 1, 0, ..., 0: pad at the end"
        )


def check_frame_order(order: Tensor, video_mask: Tensor) -> None:
    """A permutation of each row's clips that leaves padding in place."""
    if not isinstance(order, Tensor) or order.shape != video_mask.shape or order.dtype != torch.long:
        raise ValueError(
            f"`shifted_frame_order` must be a long tensor of shape {tuple(video_mask.shape)}, "
            f"received {describe(order)}"
        )
    if not reads_values(order):
        return
    index = torch.arange(order.shape[1]).expand_as(order)
    if not (order.sort(dim=1).values == index).all() or not (order == index)[~video_mask.bool()].all():
        raise ValueError(
            "`shifted_frame_order` must be a permutation of each row's clips that leaves padding in place; "
            "for a row without a shifted view pass 0, 1, 2, ..."
        )


def check_labels(
    config: BMDetrConfig,
    labels: Tensor,
    video_mask: Tensor,
    shifted_frame_order: Tensor | None,
    shifted_labels: Tensor | None,
    negative_labels: Tensor | None,
    saliency_labels: Tensor | None,
    num_negatives: int,
) -> None:
    """Raises `ValueError` unless the labels can be what [`BMDetrForMomentRetrieval.forward`] documents."""
    batch, video_len = video_mask.shape
    check_dense(
        video_mask,
        labels=labels,
        shifted_labels=shifted_labels,
        negative_labels=negative_labels,
        saliency_labels=saliency_labels,
    )
    check_spans("labels", labels, (batch,))
    if (shifted_frame_order is None) != (shifted_labels is None):
        raise ValueError("`shifted_frame_order` and `shifted_labels` belong together: pass both or neither")
    if shifted_labels is not None:
        check_spans("shifted_labels", shifted_labels, (batch,))
    if negative_labels is not None:
        check_spans("negative_labels", negative_labels, (batch, num_negatives))
    elif config.negative_probability_loss_weight and num_negatives:
        raise ValueError(
            "`negative_labels` is missing, but `negative_probability_loss_weight` is "
            f"{config.negative_probability_loss_weight}: pass the negative queries' own moments "
            "(-100 for queries of other videos), or set the weight to 0"
        )
    if saliency_labels is not None and (
        not isinstance(saliency_labels, Tensor) or tuple(saliency_labels.shape) != (batch, video_len)
    ):
        raise ValueError(
            f"`saliency_labels` must have shape {(batch, video_len)}, one rating per clip and -100 where unknown, "
            f"received {describe(saliency_labels)}"
        )


def check_spans(name: str, labels_cxw: Tensor, leading: tuple[int, ...]) -> None:
    """(centre, width) rows inside [0, 1] with a positive width, or -100 twice."""
    if not isinstance(labels_cxw, Tensor) or tuple(labels_cxw.shape[:-2]) != leading or labels_cxw.shape[-1:] != (2,):
        axes = ", ".join(str(size) for size in leading)
        raise ValueError(
            f"`{name}` must have shape ({axes}, moments, 2), (centre, width) in [0, 1] and -100 where a row holds no "
            f"moment, received {describe(labels_cxw)}"
        )
    if not labels_cxw.is_floating_point():
        raise ValueError(f"`{name}` must be a float tensor, received {describe(labels_cxw)}")
    if not reads_values(labels_cxw):
        return
    spans = labels_cxw[~(labels_cxw == IGNORE).all(dim=-1)]
    spans_se = spans_cxw_to_se(spans)
    tolerance = 1e-4
    good = (spans[:, 1] > 0) & (spans_se[:, 0] >= -tolerance) & (spans_se[:, 1] <= 1 + tolerance)
    if not good.all():
        raise ValueError(
            f"`{name}` holds spans outside [0, 1] or without a positive width, such as (centre, width) = "
            f"{[round(value, 4) for value in spans[~good][0].tolist()]}; divide seconds by the length of the time axis "
            "(clips x clip_length), clip windows to the video and drop empty ones"
        )


def width_hint(config: BMDetrConfig, features: Tensor) -> str:
    """What a wrong width of video features probably means."""
    width = features.shape[-1] if isinstance(features, Tensor) and features.dim() else 0
    if width == config.video_dim + 2:
        return "; leave the two endpoint columns out, the model appends them"
    encoders = list(config.feature_contract.video_encoders)
    expected = " + ".join(f"{encoder['name']} ({encoder['dim']})" for encoder in encoders)
    for size in range(1, len(encoders)):
        for some in itertools.combinations(encoders, size):
            if sum(encoder["dim"] for encoder in some) == width:
                missing = [encoder["name"] for encoder in encoders if encoder not in some]
                return f"; the model expects {expected}, and the features of {missing} seem to be missing"
    return f"; the model expects {expected}" if encoders else ""


def describe(value: object) -> str:
    """Shape and type of a tensor, or the type of anything else."""
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
