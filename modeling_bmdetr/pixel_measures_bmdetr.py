"""What the weightless encoders measure on frames: colour planes, their moments, the directions of edges, and flow.

Pure tensor functions on square frames. Planes are `(..., size, size)`; every measure is a mean over the frame.
"""

import functools

import torch

HARMONICS = (2, 3, 4, 5)
SCALE = 20.0  # brings shares of a frame to the order of one


def signed_root(values: torch.Tensor) -> torch.Tensor:
    """Square root of the size with the sign kept: small values stay visible beside large ones."""
    return values.sign() * values.abs().sqrt()


def colour_planes(pixels: torch.Tensor) -> torch.Tensor:
    """Six hue planes, red, yellow, green, cyan, blue and magenta, and one of brightness without hue.

    A hue plane holds the saturation of a pixel, shared between the two hues it lies between: by how much one channel
    exceeds both others, or two exceed the third. The last one holds the square of its smallest channel.

    Args:
        pixels: `(n, 3, size, size)` RGB in [0, 1].

    Returns:
        `(n, 7, size, size)`.
    """
    red, green, blue = pixels.unbind(dim=1)
    one_channel = red - green.maximum(blue), green - red.maximum(blue), blue - red.maximum(green)
    two_channels = red.minimum(green) - blue, green.minimum(blue) - red, red.minimum(blue) - green
    hues = [hue for pair in zip(one_channel, two_channels, strict=True) for hue in pair]
    smallest = red.minimum(green).minimum(blue)
    return torch.cat((torch.stack(hues, dim=1).clamp(min=0), smallest[:, None] ** 2), dim=1)


def spatial_moments(planes: torch.Tensor) -> torch.Tensor:
    """Mass, its two first moments, its two spreads and its covariance, `(..., 6)`.

    Coordinates run from -1 to 1, x to the right and y downwards. First moments are not divided by the mass.
    """
    size = planes.shape[-1]
    x = (torch.arange(size) + 0.5) / size * 2 - 1
    one, bowl = torch.ones(size), x * x - 1 / 3
    basis = torch.stack(
        [torch.outer(b, a) for a, b in ((one, one), (x, one), (one, x), (bowl, one), (one, bowl), (x, x))]
    )
    return SCALE * planes.flatten(-2) @ basis.flatten(1).T / size**2


def edge_harmonics(planes: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Strength of the edges and of the angular harmonics of their directions, from the second on.

    A square has a strong fourth harmonic, a triangle a third, a circle none; turning a shape hardly changes them.

    Args:
        planes: `(clips, frames, planes, size, size)`.
        weights: `(clips, 1 or planes, size, size)`.

    Returns:
        two `(clips, frames, planes, 1 + len(HARMONICS))`: over the frame, and with each pixel times its weight.
    """
    planes = planes.transpose(1, 2)  # (clips, planes, frames, size, size): all frames of a plane have one weight
    across = planes[..., 1:-1, 2:] - planes[..., 1:-1, :-2]
    down = planes[..., 2:, 1:-1] - planes[..., :-2, 1:-1]
    weight = weights[..., 1:-1, 1:-1].flatten(-2).expand(*planes.shape[:2], -1)
    weighing = torch.stack((torch.ones_like(weight), weight), dim=-1) * (SCALE / weight.shape[-1])
    strength = (across.square() + down.square()).sqrt()
    # Complex numbers by their parts, as exported models know them: the direction, and its powers times the strength.
    unit = strength.clamp(min=1e-4)
    real, imaginary = (across / unit).flatten(-2), (down / unit).flatten(-2)
    strength = strength.flatten(-2)
    sums = [strength @ weighing]
    wave = strength * real, strength * imaginary
    for _ in HARMONICS:
        wave = wave[0] * real - wave[1] * imaginary, wave[0] * imaginary + wave[1] * real
        means = [part @ weighing for part in wave]
        sums.append((means[0].square() + means[1].square()).sqrt())
    whole, weighted = torch.stack(sums, dim=-1).transpose(1, 2).unbind(dim=-2)
    return whole, weighted


def neighbourhood(planes: torch.Tensor, reach: int = 4) -> torch.Tensor:
    """The largest value at most `reach` pixels away along either side, of `(..., size, size)`.

    The very values of `max_pool2d`, which takes several times as long.
    """
    down, across = planes.shape[-2:]
    padded = torch.nn.functional.pad(planes, (0, 0, reach, reach), value=-torch.inf)
    planes = functools.reduce(torch.maximum, [padded[..., y : y + down, :] for y in range(2 * reach + 1)])
    padded = torch.nn.functional.pad(planes, (reach, reach), value=-torch.inf)
    return functools.reduce(torch.maximum, [padded[..., x : x + across] for x in range(2 * reach + 1)])


def box_mean(planes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Means over a window around each pixel of `(..., size, size)`, where 0 lies beyond the frame. Sides are odd.

    The very values of `avg_pool2d`, which takes several times as long.
    """
    down, across = planes.shape[-2:]
    padded = torch.nn.functional.pad(planes, (width // 2, width // 2, height // 2, height // 2))
    total = torch.zeros_like(planes)
    for y in range(height):
        for x in range(width):
            total += padded[..., y : y + down, x : x + across]
    return total / (height * width)
