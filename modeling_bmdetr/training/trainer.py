"""BMDetrTrainer: transformers' Trainer on canonical rows and a feature store."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import EvalPrediction, IntervalStrategy
from transformers.utils import logging

from ..calibrating import fit_calibration, rows_read
from ..calibration_bmdetr import Calibration, calibration_lines
from ..configuration_bmdetr import BMDetrConfig
from ..contract_bmdetr import FeatureContract
from ..cpu_layers_bmdetr import multiplies_bfloat16
from ..data.batches.collator import NOT_THE_MODELS, MomentRetrievalCollator
from ..data.batches.examples import MomentRetrievalDataset
from ..data.batches.negative_sampling import NegativeSampler
from ..data.batches.sampler import UniqueVideoBatchSampler
from ..data.features.store import FeatureStore
from ..data.rows.checked import checked_rows
from ..data.rows.schema import is_labelled
from ..evaluation import evaluate_submission
from ..layers_bmdetr import products_in
from ..loss_bmdetr import BMDetrLoss
from ..modeling_bmdetr import BMDetrForMomentRetrieval
from ..plugins_bmdetr import require_loss
from ..processes import end_with_parent, keep_freed_memory, usable_processors
from ..processing_bmdetr import BMDetrProcessor
from ..spans_bmdetr import IGNORE, foreground_clips
from ..targets_bmdetr import MomentTargets
from .arguments import BMDetrTrainingArguments
from .distributed import gather_texts, mean_counts, num_processes
from .evaluation_loss import EvaluationLoss
from .finite import FiniteGuard
from .publishing import PublishingTrainer
from .standardization import is_trained, sample_batches, standardize_inputs

Rows = Sequence[Mapping[str, Any]]
Criterion = Callable[[Any, MomentTargets, Tensor | None], tuple[Tensor, dict[str, Tensor]]]

logger = logging.get_logger(__name__)


class UniqueVideoDataLoader(DataLoader):
    """A data loader whose batch sampler follows the Trainer's epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class BMDetrTrainer(PublishingTrainer):
    """Trains and evaluates [`BMDetrForMomentRetrieval`].

    Differences from [`Trainer`]: data sets are canonical rows whose features lie in a [`FeatureStore`]; no two
    queries of a batch share a video; every loss term is logged; evaluation yields the metrics of
    [`evaluate_submission`], any of which can select the best checkpoint.

    Args:
        model: The model; its feature contract must fit the store. None where `model_init` makes it.
        args: Training arguments.
        train_rows: Canonical rows.
        eval_rows: Canonical rows, or a dict of several sets by name, whose metrics are logged as
            `eval_NAME_MR-full-R1@0.7` and so on; the first set selects the best checkpoint unless
            `metric_for_best_model` names another.
        store: Features of the rows' videos and queries.
        processor: Saved with every checkpoint; made from the model's contract when left out.
        criterion: The loss, called as [`BMDetrLoss`] is; `model.criterion` when left out.
        compute_metrics: Further metrics, called with an `EvalPrediction` of canonical predictions and the rows they
            are for, in the same order; they are added to those of [`evaluate_submission`].
        kwargs: `model_init`, `callbacks`, `optimizers` and whatever else [`Trainer`] takes.
    """

    args: BMDetrTrainingArguments
    train_dataset: Any  # canonical rows
    eval_dataset: Any  # canonical rows, or several sets of them by name

    def __init__(
        self,
        model: BMDetrForMomentRetrieval | None,
        args: BMDetrTrainingArguments,
        *,
        store: FeatureStore,
        train_rows: Rows | None = None,
        eval_rows: Rows | Mapping[str, Rows] | None = None,
        processor: BMDetrProcessor | None = None,
        criterion: Criterion | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **kwargs: Any,
    ):
        contract = store.contract if model is None else model.config.feature_contract
        if train_rows is not None:
            if criterion is None and model is not None and model.config.loss is not None:
                require_loss(model.config.loss)
            mined = args.negative_sampling.startswith("mined")
            train_rows = checked_rows(train_rows, "train_rows", contract, training=True, reads_negatives=mined)
            store.require(train_rows)
        if isinstance(eval_rows, Mapping):
            eval_rows = {name: checked_rows(rows, f"eval_rows['{name}']", contract) for name, rows in eval_rows.items()}
        elif eval_rows is not None:
            eval_rows = checked_rows(eval_rows, "eval_rows", contract)
        if eval_rows is None and args.eval_strategy != "no":
            when = IntervalStrategy(args.eval_strategy).value
            raise ValueError(
                f"`eval_strategy` is '{when}', which needs `eval_rows`: pass them, or "
                "BMDetrTrainingArguments(eval_strategy='no', load_best_model_at_end=False)"
            )
        for rows in eval_rows.values() if isinstance(eval_rows, dict) else [eval_rows]:
            if rows is not None:
                store.require(rows)
        self.store, self.criterion, self.users_metrics = store, criterion, compute_metrics
        self._term_sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self._term_steps = self._skipped_steps = 0
        self._evaluation_loss: EvaluationLoss | None = None
        if args.n_gpu > 1:
            logger.warning(
                f"one of {args.n_gpu} accelerators is used: start one process on each with `accelerate launch`"
            )
            args._n_gpu = 1  # else the Trainer would split every batch with DataParallel
        metric = args.metric_for_best_model
        if isinstance(eval_rows, dict) and eval_rows and metric:
            metric = metric.removeprefix("eval_")
            if not any(metric.startswith(f"{name}_") for name in eval_rows):
                args.metric_for_best_model = f"{next(iter(eval_rows))}_{metric}"
                logger.info(f"the best checkpoint is selected by {args.metric_for_best_model}")
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            data_collator=MomentRetrievalCollator(),
            compute_metrics=self.moment_metrics,
            **kwargs,
        )
        self.guard = FiniteGuard([row["qid"] for row in train_rows or ()], args.skip_nonfinite, not args.fp16)
        self.add_callback(self.guard)
        # Not the Trainer's `processing_class`, which must have a tokenizer.
        self.processor = processor or BMDetrProcessor(self.contract)
        # The Trainer sets this switch of language models; saved, it would be an unknown field of our configuration.
        self.config.__dict__.pop("use_cache", None)

    @property
    def config(self) -> BMDetrConfig:
        """The configuration of the model that is trained now; `model_init` may make several."""
        return self.accelerator.unwrap_model(self.model).config

    @property
    def contract(self) -> FeatureContract:
        """The model's feature contract."""
        return self.config.feature_contract

    # Data

    def dataset(self, rows: Rows, training: bool) -> MomentRetrievalDataset:
        """The examples of rows: with negatives and shifted views in training, with neither in evaluation."""
        args, config = self.args, self.config
        rows = checked_rows(rows, "rows", config.feature_contract, training=training)
        negatives = None
        if (training or args.evaluate_with_negatives) and config.background_aware:
            strategy = args.negative_sampling
            share = args.absent_share if config.presence_head else 0.0
            negatives = None if strategy == "none" else NegativeSampler(rows, strategy, share)  # type: ignore[arg-type]
        return MomentRetrievalDataset(
            rows,
            self.store,
            config.feature_contract,
            negatives=negatives,
            num_negatives=args.num_negatives,
            temporal_shifting=training and args.temporal_shifting,
            shifting_limit_s=args.shifting_limit_s,
            max_moments=config.num_queries,
            seed=self.data_seed,
            with_labels=all(map(is_labelled, rows)),
        )

    @property
    def data_seed(self) -> int:
        """Seed of the batches and of everything that is drawn for an example."""
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def train_sampler(self) -> UniqueVideoBatchSampler:
        """This process's batches of the training rows."""
        if self.train_dataset is None:
            raise ValueError("training needs `train_rows`")
        videos = [row["vid"] for row in self.train_dataset]
        grouped = self.args.train_sampling_strategy == "group_by_length"
        return UniqueVideoBatchSampler(
            videos,
            self.args.per_device_train_batch_size,
            seed=self.data_seed,
            num_processes=self.args.world_size,
            process_index=self.args.process_index,
            lengths=[self.store.num_clips(video) for video in videos] if grouped else None,
        )

    def batches_per_epoch(self) -> int:
        return len(self.train_sampler())

    def get_train_dataloader(self) -> DataLoader:
        sampler = self.train_sampler()
        # The sampler yields this process's share, so Accelerate must not divide it again.
        return self._loader(UniqueVideoDataLoader, self.dataset(self.train_dataset, True), batch_sampler=sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Batches of rows, of the evaluation set of this name, of a [`MomentRetrievalDataset`], or of `eval_rows`."""
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(given, str) and isinstance(self.eval_dataset, dict):
            given = self.eval_dataset.get(given)
        if given is None or isinstance(given, str | dict):
            raise ValueError(
                "evaluation needs `eval_rows`, rows, or the name of one of several sets of `eval_rows`, received "
                f"{eval_dataset if isinstance(eval_dataset, str) else type(given).__name__}"
            )
        dataset = given if isinstance(given, MomentRetrievalDataset) else self.dataset(given, training=False)
        return self.accelerator.prepare(self._loader(DataLoader, dataset, batch_size=self.args.eval_batch_size))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return self.get_eval_dataloader(test_dataset)

    def _loader(self, loader: type[DataLoader], dataset: MomentRetrievalDataset, **kwargs: Any) -> DataLoader:
        asked, workers = self.args.dataloader_num_workers, self._loader_workers()
        if workers < asked:
            logger.warning_once(
                f"`dataloader_num_workers` is {asked}, but this process may use {workers} processors: batches are read "
                f"by {workers} workers, and are the same"
            )
        return loader(
            dataset,
            collate_fn=self.data_collator,
            num_workers=workers,
            worker_init_fn=end_with_parent,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            **kwargs,
        )

    def _loader_workers(self) -> int:
        """As many as asked for, but no more than there are processors: more only wait for one another."""
        return min(self.args.dataloader_num_workers, usable_processors())

    # Loss and schedule

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As [`Trainer.train`]. `resume_from_checkpoint=True` goes on from the newest checkpoint that is whole.
        A calibration that the model has is dropped: it is one of other weights."""
        self.config.calibration = None
        if self.args.device.type == "cpu":
            keep_freed_memory()
        return super().train(*args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, after the inputs of a model that has not been trained are standardised: it is there by now,
        given or made by `model_init`, and not yet divided among processes."""
        model: Any = self.accelerator.unwrap_model(self.model)
        if self.train_dataset and self.config.standardize_inputs and not is_trained(model.model):
            batches = sample_batches(self.dataset(self.train_dataset, True), self.data_collator, self.data_seed)
            standardize_inputs(model.model, batches)
        with products_in(model, self.type_of_products()):
            return super()._inner_training_loop(*args, **kwargs)

    def type_of_products(self) -> torch.dtype:
        """`cpu_matmul_precision`, where this processor has it."""
        if self.args.cpu_matmul_precision == "float32" or self.args.device.type != "cpu":
            return torch.float32
        if not multiplies_bfloat16():
            logger.warning_once("`cpu_matmul_precision` is 'bfloat16', which this processor has not: it is float32")
            return torch.float32
        return torch.bfloat16

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The batches of an update, and the divisors of its losses (`mean_counts`)."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, mean_counts(batches, self.config.num_queries, device) if batches else None

    def forward(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """The model's outputs for a batch, without a loss."""
        return model(**{name: value for name, value in inputs.items() if name not in NOT_THE_MODELS})

    @property
    def criterion_in_use(self) -> Criterion:
        """The loss: the trainer's, or else the model's."""
        return self.criterion or self.accelerator.unwrap_model(self.model).criterion

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch; in training as its part of the global batch, whose counts `get_batch_samples` made."""
        outputs = self.forward(model, inputs)
        targets = MomentTargets.from_inputs(self.config, inputs)
        counts = num_items_in_batch if model.training and isinstance(num_items_in_batch, Tensor) else None
        contrasted = self.config.alignment_loss_weight or self.config.dual_encoder
        if counts is not None and self.args.gather_alignment and contrasted:
            gather_texts(outputs, targets)
        loss, terms = self.criterion_in_use(outputs, targets, counts)
        outputs["loss_dict"] = terms
        if model.training:
            self.guard.saw(loss, inputs["row_index"])
            if self.args.skip_nonfinite and not bool(loss.isfinite()):
                self._skipped_steps += 1
            else:
                for name, term in terms.items():
                    self._term_sums[name] = self._term_sums[name].to(term.device) + term
                self._term_steps += 1
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:  # noqa: ARG002
        """Not counted: the Trainer's estimate is of language models, in which every weight meets every input."""
        return 0

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """As [`Trainer.training_step`]; a loss that is not finite adds nothing to the log where it is skipped."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        return loss.nan_to_num(0, 0, 0) if self.args.skip_nonfinite else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of every loss term since the last log to the training loss."""
        if "loss" in logs and self._skipped_steps:  # the mean of the batches that were trained on, if any
            steps = self._term_steps + self._skipped_steps
            logs["loss"] = logs["loss"] * steps / self._term_steps if self._term_steps else math.nan
            self._skipped_steps = 0
        if "loss" in logs and self._term_steps:
            sums = torch.stack([self._term_sums[name].float() for name in sorted(self._term_sums)])
            means = self.accelerator.reduce(sums / self._term_steps, reduction="mean").tolist()
            logs.update({name: round(mean, 5) for name, mean in zip(sorted(self._term_sums), means, strict=True)})
            self._term_sums.clear()
            self._term_steps = 0
        if "loss" in logs and self.args.skip_nonfinite:
            logs["skipped_updates"] = self.guard.skipped
        super().log(logs, start_time)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None and self.args.lr_drop_epochs:
            updates = math.ceil(len(self.train_sampler()) / self.args.gradient_accumulation_steps)
            drop_steps, factor = self.args.lr_drop_epochs * updates, self.args.lr_drop_factor
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = LambdaLR(optimizer, lambda step: factor ** (step // drop_steps))
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def calibrate(self, rows: Rows) -> Calibration:
        """Fits the calibration of the weights as they are on labelled validation rows, and puts it into the
        configuration, so that `save_model` and all that follow have it; see [`fit_calibration`].

        Raises:
            ValueError: a row has no labels, or no features in the store.
            ImportError: scikit-learn is not installed.
        """
        model: Any = self.accelerator.unwrap_model(self.model)
        model.config.calibration = None
        calibration = fit_calibration(model, rows, self.store, batch_size=self.args.eval_batch_size)
        for line in calibration_lines(calibration):
            logger.info(line)
        if calibration.score is not None or calibration.presence is not None:
            model.config.calibration = calibration.to_dict()
        return calibration

    # Evaluation

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> Any:
        rows = self._rows_under_evaluation = dataloader.dataset.rows  # type: ignore[attr-defined]
        if self.contract.long_video == "window":
            labelled = [row for row in rows if is_labelled(row)]
            if missed := len(labelled) - len(rows_read(labelled, self.contract, self.store)):
                logger.warning_once(
                    f"{missed} of {len(rows)} rows describe what lies beyond the first {self.contract.max_clips} clips "
                    "of a video, which the model reads at once: it counts as missed here, where the pipeline searches "
                    "by windows"
                )
        criterion = self.criterion_in_use
        self._evaluation_loss = EvaluationLoss(criterion) if isinstance(criterion, BMDetrLoss) else None
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        if self._evaluation_loss is not None and self._evaluation_loss.sums:
            prefix = kwargs.get("metric_key_prefix", "eval")
            total = self._evaluation_loss.value(lambda sums: self.accelerator.reduce(sums.to(self.args.device)).cpu())
            return output._replace(metrics={**(output.metrics or {}), f"{prefix}_loss": total})
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,  # noqa: ARG002 - the Trainer passes it
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """Loss, (moments in seconds, saliency, mean p inside and outside the moments, presence), row indices."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            if "labels" in inputs:
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
                if self._evaluation_loss is not None:
                    self._add_to_evaluation_loss(model, inputs, outputs["loss_dict"])
            else:
                loss, outputs = None, self.forward(model, inputs)
        if prediction_loss_only:
            return loss, None, None
        mask, durations_s = inputs["video_mask"].bool(), inputs["durations_s"]
        moments = self.processor.decode(outputs["scores"], outputs["pred_spans"], mask.sum(dim=1), durations_s)
        saliency = outputs["saliency_scores"].float().masked_fill(~mask, IGNORE)
        sharpness = mean_probabilities(outputs.get("frame_probabilities"), inputs.get("labels"), mask)
        presence = outputs.get("presence")
        presence = torch.full_like(durations_s, IGNORE) if presence is None else presence.float()
        return loss, (moments, saliency, sharpness, presence), inputs["row_index"]

    def _add_to_evaluation_loss(self, model: nn.Module, inputs: dict[str, Any], terms: Mapping[str, Tensor]) -> None:
        """Adds the terms of a batch, without those of rows that were repeated to give every process as many."""
        assert self._evaluation_loss is not None
        state, size = self.accelerator.gradient_state, len(inputs["row_index"])
        number = size
        if num_processes() > 1 and state.end_of_dataloader and state.remainder > 0:  # as gather_for_metrics has it
            number = min(size, max(0, state.remainder - self.args.process_index * size))
            # All processes ask the model once more, since it may be divided among them.
            inputs = {name: value[: number or size] for name, value in inputs.items()}
            terms = self.compute_loss(model, inputs, return_outputs=True)[1]["loss_dict"]
        self._evaluation_loss.add(terms, inputs, self.config.num_queries, counted=number > 0)

    def moment_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Metrics of [`evaluate_submission`], the mean of p inside and outside the moments (Table 9), and others."""
        rows = self._rows_under_evaluation
        arrays, row_index = tuple(prediction.predictions), np.asarray(prediction.label_ids)
        predictions = self.as_predictions(arrays, row_index, rows)
        ground_truth = [rows[int(index)] for index in row_index]
        metrics = evaluate_submission(predictions, ground_truth, clip_length_s=self.contract.clip_length)
        inside, outside = np.asarray(arrays[2]).T
        for name, values in (("p_inside", inside), ("p_outside", outside)):
            if (values != IGNORE).any():
                metrics[name] = round(float(values[values != IGNORE].mean()), 4)
        if self.users_metrics is not None:
            given: Any = {"predictions": predictions, "label_ids": ground_truth}
            metrics.update(self.users_metrics(EvalPrediction(**given)))
        return metrics

    def as_predictions(self, arrays: Any, row_index: Any, rows: Rows) -> list[dict[str, Any]]:
        """Gathered arrays of `prediction_step` as canonical predictions."""
        predictions = []
        for index, moments, saliency, presence in zip(row_index, arrays[0], arrays[1], arrays[3], strict=True):
            row = rows[int(index)]
            kept = self.processor.select(torch.from_numpy(moments))
            predictions.append(
                {
                    "qid": row["qid"],
                    "query": row["query"],
                    "vid": row["vid"],
                    "pred_relevant_windows": kept.double().tolist(),
                    "pred_saliency_scores": saliency[saliency != IGNORE].astype(float).tolist(),
                    **({} if presence == IGNORE else {"pred_exist_score": float(presence)}),
                }
            )
        return predictions

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """As [`Trainer.predict`], for rows."""
        return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    def predict_rows(self, rows: Rows) -> list[dict[str, Any]]:
        """Predictions for rows, in their order: `qid`, `query`, `vid`, `pred_relevant_windows` ([start s, end s,
        score] best first), `pred_saliency_scores` (one per clip) and, where the model tells, `pred_exist_score`."""
        rows = checked_rows(rows, "rows", self.contract)
        self.store.require(rows)
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        try:
            output = self.predict(rows)
        finally:
            self.compute_metrics = compute_metrics
        return self.as_predictions(output.predictions, output.label_ids, rows)


def mean_probabilities(probabilities: Tensor | None, labels: Tensor | None, mask: Tensor) -> Tensor:
    """Mean of p over the clips inside and outside the moments: `(batch, 2)`, -100 where there is none."""
    result = torch.full((len(mask), 2), IGNORE, device=mask.device)
    if probabilities is None or labels is None:
        return result
    inside = foreground_clips(labels, mask)
    for column, clips in enumerate((inside, mask & ~inside)):
        count = clips.sum(dim=1)
        mean = (probabilities.float() * clips).sum(dim=1) / count.clamp(min=1)
        result[:, column] = torch.where(count > 0, mean, result[:, column])
    return result
