"""Input values on one scale: before training, the first norm of each projection is set by what the rows hold.

Encoders give values of very different sizes, much of which all clips and all words share; what tells them apart is
small, and is learned late. The scale and the shift of a LayerNorm can undo both, without another parameter.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..base_model_bmdetr import BMDetrModel
from ..layers_bmdetr import BMDetrProjection, split_things

NUM_ROWS = 512
AT_ONCE = 32
SMALLEST = 0.05  # deviations below are of values that hardly vary, and are not blown up to one


def sample_batches(dataset: Dataset, collate: Callable[[list], Any], seed: int) -> Iterator[Mapping[str, Tensor]]:
    """Batches of rows drawn from a seed, or of all where there are few."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(dataset), generator=generator)[:NUM_ROWS].tolist()  # type: ignore[arg-type]
    for start in range(0, len(chosen), AT_ONCE):
        yield collate([dataset[index] for index in chosen[start : start + AT_ONCE]])


@torch.no_grad()
def standardize_inputs(model: BMDetrModel, batches: Iterable[Mapping[str, Tensor]]) -> None:
    """Sets the first norms of the two projections so that what they give has mean 0 and deviation 1 over the batches.

    Args:
        model: Whose projections are set.
        batches: With `video_features`, `video_mask`, `text_features` and `text_mask`.
    """
    projections = {"video": model.video_projection, "text": model.text_projection}
    sums = {name: torch.zeros(3, 1, dtype=torch.float64) for name in projections}
    for batch in batches:
        for name in projections:
            features, mask = batch[f"{name}_features"].float(), batch[f"{name}_mask"]
            if name == "video":
                features = split_things(features, mask, model.config.things_per_clip, model.config.endpoint_features)
            rows = features[mask.bool()].flatten(0, -2)  # of things of one clip as of things of different clips
            values = F.layer_norm(rows, rows.shape[-1:]).double()
            sums[name] = sums[name] + torch.stack((torch.ones_like(values), values, values.square())).sum(dim=1)
    for name, projection in projections.items():
        number, total, squares = sums[name]
        mean = total / number
        deviation = (squares / number - mean.square()).clamp(min=0).sqrt().clamp(min=SMALLEST)
        norm = first_norm(projection)
        norm.weight.copy_(1 / deviation)
        norm.bias.copy_(-mean / deviation)


def first_norm(projection: BMDetrProjection) -> nn.LayerNorm:
    norm = projection.norms[0]
    assert isinstance(norm, nn.LayerNorm)
    return norm


def is_trained(model: BMDetrModel) -> bool:
    """Whether the first norm of the words is other than it was initialised."""
    norm = first_norm(model.text_projection)
    return bool(norm.weight.ne(1).any() or norm.bias.ne(0).any())
