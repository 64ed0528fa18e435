"""The first norms of the projections, set by the training rows."""

import pytest
import torch
from factories import make_trainer, tiny_model

from modeling_bmdetr.layers_bmdetr import endpoint_features
from modeling_bmdetr.training.standardization import SMALLEST, standardize_inputs


def batch_of(video_scale: torch.Tensor) -> dict:
    """Features whose values lie around 5, each with a deviation of its own."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.ones(8, 12, dtype=torch.long)
    mask[::2, 9:] = 0
    return {
        "video_features": 5 + torch.randn(8, 12, 6, generator=draw) * video_scale,
        "video_mask": mask,
        "text_features": torch.randn(8, 4, 5, generator=draw),
        "text_mask": torch.ones(8, 4, dtype=torch.long),
    }


def test_what_the_norms_give_has_mean_0_and_deviation_1():
    model, batch = tiny_model().model, batch_of(torch.tensor([1.0, 0.5, 2.0, 3.0, 1.0, 1.0]))
    standardize_inputs(model, iter([batch]))
    mask = batch["video_mask"]
    video = torch.cat((batch["video_features"], endpoint_features(mask)), dim=-1)[mask.bool()]
    for projection, values in (
        (model.video_projection, video),
        (model.text_projection, batch["text_features"].flatten(0, 1)),
    ):
        given = projection.norms[0](values)
        torch.testing.assert_close(given.mean(dim=0), torch.zeros(given.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(given.std(dim=0, unbiased=False), torch.ones(given.shape[1]), atol=1e-3, rtol=0)


def test_values_that_hardly_vary_are_not_blown_up():
    model = tiny_model(endpoint_features=False).model
    batch = batch_of(torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]))
    batch["video_features"] = batch["video_features"].sign() * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    standardize_inputs(model, iter([batch]))
    assert model.video_projection.norms[0].weight.max() <= 1 / SMALLEST


@pytest.mark.parametrize("fields", [{}, {"standardize_inputs": False}])
def test_the_trainer_does_so_once_before_it_starts(tmp_path, fields):
    trainer = make_trainer(tmp_path, model=fields, max_steps=1, learning_rate=0.0)
    model = trainer.model
    trainer.train()
    first = model.model.text_projection.norms[0].weight.detach().clone()
    assert bool((first == 1).all()) == bool(fields)
    with torch.no_grad():
        model.model.text_projection.norms[0].weight.mul_(2.0)
    trainer.train()  # a model that was trained keeps its own
    torch.testing.assert_close(model.model.text_projection.norms[0].weight, 2 * first)
