"""Whether a model beats what needs no model, in figures, in words and in pictures."""

import hashlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ..data.features.store import FeatureStore
from ..data.features.video_files import find_video
from ..data.rows.jsonl import read_rows
from ..data.rows.schema import CanonicalRow
from ..encoder_interface_bmdetr import EncodedVideo
from ..files_bmdetr import replacing_file, write_json
from ..modeling_bmdetr import BMDetrForMomentRetrieval
from ..pipeline_bmdetr import MomentRetrievalPipeline
from ..processing_bmdetr import BMDetrProcessor
from ..tables import markdown_table

logger = logging.get_logger(__name__)

FEW_QUERIES = 50
"""With fewer validation queries, chance moves a share by more than ten points."""
SAME_ANSWER = 0.05
"""Best spans that vary by less than this share of the video are one answer for every sentence."""
PICTURES = 3
LONGEST_NAME_BYTES = 100
"""Of a video in the name of a file; many systems allow 255 in all, some fewer."""
SHOWN = ("R1@0.5", "R1@0.7", "mIoU")


def add_verdict(
    report: dict[str, Any],
    out: Path,
    train_rows: Sequence[CanonicalRow],
    val_rows: Sequence[CanonicalRow],
    video_dir: str,
    notes: Sequence[str],
) -> dict[str, Any]:
    """The report of a run with baselines, verdict and notes, written again with pictures of the first answers."""
    predictions = list(read_rows(out / "predictions_eval.jsonl"))
    metrics = report["runs"][0]["metrics"]["eval"]
    baselines = report["baselines"]["eval"]
    asked = sum(bool(row["relevant_windows"]) for row in val_rows)
    verdict = judge(metrics, baselines, asked, answers_alike(predictions, val_rows), len(train_rows))
    report |= {"baselines": baselines, "verdict": verdict, "notes": list(notes), "pictures": []}
    write_json(out / "report.json", report)
    with replacing_file(out / "report.md") as file:
        file.write(in_words(report, asked) + "\n")
    report["pictures"] = draw_answers(val_rows, Path(video_dir), out)
    write_json(out / "report.json", report)
    return report


def judge(
    metrics: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]], queries: int, alike: bool, trained: int
) -> dict[str, Any]:
    """`beats_baselines` (True, False, or None where too few queries tell) and `words`, one sentence after the other.

    The model beats a baseline if both R1@0.5 and mean IoU are higher, the former by more than its standard error, on
    queries enough (`FEW_QUERIES`): the checkpoint was chosen on them, too.
    """
    name, best = max(baselines.items(), key=lambda item: item[1]["MR-full-R1@0.5"])
    ours, theirs = metrics["MR-full-R1@0.5"], best["MR-full-R1@0.5"]
    error = 100 * (max(ours / 100 * (1 - ours / 100), 0.05) / queries) ** 0.5
    ahead = ours > theirs and metrics["MR-full-mIoU"] > max(other["MR-full-mIoU"] for other in baselines.values())
    clear = ahead and ours - theirs > error and queries >= FEW_QUERIES
    figures = f"R1@0.5 {ours:.1f} % against {theirs:.1f} % of the {name}, on {queries} validation queries"
    words = []
    if clear:
        words.append(f"The model beats the baselines: {figures}.")
    elif ahead:
        words.append(f"The model is ahead of the baselines, but by less than chance may give: {figures}.")
    else:
        words.append(f"The model does not beat the baselines: {figures}. A fixed answer is as good.")
    if queries < FEW_QUERIES:
        words.append(
            f"{queries} validation queries are few: the shares may be off by {error:.0f} points. Annotate more before "
            "you rely on them."
        )
    if alike:
        words.append("It gives nearly every sentence the same part of the video: it has not learnt from the sentences.")
    if not clear and trained < 500:
        words.append(
            f"{trained} training queries are few: a few hundred to a few thousand are usual for a model of its own, "
            "and a checkpoint that was trained on more (--from) needs fewer."
        )
    return {"beats_baselines": clear if clear or not ahead else None, "words": words}


def answers_alike(predictions: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the best moments are nearly the same part of the video for every query."""
    duration_of = {row["qid"]: row["duration"] for row in rows}
    spans = [
        [time / duration_of[row["qid"]] for time in row["pred_relevant_windows"][0][:2]]
        for row in predictions
        if row["pred_relevant_windows"]
    ]
    return len(spans) > 1 and float(np.std(np.array(spans), axis=0).max()) < SAME_ANSWER


def draw_answers(rows: Sequence[CanonicalRow], folder: Path, out: Path) -> list[str]:
    """Pictures of the saved model's answers about the first validation videos; none where matplotlib is missing.

    One that cannot be drawn or written is left out with a warning.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return []
    from ..visualization import plot_moments

    model = BMDetrForMomentRetrieval.from_pretrained(out / "model")
    pipe = MomentRetrievalPipeline(model, processor=BMDetrProcessor.from_pretrained(out / "model"))
    store = FeatureStore.from_packed(out / "features")
    pictures = []
    for vid in list(dict.fromkeys(row["vid"] for row in rows))[:PICTURES]:
        asked = [row for row in rows if row["vid"] == vid][:PICTURES]
        video = EncodedVideo(store.video(vid), asked[0]["duration"], vid)
        answers = pipe(video, [row["query"] for row in asked])
        path = out / picture_name(vid)
        truth = [row.get("relevant_windows") or [] for row in asked]
        try:
            plot_moments(answers, find_video(asked[0], [folder]), truth, path, title=f"{vid}, not seen in training")
        except (OSError, ValueError) as error:
            logger.warning(f"there is no picture of the answers about '{vid}': {error}")
            continue
        pictures.append(str(path))
    return pictures


def picture_name(vid: str) -> str:
    """`answers_<vid>.png`; of a name that would be too long for a file, the beginning and a hash."""
    name = os.fsencode(vid)
    if len(name) > LONGEST_NAME_BYTES:
        vid = f"{name[:LONGEST_NAME_BYTES].decode(errors='ignore')}-{hashlib.sha256(name).hexdigest()[:12]}"
    return f"answers_{vid}.png"


def in_words(report: Mapping[str, Any], queries: int) -> str:
    """The report for people, in Markdown: the verdict, a table of percentages, what was noted."""
    columns = {"model": report["runs"][0]["metrics"]["eval"], **report["baselines"]}
    lines = ["# Report", "", " ".join(report["verdict"]["words"]), ""]
    lines += [f"On {queries} validation queries, percent:", ""]
    shown = [[name, *(f"{metrics[f'MR-full-{key}']:.1f}" for key in SHOWN)] for name, metrics in columns.items()]
    lines.append(markdown_table(["", *SHOWN], shown))
    if "PR-AUROC" in columns["model"]:
        auroc, f1 = (columns["model"][f"PR-{name}"] for name in ("AUROC", "Rej-F1"))
        lines += ["", f"Telling what a video does not show (percent): AUROC {auroc:.1f}, F1 of rejecting {f1:.1f}."]
    lines += ["", *(f"- {note}" for note in report["notes"])]
    return "\n".join(lines)
