"""The things that move most in a clip, each described by itself: its colour, its form and how it moves.

What is measured over a whole plane of colour says that something red moves and that something is round, but not that
the same thing is both. Here each thing is found by the changes around it, followed from frame to frame, and described
in one place of the row. Pure tensor functions on square frames; lengths are shares of a frame's side.
"""

import torch
from torch import Tensor

from .pixel_measures_bmdetr import box_mean, neighbourhood, signed_root

HARMONICS = range(2, 9)  # of the form's outline
NOISE = 0.05  # changes of a plane below this are compression and light
LITTLE = 5e-4  # a mean change below this fades out
REACH = 0.1485  # half of the side of the window in which a thing is looked for
RADIUS = 0.17  # around its middle, of what is described
ALIKE = 0.8  # cosine of two mixes of hues below which they are different colours
SOLID = 0.55  # of the strongest likeness: inside a thing, not at its blurred rim
GROWTH = 5  # pixels by which a thing may reach past what changes of it
RIM = 2  # pixels around a thing in which no other is looked for
THING_DIM = 6 + (len(HARMONICS) + 4) + 9 + 3  # colour, form, motion, place and size


def moving_things(planes: Tensor, number: int = 2) -> Tensor:
    """The `number` things around which most changes, from the most on.

    Args:
        planes: `(clips, frames >= 3, 7, size, size)` of `colour_planes`; brightness, the last one, is not looked at.

    Returns:
        `(clips, number, THING_DIM)`; 0 where next to nothing else moves.
    """
    hues = planes[:, :, :6]
    strength = hues.square().sum(dim=2).sqrt()
    size = hues.shape[-1]
    place = (torch.arange(size) + 0.5) / size
    steps = torch.cat((hues.diff(dim=1), hues[:, -1:] - hues[:, :1]), dim=1)  # slow changes show from end to end
    change = (steps.abs() - NOISE).clamp(min=0).mean(dim=1)  # (clips, 6, size, size)
    things = []
    for _ in range(number):
        amount, plane, middle = _most_changing_place(change, place)
        window = _square(middle, REACH, place)
        changed = neighbourhood((_of_plane(change, plane) * window > 0).to(hues.dtype), 1)[:, None]
        colour = _colour(hues, strength, plane, changed)
        mass, centres, offsets, covered = _follow(hues, strength, colour, changed * window[:, None], middle, place)
        total = mass.sum(dim=(-2, -1))
        seen = (total > 0.3 * total.amax(dim=1, keepdim=True) - 1e-6).float()
        form, spread = _form(mass, offsets, size**2)
        parts = (
            2 * colour,
            _mean_of_seen(form, seen),
            _motion(total / size**2, centres, spread, seen, amount),
            0.5 * (_mean_of_seen(centres, seen) - 0.5),
            3 * _mean_of_seen(spread[..., None], seen),
        )
        things.append(torch.cat(parts, dim=1) * (amount / LITTLE).clamp(max=1)[:, None])
        change = change * (1 - neighbourhood(covered, RIM))  # also what it hides and sets free of other colours
    return torch.stack(things, dim=1)


def _most_changing_place(change: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of `(clips, 6, size, size)`, the largest mean over a window, `(clips,)`, its plane and its middle `(clips, 2)`.

    Planes are looked at one by one: what a thing passes over or by has changes of its own colour, and smaller ones.
    """
    size = len(place)
    width = int(REACH / 0.675 * size) | 1
    near = box_mean(box_mean(change, width, 1), 1, width)
    amount, index = near.flatten(1).max(dim=1)
    plane, index = index // size**2, index % size**2
    return amount, plane, torch.stack((place[index % size], place[index // size]), dim=-1)


def _of_plane(planes: Tensor, plane: Tensor) -> Tensor:
    """One plane of each clip, `(clips, ..., 6, size, size)` and `(clips,)` to `(clips, ..., size, size)`."""
    index = plane.view(-1, *[1] * (planes.dim() - 1)).expand(*planes.shape[:-3], 1, *planes.shape[-2:])
    return planes.gather(-3, index).squeeze(-3)


def _square(middle: Tensor, reach: Tensor | float, place: Tensor) -> Tensor:
    """1 inside the square around `middle (clips, 2)`, 0 outside: `(clips, size, size)`."""
    across, down = ((place - middle[:, axis, None]).abs() < reach for axis in (0, 1))
    return (across[:, None, :] & down[:, :, None]).float()


def _colour(hues: Tensor, strength: Tensor, plane: Tensor, changed: Tensor) -> Tensor:
    """The mix of hues, of length one, of the pixels mostly of that plane where it changes: `(clips, 6)`."""
    mine = _of_plane(hues, plane)
    weight = mine * (mine > 0.5 * strength) * changed
    colour = (hues * weight[:, :, None]).sum(dim=(1, 3, 4))
    return colour / (colour.square().sum(dim=1, keepdim=True).sqrt() + 1e-4)


def _follow(
    hues: Tensor, strength: Tensor, colour: Tensor, changed: Tensor, middle: Tensor, place: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
    """The pixels of a thing in each frame: those of its colour that hang together with what changes of it.

    Another thing of that colour that touches it is kept out by the distance from its middle, found by mean shifts.

    Args:
        changed: `(clips, 1, size, size)`, 1 where the thing changes.

    Returns:
        Of the pixels near its middle, `(clips, frames, side, side)` weights, the middles `(clips, frames, 2)`, the
        offsets from them (see `_near`); and `(clips, 1, size, size)`, 1 where the thing is in any frame.
    """
    product = (colour[:, None, None] @ hues.flatten(-2)).view_as(strength)
    likeness = product * ((product / (strength + 1e-3) - ALIKE) / (1 - ALIKE)).clamp(0, 1)
    peak = likeness.amax(dim=(1, 2, 3), keepdim=True)
    solid = (likeness > SOLID * peak + 1e-6).to(hues.dtype)
    thing = solid * changed
    for _ in range(GROWTH):
        thing = solid * neighbourhood(thing, 1)
    whole = (likeness - 0.25 * peak).clamp(min=0) * neighbourhood(thing, 1)
    centres = middle[:, None].expand(-1, hues.shape[1], -1)
    near, (x, y) = _near(whole, centres, place)
    mass = near * (x.abs() < REACH) * (y.abs() < REACH)
    for _ in range(3):
        total = mass.sum(dim=(-2, -1))[..., None]
        shifts = torch.stack(((mass * x).sum(dim=(-2, -1)), (mass * y).sum(dim=(-2, -1))), dim=-1)
        is_seen = total > 0.15 * total.amax(dim=1, keepdim=True) + 1e-6
        centres = torch.where(is_seen, (centres * total + shifts) / (total + 1e-3), centres)
        near, (x, y) = _near(whole, centres, place)
        distance = x * x + y * y
        mass = near * torch.exp(-distance / (2 * RADIUS**2)) * (distance < RADIUS**2)
    return mass, centres, (x, y), thing.amax(dim=1, keepdim=True)


def _near(planes: Tensor, centres: Tensor, place: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The pixels at most `RADIUS` from a middle along either side: most of a frame is never looked at.

    Args:
        planes: `(clips, frames, size, size)`.
        centres: `(clips, frames, 2)`, x and y.

    Returns:
        `(clips, frames, side, side)`, and how far each lies to the right of its middle, `(clips, frames, 1, side)`, and
        below it, `(clips, frames, side, 1)`.
    """
    size = len(place)
    side = min(size, int(2 * RADIUS * size) + 1)
    first = (centres * size - 0.5 - RADIUS * size).ceil().clamp(0, size - side).long()
    columns, rows = (first[..., None] + torch.arange(side)).unbind(dim=-2)
    index = (rows[..., :, None] * size + columns[..., None, :]).flatten(-2)
    near = planes.flatten(-2).gather(-1, index).unflatten(-1, (side, side))
    x, y = place[columns] - centres[..., 0, None], place[rows] - centres[..., 1, None]
    return near, (x[..., None, :], y[..., :, None])


def _form(mass: Tensor, offsets: tuple[Tensor, Tensor], pixels: int) -> tuple[Tensor, Tensor]:
    """A form, whatever its size, place and turn, `(clips, frames, len(HARMONICS) + 4)`, and its spread.

    The sizes of its angular moments, which tell corners apart, its radial moments, and how densely it is filled.

    Args:
        mass: Weights of the pixels near its middle, `(clips, frames, side, side)`.
        offsets: Of those pixels from the middle, see `_near`.
        pixels: Of a whole frame.
    """
    total = mass.sum(dim=(-2, -1)) + 1e-3
    share = mass / total[..., None, None]
    x, y = offsets
    square = x * x + y * y
    spread = (share * square).sum(dim=(-2, -1)).clamp(min=1e-4).sqrt()
    distance = square.sqrt()
    radius = (distance / spread[..., None, None]).clamp(max=3)
    real, imaginary = x / (distance + 1e-4), y / (distance + 1e-4)
    radius_2 = radius * radius
    second = share * radius_2
    wave = second, torch.zeros_like(share)
    angular = []
    for harmonic in range(1, HARMONICS[-1] + 1):
        wave = wave[0] * real - wave[1] * imaginary, wave[0] * imaginary + wave[1] * real
        if harmonic in HARMONICS:
            across, down = (part.sum(dim=(-2, -1)).square() for part in wave)
            angular.append(across + down)
    first, third, fourth = (part.sum(dim=(-2, -1)) for part in (share * radius, second * radius, second * radius_2))
    filling = total / pixels / (mass.amax(dim=(-2, -1)) * spread.square() + 1e-5)
    centred = 5 * (first - 0.93), third - 1.15, fourth - 1.35, 0.3 * (filling - 4.5)  # of a disc, about 0
    return torch.stack([*(4 * (value + 1e-8).sqrt() for value in angular), *centred], dim=-1), spread


def _motion(covered: Tensor, centres: Tensor, spread: Tensor, seen: Tensor, amount: Tensor) -> Tensor:
    """Sliding, growing, vanishing and bouncing: `(clips, 9)`; `covered` is the share of each frame that it covers."""
    both = seen[:, 1:] * seen[:, :-1]
    steps = centres.diff(dim=1) * both[..., None]  # (clips, frames - 1, 2)
    growth = spread.diff(dim=1) * both
    least = (covered / (covered.amax(dim=1, keepdim=True) + 1e-6)).amin(dim=1)
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
