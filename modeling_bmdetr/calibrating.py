"""Fits a [`Calibration`] on validation rows, with scikit-learn."""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers.utils import CONFIG_NAME, logging

from .calibration_bmdetr import CERTAIN, MIN_ROWS, Calibration, calibration_lines, weights_fingerprint
from .cards import renew_calibration
from .contract_bmdetr import FeatureContract
from .data.batches.collator import NOT_THE_MODELS, MomentRetrievalCollator
from .data.batches.examples import MomentRetrievalDataset
from .data.features.store import FeatureStore
from .data.rows.absent import add_absent_rows
from .data.rows.checked import checked_rows
from .data.rows.schema import CanonicalRow, is_labelled
from .evaluation.evaluator import CALIBRATION_IOU
from .evaluation.metrics import temporal_iou
from .evaluation.reliability import expected_calibration_error
from .packages_bmdetr import needed_module

logger = logging.get_logger(__name__)

Rows = Sequence[Mapping[str, Any]]
# Spans of a row that the score is fitted on: those an answer shows. docs/metrics.md compares other numbers and methods.
FITTED_SPANS = 3


@dataclass(frozen=True)
class RawAnswers:
    """What a model says before calibration, row by row, best span first, and whether it is right."""

    scores: np.ndarray  # (rows, spans)
    is_right: np.ndarray  # (rows, spans): overlaps a described moment with IoU of at least 0.5
    presence_logits: np.ndarray | None  # (rows,)
    is_present: np.ndarray  # (rows,)

    def take(self, rows: np.ndarray) -> "RawAnswers":
        values = (getattr(self, field.name) for field in fields(self))
        return RawAnswers(*(None if value is None else value[rows] for value in values))  # type: ignore[arg-type]


def calibrate_folder(
    model: Any, rows: Rows, store: FeatureStore, out: str | os.PathLike, *, seed: int = 0, processor: Any = None
) -> tuple[Calibration, list[str]]:
    """Fits a calibration, puts it into the model's configuration and saves the checkpoint into `out`.

    A model card in the folder stays as it is but for what it says of the calibration, and so does a processor. A
    checkpoint of which nothing can be calibrated is left as it was.

    Args:
        model, rows, store, seed: As in `fit_calibration`.
        out: The checkpoint's own folder, or a new one.
        processor: Saved as well, where `out` is a new folder; None for one with the default settings.

    Returns:
        The calibration, and what to tell the user: what was fitted, and how well the scores of these rows kept their
        promise before, and keep it after, when fitted on one half and measured on the other.

    Raises:
        ValueError: as `fit_calibration`, or `out` holds a checkpoint with other weights.
    """
    _require_no_other_model(out, model)
    before = copy.deepcopy(model.config)
    model.config.calibration = None
    rows = checked_rows(rows, "rows", model.config.feature_contract)
    calibration = fit_calibration(model, rows, store, seed=seed)
    lines = list(calibration_lines(calibration))
    if calibration.score is None and calibration.presence is None:
        return calibration, [*lines, f"nothing was fitted: '{out}' is left as it was"]
    found = rows_read(rows, model.config.feature_contract, store)
    error = held_out_errors(raw_answers(model, found, store), seed) if calibration.score is not None else None
    if error is not None:
        lines.append(
            f"calibration error of the best span's score: {error[0]:.3f} before, {error[1]:.3f} on held-out halves"
        )
    model.config.calibration = calibration.to_dict()
    renew_calibration(out, before, model)  # first: run again after a stop, it finds what it has to replace
    if processor is not None and not (Path(out) / CONFIG_NAME).is_file():
        processor.save_pretrained(out)
    model.save_pretrained(out)
    return calibration, [*lines, f"saved in '{out}'"]


def _require_no_other_model(folder: str | os.PathLike, model: Any) -> None:
    if not (Path(folder) / CONFIG_NAME).is_file():
        return
    if weights_fingerprint(type(model).from_pretrained(folder)) != weights_fingerprint(model):
        raise ValueError(
            f"'{folder}' holds another model than the one to calibrate, which would be lost: write into another folder"
        )


def held_out_errors(answers: RawAnswers, seed: int = 0, repeats: int = 5) -> tuple[float, float] | None:
    """Expected calibration error of the best span's score, before and after calibration.

    Each is a mean over both halves of `repeats` random divisions, where one half is fitted and the other measured; None
    where a half cannot be fitted.
    """
    before, after = [], []
    rng = np.random.default_rng(seed)
    for _ in range(repeats):
        order = rng.permutation(len(answers.scores))
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        for fitted_on, held_out in (halves, halves[::-1]):
            fitted, _ = fit_score(answers.take(fitted_on), min_rows=MIN_ROWS // 2)
            if fitted is None:
                return None
            rest = answers.take(held_out)
            logits = fitted[0] * score_logits(rest.scores[:, 0]) + fitted[2]
            if rest.presence_logits is not None:
                logits = logits + fitted[1] * rest.presence_logits
            is_right = rest.is_right[:, 0]
            before.append(expected_calibration_error(rest.scores[:, 0], is_right))
            after.append(expected_calibration_error(1 / (1 + np.exp(-logits)), is_right))
    return float(np.mean(before)), float(np.mean(after))


def rows_read(rows: Rows, contract: FeatureContract, store: FeatureStore) -> list[Mapping[str, Any]]:
    """The rows without those whose moments all begin beyond what the model reads of a video at once.

    Of a video of more than `max_clips` clips that is its beginning. What is described there is in the video, but not in
    what the model is asked about.
    """
    read_s = contract.max_clips * contract.clip_length

    def is_read(row: Mapping[str, Any]) -> bool:
        windows = row.get("relevant_windows") or []
        is_cut = contract.long_video != "resample" and store.num_clips(row["vid"]) > contract.max_clips
        return not (windows and is_cut) or any(start < read_s for start, _ in windows)

    return [row for row in rows if is_read(row)]


def raw_answers(model: Any, rows: Rows, store: FeatureStore, batch_size: int = 32) -> RawAnswers:
    """Answers of a [`BMDetrForMomentRetrieval`] for labelled rows, without calibration.

    Raises:
        TypeError: `rows` are not a sequence of mappings.
        ValueError: a row has errors or no labels, or its features are not in the store.
    """
    from .processing_bmdetr import BMDetrProcessor

    rows = checked_rows(rows, "rows", model.config.feature_contract)
    if unlabelled := [row["qid"] for row in rows if not is_labelled(row)]:
        raise ValueError(
            f"{len(unlabelled)} of {len(rows)} rows have no `relevant_windows`, such as qid {unlabelled[:3]}: "
            "calibration needs labelled rows"
        )
    store.require(rows)
    processor = BMDetrProcessor(model.config)
    dataset = MomentRetrievalDataset(rows, store, model.config.feature_contract, with_labels=False)
    loader: DataLoader = DataLoader(dataset, batch_size=batch_size, collate_fn=MomentRetrievalCollator())
    was_training, kept = model.training, model.config.calibration
    model.eval()
    model.config.calibration = None
    moments, presence = [], []
    try:
        for batch in loader:
            inputs = {
                name: value.to(model.device, model.dtype if value.is_floating_point() else None)
                for name, value in batch.items()
                if name not in NOT_THE_MODELS
            }
            with torch.no_grad():
                outputs = model(**inputs)
            lengths = inputs["video_mask"].sum(dim=1), batch["durations_s"]
            moments.append(processor.decode(outputs["scores"], outputs["pred_spans"], *lengths).cpu())
            if outputs.get("presence_logits") is not None:
                presence.append(outputs["presence_logits"].float().cpu())
    finally:
        model.config.calibration = kept
        model.train(was_training)
    found = torch.cat(moments).double().numpy()
    windows = [torch.tensor(row["relevant_windows"], dtype=torch.float64).view(-1, 2) for row in rows]
    padded = pad_sequence(windows, batch_first=True).numpy()  # of no length, so that nothing overlaps it
    return RawAnswers(
        scores=found[..., 2],
        is_right=temporal_iou(found[..., :2], padded).max(axis=2, initial=0) >= CALIBRATION_IOU,
        presence_logits=torch.cat(presence).double().numpy() if presence else None,
        is_present=np.array([len(row["relevant_windows"]) > 0 for row in rows]),
    )


def fit_calibration(model: Any, rows: Rows, store: FeatureStore, *, batch_size: int = 32, seed: int = 0) -> Calibration:
    """The calibration of a model for rows that neither trained it nor will be its test.

    The score is fitted on the three best spans of each row, present and absent ones as the rows have them. Presence is
    fitted on present and absent rows; where the rows have no absent ones, `add_absent_rows` makes as many, and the note
    says so.

    Args:
        model: A [`BMDetrForMomentRetrieval`]; a calibration it has already is not used.
        rows: Labelled validation rows.
        store: Their features.
        batch_size: Rows that the model sees at once.
        seed: Of the pairs drawn for presence.

    Returns:
        A calibration, of which a part is None, with the reason in its notes, where there are fewer than 50 rows, only
        right or only wrong answers, only present rows, or where the logits do not tell the two apart.

    Raises:
        ValueError: rows without labels, or without features.
        ImportError: scikit-learn is not installed.
    """
    contract = model.config.feature_contract
    given = checked_rows(rows, "rows", contract)
    store.require(given)
    rows = rows_read(given, contract, store)
    if len(rows) < len(given):
        left_out = (
            f"{len(given) - len(rows)} of {len(given)} rows are left out of the calibration: what they describe lies "
            f"beyond the {contract.max_clips * contract.clip_length:g} s of a video that the model reads at once"
        )
        if not rows:
            raise ValueError(f"{left_out}. Calibrate on rows about the beginning of their videos, or on shorter videos")
        logger.warning(left_out)
    answers = raw_answers(model, rows, store, batch_size)
    notes: dict[str, str] = {}
    score, reason = fit_score(answers)
    if reason:
        notes["score"] = reason
    presence: tuple[float, float] | None = None
    if answers.presence_logits is None:
        notes["presence"] = "not fitted: the model has no presence head"
    else:
        logits, is_present = answers.presence_logits, answers.is_present
        if is_present.all():
            pairs = add_absent_rows(cast(list[CanonicalRow], rows), share=1.0, seed=seed)[0][len(rows) :]
            notes["presence"] = f"rows have no absent queries: {len(pairs)} pairs with other videos, by rule"
            if pairs:
                paired = raw_answers(model, pairs, store, batch_size)
                assert paired.presence_logits is not None
                logits = np.concatenate((logits, paired.presence_logits))
                is_present = np.concatenate((is_present, paired.is_present))
        fitted, reason = fit_logistic(logits[:, None], is_present, ("present", "absent"))
        if fitted is None:
            notes["presence"] = f"{reason}; {notes['presence']}" if "presence" in notes else reason
        else:
            presence = fitted[0], fitted[1]
    return Calibration(score, presence, weights_fingerprint(model), len(rows), int((~answers.is_present).sum()), notes)


def fit_score(answers: RawAnswers, min_rows: int = MIN_ROWS) -> tuple[tuple[float, float, float] | None, str]:
    """(slope, presence slope, offset) of the best spans' scores, and why there is none."""
    scores, is_right = answers.scores[:, :FITTED_SPANS], answers.is_right[:, :FITTED_SPANS]
    if len(scores) < min_rows:
        return None, f"not fitted: {len(scores)} rows, and at least {min_rows} are needed"
    logits = [score_logits(scores).ravel()]
    if answers.presence_logits is not None:
        logits.append(np.repeat(answers.presence_logits, scores.shape[1]))
    fitted, reason = fit_logistic(np.stack(logits, axis=1), is_right.ravel(), ("right", "wrong"))
    if fitted is None and len(logits) > 1:  # presence may say all that the score says, and its opposite is left over
        fitted, reason = fit_logistic(logits[0][:, None], is_right.ravel(), ("right", "wrong"))
    if fitted is None:
        return None, reason
    return (fitted[0], fitted[1] if len(fitted) == 3 else 0.0, fitted[-1]), ""


def fit_logistic(
    logits: np.ndarray, is_true: np.ndarray, names: tuple[str, str]
) -> tuple[tuple[float, ...] | None, str]:
    """Slopes of the columns of `logits` `(rows, columns)` and the offset of a logistic regression; or None, and why.

    The first slope has to be above 0: a logit that falls where the truth rises says nothing that could be calibrated.
    """
    if len(is_true) < MIN_ROWS:
        return None, f"not fitted: {len(is_true)} rows, and at least {MIN_ROWS} are needed"
    if is_true.all() or not is_true.any():
        return (
            None,
            f"not fitted: all are {names[0] if is_true.all() else names[1]}, so there is nothing to tell apart",
        )
    linear = needed_module("sklearn.linear_model", "calibration needs scikit-learn: pip install scikit-learn")
    fitted = linear.LogisticRegression().fit(logits, is_true)
    slopes, offset = fitted.coef_[0].tolist(), float(fitted.intercept_[0])
    if slopes[0] <= 0:
        return None, f"not fitted: what is {names[0]} does not score higher than what is {names[1]}"
    return (*slopes, offset), ""


def score_logits(scores: np.ndarray) -> np.ndarray:
    """Logits of scores in [0, 1], finite."""
    clipped = np.clip(scores, CERTAIN, 1 - CERTAIN)
    return np.log(clipped) - np.log1p(-clipped)
