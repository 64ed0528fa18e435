"""What moves in a clip: found, followed and described by itself, on drawn frames."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from modeling_bmdetr.moving_things_bmdetr import HARMONICS, RADIUS, THING_DIM, _near, moving_things
from modeling_bmdetr.pixel_measures_bmdetr import colour_planes

SIZE = 48
COLOUR, FORM, MOTION = slice(0, 6), slice(6, 6 + len(HARMONICS) + 4), slice(17, 26)
PLACE, SPREAD = slice(26, 28), 28
RIGHT, DOWN, GROWTH, VANISHED = 17, 18, 21, 23
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def thing(
    frame: np.ndarray, colour: tuple, x: float, y: float, radius: float = 0.12, corners: int = 0, turn: float = 0.0
) -> None:
    """Draws a disc (0 corners) or a regular polygon on a `(SIZE, SIZE, 3)` frame, with soft edges."""
    across, down = np.meshgrid(*[(np.arange(SIZE) + 0.5) / SIZE] * 2)
    across, down = across - x, down - y
    if corners:
        normals = turn + 2 * np.pi * np.arange(corners) / corners
        outside = np.max([across * np.cos(a) + down * np.sin(a) for a in normals], axis=0)
        outside = outside - radius * math.cos(math.pi / corners)
    else:
        outside = np.hypot(across, down) - radius
    cover = np.clip(0.5 - outside * SIZE, 0, 1)[..., None]
    frame[:] = frame * (1 - cover) + np.array(colour) * cover


def described(*frames: list[dict], number: int = 2) -> Tensor:
    """`(number, THING_DIM)` of a clip whose frames show these things."""
    pictures = np.zeros((len(frames), SIZE, SIZE, 3), np.float32)
    for picture, things in zip(pictures, frames, strict=True):
        for one in things:
            thing(picture, **one)
    planes = colour_planes(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    return moving_things(planes[None], number)[0]


def path(number: int = 4, **fields: tuple[float, float] | object) -> list[dict]:
    """A thing in `number` frames; a field given as a list of two runs from the one to the other."""
    return [
        {
            name: value[0] + (value[1] - value[0]) * step / (number - 1) if isinstance(value, list) else value
            for name, value in fields.items()
        }
        for step in range(number)
    ]


def test_two_things_keep_their_own_colours_and_motions():
    right = path(colour=RED, x=[0.2, 0.3], y=0.25, corners=4)
    down = path(colour=BLUE, x=0.75, y=[0.6, 0.68])
    things = described(*([a, b] for a, b in zip(right, down, strict=True)))
    assert things.shape == (2, THING_DIM)
    red, blue = sorted(things, key=lambda one: -float(one[COLOUR][0]))
    assert int(red[COLOUR].argmax()) == 0
    assert int(blue[COLOUR].argmax()) == 4
    assert red[RIGHT] > 0.3
    assert abs(red[DOWN]) < 0.1
    assert blue[DOWN] > 0.3
    assert abs(blue[RIGHT]) < 0.1
    torch.testing.assert_close(red[PLACE], torch.tensor([-0.125, -0.125]), atol=0.03, rtol=0)
    torch.testing.assert_close(blue[PLACE], torch.tensor([0.125, 0.07]), atol=0.03, rtol=0)


def test_one_that_stands_still_is_nothing():
    still = [{"colour": RED, "x": 0.3, "y": 0.3}, {"colour": BLUE, "x": 0.7, "y": 0.7}]
    assert torch.equal(described(still, still, still, still), torch.zeros(2, THING_DIM))
    moving = path(colour=RED, x=[0.2, 0.3], y=0.3)
    things = described(*([one, still[1]] for one in moving))
    assert int(things[0][COLOUR].argmax()) == 0
    assert torch.equal(things[1], torch.zeros(THING_DIM))


def test_a_still_thing_of_the_same_colour_does_not_change_the_form():
    square = path(colour=RED, x=[0.2, 0.26], y=0.25, corners=4)
    alone = described(*([one] for one in square))
    beside = described(*([one, {"colour": RED, "x": 0.75, "y": 0.75, "corners": 3}] for one in square))
    torch.testing.assert_close(alone[0][FORM], beside[0][FORM], atol=1e-3, rtol=0)


def test_what_it_passes_over_does_not_lend_its_colour_to_a_thing():
    below = {"colour": BLUE, "x": 0.5, "y": 0.5, "radius": 0.15}
    over = described(*([below, one] for one in path(colour=RED, x=[0.4, 0.5], y=0.45, radius=0.1)))
    alone = described(*([one] for one in path(colour=RED, x=[0.4, 0.5], y=0.45, radius=0.1)))
    torch.testing.assert_close(over[0][COLOUR], alone[0][COLOUR], atol=0.05, rtol=0)
    torch.testing.assert_close(over[0][PLACE], alone[0][PLACE], atol=0.01, rtol=0)
    assert torch.equal(over[1], torch.zeros(THING_DIM)), "what is hidden and set free is no second thing"


def test_two_things_of_a_colour_that_move_side_by_side_are_two():
    left = path(colour=RED, x=0.3, y=[0.4, 0.5], radius=0.1)
    right = path(colour=RED, x=0.6, y=[0.5, 0.4], radius=0.1, corners=4)
    things = described(*([a, b] for a, b in zip(left, right, strict=True)))
    places = sorted(float(one[PLACE][0]) for one in things)
    assert places == pytest.approx([-0.1, 0.05], abs=0.02)
    for one, motion in zip(sorted(things, key=lambda one: float(one[PLACE][0])), (1, -1), strict=True):
        assert motion * one[DOWN] > 0.3


@pytest.mark.parametrize("step", [0.03, 0.1])
def test_a_form_is_the_same_however_much_of_it_changes(step):
    form = described(*([one] for one in path(colour=BLUE, x=[0.4, 0.4 + step], y=0.5, corners=4)))[0][FORM]
    slow = described(*([one] for one in path(colour=BLUE, x=[0.4, 0.41], y=0.5, corners=4)))[0][FORM]
    torch.testing.assert_close(form, slow, atol=0.15, rtol=0)


@pytest.mark.parametrize(("corners", "harmonic"), [(3, 3), (4, 4)])
def test_form_names_the_corners_whatever_the_place_the_size_and_the_turn(corners, harmonic):
    for fields in ({"y": 0.3}, {"y": 0.6}, {"y": 0.5, "radius": 0.15}, {"y": 0.5, "turn": 0.4}):
        form = described(*([one] for one in path(colour=BLUE, x=[0.4, 0.46], corners=corners, **fields)))[0][FORM]
        angular = form[1 : len(HARMONICS)]  # the second tells how long a thing is
        assert HARMONICS[1 + int(angular.argmax())] == harmonic, fields


def test_growing_and_vanishing():
    grows = described(*([one] for one in path(colour=RED, x=0.5, y=0.5, radius=[0.1, 0.14])))[0]
    shrinks = described(*([one] for one in path(colour=RED, x=0.5, y=0.5, radius=[0.14, 0.1])))[0]
    assert grows[GROWTH] > 0.3
    assert shrinks[GROWTH] < -0.3
    there = [{"colour": RED, "x": 0.5, "y": 0.5}]
    blinks = described(there, [], there, [])[0]
    assert blinks[VANISHED] > 0.9 > grows[VANISHED]
    assert blinks[MOTION].isfinite().all()


def test_clips_do_not_see_each_other():
    planes = torch.rand(3, 4, 7, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    together = moving_things(planes)
    for index in range(3):
        torch.testing.assert_close(moving_things(planes[index : index + 1])[0], together[index])


@pytest.mark.parametrize("size", [8, 47, 48])
def test_every_pixel_within_reach_of_a_middle_is_looked_at(size):
    generator = torch.Generator().manual_seed(size)
    planes = torch.rand(3, 20, size, size, generator=generator)
    centres = torch.rand(3, 20, 2, generator=generator)
    centres[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [0.0, 1.0]])
    place = (torch.arange(size) + 0.5) / size
    near, (x, y) = _near(planes, centres, place)
    right, below = (place - centres[..., axis, None] for axis in (0, 1))
    distance = right[..., None, :].square() + below[..., :, None].square()
    expected = (planes * (distance < RADIUS**2)).sum(dim=(-2, -1))
    torch.testing.assert_close((near * (x * x + y * y < RADIUS**2)).sum(dim=(-2, -1)), expected)
