"""SlowFast, the motion features that most published results of the field rest on, through pytorchvideo."""

import math
from typing import Any

import numpy as np
import torch

from .encoder_interface_bmdetr import VideoEncoder, require_at_least_one
from .pretrained_models_bmdetr import FramePreparation

DIM = 2304  # 2,048 of the slow pathway and 256 of the fast one
FRAMES, FRAME_STEP, PATHWAY_RATIO = 32, 2, 4
RATE = 30  # frames per second that a video is brought to first


class SlowFastEncoder(VideoEncoder):
    """SlowFast 8x8 R50 trained on Kinetics-400: both pathways, averaged over a clip, 2,304 values per clip.

    Frames are chosen as in the features that were published for Charades-STA and QVHighlights. The video is brought to
    30 frames per second; a clip is the next `30 x clip_length` of them, its last frame repeated where the video ends.
    Of these, 32 frames are spread over 64 frames of the video's own rate (cut to whole frames per second), counted from
    the clip's start; those that would lie past the end of the clip are its last frame. Every started clip counts.

    Args:
        weights: file with weights in the library's form (a state dict, or a dict with `model_state`). By default those
            that the library names, which it downloads.
        batch_size: frames per forward pass, rounded to whole clips.
        device: where to run, such as `cpu` or `cuda`.
        dtype: precision of the model; rows are float32 all the same.

    Raises:
        ImportError: if pytorchvideo, or torchvision, which it needs, is not installed.
        OSError: if there is no such file, or the weights cannot be downloaded.
        ValueError: if the file holds other weights.
    """

    frames_per_clip = FRAMES
    interpolation = "bicubic"

    def __init__(
        self,
        weights: str | None = None,
        batch_size: int = 64,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
    ) -> None:
        require_at_least_one(batch_size=batch_size)
        self.name, self.dim = "slowfast" if weights is None else f"slowfast:{weights}", DIM
        self.clips_per_batch = max(1, batch_size // FRAMES)
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.device = torch.device(device)
        model = _load_slowfast(weights)
        model.blocks = model.blocks[:-1]  # the last one tells the classes of Kinetics
        self.model = model.to(device=self.device, dtype=self.dtype).eval().requires_grad_(False)
        self.preparation = FramePreparation(
            size=224,
            interpolation=self.interpolation,
            crop=(224, 224),
            scale=1 / 255,
            shift=0.0,
            mean=(0.45, 0.45, 0.45),
            std=(0.225, 0.225, 0.225),
        )
        self.frame_size = self.preparation.size

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "dim": self.dim}

    def clip_times(self, duration_s: float, clip_length_s: float, fps: float) -> np.ndarray:
        return published_frame_times(duration_s, clip_length_s, fps)

    @torch.inference_mode()
    def _encode_clips(self, frames: list[np.ndarray]) -> np.ndarray:
        pixels = self.preparation(frames).to(device=self.device, dtype=self.dtype)
        fast = pixels.unflatten(0, (-1, FRAMES)).transpose(1, 2)  # (clips, 3, frames, height, width)
        slow = fast[:, :, torch.linspace(0, FRAMES - 1, FRAMES // PATHWAY_RATIO).long()]
        return self.model([slow, fast]).flatten(1).float().cpu().numpy()


def published_frame_times(duration_s: float, clip_length_s: float, fps: float) -> np.ndarray:
    """Seconds at which the frames of the published features are shown, `(clips, 32)`; see [`SlowFastEncoder`]."""
    frames_of_clip = max(1, int(clip_length_s * RATE))
    last = max(0.0, FRAMES * FRAME_STEP * math.floor(fps) / RATE - 1)
    places = np.linspace(0, last, FRAMES).clip(0, frames_of_clip - 1).astype(int)
    frames_of_video = max(1, math.floor(duration_s * RATE + 0.5))
    clips = math.ceil(min(frames_of_video / frames_of_clip, round(duration_s / clip_length_s, 4)))
    frames = np.minimum(np.arange(max(1, clips))[:, None] * frames_of_clip + places, frames_of_video - 1)
    # Frame n at 30 per second is the last one that begins before n + 1/2 of its steps have passed.
    return np.minimum((frames + 0.5) / RATE - 1e-6, duration_s)


def _load_slowfast(weights: str | None) -> Any:
    try:
        from pytorchvideo.models.hub.slowfast import slowfast_r50
    except ImportError as error:
        raise ImportError(
            "SlowFast needs pytorchvideo and torchvision (pip install pytorchvideo, and the torchvision that belongs "
            f"to your torch; {error})"
        ) from error
    if weights is None:
        return slowfast_r50(pretrained=True)
    state = torch.load(weights, map_location="cpu", weights_only=True)
    model = slowfast_r50(pretrained=False)
    try:
        model.load_state_dict(state.get("model_state", state))
    except (RuntimeError, AttributeError) as error:
        raise ValueError(
            f"the file {weights} holds no weights of pytorchvideo's slowfast_r50: {str(error)[:300]}"
        ) from error
    return model
