"""Small rows, features, models, batches and trainers: for tests, and for the processes that tests start."""

import functools
import gc
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval
from modeling_bmdetr.configuration_bmdetr import WITHOUT_RANKING, FeatureContract
from modeling_bmdetr.data.features.sources import no_features
from modeling_bmdetr.data.features.store import FeatureStore
from modeling_bmdetr.training import BMDetrTrainer, BMDetrTrainingArguments

VIDEO_DIM, TEXT_DIM = 6, 5
CONTRACT = FeatureContract(
    video_encoders=({"name": "tiny-video", "dim": VIDEO_DIM},),
    text_encoder={"name": "tiny-text", "dim": TEXT_DIM},
    clip_length=2.0,
    max_clips=12,
    max_tokens=6,
)
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 4,
    "alignment_dim": 8,
}
NO_DROPOUT = {"projection_dropout": 0.0, "dropout": 0.0, "attention_dropout": 0.0}
PAPER = dict(WITHOUT_RANKING)  # the paper's model: nothing of ranking and presence
TINY: dict[str, Any] = {"video_dim": VIDEO_DIM, "text_dim": TEXT_DIM, **SIZES, "encoder_layers": 2, **NO_DROPOUT}


class MemoryArrays:
    """Arrays of one modality by name, as a feature store reads them."""

    where = "memory"

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = dict(arrays)

    @property
    def names(self) -> list[str]:
        return sorted(self.arrays)

    def __contains__(self, name: object) -> bool:
        return name in self.arrays

    def num_rows(self, name: str) -> int:
        return len(self.arrays[name])

    def read(self, name: str, max_rows: int | None = None) -> np.ndarray:
        if name not in self.arrays:
            raise no_features(self.where, name, self.arrays)
        return self.arrays[name][:max_rows]


def make_row(**fields: Any) -> dict[str, Any]:
    """A valid canonical row, with `fields` in place of its own; a field given as `...` is left out."""
    plain: dict[str, Any] = {
        "qid": "q1",
        "vid": "v1",
        "query": "A door opens.",
        "duration": 20.0,
        "relevant_windows": [[2.0, 6.0]],
    }
    return {name: value for name, value in {**plain, **fields}.items() if value is not ...}


def write_lines(path: Path, *records: Any) -> Path:
    """A JSONL file of records."""
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return path


def write_pictures(path: Path, pictures: Iterable[np.ndarray], fps: int, codec: str = "mpeg4", **options: str) -> Path:
    """A video file of RGB pictures of one size at a constant rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options)
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            if not number:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def make_rows(num_videos: int = 9, seed: int = 0, prefix: str = "v", several_moments: bool = True) -> list[Any]:
    """Canonical rows of videos of 8 to 24 s with one to four queries each; every third query has two moments.

    Queries of the same video whose moments do not touch are each other's negatives.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for video in range(num_videos):
        duration = float(rng.integers(8, 25))
        of_video = []
        for _ in range(int(rng.integers(1, 5))):
            start = round(float(rng.uniform(0, duration - 4)), 1)
            windows = [[start, round(start + float(rng.uniform(1, 4)), 1)]]
            if several_moments and len(rows + of_video) % 3 == 2 and windows[0][1] + 3 < duration:
                windows.append([windows[0][1] + 1, duration])
            number = len(rows) + len(of_video)
            of_video.append(
                {
                    "qid": f"{prefix}q{number}",
                    "vid": f"{prefix}{video}",
                    "query": f"sentence {number}",
                    "duration": duration,
                    "relevant_windows": windows,
                }
            )
        for row in of_video:
            row["neg_query_ids"] = [other["qid"] for other in of_video if not _touch(row, other)]
        rows += of_video
    return rows


def _touch(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return any(a < d and c < b for a, b in row["relevant_windows"] for c, d in other["relevant_windows"])


def make_store(*row_sets: Sequence[Mapping[str, Any]], contract: FeatureContract = CONTRACT) -> FeatureStore:
    """Random features of the rows' videos (as long as their durations) and queries (one to six tokens)."""
    videos, texts = {}, {}
    for number, row in enumerate(row for rows in row_sets for row in rows):
        rng = np.random.default_rng(number)
        clips = max(1, round(row["duration"] / contract.clip_length))
        videos.setdefault(row["vid"], rng.standard_normal((clips, VIDEO_DIM)).astype(np.float32))
        texts[row["qid"]] = rng.standard_normal((int(rng.integers(1, 7)), TEXT_DIM)).astype(np.float32)
    return FeatureStore(contract, MemoryArrays(videos), MemoryArrays(texts))


def tiny_config(**fields: Any) -> BMDetrConfig:
    """A configuration whose model runs in milliseconds, without dropout."""
    return BMDetrConfig(**{**TINY, **fields})


def tiny_model(seed: int = 0, **fields: Any) -> BMDetrForMomentRetrieval:
    """A model of `tiny_config`, in eval mode."""
    torch.manual_seed(seed)
    return BMDetrForMomentRetrieval(tiny_config(**fields)).eval()


def tiny_batch(
    negatives: int = 2, shifted: bool = True, labels: bool = True, seed: int = 0, moments: int = 2
) -> dict[str, Tensor]:
    """Four rows of unequal lengths, for the sizes of `TINY`.

    Rows: 0 has every part; 1 is shorter and has both negatives; 2 has two moments (with `moments=2`), so no shifted
    view, and lacks its last negative; 3 has no negative and a moment as long as its video. Negative sentences are
    longer than positive ones.
    """
    generator = torch.Generator().manual_seed(seed)
    video_lengths, text_lengths = torch.tensor([9, 6, 9, 4]), torch.tensor([4, 3, 2, 4])
    batch = {
        "video_features": torch.randn(4, 9, 6, generator=generator),
        "video_mask": (torch.arange(9) < video_lengths[:, None]).long(),
        "text_features": torch.randn(4, 4, 5, generator=generator),
        "text_mask": (torch.arange(4) < text_lengths[:, None]).long(),
    }
    if negatives:
        lengths = torch.tensor([6, 2, 5, 3])[:, None, None]
        mask = (torch.arange(6) < lengths).long().repeat(1, negatives, 1)
        mask[2, -1] = mask[3] = 0
        batch["negative_text_features"] = torch.randn(4, negatives, 6, 5, generator=generator)
        batch["negative_text_mask"] = mask
    if shifted:
        order = torch.arange(9).repeat(4, 1)
        order[0] = torch.tensor([3, 4, 5, 6, 0, 1, 2, 7, 8])  # the moment moves from clips 3-5 to the front
        order[1, :6] = torch.tensor([0, 3, 4, 5, 1, 2])
        batch["shifted_frame_order"] = order
    if not labels:
        return batch
    batch["labels"] = torch.full((4, moments, 2), -100.0)
    batch["labels"][:, 0] = torch.tensor([[0.5, 0.34], [0.5, 0.33], [0.2, 0.3], [0.5, 1.0]])
    if moments > 1:
        batch["labels"][2, 1] = torch.tensor([0.8, 0.12])
    if shifted:
        batch["shifted_labels"] = torch.full((4, 1, 2), -100.0)
        batch["shifted_labels"][:2, 0] = torch.tensor([[0.17, 0.34], [0.83, 0.33]])
    if negatives:
        batch["negative_labels"] = torch.full((4, negatives, 2, 2), -100.0)
        batch["negative_labels"][0, 0, 0] = torch.tensor([0.9, 0.2])
        batch["negative_labels"][1, 0] = torch.tensor([[0.1, 0.2], [0.9, 0.1]])
    return batch


def make_model(seed: int = 0, contract: FeatureContract = CONTRACT, **fields: Any) -> BMDetrForMomentRetrieval:
    """A model for features of `contract`, with the default dropout."""
    torch.manual_seed(seed)
    return BMDetrForMomentRetrieval(BMDetrConfig.from_contract(contract, **{**SIZES, **fields}))


@functools.cache
def _freeze_imports() -> None:
    """Spares the Trainer, which collects garbage at the start of every run, to look at all modules each time."""
    gc.freeze()


def make_trainer(
    output_dir: str | Path,
    train_rows: Sequence[Any] | None = None,
    eval_rows: Sequence[Any] | None = None,
    *,
    model: Mapping[str, Any] | None = None,
    store: FeatureStore | None = None,
    trainer_class: type[BMDetrTrainer] = BMDetrTrainer,
    **arguments: Any,
) -> BMDetrTrainer:
    """A trainer of a tiny model on `make_rows`; `model` are fields of its configuration, the rest are arguments."""
    _freeze_imports()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    train_rows = make_rows() if train_rows is None else train_rows
    eval_rows = make_rows(5, seed=1, prefix="e") if eval_rows is None else eval_rows
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "num_train_epochs": 2,
        "lr_drop_epochs": 0,
        "temporal_shifting": True,
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    return trainer_class(
        make_model(**(model or {})),
        BMDetrTrainingArguments(output_dir=str(output_dir), **{**defaults, **arguments}),
        store=store or make_store(train_rows, eval_rows),
        train_rows=train_rows,
        eval_rows=eval_rows,
    )
