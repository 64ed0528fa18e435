"""Encoders that see the frames of a clip together: the video towers of X-CLIP and its like, and video backbones."""

import inspect
from typing import Any

import numpy as np
import torch

from .pretrained_models_bmdetr import PretrainedVideoEncoder, first_parameter, frames_per_clip_of


class FrameSequenceEncoder(PretrainedVideoEncoder):
    """A model of transformers that sees several frames at once (X-CLIP, VideoMAE, TimeSformer, ViViT, V-JEPA 2, ...).

    A clip's frames are sampled at the centres of as many equal parts of it, so the seconds between frames are the clip
    length divided by their number. A model that was trained on frames further apart sees faster motion than it
    knows in short clips: give it longer ones.

    Args:
        model: name on the Hub, or local folder.
        frames_per_clip: by default as many as the model was made for. Other numbers work where the model takes them
            (V-JEPA 2, TimeSformer).
        pooling, batch_size, device, dtype, revision, prefix: as in [`PretrainedVideoEncoder`].

    Raises:
        ValueError: if the model sees no videos, says nothing about how frames are prepared, or refuses the number of
            frames.
        OSError: if there is no such model, or no access to it.
    """

    NEEDS = ("see videos", "video-text tower", "video backbone")
    BLANK_SIDE = 256

    def _prepare(self, model: str) -> None:
        self.forward = self.model.get_video_features if self.is_tower else self.model.forward
        self.extra = {"skip_predictor": True} if "skip_predictor" in inspect.signature(self.forward).parameters else {}
        super()._prepare(model)

    def _find_width(self, blank: list[np.ndarray]) -> None:
        try:
            super()._find_width(blank)
        except (RuntimeError, ValueError) as error:
            made_for = frames_per_clip_of(self.model.config)
            raise ValueError(
                f"the model {self.name!r} refuses clips of {self.frames_per_clip} frames"
                + (f"; it was made for {made_for}" if made_for else "")
                + f" ({' '.join(str(error).split())[:200]})"
            ) from error

    def _encode_clips(self, frames: list[np.ndarray]) -> np.ndarray:
        return self._rows(frames).numpy()

    @torch.inference_mode()
    def _output(self, frames: list[np.ndarray]) -> Any:
        pixels = self.preparation(frames).to(device=self.model.device, dtype=self.model.dtype)
        clips = pixels.unflatten(0, (-1, self.frames_per_clip))
        return self.forward(**{first_parameter(self.forward): clips}, **self.extra)
