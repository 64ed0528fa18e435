"""A run that diverges stops, and says on which batch: losses and gradients that are not finite train nothing."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback
from transformers.utils import logging

from .checkpointing import last_checkpoint
from .distributed import num_processes

logger = logging.get_logger(__name__)


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether every value is finite, as a scalar tensor: nothing waits for the device.

    Told from the norm, which the CPU finds several times as fast as the largest value; so values whose norm is too
    large for their type count as not finite.
    """
    norm = get_total_norm([tensor.detach() for tensor in tensors])
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).isfinite()


def looks_at_once(tensor: Tensor) -> bool:
    """Whether looking at a value is free."""
    return tensor.device.type == "cpu"


class FiniteGuard(TrainerCallback):
    """Stops training, or skips an update, when its loss or gradient is not finite.

    On the CPU every update is looked at before the optimiser uses it. Elsewhere, where looking would make the host wait
    for the device, updates are looked at when something is logged, evaluated or saved, so that no checkpoint follows a
    bad update; to skip updates, each is looked at. With 16-bit floats (`fp16`) gradients are left to the loss scaler,
    which expects some to overflow.

    Args:
        qids: The identifier of each training row.
        skip: Skips and counts bad updates instead of stopping.
        checks_gradients: False where a loss scaler does.
    """

    def __init__(self, qids: Sequence[str], skip: bool = False, checks_gradients: bool = True):
        self.qids, self.skip, self.checks_gradients = qids, skip, checks_gradients
        self.skipped = 0
        self._losses: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._pending: list[tuple[Tensor, list[Tensor]]] = []

    def saw(self, loss: Tensor, row_index: Tensor) -> None:
        """Takes note of a batch of the update in progress."""
        self._losses.append(loss.detach())
        self._rows.append(row_index)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._losses, self._rows, self._pending = [], [], []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        finite = torch.stack(self._losses).isfinite().all()
        if self.checks_gradients:
            gradients = (parameter.grad for parameter in model.parameters() if parameter.grad is not None)
            finite = finite & all_finite(gradients).to(finite.device)
        self._pending.append((finite, self._rows))
        self._losses, self._rows = [], []
        if not (self.skip or looks_at_once(finite)):
            return
        if (rows := self._bad_rows()) is None:
            return
        if not self.skip:
            self._stop(args, state.global_step + 1, rows)
        model.zero_grad()  # without a gradient the optimiser changes nothing
        self.skipped += 1
        logger.warning(f"update {state.global_step + 1} is skipped: {self._describe(rows)}")

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        due = control.should_log or control.should_evaluate or control.should_save or control.should_training_stop
        if not due:
            return
        if (rows := self._bad_rows()) is not None:
            self._stop(args, state.global_step, rows)
        if control.should_save and not bool(all_finite(model.parameters())):
            self._stop(args, state.global_step, [])

    def _bad_rows(self) -> list[Tensor] | None:
        """The rows of this process in the first bad update since the last look; None where there is none."""
        pending, self._pending = self._pending, []
        if not pending:
            return None
        flags = torch.stack([finite for finite, _ in pending])
        if num_processes() > 1:  # all stop together
            good = flags.to(torch.uint8)
            dist.all_reduce(good, op=dist.ReduceOp.MIN)
            flags = good.bool()
        if bool(flags.all()):
            return None
        return pending[flags.tolist().index(False)][1]

    def _describe(self, rows: Sequence[Tensor]) -> str:
        qids = [self.qids[int(row)] for part in rows for row in part]
        return f"the loss or a gradient of the batch of qid {qids} is not finite" if rows else "a weight is not finite"

    def _stop(self, args: Any, update: int, rows: Sequence[Tensor]) -> None:
        checkpoint = last_checkpoint(args.output_dir)
        remedy = f"'{checkpoint}' is the last good checkpoint" if checkpoint else "no checkpoint was written before"
        raise FloatingPointError(
            f"training diverged at update {update}: {self._describe(rows)}; {remedy}. Train with a lower "
            "`learning_rate` or a smaller `max_grad_norm`, look at the features of these rows, or set "
            "`skip_nonfinite=True` to leave such batches out"
        )
