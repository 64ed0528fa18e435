"""The golden case of the released code: parameters by a rule, inputs and results from a file.

The released code and this package draw the same parameters from their released names, so the file holds none.
"""

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from modeling_bmdetr import BMDetrConfig
from modeling_bmdetr.released.names import RELEASED_OUTPUTS

FIXTURE = Path(__file__).parent / "fixtures" / "released_case.safetensors"
OUTPUTS = {**RELEASED_OUTPUTS, "last_hidden_state": "last_hidden_state"}


@dataclass
class ReleasedCase:
    """Inputs and results of the released code, by the names it uses."""

    tensors: dict[str, Tensor]
    shapes: dict[str, list[int]]
    sizes: dict[str, int]

    @classmethod
    def load(cls, path: str | Path = FIXTURE) -> "ReleasedCase":
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        return cls(tensors, json.loads(metadata["state_dict_shapes"]), json.loads(metadata["case"]))

    def state_dict(self) -> dict[str, Tensor]:
        """A released state dict with every parameter drawn by the rule."""
        return {name: draw_parameter(name, shape) for name, shape in self.shapes.items()}

    def config(self, **kwargs: Any) -> BMDetrConfig:
        """The configuration of the case; the released width of the video counts the two endpoint columns."""
        return BMDetrConfig.released(
            video_dim=self.sizes["v_feat_dim"] - 2,
            text_dim=self.sizes["t_feat_dim"],
            encoder_layers=self.sizes["enc_layers"],
            decoder_layers=self.sizes["dec_layers"],
            intermediate_size=self.sizes["dim_feedforward"],
            num_queries=self.sizes["num_queries"],
            projection_layers=self.sizes["n_input_proj"],
            alignment_dim=self.sizes["contrastive_hdim"],
            **kwargs,
        )

    def inputs(self, negatives: bool = False, shifted: bool = False) -> dict[str, Tensor]:
        """Inputs of the model, without endpoint columns."""
        video = self.tensors["video"][..., :-2]
        inputs = {
            "video_features": video,
            "video_mask": torch.ones(video.shape[:2]),
            "text_features": self.tensors["text"],
            "text_mask": self.tensors["text_mask"],
        }
        if negatives:
            inputs["negative_text_features"] = self.tensors["negative_text"][:, None]
            inputs["negative_text_mask"] = self.tensors["negative_text_mask"][:, None]
        if shifted:
            inputs["shifted_frame_order"] = self.tensors["shifted_frame_order"]
        return inputs

    def labels(self, prefix: str = "") -> Tensor:
        """`(batch, 1, 2)` moments of a view, (centre, width)."""
        return torch.stack([self.tensors[f"{prefix}spans_cxw.{i}"] for i in range(self.sizes["B"])])


def draw_parameter(name: str, shape: list[int]) -> Tensor:
    """A parameter drawn from its released name: small, or near PReLU's and LayerNorm's starting values."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(math.prod(shape))
    values = values.reshape(shape).astype(np.float32)
    if name.endswith("activation.weight"):
        values = np.full(shape, 0.25, np.float32)
    elif len(shape) == 1 and name.endswith("weight"):
        values = 1 + np.float32(0.05) * values
    elif name != "query_embed.weight":
        values = np.float32(0.05) * values
    return torch.from_numpy(values)
