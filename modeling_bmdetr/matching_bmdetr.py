"""Matching predicted spans with moments, one to one (Eq. 12-13)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import is_scipy_available

from .spans_bmdetr import generalized_temporal_iou, spans_cxw_to_se

FOREGROUND, BACKGROUND = 0, 1  # class indices of `logits`


@dataclass
class MatchedMoments:
    """The assignment of predicted spans to moments.

    Attributes:
        query_index: `(batch, moments)` long, the span assigned to each moment; 0 where `valid` is False.
        valid: `(batch, moments)` bool, False for label rows without a moment or left over by the assignment.
    """

    query_index: Tensor
    valid: Tensor

    def select(self, values: Tensor) -> Tensor:
        """The assigned spans' values: `(batch, queries, k)` to `(batch, moments, k)`."""
        return values.gather(1, self.query_index[..., None].expand(-1, -1, values.shape[-1]))


def matching_cost(
    logits: Tensor, pred_spans: Tensor, labels_cxw: Tensor, class_cost: float, l1_cost: float, giou_cost: float
) -> Tensor:
    """Eq. 12: minus the foreground probability plus the moment localisation cost of Eq. 14.

    Args:
        logits: `(batch, queries, 2)`.
        pred_spans: `(batch, queries, 2)` (centre, width).
        labels_cxw: `(batch, moments, 2)`.

    Returns:
        `(batch, queries, moments)`; meaningless where a label row holds no moment.
    """
    probability = logits.softmax(dim=-1)[..., FOREGROUND]  # (batch, queries)
    predicted, wanted = pred_spans[:, :, None], labels_cxw[:, None]  # (batch, queries, 1, 2), (batch, 1, moments, 2)
    l1 = (predicted - wanted).abs().sum(dim=-1)
    giou = generalized_temporal_iou(spans_cxw_to_se(predicted), spans_cxw_to_se(wanted))
    return -class_cost * probability[..., None] + l1_cost * l1 - giou_cost * giou


@torch.no_grad()
def match_moments(cost: Tensor, valid: Tensor) -> MatchedMoments:
    """Eq. 13: the one-to-one assignment of spans to moments with the least total cost.

    With at most one moment per query the optimum is an argmin and stays on the device. With several, SciPy's
    `linear_sum_assignment` solves each query on the CPU. A cost that is not a number counts as very large, so a
    diverged model shows in its loss, not as an error of the solver.

    Args:
        cost: `(batch, queries, moments)` of `matching_cost`.
        valid: `(batch, moments)` bool.

    Raises:
        ImportError: several moments per query, and SciPy is not installed.
    """
    cost = torch.nan_to_num(cost.float(), nan=1e6, posinf=1e6, neginf=-1e6)
    if cost.shape[2] == 1:
        return MatchedMoments(cost.argmin(dim=1), valid)
    if is_scipy_available():  # where code is loaded from the Hub, an import outside such a block is demanded at once
        from scipy.optimize import linear_sum_assignment
    else:
        raise ImportError("matching several moments per query needs SciPy: pip install scipy")

    costs, valid_rows = cost.cpu().numpy(), valid.cpu().numpy()
    query_index = torch.zeros(valid.shape, dtype=torch.long)
    assigned = torch.zeros(valid.shape, dtype=torch.bool)
    for i in range(len(costs)):
        moments = valid_rows[i].nonzero()[0]
        queries, columns = linear_sum_assignment(costs[i][:, moments])
        query_index[i, moments[columns]] = torch.from_numpy(queries)
        assigned[i, moments[columns]] = True
    return MatchedMoments(query_index.to(valid.device), assigned.to(valid.device))
