"""The weightless encoders, `pixel-grid`, `moving-things` and `hashed-words`: no download and no accelerator.

For tests, teaching and synthetic videos: they see colours and motion, and know words only as words.
"""

import hashlib
import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from .encoder_interface_bmdetr import TextEncoder, VideoEncoder, require_at_least_one, split_words
from .moving_things_bmdetr import THING_DIM, moving_things
from .pixel_measures_bmdetr import (
    HARMONICS,
    colour_planes,
    edge_harmonics,
    neighbourhood,
    signed_root,
    spatial_moments,
)

PLANES = 7  # what colour_planes returns
MOST_THINGS = 16  # more hardly ever move at once
STILL = 1e-10  # added to what moves: a row without a direction has no cosine with another
LARGEST_GRID = 512  # pixels per side; more show nothing more and fill the memory


class PixelVideoEncoder(VideoEncoder):
    """Measures of clips whose frames are averaged to `grid x grid` pixels and split into colour planes."""

    interpolation = "area"
    clips_per_batch = 4  # what more of them need is mapped anew for each batch, which takes half as long again

    def __init__(self, grid: int, frames_per_clip: int) -> None:
        if not 8 <= grid <= LARGEST_GRID:
            raise ValueError(f"grid must be from 8 to {LARGEST_GRID}, received {grid}.")
        require_at_least_one(frames_per_clip=frames_per_clip)
        if frames_per_clip < 3:
            raise ValueError(
                f"frames_per_clip must be at least 3 to show how changes change, received {frames_per_clip}."
            )
        self.grid, self.frames_per_clip = grid, frames_per_clip
        self.frame_size = (grid, grid)

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "dim": self.dim, "grid": self.grid, "frames_per_clip": self.frames_per_clip}

    def _encode_clips(self, frames: list[np.ndarray]) -> np.ndarray:
        return self.measure(torch.from_numpy(np.stack(frames))).numpy()

    def measure(self, frames: torch.Tensor) -> torch.Tensor:
        """Rows `(clips, dim)` of `(clips x frames_per_clip, height, width, 3)` frames."""
        pixels = frames.permute(0, 3, 1, 2).float() / 255.0
        if pixels.shape[-2:] != self.frame_size:
            pixels = torch.nn.functional.interpolate(pixels, size=self.frame_size, mode="area")
        return self._rows(pixels)

    def _rows(self, pixels: torch.Tensor) -> torch.Tensor:
        """Rows of frames `(clips x frames, 3, grid, grid)`."""
        raise NotImplementedError

    def _planes(self, pixels: torch.Tensor) -> torch.Tensor:
        """The colour planes of frames, by clip: `(clips, frames, 7, grid, grid)`."""
        return colour_planes(pixels).unflatten(0, (-1, self.frames_per_clip))


class PixelGridVideoEncoder(PixelVideoEncoder):
    """What can be seen in a clip, and what changes in it, measured on a grid of pixels, without any weights.

    Frames are averaged to `grid x grid` pixels and split into seven colour planes: six hues, weighted by saturation,
    and brightness without hue. A row holds, for the clip,

    - a raster of `raster x raster` mean colours: what the scene looks like;
    - the spatial moments of each plane up to second order (how much of the colour there is, where, how spread):
      their mean, their change from the first to the last frame, and the mean sizes of their steps and of the changes
      of their steps, which tell sliding, growing, bouncing and blinking apart wherever they happen;
    - the mean change of the pixels of each plane;
    - the strength of edges of each plane and of their 2nd to 5th angular harmonics, over the whole frame, around
      pixels that change, and how they vary: the corners of a shape, and whether it turns.

    Signed square roots keep small changes visible beside large areas.

    Args:
        grid: pixels per side.
        frames_per_clip: frames per clip, at least 3.
        raster: cells per side of the raster of mean colours.
    """

    name = "pixel-grid"

    def __init__(self, grid: int = 48, frames_per_clip: int = 4, raster: int = 8) -> None:
        super().__init__(grid, frames_per_clip)
        if not 1 <= raster <= grid:
            raise ValueError(f"raster must be from 1 to grid ({grid}), received {raster}.")
        self.raster = raster
        moments, edges = 6, 1 + len(HARMONICS)
        self.dim = 3 * raster * raster + PLANES * (4 * moments + 1 + 3 * edges)

    def spec(self) -> dict[str, Any]:
        return super().spec() | {"raster": self.raster}

    def _rows(self, pixels: torch.Tensor) -> torch.Tensor:
        planes = self._planes(pixels)
        change = planes.diff(dim=1).abs()
        moments = spatial_moments(planes)  # (clips, frames, 7, 6)
        steps = moments.diff(dim=1)
        near_change = neighbourhood(change.amax(dim=(1, 2)).unsqueeze(1))  # (clips, 1, grid, grid)
        edges, moving_edges = edge_harmonics(planes, near_change)  # (clips, frames, 7, 5)
        raster = torch.nn.functional.adaptive_avg_pool2d(pixels, self.raster)
        raster = raster.flatten(1).unflatten(0, (-1, self.frames_per_clip)).mean(dim=1)
        parts = (
            0.5 * signed_root(moments.mean(dim=1)),
            2.0 * signed_root(moments[:, -1] - moments[:, 0]),
            2.0 * signed_root(steps.abs().mean(dim=1)),
            2.0 * signed_root(steps.diff(dim=1).abs().mean(dim=1)),
            2.0 * signed_root(change.mean(dim=(1, 3, 4))),
            0.5 * signed_root(edges.mean(dim=1)),
            signed_root(edges.diff(dim=1).abs().mean(dim=1)),
            signed_root(moving_edges.mean(dim=1)),
        )
        return torch.cat((0.2 * raster, *(part.flatten(1) for part in parts)), dim=1)


class MovingThingsVideoEncoder(PixelVideoEncoder):
    """The things that move most in a clip, each described by itself: its colour, its form and how it moves.

    A square that moves is no circle that moves, whatever else stands still or moves beside it
    (`moving_things_bmdetr.py`). What stands still is not described at all, nor is what has no colour: beside measures
    of the whole frame, such as those of `pixel-grid`, a model learns each training video by heart (docs/ablations.md).

    Args:
        grid, frames_per_clip: as `pixel-grid` has them.
        things: how many are described, those that change most first.
    """

    name = "moving-things"
    clips_per_batch = 16  # many small steps, which more clips at once share

    def __init__(self, grid: int = 48, frames_per_clip: int = 4, things: int = 2) -> None:
        super().__init__(grid, frames_per_clip)
        if not 1 <= things <= MOST_THINGS:
            raise ValueError(f"things must be from 1 to {MOST_THINGS}, received {things}.")
        self.things = things
        self.dim = things * THING_DIM

    def spec(self) -> dict[str, Any]:
        return super().spec() | {"things": self.things}

    def _rows(self, pixels: torch.Tensor) -> torch.Tensor:
        return moving_things(self._planes(pixels), self.things).flatten(1) + STILL


class HashedWordTextEncoder(TextEncoder):
    """One row per word, drawn from a hash of the word, without any weights.

    The first half of a row is a unit vector drawn from the word, the second the mean of unit vectors drawn from its
    letter trigrams, so that `slides` and `sliding` are near each other while every word keeps a direction of its own.
    Case and punctuation are ignored; of a very long word the first letters are spelled. The rows are the same on
    every machine and in every process.

    Args:
        dim: values per row, even.
    """

    name = "hashed-words"

    def __init__(self, dim: int = 256) -> None:
        if dim < 2 or dim % 2:
            raise ValueError(f"dim must be a positive even number, received {dim}.")
        self.dim = dim

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "dim": self.dim}

    def _encode_sentences(self, sentences: list[str], max_tokens: int) -> list[np.ndarray]:
        return [
            np.stack([_word_row(word, self.dim) for word in words[:max_tokens]]) for words in split_words(sentences)
        ]


LONGEST_SPELLING = 64  # letters of a word; longer ones are no words, and must not take long


@lru_cache(maxsize=65536)
def _word_row(word: str, dim: int) -> np.ndarray:
    padded = f"^{word[:LONGEST_SPELLING]}$"
    trigrams = [padded[i : i + 3] for i in range(max(1, len(padded) - 2))]
    spelling = np.mean([_hashed_unit_vector("trigram " + trigram, dim // 2) for trigram in trigrams], axis=0)
    return np.concatenate([_hashed_unit_vector("word " + word, dim // 2), spelling]).astype(np.float32)


def _hashed_unit_vector(key: str, dim: int) -> np.ndarray:
    """A direction that depends on `key` alone: signs taken from the bits of its hash, the same on every machine."""
    bits = hashlib.shake_128(key.encode("utf-8")).digest(math.ceil(dim / 8))
    signs = np.unpackbits(np.frombuffer(bits, np.uint8))[:dim].astype(np.float64) * 2.0 - 1.0
    return signs / math.sqrt(dim)
