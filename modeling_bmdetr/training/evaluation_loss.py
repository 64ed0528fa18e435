"""The loss of an evaluation set as one batch would have it, whatever the batch size."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..loss_bmdetr import BMDetrLoss
from ..targets_bmdetr import COUNTS
from .distributed import count_targets


class EvaluationLoss:
    """Sums the terms of batches, each over what it is a mean over.

    A term that depends on the other rows of a batch (`LossTerm.per`), as Eq. 17 does, is left out: it would depend on
    the batch size. The loss is that of the queries on the videos as they are: evaluation has no shifted view, and the
    answers to negative queries are left out.

    Args:
        criterion: The loss whose terms are summed.
    """

    def __init__(self, criterion: BMDetrLoss):
        self.criterion = criterion
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))

    def add(
        self, terms: Mapping[str, Tensor], batch: Mapping[str, Tensor], num_queries: int, counted: bool = True
    ) -> None:
        """Adds the terms of a batch, as the criterion returned them.

        Args:
            counted: False adds nothing, but the process knows the terms that all sum up together.
        """
        counts = count_targets(batch, num_queries)[0].double()
        for name, term in self.criterion.terms.items():
            if name in terms and term.per in COUNTS:
                number = counts[COUNTS.index(term.per)]
                share = torch.stack((terms[name].double().cpu() * number, number))
                self.sums[name] = self.sums[name] + (share if counted else torch.zeros(2, dtype=torch.float64))

    def value(self, reduce: Callable[[Tensor], Any]) -> float:
        """The loss over all that was added, on all processes.

        Args:
            reduce: Sums a tensor over the processes.
        """
        names = sorted(self.sums)
        totals = reduce(torch.stack([self.sums[name] for name in names]))
        means = {name: total / number.clamp(min=1) for name, (total, number) in zip(names, totals, strict=True)}
        return float(self.criterion.weighted_sum(means))
