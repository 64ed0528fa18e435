"""The things that move most in a clip, each described by itself: its colour, its form and how it moves.

What is measured over a whole plane of colour says that something red moves and that something is round, but not that
the same thing is both. Here each thing is found by the changes around it, followed from frame to frame, and described
in one place of the row. Pure tensor functions on square frames; lengths are shares of a frame's side.
"""

import torch
from torch import Tensor

from .pixel_measures_bmdetr import box_mean, neighbourhood, signed_root

HARMONICS = range(2, 9)  # of the form's outline
NOISE = 0.06  # changes of a plane below this are compression and light
REACH = 0.1485  # half of the side of the window in which a thing is looked for
RADIUS = 0.17  # around its middle, of what is described
SAME_COLOUR, SAME_PLACE = 0.36, 0.1  # how far around a thing no other is looked for: in its colour, in any
THING_DIM = 6 + (len(HARMONICS) + 4) + 9 + 3  # colour, form, motion, place and size


def moving_things(planes: Tensor, number: int = 2) -> Tensor:
    """The `number` things around which most changes, from the most on.

    Args:
        planes: `(clips, frames >= 3, 7, size, size)` of `colour_planes`; brightness, the last one, is not looked at.

    Returns:
        `(clips, number, THING_DIM)`; 0 where next to nothing else moves.
    """
    hues = planes[:, :, :6]
    size = hues.shape[-1]
    place = (torch.arange(size) + 0.5) / size
    steps = torch.cat((hues.diff(dim=1), hues[:, -1:] - hues[:, :1]), dim=1)  # slow changes show from end to end
    change = (steps.abs() - NOISE).clamp(min=0).mean(dim=1)  # (clips, 6, size, size)
    things = []
    for _ in range(number):
        strongest = change.amax(dim=1)
        amount, middle = _most_changing_place(strongest, place)
        changed = strongest * _square(middle, REACH, place)
        colour = _colour(hues, changed)
        mass, centres = _follow(hues, colour, changed, middle, place)
        seen = (mass.sum(dim=(-2, -1)) > 0.3 * mass.sum(dim=(-2, -1)).amax(dim=1, keepdim=True) - 1e-6).float()
        form, spread = _form(mass, centres, place)
        parts = (
            2 * colour,
            _mean_of_seen(form, seen),
            _motion(mass, centres, spread, seen, amount),
            0.5 * (_mean_of_seen(centres, seen) - 0.5),
            3 * _mean_of_seen(spread[..., None], seen),
        )
        things.append(torch.cat(parts, dim=1) * (400 * amount / (400 * amount + 1))[:, None])
        same = (colour > 0.2).float()[..., None, None] * _square(middle, SAME_COLOUR, place)[:, None]
        change = change * (1 - same) * (1 - _square(middle, SAME_PLACE, place))[:, None]
    return torch.stack(things, dim=1)


def _most_changing_place(change: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Of `(clips, size, size)`, the largest mean over a window, `(clips,)`, and its middle (x, y), `(clips, 2)`."""
    size = len(place)
    width = int(REACH / 0.675 * size) | 1
    near = box_mean(box_mean(change, width, 1), 1, width)
    amount, index = near.flatten(1).max(dim=1)
    return amount, torch.stack((place[index % size], place[index // size]), dim=-1)


def _square(middle: Tensor, reach: Tensor | float, place: Tensor) -> Tensor:
    """1 inside the square around `middle (clips, 2)`, 0 outside: `(clips, size, size)`."""
    across, down = ((place - middle[:, axis, None]).abs() < reach for axis in (0, 1))
    return (across[:, None, :] & down[:, :, None]).float()


def _colour(hues: Tensor, changed: Tensor) -> Tensor:
    """The mix of hues, of length one, where things change: `(clips, 6)`."""
    near = neighbourhood(changed[:, None], 2)
    colour = (hues * near[:, None]).sum(dim=(1, 3, 4))
    return colour / (colour.norm(dim=1, keepdim=True) + 1e-4)


def _follow(hues: Tensor, colour: Tensor, changed: Tensor, middle: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels of a colour around a thing that is followed by two mean shifts, and its middle in each frame.

    Returns:
        `(clips, frames, size, size)` weights of pixels and `(clips, frames, 2)`.
    """
    likeness = torch.einsum("cfpyx,cp->cfyx", hues, colour)
    likeness = (likeness - 0.25 * likeness.amax(dim=(1, 2, 3), keepdim=True)).clamp(min=0)
    near = neighbourhood((changed > 0).float()[:, None])[:, 0] * _square(middle, REACH, place)
    mass = likeness * near[:, None]
    centres = middle[:, None].expand(-1, hues.shape[1], -1)
    for _ in range(2):
        total = mass.sum(dim=(-2, -1))
        means = torch.stack((mass.sum(dim=-2) @ place, mass.sum(dim=-1) @ place), dim=-1) / (total[..., None] + 1e-3)
        is_seen = total > 0.15 * total.amax(dim=1, keepdim=True) + 1e-6
        centres = torch.where(is_seen[..., None], means, centres)
        distance = _offsets(centres, place)[2]
        mass = likeness * torch.exp(-distance / (2 * RADIUS**2)) * (distance < RADIUS**2)
    return mass, centres


def _offsets(centres: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x `(..., 1, size)`, y `(..., size, 1)` and the square of the distance `(..., size, size)` from the middles."""
    x, y = (place - centres[..., 0, None])[..., None, :], (place - centres[..., 1, None])[..., :, None]
    return x, y, x * x + y * y


def _form(mass: Tensor, centres: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """A form, whatever its size, place and turn, `(clips, frames, len(HARMONICS) + 4)`, and its spread.

    The sizes of its angular moments, which tell corners apart, its radial moments, and how densely it is filled.
    """
    total = mass.sum(dim=(-2, -1)) + 1e-3
    share = mass / total[..., None, None]
    x, y, square = _offsets(centres, place)
    spread = (share * square).sum(dim=(-2, -1)).clamp(min=1e-4).sqrt()
    distance = square.sqrt()
    radius = (distance / spread[..., None, None]).clamp(max=3)
    real, imaginary = x / (distance + 1e-4), y / (distance + 1e-4)
    wave = share * radius**2, torch.zeros_like(share)
    angular = []
    for harmonic in range(1, HARMONICS[-1] + 1):
        wave = wave[0] * real - wave[1] * imaginary, wave[0] * imaginary + wave[1] * real
        if harmonic in HARMONICS:
            across, down = (part.sum(dim=(-2, -1)).square() for part in wave)
            angular.append(across + down)
    first, third, fourth = ((share * radius**power).sum(dim=(-2, -1)) for power in (1, 3, 4))
    filling = total / len(place) ** 2 / (mass.amax(dim=(-2, -1)) * spread.square() + 1e-5)
    centred = 5 * (first - 0.93), third - 1.15, fourth - 1.35, 0.3 * (filling - 4.5)  # of a disc, about 0
    return torch.stack([*(4 * (value + 1e-8).sqrt() for value in angular), *centred], dim=-1), spread


def _motion(mass: Tensor, centres: Tensor, spread: Tensor, seen: Tensor, amount: Tensor) -> Tensor:
    """Sliding, growing, vanishing and bouncing: `(clips, 9)`."""
    both = seen[:, 1:] * seen[:, :-1]
    steps = centres.diff(dim=1) * both[..., None]  # (clips, frames - 1, 2)
    growth = spread.diff(dim=1) * both
    total = mass.sum(dim=(-2, -1)) / len(mass[0, 0]) ** 2
    least = (total / (total.amax(dim=1, keepdim=True) + 1e-6)).amin(dim=1)
    jolts = steps[..., 1].diff(dim=1).abs().mean(dim=1)
    columns = (
        signed_root(10 * steps.mean(dim=1)),
        (10 * steps.abs().mean(dim=1)).sqrt(),
        signed_root(40 * growth.mean(dim=1))[:, None],
        (40 * growth.abs().mean(dim=1)).sqrt()[:, None],
        (1 - least)[:, None],
        (10 * jolts).sqrt()[:, None],
        (30 * amount).sqrt()[:, None],
    )
    return torch.cat(columns, dim=1)


def _mean_of_seen(values: Tensor, seen: Tensor) -> Tensor:
    """Mean of `(clips, frames, n)` over the frames in which the thing is seen."""
    return (values * seen[..., None]).sum(dim=1) / seen.sum(dim=1, keepdim=True).clamp(min=1)
