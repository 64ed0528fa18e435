"""What the tests of the applications share: short videos, an untrained checkpoint that reads them, a pipeline."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval, BMDetrProcessor, MomentRetrievalPipeline
from modeling_bmdetr.contract_bmdetr import FeatureContract
from modeling_bmdetr.encoders_bmdetr import build_text_encoder, build_video_encoder


def make_video(path: Path, seconds: float = 4.0, seed: int = 0, side: int = 64, fps: int = 8) -> Path:
    """An mp4 of a square that wanders over a background; another seed is another film."""
    rng = np.random.default_rng(seed)
    background, colour = rng.integers(0, 256, (2, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for i in range(round(seconds * fps)):
            frame = np.broadcast_to(background, (side, side, 3)).copy()
            left = i * 2 % (side - 16)
            frame[16:32, left : left + 16] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def make_checkpoint(folder: Path, seed: int = 0, max_clips: int = 12, **contract: Any) -> Path:
    """A checkpoint whose encoders need no weights."""
    features = FeatureContract(
        video_encoders=(build_video_encoder("pixel-grid").spec(),),
        text_encoder=build_text_encoder("hashed-words").spec(),
        max_clips=max_clips,
        **contract,
    )
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_queries": 5}
    torch.manual_seed(seed)
    config = BMDetrConfig.from_contract(features, encoder_layers=1, decoder_layers=1, **sizes)
    BMDetrForMomentRetrieval(config).save_pretrained(folder)
    BMDetrProcessor(config).save_pretrained(folder)
    return folder


def make_pipeline(checkpoint: Path) -> MomentRetrievalPipeline:
    """The pipeline of a checkpoint, on the CPU."""
    model = BMDetrForMomentRetrieval.from_pretrained(checkpoint)
    return MomentRetrievalPipeline(model, processor=BMDetrProcessor.from_pretrained(checkpoint), device="cpu")
