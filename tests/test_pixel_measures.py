"""The measures of the pixel grid against worked values and brute force."""

import colorsys
import math

import numpy as np
import pytest
import torch

from modeling_bmdetr.pixel_measures_bmdetr import (
    HARMONICS,
    SCALE,
    box_mean,
    colour_planes,
    edge_harmonics,
    neighbourhood,
    signed_root,
    spatial_moments,
)


def drawn(corners: int, turn: float = 0.0, size: int = 96, radius: float = 0.5) -> torch.Tensor:
    """A filled regular polygon, or a disc for 0 corners, as one soft plane `(size, size)`."""
    x, y = np.meshgrid(*[(np.arange(size) + 0.5) / size * 2 - 1] * 2)
    if corners:
        normals = turn + 2 * np.pi * np.arange(corners) / corners
        distance = np.max([x * np.cos(a) + y * np.sin(a) for a in normals], axis=0) - radius * math.cos(np.pi / corners)
    else:
        distance = np.hypot(x, y) - radius
    return torch.from_numpy(np.clip(0.5 - distance * size / 4, 0, 1)).float()


def harmonics_of(plane: torch.Tensor) -> torch.Tensor:
    """Strengths of the harmonics relative to that of the edges, `(len(HARMONICS),)`."""
    whole, weighted = edge_harmonics(plane[None, None, None], torch.ones(1, 1, *plane.shape))
    torch.testing.assert_close(whole, weighted)
    return (whole / whole[..., :1]).flatten()[1:]


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((1.0, 0.0, 0.0), {0: 1.0}),
        ((0.8, 0.8, 0.0), {1: 0.8}),
        ((0.0, 0.5, 0.0), {2: 0.5}),
        ((0.0, 1.0, 1.0), {3: 1.0}),
        ((0.2, 0.2, 1.0), {4: 0.8, 6: 0.04}),
        ((1.0, 0.0, 1.0), {5: 1.0}),
        ((1.0, 0.5, 0.0), {0: 0.5, 1: 0.5}),  # orange lies half way
        ((1.0, 0.0, 0.25), {0: 0.75, 5: 0.25}),  # the circle of hues closes
        ((0.5, 0.5, 0.5), {6: 0.25}),
        ((0.0, 0.0, 0.0), {}),
    ],
)
def test_colour_planes_of_plain_colours(colour: tuple, expected: dict) -> None:
    planes = colour_planes(torch.tensor(colour)[None, :, None, None].expand(1, 3, 4, 4))
    assert planes.shape == (1, 7, 4, 4)
    wanted = torch.tensor([expected.get(plane, 0.0) for plane in range(7)])
    torch.testing.assert_close(planes, wanted[None, :, None, None].expand(1, 7, 4, 4), atol=1e-5, rtol=0)


def test_colour_planes_share_the_saturation_between_the_two_nearest_hues() -> None:
    pixels = torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.zeros(500, 6, dtype=torch.float64)
    for i, (red, green, blue) in enumerate(pixels.tolist()):
        hue, chroma = 6 * colorsys.rgb_to_hsv(red, green, blue)[0], max(red, green, blue) - min(red, green, blue)
        expected[i, int(hue) % 6] += chroma * (1 - hue % 1)
        expected[i, int(hue + 1) % 6] += chroma * (hue % 1)
    planes = colour_planes(pixels[:, :, None, None])[:, :6, 0, 0]
    torch.testing.assert_close(planes, expected, atol=1e-9, rtol=0)


def test_spatial_moments_against_brute_force() -> None:
    planes = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    moments = spatial_moments(planes)
    assert moments.shape == (2, 3, 6)
    expected = torch.zeros(2, 3, 6)
    for row in range(5):
        for column in range(5):
            x, y = (column - 2) * 0.4, (row - 2) * 0.4
            basis = torch.tensor([1, x, y, x * x - 1 / 3, y * y - 1 / 3, x * y])
            expected += planes[:, :, row, column, None] * basis
    torch.testing.assert_close(moments, SCALE * expected / 25, atol=1e-5, rtol=1e-5)


def test_harmonics_name_the_corners() -> None:
    triangle, square, pentagon, disc = (harmonics_of(drawn(corners)) for corners in (3, 4, 5, 0))
    assert disc.max() < 0.1
    for corners, shape in ((3, triangle), (4, square), (5, pentagon)):
        assert HARMONICS[int(shape.argmax())] == corners
        assert shape.max() > 0.5


@pytest.mark.parametrize("corners", [3, 4, 5])
def test_turning_a_shape_hardly_changes_its_harmonics(corners: int) -> None:
    upright, turned = harmonics_of(drawn(corners)), harmonics_of(drawn(corners, turn=0.3))
    torch.testing.assert_close(turned, upright, atol=0.15, rtol=0)
    assert turned.argmax() == upright.argmax()


def test_weights_choose_where_edges_count() -> None:
    plane = torch.cat((drawn(4, size=32), drawn(0, size=32)), dim=1)
    plane = torch.cat((plane, torch.zeros(32, 64)))  # a square and a disc in a square frame
    left = torch.zeros(1, 1, 64, 64)
    left[..., :32] = 1
    _, beside_square = edge_harmonics(plane[None, None, None], left)
    _, beside_disc = edge_harmonics(plane[None, None, None], 1 - left)
    fourth = 1 + HARMONICS.index(4)
    assert beside_square[..., fourth].item() > 4 * beside_disc[..., fourth].item()
    _, nowhere = edge_harmonics(plane[None, None, None], torch.zeros(1, 1, 64, 64))
    assert nowhere.abs().max() == 0


def test_signed_root() -> None:
    torch.testing.assert_close(signed_root(torch.tensor([-4.0, 0.0, 9.0])), torch.tensor([-2.0, 0.0, 3.0]))


def test_neighbourhood_against_brute_force() -> None:
    planes = torch.rand(1, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    near = neighbourhood(planes)
    for row in range(12):
        for column in range(12):
            around = planes[..., max(0, row - 4) : row + 5, max(0, column - 4) : column + 5]
            assert torch.equal(near[..., row, column], around.amax(dim=(-2, -1)))


@pytest.mark.parametrize(("height", "width"), [(3, 3), (11, 1), (1, 11), (1, 1)])
def test_means_over_windows_are_the_very_values_of_pooling(height, width):
    planes = torch.rand(2, 3, 20, 17, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.avg_pool2d(planes, (height, width), 1, (height // 2, width // 2))
    assert torch.equal(box_mean(planes, height, width), expected)


@pytest.mark.parametrize("reach", [2, 4])
def test_the_largest_value_nearby_is_that_of_pooling_over_a_square(reach):
    planes = torch.rand(2, 3, 20, 17, generator=torch.Generator().manual_seed(0))
    assert torch.equal(neighbourhood(planes, reach), torch.nn.functional.max_pool2d(planes, 2 * reach + 1, 1, reach))
