"""Encoders that see the frames of a clip together: the video towers of X-CLIP and its like, and video backbones."""

import inspect
from typing import Any

import numpy as np
import torch

from .encoder_interface_bmdetr import VideoEncoder, require_at_least_one
from .pretrained_models_bmdetr import (
    FramePreparation,
    Pooling,
    first_parameter,
    frames_per_clip_of,
    load_model,
    pooled_rows,
    pooling_for,
    require_ability,
)


class FrameSequenceEncoder(VideoEncoder):
    """A model of transformers that sees several frames at once (X-CLIP, VideoMAE, TimeSformer, ViViT, V-JEPA 2, ...).

    A clip's frames are sampled at the centres of as many equal parts of it, so the seconds between frames are the clip
    length divided by their number. A model that was trained on frames further apart sees faster motion than it
    knows in short clips: give it longer ones.

    Args:
        model: name on the Hub, or local folder.
        frames_per_clip: frames per clip; by default as many as the model was made for. Other numbers work where the
            model takes them (V-JEPA 2, TimeSformer).
        pooling: backbones: `class`, `pooled` or `mean`, as in [`ImageEncoder`].
        batch_size: frames per forward pass, rounded to whole clips.
        device, dtype, revision, prefix: as in [`ImageEncoder`].

    Raises:
        ValueError: if the model sees no videos, says nothing about how frames are prepared, or refuses the number of
            frames.
        OSError: if there is no such model, or no access to it.
    """

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
    ) -> None:
        ability, config = require_ability(model, revision, "see videos", "video-text tower", "video backbone")
        frames_per_clip = frames_per_clip_of(config) if frames_per_clip is None else frames_per_clip
        if frames_per_clip is None:
            raise ValueError(f"the model {model!r} does not say how many frames it sees; give frames_per_clip.")
        require_at_least_one(frames_per_clip=frames_per_clip, batch_size=batch_size)
        self.name = prefix + str(model)
        self.frames_per_clip = frames_per_clip
        self.clips_per_batch = max(1, batch_size // frames_per_clip)
        self.revision = revision
        self.model = load_model(model, device, dtype, revision)
        is_tower = ability == "video-text tower"
        if is_tower and hasattr(self.model, "text_model"):
            self.model.text_model = None
        if is_tower and pooling is not None:
            raise ValueError(f"pooling is for backbones, received {pooling!r} for {model!r}, whose tower has its own.")
        self.pooling: Pooling | None = pooling
        self.forward = self.model.get_video_features if is_tower else self.model.forward
        self.extra = {"skip_predictor": True} if "skip_predictor" in inspect.signature(self.forward).parameters else {}
        self.preparation = FramePreparation.of_model(model, revision)
        self.frame_size, self.interpolation = self.preparation.size, self.preparation.interpolation
        blank = [np.zeros((256, 256, 3), np.uint8)] * frames_per_clip
        try:
            if not is_tower and pooling is None:
                self.pooling = pooling_for(self.model, self._output(blank))
            self.dim = self._encode_clips(blank).shape[-1]
        except (RuntimeError, ValueError) as error:
            made_for = frames_per_clip_of(config)
            raise ValueError(
                f"the model {model!r} refuses clips of {frames_per_clip} frames"
                + (f"; it was made for {made_for}" if made_for else "")
                + f" ({' '.join(str(error).split())[:200]})"
            ) from error

    def spec(self) -> dict[str, Any]:
        options = {"pooling": self.pooling, "revision": self.revision}
        given = {name: value for name, value in options.items() if value is not None}
        return {"name": self.name, "dim": self.dim, "frames_per_clip": self.frames_per_clip, **given}

    def _encode_clips(self, frames: list[np.ndarray]) -> np.ndarray:
        output = self._output(frames)
        if self.pooling is not None:
            rows = pooled_rows(output, self.pooling)
        else:
            rows = output if isinstance(output, torch.Tensor) else output.pooler_output
        return rows.float().cpu().numpy()

    @torch.inference_mode()
    def _output(self, frames: list[np.ndarray]) -> Any:
        pixels = self.preparation(frames).to(device=self.model.device, dtype=self.model.dtype)
        clips = pixels.unflatten(0, (-1, self.frames_per_clip))
        return self.forward(**{first_parameter(self.forward): clips}, **self.extra)
