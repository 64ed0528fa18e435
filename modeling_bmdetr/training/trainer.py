"""BMDetrTrainer: transformers' Trainer on canonical rows and a feature store."""

import json
import math
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from ..cards import write_model_card
from ..configuration_bmdetr import BMDetrConfig
from ..data.batches.collator import MomentRetrievalCollator, MomentRetrievalDataset
from ..data.batches.negative_sampling import NegativeSampler
from ..data.batches.sampler import UniqueVideoBatchSampler
from ..data.features.store import FeatureStore
from ..evaluation import evaluate_submission
from ..modeling_bmdetr import BMDetrForMomentRetrieval
from ..processing_bmdetr import BMDetrProcessor
from ..saving_bmdetr import CARD_FILE, PROCESSOR_FILE
from ..spans_bmdetr import IGNORE, foreground_clips
from .arguments import BMDetrTrainingArguments
from .checkpoints import (
    TRAINER_STATE,
    last_checkpoint,
    publish_checkpoint,
    require_same_weights,
    rotate_checkpoints,
    unfinished_dir,
)
from .distributed import GlobalBatchLoss, mean_counts
from .record import training_record

logger = logging.get_logger(__name__)


class UniqueVideoDataLoader(DataLoader):
    """A data loader whose batch sampler follows the Trainer's epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def no_collator(items: list[Any]) -> dict[str, Any]:
    """Stands where the Trainer wants one collator for all data; each data set here has its own."""
    raise TypeError(f"use BMDetrTrainer's data loaders, whose collators know the rows; received {len(items)} items")


class BMDetrTrainer(Trainer):
    """Trains and evaluates [`BMDetrForMomentRetrieval`].

    Differences from [`Trainer`]: data sets are canonical rows whose features lie in a [`FeatureStore`]; no two
    queries of a batch share a video; every loss term is logged; evaluation yields the metrics of
    [`evaluate_submission`], any of which can select the best checkpoint.

    Args:
        model: The model; its feature contract must fit the store.
        args: Training arguments.
        train_rows, eval_rows: Canonical rows.
        store: Features of the rows' videos and queries.
        processor: Saved with every checkpoint; made from the model's contract when left out.
    """

    args: BMDetrTrainingArguments

    def __init__(
        self,
        model: BMDetrForMomentRetrieval,
        args: BMDetrTrainingArguments,
        *,
        store: FeatureStore,
        train_rows: Sequence[Mapping[str, Any]] | None = None,
        eval_rows: Sequence[Mapping[str, Any]] | None = None,
        processor: BMDetrProcessor | None = None,
        **kwargs: Any,
    ):
        for rows in (train_rows, eval_rows):
            if rows is not None:
                store.require(rows)
        if unlabelled := [row["qid"] for row in train_rows or () if not row.get("relevant_windows")]:
            raise ValueError(
                f"{len(unlabelled)} of {len(train_rows or ())} training rows have no `relevant_windows`, such as qid "
                f"{unlabelled[:3]}: leave rows without moments out of `train_rows`"
            )
        self.store = store
        self.config: BMDetrConfig = model.config
        self.contract = model.config.feature_contract
        self.criterion = GlobalBatchLoss(model.config, args.gather_alignment)
        # Not the Trainer's `processing_class`, which must have a tokenizer.
        self.processor = processor or BMDetrProcessor(self.contract)
        self._term_sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self._term_steps = 0
        self._writes_checkpoint = False
        # Of the whole model: wrapped for several processes it may show this one's share.
        self._shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
        if args.n_gpu > 1:
            logger.warning(
                f"one of {args.n_gpu} accelerators is used: start one process on each with `accelerate launch`"
            )
            args._n_gpu = 1  # else the Trainer would split every batch with DataParallel
        super().__init__(
            model=model,
            args=args,
            train_dataset=None if train_rows is None else MomentRetrievalDataset(train_rows),
            eval_dataset=None if eval_rows is None else MomentRetrievalDataset(eval_rows),
            data_collator=no_collator,
            compute_metrics=self.moment_metrics,
            **kwargs,
        )
        # The Trainer sets this switch of language models; saved, it would be an unknown field of our configuration.
        self.config.__dict__.pop("use_cache", None)

    # Data

    def collator(self, rows: Sequence[Mapping[str, Any]], training: bool) -> MomentRetrievalCollator:
        """The collator of a data set: negatives and shifted views in training, neither in evaluation."""
        args = self.args
        negatives = None
        if (training or args.evaluate_with_negatives) and self.config.background_aware:
            strategy = args.negative_sampling
            negatives = None if strategy == "none" else NegativeSampler(rows, strategy)  # type: ignore[arg-type]
        return MomentRetrievalCollator(
            rows,
            self.store,
            self.contract,
            negatives=negatives,
            num_negatives=args.num_negatives,
            temporal_shifting=training and args.temporal_shifting,
            shifting_limit_s=args.shifting_limit_s,
            max_moments=self.config.num_queries,
            seed=self.data_seed,
            with_labels=all(row.get("relevant_windows") for row in rows),
        )

    @property
    def data_seed(self) -> int:
        """Seed of the batches and of everything the collator draws."""
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def train_sampler(self) -> UniqueVideoBatchSampler:
        """This process's batches of the training rows."""
        if not isinstance(self.train_dataset, MomentRetrievalDataset):
            raise ValueError("training needs `train_rows`")
        return UniqueVideoBatchSampler(
            [row["vid"] for row in self.train_dataset.rows],
            self.args.per_device_train_batch_size,
            seed=self.data_seed,
            num_processes=self.args.world_size,
            process_index=self.args.process_index,
        )

    def get_train_dataloader(self) -> DataLoader:
        sampler = self.train_sampler()
        # The sampler yields this process's share, so Accelerate must not divide it again.
        return self._loader(UniqueVideoDataLoader, self.train_dataset, training=True, batch_sampler=sampler)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(dataset, MomentRetrievalDataset):
            raise ValueError(f"evaluation needs `eval_rows` or a MomentRetrievalDataset, received {type(dataset)}")
        return self.accelerator.prepare(
            self._loader(DataLoader, dataset, training=False, batch_size=self.args.eval_batch_size)
        )

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        return self.get_eval_dataloader(test_dataset)

    def _loader(self, loader: type[DataLoader], dataset: Any, training: bool, **kwargs: Any) -> DataLoader:
        workers = self.args.dataloader_num_workers
        return loader(
            dataset,
            collate_fn=self.collator(dataset.rows, training),
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            **kwargs,
        )

    # Loss and schedule

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The batches of an update, and what its losses are means over (`mean_counts`)."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, mean_counts(batches, self.config.num_queries, device) if batches else None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch; in training as its part of the global batch, whose counts `get_batch_samples` made."""
        inputs = {name: value for name, value in inputs.items() if name not in ("row_index", "durations_s")}
        counts = num_items_in_batch if model.training and isinstance(num_items_in_batch, Tensor) else None
        with self.criterion.over(counts):
            outputs = model(**inputs)
        if model.training:
            for name, term in outputs["loss_dict"].items():
                self._term_sums[name] = self._term_sums[name].to(term.device) + term
            self._term_steps += 1
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of every loss term since the last log to the training loss."""
        if "loss" in logs and self._term_steps:
            sums = torch.stack([self._term_sums[name].float() for name in sorted(self._term_sums)])
            means = self.accelerator.reduce(sums / self._term_steps, reduction="mean").tolist()
            logs.update({name: round(mean, 5) for name, mean in zip(sorted(self._term_sums), means, strict=True)})
            self._term_sums.clear()
            self._term_steps = 0
        super().log(logs, start_time)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None and self.args.lr_drop_epochs:
            updates = math.ceil(len(self.train_sampler()) / self.args.gradient_accumulation_steps)
            drop_steps, factor = self.args.lr_drop_epochs * updates, self.args.lr_drop_factor
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = LambdaLR(optimizer, lambda step: factor ** (step // drop_steps))
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    # Checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As [`Trainer.train`]. `resume_from_checkpoint=True` goes on from the newest checkpoint that is whole.

        Raises:
            ValueError: it is True and `output_dir` has no such checkpoint.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(str(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise ValueError(f"'{self.args.output_dir}' holds no whole checkpoint to go on from")
        self.accelerator.unwrap_model(self.model).criterion = self.criterion
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _init_training_state(
        self, max_steps: int, num_updates: int, num_epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """Where a run starts or goes on: (epochs, batches of the next) that are done.

        Raises:
            ValueError: an epoch of the checkpoint had another number of batches.
        """
        done = super()._init_training_state(max_steps, num_updates, num_epochs, checkpoint, trial)
        if checkpoint is None:
            return done
        state, per_epoch = self.state, len(self.train_sampler())
        state.compute_steps(self.args, max_steps)  # of logging, evaluation and saving, which may be others now
        batches = round((state.epoch or 0) * per_epoch)
        updates = batches // per_epoch * num_updates
        updates += math.ceil(batches % per_epoch / self.args.gradient_accumulation_steps)
        if updates != state.global_step or not math.isclose(batches, (state.epoch or 0) * per_epoch, abs_tol=1e-3):
            raise ValueError(
                f"'{checkpoint}' was made with another number of batches an epoch than {per_epoch}: go on with the "
                "rows, batch size, accumulation and number of processes that it was made with"
            )
        # The path in the state is another one when the folder was moved, or is named from elsewhere.
        best = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
        if best.is_dir():
            state.best_model_checkpoint = str(best)
        return (num_epochs, 0) if state.global_step >= max_steps else done

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Loads the weights.

        Raises:
            ValueError: they are those of another model than the one that is trained.
        """
        weights = Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME
        if weights.is_file():  # sharded checkpoints are left to the library's own checks
            require_same_weights(weights, self._shapes)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Continues both, but with the arguments of this run: its learning rate and schedule, its weight decay."""
        optimizer, scheduler = self.optimizer, self.lr_scheduler
        if checkpoint is None or optimizer is None or not isinstance(scheduler, LambdaLR):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        given = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        scheduler.base_lrs = [options["initial_lr"] for options in given]
        for group, options, factor in zip(optimizer.param_groups, given, scheduler.lr_lambdas, strict=True):
            group.update(options, lr=options["initial_lr"] * factor(scheduler.last_epoch))
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]

    def _get_output_dir(self, trial: Any) -> str:
        directory = super()._get_output_dir(trial)
        return str(unfinished_dir(directory)) if self._writes_checkpoint else directory

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes a checkpoint out of sight, and moves it to its place when every process is done with it."""
        output_dir = self._get_output_dir(trial)
        if self.args.should_save:
            shutil.rmtree(unfinished_dir(output_dir), ignore_errors=True)  # left by a process that died
        self.accelerator.wait_for_everyone()
        self._writes_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writes_checkpoint = False
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        written, target = unfinished_dir(output_dir) / name, Path(output_dir) / name
        if self.state.best_model_checkpoint == str(written):
            self.state.best_model_checkpoint = str(target)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(written / TRAINER_STATE))
            publish_checkpoint(written, output_dir)
            rotate_checkpoints(output_dir, self.args.save_total_limit, self.state.best_model_checkpoint)
            shutil.rmtree(unfinished_dir(output_dir), ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, its code, its processor and its card, ready for `from_pretrained`."""
        if self.args.should_save:
            self.processor.save_pretrained(output_dir or self.args.output_dir)
        super().save_model(output_dir, _internal_call)

    def create_model_card(  # type: ignore[override]
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        dataset: str | dict[str, str] | None = None,
    ) -> None:
        """Writes `README.md`, with the metrics of the weights as they are now, and its figures as `results.json`.

        Args:
            language, license, tags: Entries of the card's header.
            model_name: Named in the card's examples where no repository is known.
            dataset: Name of the data, or a dict with `name`, `id` and `split` of the evaluated rows.
        """
        if not self.is_world_process_zero():
            return
        record = training_record(self, dataset)
        folder = Path(str(self.args.output_dir))
        write_model_card(
            self.accelerator.unwrap_model(self.model),
            folder,
            record,
            repo_id=getattr(self, "hub_model_id", None) or model_name,
            license=license,
            language=language,
            tags=[tags] if isinstance(tags, str) else tags or (),
        )
        (folder / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushes code, processor and card too; the Trainer takes weights and configuration from a checkpoint alone."""
        if self._writes_checkpoint:
            return  # pushed when it is at its place
        if self.is_world_process_zero():
            for pattern in ("*_bmdetr.py", PROCESSOR_FILE, CARD_FILE):
                for path in Path(checkpoint_folder).glob(pattern):
                    shutil.copy(path, str(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)

    # Evaluation

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> Any:
        self._rows_under_evaluation = dataloader.dataset.rows  # type: ignore[attr-defined]
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,  # noqa: ARG002 - the Trainer passes it
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """Loss, (moments in seconds, saliency, mean p inside and outside the moments), row indices."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            if "labels" in inputs:
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
            else:
                names = ("row_index", "durations_s")
                loss, outputs = None, model(**{k: v for k, v in inputs.items() if k not in names})
        if prediction_loss_only:
            return loss, None, None
        mask, durations_s = inputs["video_mask"].bool(), inputs["durations_s"]
        moments = self.processor.decode(outputs["logits"], outputs["pred_spans"], mask.sum(dim=1), durations_s)
        saliency = outputs["saliency_scores"].float().masked_fill(~mask, IGNORE)
        sharpness = mean_probabilities(outputs.get("frame_probabilities"), inputs.get("labels"), mask)
        return loss, (moments, saliency, sharpness), inputs["row_index"]

    def moment_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Metrics of [`evaluate_submission`], and the mean of p inside and outside the moments (Table 9)."""
        rows = self._rows_under_evaluation
        arrays, row_index = tuple(prediction.predictions), np.asarray(prediction.label_ids)
        predictions = self.as_predictions(arrays, row_index, rows)
        ground_truth = [rows[int(index)] for index in row_index]
        metrics = evaluate_submission(predictions, ground_truth, clip_length_s=self.contract.clip_length)
        inside, outside = np.asarray(arrays[2]).T
        for name, values in (("p_inside", inside), ("p_outside", outside)):
            if (values != IGNORE).any():
                metrics[name] = round(float(values[values != IGNORE].mean()), 4)
        return metrics

    def as_predictions(self, arrays: Any, row_index: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Gathered arrays of `prediction_step` as canonical predictions."""
        predictions = []
        for index, moments, saliency in zip(row_index, arrays[0], arrays[1], strict=True):
            row = rows[int(index)]
            kept = self.processor.select(torch.from_numpy(moments))
            predictions.append(
                {
                    "qid": row["qid"],
                    "query": row["query"],
                    "vid": row["vid"],
                    "pred_relevant_windows": kept.double().tolist(),
                    "pred_saliency_scores": saliency[saliency != IGNORE].astype(float).tolist(),
                }
            )
        return predictions

    def predict_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Predictions for rows, in their order: `qid`, `query`, `vid`, `pred_relevant_windows` ([start s, end s,
        score] best first) and `pred_saliency_scores` (one a clip)."""
        self.store.require(rows)
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        try:
            output = self.predict(MomentRetrievalDataset(rows))
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
