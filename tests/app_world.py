"""What the tests of the applications share: short videos, an untrained checkpoint that reads them, a pipeline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from factories import write_pictures

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval, BMDetrProcessor, MomentRetrievalPipeline
from modeling_bmdetr.contract_bmdetr import FeatureContract
from modeling_bmdetr.encoders_bmdetr import build_text_encoder, build_video_encoder


def make_video(path: Path, seconds: float = 4.0, seed: int = 0, side: int = 64, fps: int = 8) -> Path:
    """An mp4 of a square that wanders over a background; another seed is another film."""
    rng = np.random.default_rng(seed)
    background, colour = rng.integers(0, 256, (2, 3), dtype=np.uint8)
    pictures = np.broadcast_to(background, (round(seconds * fps), side, side, 3)).copy()
    for i, picture in enumerate(pictures):
        left = i * 2 % (side - 16)
        picture[16:32, left : left + 16] = colour
    return write_pictures(path, pictures, fps, "libx264", preset="ultrafast")


def make_checkpoint(
    folder: Path,
    seed: int = 0,
    max_clips: int = 12,
    video_encoders: Sequence[str] = ("pixel-grid",),
    text_encoder: str = "hashed-words",
    dual_encoder: bool = True,
    **contract: Any,
) -> Path:
    """A checkpoint; its encoders need no weights, unless others are named."""
    features = FeatureContract(
        video_encoders=tuple(build_video_encoder(name).spec() for name in video_encoders),
        text_encoder=build_text_encoder(text_encoder).spec(),
        max_clips=max_clips,
        **contract,
    )
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_queries": 5}
    torch.manual_seed(seed)
    config = BMDetrConfig.from_contract(
        features, encoder_layers=1, decoder_layers=1, dual_encoder=dual_encoder, **sizes
    )
    BMDetrForMomentRetrieval(config).save_pretrained(folder)
    BMDetrProcessor(config).save_pretrained(folder)
    return folder


def make_pipeline(checkpoint: Path) -> MomentRetrievalPipeline:
    """The pipeline of a checkpoint, on the CPU."""
    model = BMDetrForMomentRetrieval.from_pretrained(checkpoint)
    return MomentRetrievalPipeline(model, processor=BMDetrProcessor.from_pretrained(checkpoint), device="cpu")
