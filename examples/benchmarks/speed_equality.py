"""Whether both sides of `bench.py` compute the same: with the same weights, on the same batch and queries."""

import argparse
from pathlib import Path
from typing import Any

import torch
from speed_sides import ENCODERS, OwnSide, ReleasedSide

from modeling_bmdetr.loss_bmdetr import ViewTargets
from modeling_bmdetr.released import convert_released_checkpoint
from modeling_bmdetr.released.names import RELEASED_LOSSES, RELEASED_OUTPUTS, released_layout


class BothSides:
    """The released model and this package's, converted from it, without dropout."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        self.released = ReleasedSide(folder, options)
        self.own = OwnSide(
            folder,
            options,
            packed=True,
            model=convert_released_checkpoint(self.released.model.state_dict(), **ENCODERS),
        )

    def compare(self) -> dict[str, float]:
        """The largest differences between the two sides."""
        differences = compare_batch(self.released, self.own.model)
        self.released.evaluate()
        self.own.evaluate()
        return {**differences, **compare_evaluation(self.released, self.own)}


def compare_batch(released: ReleasedSide, model: Any) -> dict[str, float]:
    """Outputs, loss terms and gradients of one batch with negatives and a shifted view.

    The release moves a frame's endpoint columns with the frame and this package leaves them in place, so both are
    given them in place here. The two pairs of clips that the release draws for its margin loss, and its foreground of
    the shifted view, are handed to the own loss; all else each side works out for itself.
    """
    inputs, targets = released.data.prepare_batch_inputs(released.batch[1], torch.device("cpu"))
    video, shifted = inputs["src_vid"], inputs["shifted_vid"]
    order = (shifted[..., -2] * video.shape[1]).round().long()
    shifted[..., -2:] = video[..., -2:]
    released_outputs = released.model.eval()(**inputs)
    main_terms, other_terms = released.criterion(released_outputs, targets)
    views = {"": (released_outputs, targets, main_terms)}
    views["shifted_"] = (released_outputs["shifting"], targets["shifting"], other_terms["shifting"])

    own = model.eval()(
        video_features=video[..., :-2],
        video_mask=inputs["src_vid_mask"],
        text_features=inputs["src_txt"],
        text_mask=inputs["src_txt_mask"],
        negative_text_features=inputs["neg_src_txt"][:, None],
        negative_text_mask=inputs["neg_src_txt_mask"][:, None],
        shifted_frame_order=order,
    )
    outputs, losses, released_total, own_total = 0.0, 0.0, torch.zeros(()), torch.zeros(())
    for prefix, (view, target, terms) in views.items():
        own_view = own.shifted if prefix else own
        outputs = max(
            [outputs, *(float((view[a] - own_view[b]).detach().abs().max()) for a, b in RELEASED_OUTPUTS.items())]
        )
        labels = torch.stack([row["spans"] for row in target["span_labels"]])
        own_targets = ViewTargets.from_labels(labels, inputs["src_vid_mask"])
        if prefix:
            own_targets.foreground = target["match_labels"].bool()
        own_targets.margin_pairs = torch.zeros_like(own_targets.margin_pairs)
        pairs = zip(target["saliency_pos_labels"], target["saliency_neg_labels"], strict=True)
        for row, (foreground, background) in enumerate(pairs):
            for fore, back in zip(foreground, background, strict=True):
                own_targets.margin_pairs[row, fore, back] += 1 / len(foreground)
        own_terms = model.criterion.view_terms(own_view, own_targets)
        for name, (mine, unit) in RELEASED_LOSSES.items():
            difference = (own_terms[mine] * unit - terms[name]).abs() / terms[name].abs()
            losses = max(losses, float(difference.detach()))
        weights = released.criterion.weight_dict
        released_total = released_total + sum(terms[name] * weights[name] for name in RELEASED_LOSSES) / len(views)
        own_total = own_total + model.criterion.weighted_sum(own_terms) / len(views)
    released.model.zero_grad()
    released_total.backward()
    own_total.backward()
    own_parameters = dict(model.named_parameters())
    # As one vector: some tensors have no gradient but for rounding, such as the biases of keys.
    released_gradient, own_gradient = [], []
    for name, parts in released_layout(own_parameters).items():
        released_gradient.append(released.model.get_parameter(name).grad.flatten())
        own_gradient.append(torch.cat([own_parameters[part].grad for part in parts]).flatten())
    gradient = torch.cat(released_gradient)
    return {
        "outputs": outputs,
        "loss terms, relative": losses,
        "gradient of the loss, relative": float((torch.cat(own_gradient) - gradient).norm() / gradient.norm()),
    }


def compare_evaluation(released: ReleasedSide, own: OwnSide) -> dict[str, float]:
    """Ranked windows of every evaluation query, and the metrics that both evaluators give for the released ones."""
    windows = unequal = 0
    for theirs, mine in zip(released.predictions, own.predictions, strict=True):
        first, second = (torch.tensor(row["pred_relevant_windows"]) for row in (theirs, mine))
        windows += len(first)
        unequal += int(((first - second).abs() > 2e-4).any(dim=1).sum())
    theirs = released.metrics()
    own.predictions = [{**row, "qid": str(row["qid"])} for row in released.predictions]
    mine = own.metrics()
    return {
        f"ranked windows that are not equal, of {windows:,}": unequal,
        "metrics of the same windows, points": max(abs(mine[name] - value) for name, value in theirs.items()),
    }
