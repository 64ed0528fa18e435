"""What the recipes in examples/configs need, made up: annotations in their original formats, features at random.

Everything lies where the recipe looks for it, in folders relative to `root`, with the widths and file names of the
published features.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from modeling_bmdetr.configuration_bmdetr import FeatureContract
from modeling_bmdetr.data import FeatureWriter, read_rows, write_rows

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
CLIP = {"name": "clip:openai/clip-vit-base-patch32", "dim": 512, "frames_per_clip": 2}
CLIP_TEXT = {"name": "clip:openai/clip-vit-base-patch32", "dim": 512}
SENTENCES = ("a person opens the door", "she laughs", "he puts down a cup", "someone leaves the room", "they sit")
# Overrides that make any recipe run in seconds on one core.
SMALL = (
    *("model.hidden_size=16", "model.num_attention_heads=2", "model.intermediate_size=16", "model.alignment_dim=8"),
    *("model.encoder_layers=1", "model.decoder_layers=1", "negatives.encoder=hashed-words", "training.max_steps=20"),
    *("training.per_device_train_batch_size=4", "training.dataloader_num_workers=0", "training.use_cpu=true"),
    *("training.disable_tqdm=true", "training.eval_strategy=steps", "training.eval_steps=10"),
    *("training.save_strategy=steps", "training.save_steps=10", "training.logging_strategy=steps"),
    *("training.logging_steps=5", "data.limit=12"),
)


def make_world(root: Path, recipe: str, seed: int = 0) -> Path:
    """Makes what `examples/configs/<recipe>.yaml` needs below `root`, and returns the recipe's path."""
    path = CONFIGS / f"{recipe}.yaml"
    sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    data, features = sections["data"], sections["features"]
    rng = np.random.default_rng(seed)
    if data.get("benchmark"):
        folder = root / data["data_dir"]
        folder.mkdir(parents=True)
        rows = WRITERS[data["benchmark"]](folder, rng)
    else:
        rows = [row for name in ("train", "eval") for row in _own_rows(root / data[name], name, rng)]
    if data.get("released_jsonl"):
        rows = _renumber(rows, root / data["released_jsonl"])
    if "text" in features:
        _write_published(root, features, data.get("benchmark", ""), rows, rng)
    else:
        _write_packed(root / features["video"], features, rows, rng)
    return path


def _videos(split: str, number: int, rng: np.random.Generator, seconds: tuple[float, float]) -> list[dict[str, Any]]:
    """Videos with three sentences each: `vid`, `duration` and (start, end, sentence) in seconds."""
    videos = []
    for index in range(number):
        duration = round(float(rng.uniform(*seconds)), 2)
        starts = np.sort(rng.uniform(0, 0.8 * duration, 3))
        moments = [
            (round(float(start), 1), round(float(start) + 0.15 * duration, 1), SENTENCES[(index + i) % len(SENTENCES)])
            for i, start in enumerate(starts)
        ]
        videos.append({"vid": f"{split.upper()}{index:02d}", "duration": duration, "moments": moments})
    return videos


def _rows(videos: Sequence[dict[str, Any]], qid_prefix: str) -> list[dict[str, Any]]:
    moments = [(video, moment) for video in videos for moment in video["moments"]]
    return [
        {
            "qid": f"{qid_prefix}{number}",
            "vid": video["vid"],
            "query": sentence,
            "duration": video["duration"],
            "relevant_windows": [[start, end]],
        }
        for number, (video, (start, end, sentence)) in enumerate(moments)
    ]


def _charades_sta(folder: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for split in ("train", "test"):
        videos = _videos(split, 10, rng, (15, 40))
        lines = [f"{v['vid']} {start} {end}##{text}." for v in videos for start, end, text in v["moments"]]
        (folder / f"charades_sta_{split}.txt").write_text("\n".join(lines) + "\n")
        with (folder / f"Charades_v1_{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerows([("id", "length"), *((video["vid"], video["duration"]) for video in videos)])
        rows += [{**row, "query": f"{row['query']}."} for row in _rows(videos, f"charades_sta_{split}_")]
    return rows


def _charades_cd(folder: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    return _grouped(folder, rng, "charades_cd", "charades_{}.json", ("train", "val", "test_iid", "test_ood"), (15, 40))


def _tacos(folder: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    return _grouped(folder, rng, "tacos", "{}.json", ("train", "val", "test"), (100, 400))


def _activitynet(folder: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    return _grouped(folder, rng, "activitynet_captions", "{}.json", ("train", "val_1", "val_2"), (20, 200))


def _grouped(
    folder: Path,
    rng: np.random.Generator,
    benchmark: str,
    file_name: str,
    splits: Sequence[str],
    seconds: tuple[float, float],
) -> list[dict[str, Any]]:
    rows, fps = [], 30.0
    for split in splits:
        videos = _videos(split, 8, rng, seconds)
        content = {}
        for video in videos:
            times = [[start, end] for start, end, _ in video["moments"]]
            record: dict[str, Any] = {"sentences": [text for *_, text in video["moments"]], "timestamps": times}
            if benchmark == "tacos":
                record["timestamps"] = [[round(fps * start), round(fps * end)] for start, end in times]
                record |= {"fps": fps, "num_frames": round(fps * video["duration"])}
            record["video_duration" if benchmark == "charades_cd" else "duration"] = video["duration"]
            content[video["vid"] + (".avi" if benchmark == "tacos" else "")] = record
        (folder / file_name.format(split)).write_text(json.dumps(content))
        rows += _rows(videos, f"{benchmark}_{split}_")
    return rows


def _qvhighlights(folder: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows, names = [], {"train": "train_release", "val": "val_release", "test": "test_with_gt"}
    for number, (split, name) in enumerate(names.items()):
        part = _rows(_videos(split, 14, rng, (150, 150)), "")
        part = [row for index, row in enumerate(part) if index % 3 == 0]  # one query a video
        for index, row in enumerate(part):
            clips = sorted(rng.choice(75, 6, replace=False).tolist())
            row |= {
                "qid": str(1000 * number + index),
                "duration": 150,
                "relevant_windows": [[2 * clip, 2 * clip + 2] for clip in clips],
                "relevant_clip_ids": clips,
                "saliency_scores": rng.integers(0, 5, (6, 3)).tolist(),
            }
        write_rows(folder / f"highlight_{name}.jsonl", part, integer_qids={row["qid"] for row in part})
        rows += part
    return rows


def _own_rows(path: Path, name: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = _rows(_videos(name, 8, rng, (10, 90)), f"{name}")
    write_rows(path, rows)
    return rows


WRITERS = {
    "charades_sta": _charades_sta,
    "charades_cd": _charades_cd,
    "tacos": _tacos,
    "activitynet_captions": _activitynet,
    "qvhighlights": _qvhighlights,
}


def _renumber(rows: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The same rows in another order with numbers as qids, as they were released, and the file that says so."""
    folder.mkdir(parents=True)
    released = [{**row, "qid": str(number)} for number, row in enumerate(reversed(list(rows)))]
    write_rows(folder / "train.jsonl", released, integer_qids={row["qid"] for row in released})
    return list(read_rows(folder / "train.jsonl"))


def _write_published(
    root: Path, features: dict[str, Any], benchmark: str, rows: Sequence[dict[str, Any]], rng: np.random.Generator
) -> None:
    """One file a video and a query: `.npz` where several encoders stand side by side, else `.npy`."""
    folders = features["video"] if isinstance(features["video"], list) else [features["video"]]
    for folder, encoder in zip(folders, features["video_encoders"], strict=True):
        (root / folder).mkdir(parents=True)
        for vid, duration in {row["vid"]: row["duration"] for row in rows}.items():
            array = rng.standard_normal((round(duration / features["clip_length"]), encoder["dim"]), dtype=np.float32)
            if len(folders) > 1:
                np.savez(root / folder / f"{vid}.npz", features=array)
            else:
                np.save(root / folder / f"{vid}{'.avi' if benchmark == 'tacos' else ''}.npy", array)
    (root / features["text"]).mkdir(parents=True)
    sentences: dict[str, np.ndarray] = {}  # the same sentence always has the same features
    for row in rows:
        tokens = 77 if features["text_rows"] == "all" else 2 + len(row["query"].split())
        if row["query"] not in sentences:
            sentences[row["query"]] = rng.standard_normal((tokens, features["text_encoder"]["dim"]), dtype=np.float32)
        np.savez(root / features["text"] / f"qid{row['qid']}.npz", last_hidden_state=sentences[row["query"]])


def _write_packed(
    folder: Path, features: dict[str, Any], rows: Sequence[dict[str, Any]], rng: np.random.Generator
) -> None:
    contract = FeatureContract(video_encoders=(CLIP,), text_encoder=CLIP_TEXT, clip_length=features["clip_length"])
    with FeatureWriter(folder, contract) as writer:
        for vid, duration in {row["vid"]: row["duration"] for row in rows}.items():
            clips = max(1, round(duration / features["clip_length"]))
            writer.add_video(vid, rng.standard_normal((clips, CLIP["dim"]), dtype=np.float32))
        for row in rows:
            tokens = 2 + len(row["query"].split())
            writer.add_text(row["qid"], rng.standard_normal((tokens, CLIP_TEXT["dim"]), dtype=np.float32), row["query"])
        writer.finish()
