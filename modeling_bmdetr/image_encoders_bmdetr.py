"""Encoders that see one frame at a time: the image towers of CLIP-like models, and image backbones.

Each sampled frame is encoded by itself, and the rows of a clip are averaged.
"""

import math
from typing import Any

import numpy as np
import torch
import transformers

from .pretrained_models_bmdetr import PretrainedVideoEncoder, decoding_size, load_image_processor


class ImageEncoder(PretrainedVideoEncoder):
    """A model of transformers that sees single images.

    Args:
        model: name on the Hub, or local folder: CLIP, SigLIP and others with `get_image_features`, whose projected
            image features are the rows; or an image backbone (DINOv2, DINOv3, ViT, ConvNeXt, ...).
        frames_per_clip: 2 by default.
        pooling, batch_size, device, dtype, revision, prefix: as in [`PretrainedVideoEncoder`].
        clips: `started` counts a last clip that the video fills by a tenth; `nearest` rounds the number of clips, as in
            published CLIP features, which hold the frame in the middle of each clip (`frames_per_clip=1`).

    Raises:
        ValueError: if the model sees no images, or `clips` is neither.
        OSError: if there is no such model, or no access to it.
        ImportError: if Pillow, which prepares the frames, is not installed.
    """

    interpolation = "bicubic"
    NEEDS = ("see images", "image-text tower", "image backbone")
    CLIPS = ("started", "nearest")
    DEFAULT_FRAMES = 2
    BLANK_SIDE = 32

    def spec(self) -> dict[str, Any]:
        return super().spec() | ({} if self.clips == "started" else {"clips": self.clips})

    def clip_times(self, duration_s: float, clip_length_s: float, fps: float) -> np.ndarray:
        if self.clips == "started":
            return super().clip_times(duration_s, clip_length_s, fps)
        clips = max(1, math.floor(round(duration_s / clip_length_s, 4) + 0.5))
        centres = (np.arange(self.frames_per_clip) + 0.5) / self.frames_per_clip
        return np.minimum((np.arange(clips)[:, None] + centres) * clip_length_s, duration_s)

    @torch.inference_mode()
    def _encode_clips(self, frames: list[np.ndarray]) -> np.ndarray:
        return self._rows(frames).unflatten(0, (-1, self.frames_per_clip)).mean(1).numpy()

    def _prepare(self, model: str) -> None:
        self.image_processor = load_image_processor(model, self.revision)
        if self.image_processor is not None:
            self.frame_size = decoding_size(self.image_processor)
        else:
            super()._prepare(model)

    @torch.inference_mode()
    def _output(self, frames: list[np.ndarray]) -> Any:
        if self.image_processor is not None:
            inputs = self.image_processor(frames, return_tensors="pt", input_data_format="channels_last")
        else:
            inputs = transformers.BatchFeature({"pixel_values": self.preparation(frames)})
        inputs = inputs.to(device=self.model.device, dtype=self.model.dtype)
        return self.model.get_image_features(**inputs) if self.is_tower else self.model(**inputs)
