"""Image backbones of timm, by the names that timm has for them."""

from typing import Any

import numpy as np
import torch

from .encoder_interface_bmdetr import VideoEncoder, require_at_least_one
from .packages_bmdetr import needed_module
from .pretrained_models_bmdetr import FramePreparation


class TimmEncoder(VideoEncoder):
    """Pooled features of an image backbone of timm (`timm.create_model(name, num_classes=0)`), averaged over a clip.

    Args:
        model: what timm calls it, such as `efficientnet_lite0`, `hf-hub:NAME` or `local-dir:FOLDER`.
        frames_per_clip: frames per clip, at the centres of equal parts of it.
        batch_size: frames per forward pass, rounded to whole clips.
        device: where to run, such as `cpu` or `cuda`.
        dtype: precision of the model; rows are float32 all the same.
        pretrained: whether to load the weights that timm names; random ones serve tests only.

    Raises:
        ValueError: if timm has no such model.
        ImportError: if timm, or torchvision, which it needs, is not installed.
    """

    def __init__(
        self,
        model: str,
        frames_per_clip: int = 2,
        batch_size: int = 32,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        pretrained: bool = True,
    ) -> None:
        require_at_least_one(frames_per_clip=frames_per_clip, batch_size=batch_size)
        timm = needed_module("timm", "backbones of timm need timm and torchvision (pip install timm)")
        self.name, self.pretrained = "timm:" + model, pretrained
        self.frames_per_clip, self.clips_per_batch = frames_per_clip, max(1, batch_size // frames_per_clip)
        if ":" not in model and not timm.is_model(model):
            raise ValueError(f"timm {timm.__version__} has no model {model!r}; timm.list_models() names them.")
        loaded = timm.create_model(model, pretrained=pretrained, num_classes=0)
        stated = loaded.pretrained_cfg
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.model = loaded.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.device, self.dtype = torch.device(device), dtype
        _, height, width = stated["input_size"]
        side = round(min(height, width) / (stated.get("crop_pct") or 1.0))
        self.preparation = FramePreparation(
            size=side,
            interpolation=stated.get("interpolation") or "bicubic",
            crop=(height, width),
            scale=1 / 255,
            shift=0.0,
            mean=tuple(stated["mean"]),
            std=tuple(stated["std"]),
        )
        self.frame_size, self.interpolation = side, self.preparation.interpolation
        self.dim = self._encode_clips([np.zeros((side, side, 3), np.uint8)] * frames_per_clip).shape[-1]

    def spec(self) -> dict[str, Any]:
        random = {} if self.pretrained else {"pretrained": False}
        return {"name": self.name, "dim": self.dim, "frames_per_clip": self.frames_per_clip, **random}

    @torch.inference_mode()
    def _encode_clips(self, frames: list[np.ndarray]) -> np.ndarray:
        pixels = self.preparation(frames).to(device=self.device, dtype=self.dtype)
        return self.model(pixels).float().cpu().unflatten(0, (-1, self.frames_per_clip)).mean(1).numpy()
