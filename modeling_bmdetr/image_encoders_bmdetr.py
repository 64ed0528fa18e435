"""Encoders that see one frame at a time: the image towers of CLIP-like models, and image backbones.

Each sampled frame is encoded by itself, and the rows of a clip are averaged.
"""

import math
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from transformers import BatchFeature

from .encoder_interface_bmdetr import VideoEncoder, require_at_least_one
from .pretrained_models_bmdetr import (
    FramePreparation,
    Pooling,
    decoding_size,
    load_image_processor,
    load_model,
    pooled_rows,
    pooling_for,
    require_ability,
)

Clips: TypeAlias = Literal["started", "nearest"]


class ImageEncoder(VideoEncoder):
    """A model of transformers that sees single images.

    Args:
        model: name on the Hub, or local folder: CLIP, SigLIP and others with `get_image_features`, whose projected
            image features are the rows; or an image backbone (DINOv2, DINOv3, ViT, ConvNeXt, ...).
        frames_per_clip: frames per clip, at the centres of equal parts of it; 2 by default.
        pooling: backbones: `class` takes the class token, `pooled` what the model pools, `mean` the mean over places.
            By default the first of these that the model has; the contract says which.
        batch_size: frames per forward pass, rounded to whole clips.
        device: where to run, such as `cpu` or `cuda`.
        dtype: precision of the model; rows are float32 all the same.
        revision: branch, tag or commit on the Hub; pin it where rows must stay the same.
        prefix: what the encoder's name begins with.
        clips: `started` counts a last clip that the video fills by a tenth; `nearest` rounds the number of clips, as in
            published CLIP features, which hold the frame in the middle of each clip (`frames_per_clip=1`).

    Raises:
        ValueError: if the model sees no images, or `clips` is neither.
        OSError: if there is no such model, or no access to it.
        ImportError: if Pillow, which prepares the frames, is not installed.
    """

    interpolation = "bicubic"

    def __init__(
        self,
        model: str,
        frames_per_clip: int | None = None,
        pooling: Pooling | None = None,
        batch_size: int = 32,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        revision: str | None = None,
        prefix: str = "hf:",
        clips: Clips = "started",
    ) -> None:
        frames_per_clip = 2 if frames_per_clip is None else frames_per_clip
        require_at_least_one(frames_per_clip=frames_per_clip, batch_size=batch_size)
        if clips not in ("started", "nearest"):
            raise ValueError(f"clips must be 'started' or 'nearest', received {clips!r}.")
        self.clips: Clips = clips
        ability, _ = require_ability(model, revision, "see images", "image-text tower", "image backbone")
        self.name = prefix + str(model)
        self.frames_per_clip = frames_per_clip
        self.clips_per_batch = max(1, batch_size // frames_per_clip)
        self.revision = revision
        self.model = load_model(model, device, dtype, revision)
        self.is_tower = ability == "image-text tower"
        if self.is_tower and hasattr(self.model, "text_model"):
            self.model.text_model = None  # the other tower would only take memory
        if self.is_tower and pooling is not None:
            raise ValueError(f"pooling is for backbones, received {pooling!r} for {model!r}, whose tower has its own.")
        self.image_processor = load_image_processor(model, revision)
        if self.image_processor is not None:
            self.frame_size = decoding_size(self.image_processor)
        else:
            self.preparation = FramePreparation.of_model(model, revision)
            self.frame_size, self.interpolation = self.preparation.size, self.preparation.interpolation
        self.pooling: Pooling | None = pooling
        blank = [np.zeros((32, 32, 3), np.uint8)]
        if not self.is_tower and pooling is None:
            self.pooling = pooling_for(self.model, self._output(blank))
        self.dim = self._rows(blank).shape[-1]

    def spec(self) -> dict[str, Any]:
        clips = None if self.clips == "started" else self.clips
        options = {"pooling": self.pooling, "revision": self.revision, "clips": clips}
        given = {name: value for name, value in options.items() if value is not None}
        return {"name": self.name, "dim": self.dim, "frames_per_clip": self.frames_per_clip, **given}

    def clip_times(self, duration_s: float, clip_length_s: float, fps: float) -> np.ndarray:
        if self.clips == "started":
            return super().clip_times(duration_s, clip_length_s, fps)
        clips = max(1, math.floor(round(duration_s / clip_length_s, 4) + 0.5))
        centres = (np.arange(self.frames_per_clip) + 0.5) / self.frames_per_clip
        return np.minimum((np.arange(clips)[:, None] + centres) * clip_length_s, duration_s)

    @torch.inference_mode()
    def _encode_clips(self, frames: list[np.ndarray]) -> np.ndarray:
        return self._rows(frames).unflatten(0, (-1, self.frames_per_clip)).mean(1).numpy()

    def _rows(self, frames: list[np.ndarray]) -> torch.Tensor:
        output = self._output(frames)
        if self.pooling is not None:
            return pooled_rows(output, self.pooling).float().cpu()
        # transformers 5 returns an output object whose pooled rows are the features; earlier versions return them bare.
        return (output if isinstance(output, torch.Tensor) else output.pooler_output).float().cpu()

    @torch.inference_mode()
    def _output(self, frames: list[np.ndarray]) -> Any:
        if self.image_processor is not None:
            inputs = self.image_processor(frames, return_tensors="pt", input_data_format="channels_last")
        else:
            inputs = BatchFeature({"pixel_values": self.preparation(frames)})
        inputs = inputs.to(device=self.model.device, dtype=self.model.dtype)
        return self.model.get_image_features(**inputs) if self.is_tower else self.model(**inputs)
