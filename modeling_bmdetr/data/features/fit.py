"""Checks a store against rows: missing arrays, widths, lengths, sentences. `FeatureStore.require` raises the result."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from ...contract_bmdetr import FeatureContract, is_number
from ..rows.qids import text_qid
from ..rows.validation import require_fields
from .sentences import compare_repeated, same_sentence, spread
from .sources import ArraySource, examples, nearest

logger = logging.getLogger(__name__)

MOST_LINES = 10  # of different faults
# Clips times clip length over the duration; the median over the videos belongs here.
COVERAGE_RANGE = (0.75, 1.33)
# Folders that are concatenated cut a video into numbers of clips that differ by less than this factor.
LENGTH_RATIO = 1.5
SAMPLES = 64  # videos and queries that are looked into where not every value is checked


class Store(Protocol):
    """What is asked of a feature store here."""

    contract: FeatureContract
    failures: dict[str, str]

    @property
    def video_ids(self) -> list[str]: ...
    @property
    def query_ids(self) -> list[str]: ...
    def has_video(self, vid: str) -> bool: ...
    def has_text(self, qid: str) -> bool: ...
    def num_clips(self, vid: str) -> int: ...
    def video(self, vid: str) -> np.ndarray: ...
    def text(self, qid: str) -> np.ndarray: ...
    def sentence(self, qid: str) -> str | None: ...
    def where(self, modality: Literal["video", "text"]) -> str: ...
    def source(self, modality: Literal["video", "text"]) -> ArraySource: ...


def find_problems(
    store: Store, rows: Iterable[Mapping[str, Any]], *, check_values: bool
) -> tuple[list[str], list[str]]:
    """Lines that name what is missing, and lines that name what does not fit. See `FeatureStore.require`."""
    rows = require_fields(rows, ("qid", "vid", "text_qid"))
    durations_s = {row["vid"]: _duration_or_none(row) for row in rows}
    sentences = {text_qid(row): query if isinstance(query := row.get("query"), str) else None for row in rows}
    vids = [vid for vid in durations_s if store.has_video(vid)]
    qids = [qid for qid in sentences if store.has_text(qid)]
    missing = [
        *_missing(store, "video", [vid for vid in durations_s if not store.has_video(vid)], len(durations_s)),
        *_missing(store, "query", [qid for qid in sentences if not store.has_text(qid)], len(sentences)),
    ]
    unfit = [
        *_grouped(vids if check_values else spread(vids, SAMPLES), lambda vid: _video_fault(store, vid, check_values)),
        *_grouped(qids if check_values else spread(qids, SAMPLES), lambda qid: _text_fault(store, qid, check_values)),
    ]
    if not unfit:
        unfit = _sentence_faults(store, qids, sentences)
    if not unfit:
        _warn_of_clip_length(store, {vid: durations_s[vid] for vid in spread(vids, SAMPLES)})
    return missing, unfit


def _duration_or_none(row: Mapping[str, Any]) -> float | None:
    duration_s = row.get("duration")
    return duration_s if is_number(duration_s) and duration_s > 0 else None


def _missing(store: Store, kind: str, names: Sequence[str], total: int) -> list[str]:
    if not names:
        return []
    where = store.where("video" if kind == "video" else "text")
    plural = "videos" if kind == "video" else "queries"
    line = f"  {len(names)} of {total} {plural} are missing from {where}: {examples(names)}"
    if failed := [f"{name} ({store.failures[name]})" for name in names if kind == "video" and name in store.failures]:
        line += f"; {len(failed)} could not be encoded when the store was written: {examples(failed)}"
    elif hint := nearest(names[0], store.video_ids if kind == "video" else store.query_ids):
        line += f" ({names[0]!r}{hint})"
    return [line]


def _video_fault(store: Store, vid: str, check_values: bool) -> str | None:
    """What is wrong with the features of one video, without its name, so that equal faults can be counted."""
    source = store.source("video")
    for folder, encoder in zip(getattr(source, "folders", ()), store.contract.video_encoders, strict=False):
        if (received := folder.shape(vid)[1]) != encoder["dim"]:
            return f"{folder.where} is {received} wide, the contract says {encoder['name']} ({encoder['dim']} wide)"
    lengths = [folder.shape(vid)[0] for folder in getattr(source, "folders", ())]
    if lengths and max(lengths) > max(LENGTH_RATIO * min(lengths), min(lengths) + 2):
        return f"{source.where} cut a video into different numbers of clips: is the clip length of all the same?"
    return _not_finite(store.video(vid)) if check_values else None


def _text_fault(store: Store, qid: str, check_values: bool) -> str | None:
    rows = store.text(qid)
    return _not_finite(rows) if check_values else None


def _not_finite(rows: np.ndarray) -> str | None:
    return None if np.isfinite(rows).all() else "values that are NaN or infinite"


def _grouped(names: Sequence[str], fault_of: Callable[[str], str | None]) -> list[str]:
    """Faults of the names, equal ones on one line with their number and examples."""
    faults: dict[str, tuple[str, list[str]]] = {}
    for name in names:
        try:
            fault = fault_of(name)
        except ValueError as error:
            fault = str(error)
        if fault:  # messages that name their file are equal but for that
            kind = re.sub(rf"\b(qid)?{re.escape(name)}\b", "", fault)
            faults.setdefault(kind, (fault, []))[1].append(name)
    lines = [
        f"  {fault} ({len(found)} of {len(names)} looked at: {examples(found)})" for fault, found in faults.values()
    ]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"  and {len(lines) - MOST_LINES} more"]
    return lines


def _sentence_faults(store: Store, qids: Sequence[str], sentences: Mapping[str, str | None]) -> list[str]:
    """Text features of other sentences: by the sentences recorded, else by rows that repeat a sentence."""
    recorded = {qid: store.sentence(qid) for qid in qids}
    known = {qid: sentence for qid in qids if (sentence := sentences[qid])}
    other = [
        (qid, stored, sentence)
        for qid, sentence in known.items()
        if (stored := recorded[qid]) and not same_sentence(stored, sentence)
    ]
    if other:
        qid, stored, sentence = other[0]
        example = f"{qid}: {stored!r} is stored, the row says {sentence!r}"
        return [f"  {len(other)} of {len(qids)} queries have the text features of another sentence ({example})"]
    unrecorded = {qid: sentence for qid, sentence in known.items() if not recorded[qid]}
    found, compared = compare_repeated(unrecorded, store.text, SAMPLES)
    different = [disagreement for disagreement in found if disagreement.repeats]
    if not different:
        return []
    return [
        f"  {len(different)} of {compared} repeated sentences have different text features (as {different[0].other} "
        f"and {different[0].qid}): the qids of these rows do not name the files in {store.where('text')}. Use the "
        "annotation file that the features were made from"
    ]


def _warn_of_clip_length(store: Store, durations_s: Mapping[str, Any]) -> None:
    """Logs a warning where clips times clip length is far from the duration of most videos."""
    known = {vid: duration for vid, duration in durations_s.items() if duration}
    if not known or store.contract.long_video == "resample":
        return
    lengths_s = np.array([duration / store.num_clips(vid) for vid, duration in known.items()])
    coverage = float(np.median(store.contract.clip_length / lengths_s))
    if not COVERAGE_RANGE[0] <= coverage <= COVERAGE_RANGE[1]:
        logger.warning(
            f"the features in {store.where('video')} cover {coverage:.0%} of their videos (median of {len(known)}): "
            f"the contract says {store.contract.clip_length:g} s a clip, the durations {np.median(lengths_s):.2g} s"
        )
