"""From annotations and a folder of videos to a model: what `bmdetr train` does.

Annotations are read as `bmdetr import` reads them, features are extracted and kept, a recipe is chosen by the size of
the data and run, and the model is held against what needs no model. The recipe lies beside the model and runs again
with `examples/train.py`.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers.utils import logging

from ..configuration_bmdetr import BMDetrConfig
from ..contract_bmdetr import FeatureContract, clip_count
from ..data.batches.negatives import HASHED_WORDS
from ..data.features.extraction import extract_features
from ..data.features.video_files import find_video
from ..data.rows.importers import ImportOptions, import_annotations
from ..data.rows.jsonl import write_rows
from ..data.rows.qids import content_qid
from ..data.rows.schema import CanonicalRow, is_labelled
from ..files_bmdetr import replacing_file, write_json
from ..plugins_bmdetr import imported_plugins
from ..processes import usable_processors
from ..text_encoders_bmdetr import MINILM, minilm_folder
from .preparation import hold_out, load_rows, with_known_negatives
from .progress import find_runs, refusal_to_overwrite
from .recipe import make_recipe
from .running import train_runs
from .verdict import add_verdict

logger = logging.get_logger(__name__)

DEFAULT_ENCODER = "clip:openai/clip-vit-base-patch32"
MOST_CLIPS = 150
SMALL_DATA, MIDDLE_DATA = 2_000, 10_000
FEW_VIDEOS = 50


@dataclass(frozen=True)
class OwnData:
    """What to train on and into what.

    Attributes:
        rows: annotation file, of any format that `import_annotations` reads.
        videos: folder of the videos.
        out: folder for everything written: `model/`, `report.md`, `recipe.yaml`, `features/`, ...
        val: annotation file of other videos, to choose the checkpoint on; without it a part of the videos is held out.
        checkpoint: checkpoint to train further; its encoders and clip length are used.
        video_encoders, text_encoder: names of encoders; not with `checkpoint`.
        clip_length: seconds per clip; by default 1, or longer where the longest video would have more than 150 clips.
        overrides: entries of the recipe to change, `section.entry=value`.
        workers: processes that decode and encode videos; 0 does it in this one.
        device: of encoders with weights.
        resume: go on where an earlier run in `out` stopped.
    """

    rows: str
    videos: str
    out: str
    val: str | None = None
    checkpoint: str | None = None
    video_encoders: tuple[str, ...] = (DEFAULT_ENCODER,)
    text_encoder: str = DEFAULT_ENCODER
    clip_length: float | None = None
    overrides: Sequence[str] = ()
    workers: int = 0
    device: str | None = None
    resume: bool = False
    options: ImportOptions = field(default_factory=ImportOptions)


def train_own_data(data: OwnData) -> dict[str, Any]:
    """Trains a model on own data and says whether it beats what needs no model.

    Returns:
        The report, which is also in `out/report.json` and, for people, in `out/report.md`.

    Raises:
        ValueError, OSError, ImportError: see `import_annotations`, `extract_features` and `train_by_recipe`; and if
            there are too few videos to hold one out.
    """
    out = Path(data.out)
    if not data.resume and (refusal := refusal_to_overwrite(out)):
        raise ValueError(refusal)
    train_rows, val_rows, notes = _read(data)
    contract = BMDetrConfig.from_pretrained(data.checkpoint).feature_contract if data.checkpoint else None
    longest_s = max(row["duration"] for row in (*train_rows, *val_rows))
    clip_length = contract.clip_length if contract else data.clip_length or _clip_length_for(longest_s)
    store = out / "features"
    failed = _extract(data, [*train_rows, *val_rows], store, contract, clip_length)
    if failed:
        notes.append(f"{len(failed)} videos could not be encoded and are left out: {', '.join(sorted(failed)[:5])}")
        train_rows, val_rows = ([row for row in rows if row["vid"] not in failed] for rows in (train_rows, val_rows))
    train_rows, val_rows = map(with_known_negatives, (train_rows, val_rows))
    for purpose, rows in (("train", train_rows), ("validate", val_rows)):
        if not any(row["relevant_windows"] for row in rows):
            raise ValueError(f"no queries with a moment are left to {purpose} on: {'; '.join(notes)}")
    sections = choose_recipe(train_rows, out, clip_length, longest_s, contract, data.checkpoint)
    if imported_plugins():
        sections = {"import": list(imported_plugins()), **sections}
    path = out / "recipe.yaml"
    recipe = make_recipe(sections, path, data.overrides)
    files = {sections["data"]["train"]: train_rows, sections["data"]["eval"]: val_rows}
    sets = load_rows(recipe, files)
    runs = find_runs(recipe, sets, out, resume=data.resume)
    for name, content in files.items():  # only now: a run that is refused leaves the files of the one before
        write_rows(name, content)
    with replacing_file(path) as file:
        file.write(_HEAD.format(path=path) + yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    report = train_runs(recipe, sets, out, runs)
    return add_verdict(report, out, train_rows, val_rows, data.videos, notes)


_HEAD = """# Written by `bmdetr train`, settings chosen by the size of the data. Change them and run again:
#
#   python examples/train.py {path} --out outputs/again

"""


# ---------------------------------------------------------------------------------------------------------------- rows


def _read(data: OwnData) -> tuple[list[CanonicalRow], list[CanonicalRow], list[str]]:
    """Rows to train and to validate on, and what is to be known about them."""
    rows, report = import_annotations(data.rows, data.videos, data.options)
    notes = [f"{data.rows}: {report.rows} queries about {report.videos} videos ({report.taken_for[0]})"]
    if report.clipped:
        notes.append(f"{report.clipped} moments ended after their video and were cut to it")
    labelled = list(filter(is_labelled, rows))
    if len(labelled) < len(rows):
        notes.append(f"{len(rows) - len(labelled)} queries do not say where their moments are and are left out")
    if absent := sum(not row["relevant_windows"] for row in labelled):
        notes.append(f"{absent} queries are about what their videos do not show; they teach presence")
    if data.val is not None:
        val_rows, _ = import_annotations(data.val, data.videos, data.options)
        val_rows = list(filter(is_labelled, val_rows))
        shared = {row["vid"] for row in labelled} & {row["vid"] for row in val_rows}
        if shared:
            notes.append(f"{len(shared)} videos are in both files, so that the figures flatter the model")
            logger.warning(notes[-1])
        return with_content_qids(labelled), with_content_qids(val_rows), notes
    videos = len({row["vid"] for row in labelled})
    if videos < 2:
        raise ValueError(f"at least two videos are needed, one to hold out, received {videos}; or give --val")
    share = 0.2 if videos < FEW_VIDEOS else 0.1
    train_rows, val_rows = hold_out(with_content_qids(labelled), share)
    notes.append(f"{len({row['vid'] for row in val_rows})} of {videos} videos are held out for validation")
    return train_rows, val_rows, notes


def with_content_qids(rows: Sequence[CanonicalRow]) -> list[CanonicalRow]:
    """Rows whose `qid` follows from video and sentence, so that files that count from 1 each can share a store."""
    renamed: dict[str, str] = {}
    used: set[str] = set()
    rows = with_known_negatives(rows)
    for row in rows:
        qid = content_qid(row)
        while qid in used:  # the same sentence about the same video, in a row of its own
            qid += "x"
        used.add(qid)
        renamed[row["qid"]] = qid
    result = []
    for row in rows:
        row = {**row, "qid": renamed[row["qid"]]}
        row.pop("text_qid", None)  # each sentence is encoded here
        if (negatives := row.get("neg_query_ids")) is not None:
            row["neg_query_ids"] = [renamed[qid] for qid in negatives]
        result.append(row)
    return result


# ------------------------------------------------------------------------------------------------------------ features


def _clip_length_for(longest_s: float) -> float:
    """1 s, or as long as it takes for the longest video to have at most 150 clips, up to 4 s."""
    return float(min(4, max(1, math.ceil(longest_s / MOST_CLIPS))))


def _extract(
    data: OwnData, rows: Sequence[CanonicalRow], store: Path, contract: FeatureContract | None, clip_length: float
) -> dict[str, str]:
    """Encodes what the store lacks; returns the videos that cannot be encoded, with the reason.

    The store is made anew if a video's file has changed since it was encoded.
    """
    contents = _contents(rows, Path(data.videos))
    record = store / "contents.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    changed = [vid for vid, digest in contents.items() if known.get(vid, digest) != digest]
    if changed:
        logger.warning(f"the files of {len(changed)} videos have changed, such as '{changed[0]}': encoding anew")
        for file in {*store.iterdir()} - {record}:  # which tells the next run to go on, should this one be stopped here
            file.unlink()
        known = {}
    video = contract.video_encoders if contract else data.video_encoders
    text = contract.text_encoder if contract else data.text_encoder
    if not video or not text:
        raise ValueError(f"the checkpoint '{data.checkpoint}' names no encoders, so that it cannot encode videos")
    write_json(record, {**known, **contents})  # first: a stopped run leaves features, too
    extracted = extract_features(
        rows,
        data.videos,
        store,
        list(video),
        text,
        clip_length,
        contract=contract,
        encoder_options={"device": data.device} if data.device else None,
        workers=data.workers,
    )
    if extracted.failed_queries:
        qid, reason = next(iter(extracted.failed_queries.items()))
        number = len(extracted.failed_queries)
        raise ValueError(f"{number} sentences cannot be encoded, such as that of '{qid}': {reason}")
    return extracted.failed_videos


def _contents(rows: Sequence[CanonicalRow], folder: Path) -> dict[str, str]:
    """A hash of the content of each video file that is there."""
    digests = {}
    for row in rows:
        if row["vid"] not in digests and (path := find_video(row, [folder])) is not None:
            with path.open("rb") as file:
                digests[row["vid"]] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


# -------------------------------------------------------------------------------------------------------------- recipe


def choose_recipe(
    rows: Sequence[CanonicalRow],
    out: str | os.PathLike,
    clip_length: float,
    longest_s: float,
    contract: FeatureContract | None = None,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """The sections of a recipe, chosen by the number of training queries.

    Up to 2,000 queries train a small model (hidden size 128, two layers each) for about 1,500 updates, up to 10,000 the
    same for 5,000; more train the paper's size for 60 epochs. A batch holds one query per video, so it is no larger
    than the number of videos. A checkpoint is trained further with a fifth of the updates and a smaller learning rate.
    """
    small = len(rows) <= MIDDLE_DATA
    batch = min(32, len({row["vid"] for row in rows}))
    epoch = math.ceil(len(rows) / batch)
    updates = 1_500 if len(rows) <= SMALL_DATA else 5_000
    epochs = min(200, max(5, round(updates / epoch))) if small else 60
    model: dict[str, Any] = {}
    if checkpoint:
        model, epochs = {"checkpoint": checkpoint}, max(3, epochs // 5)
    elif small:
        model = {"hidden_size": 128, "encoder_layers": 2, "decoder_layers": 2, "num_attention_heads": 4}
        model |= {"intermediate_size": 256, "projection_dropout": 0.1}
    features: dict[str, Any] = {"video": str(Path(out) / "features"), "clip_length": clip_length}
    if contract is not None:
        features |= {"max_clips": contract.max_clips, "long_video": contract.long_video}
    else:
        clips = clip_count(longest_s, clip_length)
        features |= {"max_clips": min(clips, 2 * MOST_CLIPS), "long_video": "window" if clips <= 300 else "resample"}
    data = Path(out) / "data"
    rate = (1e-4 if checkpoint else 4e-4) if small else (1e-4 if checkpoint else 2e-4)
    return {
        "data": {"train": str(data / "train.jsonl"), "eval": str(data / "val.jsonl"), "test": []},
        "features": features,
        "negatives": {"encoder": MINILM if minilm_folder() else HASHED_WORDS},
        "model": model,
        "training": {
            "num_train_epochs": epochs,
            "per_device_train_batch_size": batch,
            "learning_rate": rate,
            "lr_scheduler_type": "cosine",
            "lr_drop_epochs": 0,
            "warmup_steps": 0.08,
            "temporal_shifting": True,
            "metric_for_best_model": "MR-full-mIoU",  # the smoothest, which matters where validation queries are few
            "eval_strategy": "steps",
            "eval_steps": 0.1,
            "save_strategy": "steps",
            "save_steps": 0.1,
            "dataloader_num_workers": max(0, min(4, usable_processors() - 2)),
            "seed": 42,
        },
    }
