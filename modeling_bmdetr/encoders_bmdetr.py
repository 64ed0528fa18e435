"""Frozen encoders: a video to one row a clip, a sentence to one row a token.

Two families. The weightless pair (`pixel-grid`, `hashed-words`) needs no download and no accelerator; it is meant for
tests, teaching and synthetic videos. `clip:NAME_OR_PATH` runs any CLIP-like model of transformers (CLIP, SigLIP, ...).

Encoders return raw rows: normalisation and the largest number of clips belong to the feature contract. Each encoder
describes itself with `spec()`, a dict of plain JSON types with its name, its width and every option that changes its
rows. `build_video_encoder` and `build_text_encoder` take such a dict, or a name.
"""

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from .encoder_interface_bmdetr import EncodedVideo, TextEncoder, Video, VideoEncoder, encode_video, require_at_least_one
from .pixel_measures_bmdetr import HARMONICS, colour_planes, edge_harmonics, signed_root, spatial_moments

__all__ = [
    "Video",
    "EncodedVideo",
    "encode_video",
    "VideoEncoder",
    "TextEncoder",
    "PixelGridVideoEncoder",
    "HashedWordTextEncoder",
    "ClipVideoEncoder",
    "ClipTextEncoder",
    "build_video_encoder",
    "build_text_encoder",
    "register_video_encoder",
    "register_text_encoder",
]

# The weightless pair


class PixelGridVideoEncoder(VideoEncoder):
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
        grid: pixels a side.
        frames_per_clip: frames a clip, at least 3.
        raster: cells a side of the raster of mean colours.
    """

    name = "pixel-grid"
    interpolation = "area"

    def __init__(self, grid: int = 48, frames_per_clip: int = 4, raster: int = 8) -> None:
        if grid < 8 or raster < 1:
            raise ValueError(f"grid must be at least 8 and raster at least 1, got {grid} and {raster}.")
        if frames_per_clip < 3:
            raise ValueError(f"frames_per_clip must be at least 3 to show how a change changes, got {frames_per_clip}.")
        self.grid, self.raster, self.frames_per_clip = grid, raster, frames_per_clip
        self.frame_size = (grid, grid)
        planes, moments, edges = 7, 6, 1 + len(HARMONICS)
        self.dim = 3 * raster * raster + planes * (4 * moments + 1 + 3 * edges)

    def spec(self) -> dict[str, Any]:
        options = {"grid": self.grid, "frames_per_clip": self.frames_per_clip, "raster": self.raster}
        return {"name": self.name, "dim": self.dim, **options}

    def _encode_clips(self, frames: list[np.ndarray]) -> np.ndarray:
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255.0
        pixels = torch.nn.functional.interpolate(pixels, size=(self.grid, self.grid), mode="area")
        planes = colour_planes(pixels).unflatten(0, (-1, self.frames_per_clip))  # (clips, frames, 7, grid, grid)
        change = planes.diff(dim=1).abs()
        moments = spatial_moments(planes)  # (clips, frames, 7, 6)
        steps = moments.diff(dim=1)
        near_change = torch.nn.functional.max_pool2d(change.amax(dim=(1, 2)).unsqueeze(1), 9, 1, 4)  # (clips, 1, ...)
        edges, moving_edges = edge_harmonics(planes, near_change)  # (clips, frames, 7, 5)
        raster = torch.nn.functional.adaptive_avg_pool2d(pixels, self.raster)
        raster = raster.flatten(1).unflatten(0, (-1, self.frames_per_clip)).mean(dim=1)
        parts = [
            0.5 * signed_root(moments.mean(dim=1)),
            2.0 * signed_root(moments[:, -1] - moments[:, 0]),
            2.0 * signed_root(steps.abs().mean(dim=1)),
            2.0 * signed_root(steps.diff(dim=1).abs().mean(dim=1)),
            2.0 * signed_root(change.mean(dim=(1, 3, 4))),
            0.5 * signed_root(edges.mean(dim=1)),
            signed_root(edges.diff(dim=1).abs().mean(dim=1)),
            signed_root(moving_edges.mean(dim=1)),
        ]
        return torch.cat([0.2 * raster, *(part.flatten(1) for part in parts)], dim=1).numpy()


class HashedWordTextEncoder(TextEncoder):
    """One row a word, drawn from a hash of the word, without any weights.

    The first half of a row is a unit vector drawn from the word, the second the mean of unit vectors drawn from its
    letter trigrams, so that `slides` and `sliding` are near each other while every word keeps a direction of its own.
    Case and punctuation are ignored. The rows are the same on every machine and in every process.

    Args:
        dim: values a row, even.
    """

    name = "hashed-words"

    def __init__(self, dim: int = 256) -> None:
        if dim < 2 or dim % 2:
            raise ValueError(f"dim must be a positive even number, got {dim}.")
        self.dim = dim

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "dim": self.dim}

    def _encode_sentences(self, sentences: list[str], max_tokens: int) -> list[np.ndarray]:
        rows = []
        for index, sentence in enumerate(sentences):
            words = re.findall(r"\w+", sentence.lower())
            if not words:
                raise ValueError(f"sentences[{index}] holds no word, got {sentence!r}; describe the moment in words.")
            rows.append(np.stack([_word_row(word, self.dim) for word in words[:max_tokens]]))
        return rows


@lru_cache(maxsize=65536)
def _word_row(word: str, dim: int) -> np.ndarray:
    padded = f"^{word}$"
    trigrams = [padded[i : i + 3] for i in range(max(1, len(padded) - 2))]
    spelling = np.mean([_hashed_unit_vector("trigram " + trigram, dim // 2) for trigram in trigrams], axis=0)
    return np.concatenate([_hashed_unit_vector("word " + word, dim // 2), spelling]).astype(np.float32)


def _hashed_unit_vector(key: str, dim: int) -> np.ndarray:
    """A direction that depends on `key` alone: signs taken from the bits of its hash, the same on every machine."""
    bits = hashlib.shake_128(key.encode("utf-8")).digest(math.ceil(dim / 8))
    signs = np.unpackbits(np.frombuffer(bits, np.uint8))[:dim].astype(np.float64) * 2.0 - 1.0
    return signs / math.sqrt(dim)


# CLIP-like models


class ClipVideoEncoder(VideoEncoder):
    """Image features of a CLIP-like model: each sampled frame is encoded, and the features of a clip are averaged.

    Args:
        model: name on the Hub, or local folder, of a model with `get_image_features` (CLIP, SigLIP, ...).
        frames_per_clip: frames a clip.
        batch_size: frames a forward pass, rounded to whole clips.
        device: where to run, such as `cpu` or `cuda`.
        dtype: precision of the model; rows are float32 all the same.
        revision: branch, tag or commit on the Hub; pin it where rows must stay the same.

    Raises:
        ValueError: if the model has no image features.
        OSError: from transformers, if there is no such model.
        ImportError: if Pillow, which prepares the frames, is not installed.
    """

    interpolation = "bicubic"

    def __init__(
        self,
        model: str,
        frames_per_clip: int = 2,
        batch_size: int = 32,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        revision: str | None = None,
    ) -> None:
        require_at_least_one(frames_per_clip=frames_per_clip, batch_size=batch_size)
        self.name = CLIP_PREFIX + str(model)
        self.frames_per_clip = frames_per_clip
        self.clips_per_batch = max(1, batch_size // frames_per_clip)
        self.revision = revision
        self.model = _load_clip_like(model, "get_image_features", device, dtype, revision)
        self.image_processor = _load_image_processor(model, revision)
        self.frame_size = _decoding_size(self.image_processor)
        self.dim = self._image_features([np.zeros((32, 32, 3), np.uint8)]).shape[-1]

    def spec(self) -> dict[str, Any]:
        pinned = {"revision": self.revision} if self.revision else {}
        return {"name": self.name, "dim": self.dim, "frames_per_clip": self.frames_per_clip, **pinned}

    def _encode_clips(self, frames: list[np.ndarray]) -> np.ndarray:
        return self._image_features(frames).unflatten(0, (-1, self.frames_per_clip)).mean(1).numpy()

    @torch.inference_mode()
    def _image_features(self, frames: list[np.ndarray]) -> torch.Tensor:
        inputs = self.image_processor(frames, return_tensors="pt", input_data_format="channels_last")
        inputs = inputs.to(device=self.model.device, dtype=self.model.dtype)
        output = self.model.get_image_features(**inputs)
        # transformers 5 returns an output object whose pooled rows are the features; earlier versions return them bare.
        features = output if isinstance(output, torch.Tensor) else output.pooler_output
        return features.float().cpu()


class ClipTextEncoder(TextEncoder):
    """Last hidden states of a CLIP-like model's text tower, one row a token, from the first to the end-of-text token.

    Sentences are padded as the model was trained: SigLIP-like models always to their full length. Padding yields no
    rows.

    Args:
        model: name on the Hub, or local folder, of a model with `get_text_features` (CLIP, SigLIP, ...).
        batch_size: sentences a forward pass.
        device: where to run, such as `cpu` or `cuda`.
        dtype: precision of the model; rows are float32 all the same.
        revision: branch, tag or commit on the Hub; pin it where rows must stay the same.

    Raises:
        ValueError: if the model has no text features.
        OSError: from transformers, if there is no such model.
    """

    def __init__(
        self,
        model: str,
        batch_size: int = 64,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        revision: str | None = None,
    ) -> None:
        require_at_least_one(batch_size=batch_size)
        self.name = CLIP_PREFIX + str(model)
        self.batch_size = batch_size
        self.revision = revision
        self.model = _load_clip_like(model, "get_text_features", device, dtype, revision)
        self.tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
        text_config = self.model.config.get_text_config()
        self.max_positions = int(getattr(text_config, "max_position_embeddings", 77))
        self.pad_to_full_length = self.model.config.model_type.startswith("siglip")
        self.dim = self._encode_sentences(["a"], 1)[0].shape[-1]

    def spec(self) -> dict[str, Any]:
        pinned = {"revision": self.revision} if self.revision else {}
        return {"name": self.name, "dim": self.dim, **pinned}

    def _encode_sentences(self, sentences: list[str], max_tokens: int) -> list[np.ndarray]:
        rows: list[np.ndarray] = []
        for start in range(0, len(sentences), self.batch_size):
            states, mask = self._last_hidden_states(sentences[start : start + self.batch_size])
            rows += [state[keep][:max_tokens].numpy() for state, keep in zip(states, mask, strict=True)]
        return rows

    @torch.inference_mode()
    def _last_hidden_states(self, sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """States (sentences, tokens, dim) and a boolean mask (sentences, tokens) of the real tokens, on the CPU."""
        tokens = self.tokenizer(
            sentences,
            padding="max_length" if self.pad_to_full_length else True,
            truncation=True,
            max_length=self.max_positions,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = tokens["attention_mask"].bool()
        if "attention_mask" not in self.tokenizer.model_input_names:  # trained without one
            del tokens["attention_mask"]
        states = self.model.get_text_features(**tokens.to(self.model.device)).last_hidden_state
        return states.float().cpu(), mask


def _load_clip_like(model: str, method: str, device: Any, dtype: Any, revision: str | None) -> Any:
    loaded = AutoModel.from_pretrained(model, revision=revision, dtype=dtype)
    if not hasattr(loaded, method):
        raise ValueError(
            f"model must be CLIP-like, with {method}, got {model!r}, a {type(loaded).__name__}; "
            f"take for example openai/clip-vit-base-patch32."
        )
    # Each encoder runs one of the two towers; the other would only take memory.
    unused = "text_model" if method == "get_image_features" else "vision_model"
    if hasattr(loaded, unused):
        setattr(loaded, unused, None)
    return loaded.to(device).eval()


def _load_image_processor(model: str, revision: str | None) -> Any:
    try:
        from transformers import AutoImageProcessor

        # The Pillow backend resamples as the models' authors did and needs no torchvision.
        return AutoImageProcessor.from_pretrained(model, revision=revision, backend="pil")
    except ImportError as error:
        raise ImportError('preparing frames needs Pillow: pip install "modeling-bmdetr[video]"') from error


def _decoding_size(image_processor: Any) -> int | tuple[int, int] | None:
    """The size the image processor resizes to, so that full frames are never held; None if it keeps or mixes sizes."""
    size = getattr(image_processor, "size", None)
    sides = {key: value for key, value in dict(size or {}).items() if value}
    if set(sides) == {"shortest_edge"}:
        return int(sides["shortest_edge"])
    if set(sides) == {"height", "width"}:
        return int(sides["width"]), int(sides["height"])
    return None


# Building encoders by name


CLIP_PREFIX = "clip:"
# A name that ends in a colon is followed by an argument of its own.
_VIDEO_ENCODERS: dict[str, Callable[..., VideoEncoder]] = {
    PixelGridVideoEncoder.name: PixelGridVideoEncoder,
    CLIP_PREFIX: ClipVideoEncoder,
}
_TEXT_ENCODERS: dict[str, Callable[..., TextEncoder]] = {
    HashedWordTextEncoder.name: HashedWordTextEncoder,
    CLIP_PREFIX: ClipTextEncoder,
}


def build_video_encoder(spec: str | Mapping[str, Any], **options: Any) -> VideoEncoder:
    """Builds a video encoder.

    Args:
        spec: `"pixel-grid"`, `"clip:NAME_OR_PATH"` or a registered name; or what `VideoEncoder.spec()` returned, as a
            feature contract holds it.
        **options: further options of the encoder, such as `device`.

    Raises:
        ValueError: if the name is unknown, an option is, or the encoder is not as wide as the spec says.
    """
    return _build("video", _VIDEO_ENCODERS, spec, options)


def build_text_encoder(spec: str | Mapping[str, Any], **options: Any) -> TextEncoder:
    """Builds a text encoder; as `build_video_encoder`, with `"hashed-words"` and `"clip:NAME_OR_PATH"`."""
    return _build("text", _TEXT_ENCODERS, spec, options)


def register_video_encoder(name: str, factory: Callable[..., VideoEncoder]) -> None:
    """Makes `build_video_encoder(name, ...)` call `factory(...)`; `"kind:"` passes what follows the colon first."""
    _VIDEO_ENCODERS[name] = factory


def register_text_encoder(name: str, factory: Callable[..., TextEncoder]) -> None:
    """Makes `build_text_encoder(name, ...)` call `factory(...)`; `"kind:"` passes what follows the colon first."""
    _TEXT_ENCODERS[name] = factory


def _build(
    modality: str, registry: dict[str, Callable[..., Any]], spec: str | Mapping[str, Any], options: dict[str, Any]
) -> Any:
    if isinstance(spec, str):
        name, dim = spec, None
    else:
        stored = dict(spec)
        name, dim = str(stored.pop("name", None)), stored.pop("dim", None)
        options = {**stored, **options}
    kind, colon, argument = name.partition(":")
    factory = registry.get(kind + colon)
    if factory is None or (colon and not argument):
        known = ", ".join(sorted(key + ("NAME_OR_PATH" if key.endswith(":") else "") for key in registry))
        raise ValueError(
            f"unknown {modality} encoder {name!r}; expected one of {known}. Register another one with "
            f"register_{modality}_encoder, or give precomputed features in place of the {modality}."
        )
    arguments = (argument,) if colon else ()
    if dim is not None and not colon and "dim" in inspect.signature(factory).parameters:
        options["dim"] = dim  # the width is the encoder's own choice, not its model's
    try:
        inspect.signature(factory).bind(*arguments, **options)
    except TypeError as error:
        accepted = ", ".join(inspect.signature(factory).parameters)
        raise ValueError(f"{modality} encoder {name!r}: {error}; its options are {accepted}.") from error
    encoder = factory(*arguments, **options)
    if dim is not None and encoder.dim != dim:
        raise ValueError(f"{modality} encoder {name!r} must be {dim} wide, got {encoder.dim}; it is another model.")
    return encoder
