"""Draws the scenes of Moving Shapes and writes them as H.264 files."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from dataset_scripts.shapes_scenes import CANVAS_PX, COLOURS, Scene, trajectories
from modeling_bmdetr.files_bmdetr import replacing_path
from modeling_bmdetr.packages_bmdetr import needed_module

SUPERSAMPLING = 4
KEY_FRAME_EVERY_S = 4
SPECKS = 3
SPECK_RADIUS_PX = 2.5
SPECK_GREY = 120
SPECK_REACH_PX = math.ceil(SPECK_RADIUS_PX + 0.5)  # of its pixels from the one its centre lies in


def shape_outline(shape: str) -> np.ndarray:
    """Corner points `(points, 2)` of a shape around the origin, for radius 1; y points downwards."""
    if shape == "circle":
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        return np.stack([np.cos(angles), np.sin(angles)], 1)
    if shape == "square":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.89
    if shape == "triangle":
        angles = np.radians([-90, 30, 150])
        return np.stack([np.cos(angles), np.sin(angles)], 1) * 1.25
    if shape == "star":
        angles = np.radians(np.arange(10) * 36 - 90)
        reach = np.where(np.arange(10) % 2, 0.5, 1.25)
        return np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
    if shape == "cross":
        a, b = 1.15, 0.4
        quarter = [(-b, -a), (b, -a), (b, -b)]
        quarter_turn = np.array([[0, 1], [-1, 0]])
        return np.concatenate([quarter @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)])
    raise ValueError(f"shape must be circle, square, triangle, star or cross, received {shape!r}.")


def render_scene(path: str | os.PathLike, scene: Scene, seed: Sequence[int], fps: int) -> None:
    """Draws a scene and writes it as a video file; `seed` decides the background."""
    write_video(path, draw_frames(np.random.default_rng(seed), scene, fps), fps)


def draw_frames(rng: np.random.Generator, scene: Scene, fps: int) -> Iterator[Any]:
    """Yields the frames of a scene as RGB images of Pillow, `CANVAS_PX` square.

    `rng` draws the background: a dim texture under a light that drifts, and small grey specks that wander across it.
    """
    from PIL import Image

    times_s = np.arange(round(scene.duration_s * fps)) / fps
    states = trajectories(scene, times_s)
    rim = (SPECK_REACH_PX, SPECK_REACH_PX)  # room for specks at the edge
    texture = np.pad(_texture(rng), (rim, rim, (0, 0)))
    light = 1.0 + 0.06 * np.sin(2 * np.pi * (times_s / rng.uniform(8, 20) + rng.random()))
    corners, coverage = _specks(_speck_paths(rng, times_s))
    outlines = [shape_outline(obj.shape) for obj in scene.objects]
    colours = [COLOURS[obj.colour] for obj in scene.objects]
    moved = np.ones(states.shape[:2], dtype=bool)  # since the frame before
    moved[:, 1:] = (states[:, 1:, :4] != states[:, :-1, :4]).any(axis=-1)
    masks: dict[int, Any] = {}
    inside = slice(SPECK_REACH_PX, -SPECK_REACH_PX)
    for frame, brightness in enumerate(light.astype(np.float32)):
        picture = texture * brightness
        for (left, top), cover in zip(corners[:, frame], coverage[:, frame], strict=True):
            pixels = picture[top : top + len(cover), left : left + len(cover)]
            pixels += cover * (SPECK_GREY - pixels)
        image = Image.fromarray(picture[inside, inside].astype(np.uint8))
        for index, outline in enumerate(outlines):
            x_px, y_px, radius_px, angle, visible = states[index, frame]
            if visible:
                if moved[index, frame] or index not in masks:
                    masks[index] = _mask(outline, x_px, y_px, radius_px, angle)
                image.paste(colours[index], *masks[index])
        yield image


def _mask(outline: np.ndarray, x_px: float, y_px: float, radius_px: float, angle: float) -> tuple[tuple[int, int], Any]:
    """Where to paste a shape (left, top), and its antialiased coverage."""
    from PIL import Image, ImageDraw

    half = math.ceil(radius_px * 1.3) + 1
    left, top = math.floor(x_px) - half, math.floor(y_px) - half
    if angle:
        cosine, sine = math.cos(angle), math.sin(angle)
        outline = outline @ np.array([[cosine, -sine], [sine, cosine]])
    points = (outline * radius_px + (x_px - left, y_px - top)) * SUPERSAMPLING
    mask = Image.new("L", (SUPERSAMPLING * (2 * half + 1),) * 2)
    ImageDraw.Draw(mask).polygon(points.ravel().tolist(), fill=255)
    return (left, top), mask.reduce(SUPERSAMPLING)


def _texture(rng: np.random.Generator) -> np.ndarray:
    """A dim, slightly tinted, blotchy background `(CANVAS_PX, CANVAS_PX, 3)` float32 in 0..255."""
    from PIL import Image

    blotches = rng.uniform(25, 75, size=(8, 8, 1)) + rng.uniform(-10, 10, size=(8, 8, 3))
    coarse = Image.fromarray(blotches.clip(0, 255).astype(np.uint8)).resize(
        (CANVAS_PX, CANVAS_PX), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 3, size=(CANVAS_PX, CANVAS_PX, 1))
    return (np.asarray(coarse, np.float32) + grain).clip(5, 110).astype(np.float32)


def _speck_paths(rng: np.random.Generator, times_s: np.ndarray) -> np.ndarray:
    """Centres `(specks, times, 2)` of points that drift in straight lines and come back on the other side."""
    start = rng.uniform(0, CANVAS_PX, size=(SPECKS, 1, 2))
    speed = rng.uniform(-8, 8, size=(SPECKS, 1, 2))
    return (start + speed * times_s[None, :, None]) % CANVAS_PX


def _specks(centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Antialiased discs around `(specks, times, 2)` centres, x and y, in a picture with a rim of `SPECK_REACH_PX`.

    Returns:
        The left and top pixel of each, `(specks, times, 2)`, and the share of each pixel from there on that it covers,
        `(specks, times, side, side, 1)`.
    """
    corners = np.floor(centres).astype(int)  # the rim moves them by as much as they reach
    offsets = np.arange(-SPECK_REACH_PX, SPECK_REACH_PX + 1) + 0.5
    x, y = np.moveaxis((corners - centres)[..., None] + offsets, -2, 0)
    distance = np.hypot(x[..., None, :], y[..., :, None])
    return corners, np.clip(SPECK_RADIUS_PX + 0.5 - distance, 0, 1).astype(np.float32)[..., None]


def write_video(path: str | os.PathLike, frames: Iterable[Any], fps: int) -> None:
    """Writes Pillow images as an H.264 mp4; the file appears under its name only once it is complete."""
    av = needed_module("av", "rendering videos needs PyAV and Pillow: pip install av pillow")
    with replacing_path(path) as unfinished, av.open(str(unfinished), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "23"})
        stream.width = stream.height = CANVAS_PX
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = KEY_FRAME_EVERY_S * fps
        stream.codec_context.thread_count = 1  # the same bytes on every machine, and one process a core anyway
        for index, image in enumerate(frames):
            pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3)
            frame = av.VideoFrame.from_numpy_buffer(pixels)  # from_image copies row by row
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
