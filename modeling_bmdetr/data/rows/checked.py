"""Rows as training and evaluation take them: plain values, validated, and what will be cut from them counted."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from ...contract_bmdetr import FeatureContract
from .plain import plain_rows
from .schema import TIME_TOLERANCE_S
from .validation import validate_rows

logger = logging.get_logger(__name__)

_NEGATIVES = ("neg_query_ids", "neg_query_weights")


class CheckedRows(list[dict[str, Any]]):
    """Rows that `checked_rows` has passed, so that they need not be checked again."""


def checked_rows(
    rows: Iterable[Mapping[str, Any]],
    name: str,
    contract: FeatureContract,
    *,
    training: bool = False,
    reads_negatives: bool = False,
) -> CheckedRows:
    """Copies of rows as plain values, validated as `bmdetr validate` does; `CheckedRows` are returned as they are.

    Args:
        rows: Canonical rows; arrays and scalars of NumPy, qids as 1.0 and NaN for what is missing are taken as well.
        name: What to call them in messages.
        contract: The model's feature contract.
        training: Whether every row needs a moment.
        reads_negatives: Whether `neg_query_ids` are read; what they name must be among the rows only then.

    Raises:
        TypeError: `rows` are not a sequence of mappings.
        ValueError: rows with errors, by qid; or none of the training rows has a moment inside its video.
    """
    if isinstance(rows, CheckedRows):
        return rows
    plain = CheckedRows(plain_rows(rows, name))
    clip_length_s = None if contract.long_video == "resample" else contract.clip_length
    report = validate_rows(
        plain, require_windows=training, clip_length_s=clip_length_s, source=f"`{name}` (counted from 1)"
    )
    if not reads_negatives:
        report.problems = [problem for problem in report.problems if problem.field not in _NEGATIVES]
    report.raise_for_errors(most=10)
    if training:
        _count_what_is_cut(plain, name, contract)
    return plain


def _count_what_is_cut(rows: Sequence[Mapping[str, Any]], name: str, contract: FeatureContract) -> None:
    """Logs how many windows are clipped to their video and how many are skipped.

    Raises:
        ValueError: all of them are skipped.
    """
    searched_s = np.inf if contract.long_video == "resample" else contract.max_clips * contract.clip_length
    clipped: list[str] = []
    skipped: list[str] = []
    total = 0
    for row in rows:
        end_s = min(row["duration"], searched_s)
        for start, end in row["relevant_windows"]:
            total += 1
            if start >= end_s or start == end:
                skipped.append(row["qid"])
            elif end > end_s + TIME_TOLERANCE_S:
                clipped.append(row["qid"])
    if len(skipped) == total:
        raise ValueError(
            f"none of {total} windows of `{name}` lies inside its video (or the {searched_s:g} s of it that the model "
            f"sees), such as that of qid {skipped[0]}: give `relevant_windows` in seconds from the start of the video"
        )
    for qids, what in (
        (clipped, "end past their video, or what the model sees of it, and are clipped"),
        (skipped, "lie wholly past it or have no length, and are skipped"),
    ):
        if qids:
            logger.warning(f"{len(qids)} of {total} windows of `{name}` {what}, such as of qid {qids[:3]}")
