"""Models and inputs that several processes make alike, to compare what comes out."""

import numpy as np
import torch

SENTENCES = ["the disc slides left", "nothing happens"]
VIDEO_FPS = 4.0
LABELS = torch.tensor([[[0.5, 0.4], [0.2, 0.1]]] * 2)


def frames() -> np.ndarray:
    """A decoded video of ten clips of 1 s, `(40, 16, 16, 3)`."""
    return np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)


def inputs(model) -> dict[str, torch.Tensor]:
    """Two rows of features, the second one shorter."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    return {
        "video_features": torch.randn(2, 6, config.video_dim, generator=generator),
        "video_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
        "text_features": torch.randn(2, 3, config.text_dim, generator=generator),
        "text_mask": torch.ones(2, 3),
    }


@torch.no_grad()
def numbers(model) -> list:
    """Logits, spans and saliency of `inputs`, as lists."""
    outputs = model.eval()(**inputs(model))
    return [outputs[name].double().tolist() for name in ("logits", "pred_spans", "saliency_scores")]
