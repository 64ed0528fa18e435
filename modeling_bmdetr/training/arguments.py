"""Training arguments: transformers' own, with the paper's schedule as defaults and what BM-DETR adds."""

import math
from dataclasses import dataclass, field
from typing import Any, get_args

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from ..data.batches.negative_sampling import Strategy

# Fields of the base class that nothing here reads, and their values when they are left alone.
_WITHOUT_EFFECT = {
    "auto_find_batch_size": False,
    "dataloader_drop_last": False,
    "label_smoothing_factor": 0.0,
}


@dataclass
class BMDetrTrainingArguments(TrainingArguments):
    """[`TrainingArguments`] with the released recipe for Charades-STA as defaults: AdamW, learning rate 2e-4 times 0.1
    every 40 epochs, weight decay 1e-4, gradients clipped at 0.1, batches of 32, 100 epochs, best by R1@0.7.

    Of `train_sampling_strategy`, "random" draws videos at random, and "group_by_length" puts videos of similar length
    into a batch, which leaves less padding to compute.

    Args:
        lr_drop_epochs: Epochs after which the learning rate is multiplied by `lr_drop_factor`, again and again; 0
            leaves it to `lr_scheduler_type`.
        negative_sampling: Where negative queries come from (Figure 3): `mined` by Principles 1-2 (rows need
            `neg_query_ids`), `mined_only`, `same_video`, `random_video`, or `none`; see [`NegativeSampler`].
        num_negatives: Negative queries a training query (the paper has one).
        absent_share: The share of draws of negative queries that take one of another video, whatever the strategy,
            where the model has a presence head, which learns from them and from rows with empty `relevant_windows`.
        temporal_shifting: Train on a shifted view as well (3.4).
        shifting_limit_s: Videos this long (s) or longer are not shifted.
        evaluate_with_negatives: Give negatives in evaluation too, for measuring p as in Table 9; never for figures
            that are compared with other methods.
        gather_alignment: With several processes, semantic alignment (Eq. 17) and the dual encoder compare a video with
            the queries of all of them, as one process with the whole batch would.
        cpu_matmul_precision: What matrices are multiplied in, in training on the CPU: `float32`, or `bfloat16`, which
            takes less time where the processor has such products and is not used where it has none. Everything
            else stays in float32 (unlike `bf16`, which casts all of the model and gains little on the CPU).
        skip_nonfinite: Leave out updates whose loss or gradient is not finite, and count them in the log, instead of
            stopping with the batch's qids.
    """

    learning_rate: float = field(default=2e-4)
    weight_decay: float = field(default=1e-4)
    max_grad_norm: float = field(default=0.1)
    num_train_epochs: float = field(default=100)
    per_device_train_batch_size: int = field(default=32)
    per_device_eval_batch_size: int = field(default=64)
    lr_scheduler_type: SchedulerType | str = field(default="constant")
    eval_strategy: IntervalStrategy | str = field(default="epoch")
    save_strategy: SaveStrategy | str = field(default="epoch")
    save_total_limit: int | None = field(default=2)
    load_best_model_at_end: bool = field(default=True)
    metric_for_best_model: str | None = field(default="MR-full-R1@0.7")
    greater_is_better: bool | None = field(default=True)
    logging_strategy: IntervalStrategy | str = field(default="epoch")
    remove_unused_columns: bool = field(default=False)
    report_to: str | list[str] = field(default="none")
    logging_nan_inf_filter: bool = field(default=False)  # a loss that is not finite is logged as what it is
    # Every parameter has a gradient in every step, whatever the losses' weights and the rows of a batch are.
    ddp_find_unused_parameters: bool | None = field(default=False)

    lr_drop_epochs: int = field(default=40)
    lr_drop_factor: float = field(default=0.1)
    negative_sampling: str = field(default="mined")
    num_negatives: int = field(default=1)
    absent_share: float = field(default=0.3)
    temporal_shifting: bool = field(default=False)
    shifting_limit_s: float = field(default=60.0)
    evaluate_with_negatives: bool = field(default=False)
    gather_alignment: bool = field(default=True)
    cpu_matmul_precision: str = field(default="float32")
    skip_nonfinite: bool = field(default=False)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: everything but the access token, since `training_args.bin` is pushed with the model."""
        return {**self.__dict__, "hub_token": None}

    def __post_init__(self):
        super().__post_init__()
        if not (
            self.max_steps > 0 or 0 < self.num_train_epochs < math.inf
        ):  # a training that makes no update, or no end
            raise ValueError(f"`num_train_epochs` must be a number above 0, received {self.num_train_epochs}")
        if self.gradient_accumulation_steps < 1:
            raise ValueError(
                f"`gradient_accumulation_steps` must be at least 1, received {self.gradient_accumulation_steps}"
            )
        if self.lr_drop_epochs < 0 or not 0 < self.lr_drop_factor <= 1:
            raise ValueError(
                "`lr_drop_epochs` must not be negative and `lr_drop_factor` must lie in (0, 1], received "
                f"{self.lr_drop_epochs} and {self.lr_drop_factor}"
            )
        if self.lr_drop_epochs and self.lr_scheduler_type != SchedulerType.CONSTANT:
            raise ValueError(
                f"`lr_drop_epochs` is {self.lr_drop_epochs} and `lr_scheduler_type` is {self.lr_scheduler_type}: set "
                "`lr_drop_epochs` to 0 to use the latter"
            )
        if self.negative_sampling not in get_args(Strategy):
            raise ValueError(
                f"`negative_sampling` must be one of {list(get_args(Strategy))}, received {self.negative_sampling!r}"
            )
        if self.num_negatives < 1:
            raise ValueError(
                f"`num_negatives` must be at least 1, received {self.num_negatives}; set `negative_sampling` to 'none' "
                "to train without negative queries"
            )
        if not 0 <= self.absent_share <= 1:
            raise ValueError(f"`absent_share` must lie in [0, 1], received {self.absent_share}")
        if not self.shifting_limit_s > 0:
            raise ValueError(
                f"`shifting_limit_s` must be positive, received {self.shifting_limit_s}; set `temporal_shifting` to "
                "False to train without shifted views"
            )
        if self.cpu_matmul_precision not in ("float32", "bfloat16"):
            raise ValueError(
                f"`cpu_matmul_precision` must be 'float32' or 'bfloat16', received {self.cpu_matmul_precision!r}"
            )
        if self.cpu_matmul_precision != "float32" and (self.bf16 or self.fp16 or self.torch_compile):
            raise ValueError(
                "`cpu_matmul_precision` has no effect with `bf16`, `fp16` or `torch_compile`: leave it out, or them"
            )
        if self.train_sampling_strategy not in ("random", "group_by_length"):
            raise ValueError(
                "`train_sampling_strategy` must be 'random' or 'group_by_length', received "
                f"{self.train_sampling_strategy!r}"
            )
        for name, default in _WITHOUT_EFFECT.items():
            if (value := getattr(self, name, default)) != default:
                raise ValueError(f"`{name}` has no effect on the training of BM-DETR, received {value!r}: leave it out")
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must be False: rows are turned into tensors by the collator")
