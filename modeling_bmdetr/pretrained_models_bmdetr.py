"""What the encoders that run a model of transformers share: what it can do, loading it, preparing frames for it."""

import inspect
import json
import os
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
import transformers  # its classes are imported when they are used: a process that only decodes does without
from huggingface_hub import is_offline_mode
from transformers.utils import cached_file, is_vision_available, logging

from .encoder_interface_bmdetr import VideoEncoder, require_at_least_one

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.get_logger(__name__)

Ability: TypeAlias = Literal["image-text tower", "video-text tower", "image backbone", "video backbone", "text"]
Pooling: TypeAlias = Literal["class", "pooled", "mean"]
Clips: TypeAlias = Literal["started", "nearest"]
_FRAME_COUNTS = ("num_frames", "frames_per_clip")
_INTERPOLATIONS = {0: "point", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by the numbers that Pillow gives them
_CLASS_TOKENS = ("cls_token", "class_embedding")


def ability_of(model: str, revision: str | None = None) -> tuple[Ability, "PretrainedConfig"]:
    """What a model can do, told from its class in transformers without loading its weights, and its configuration.

    Raises:
        ValueError: if it sees neither images nor videos and reads no text either, or transformers has no class for it.
        OSError: if there is no such model, or no access to it.
    """
    config = load_or_explain(transformers.AutoConfig, model, revision=revision)
    if type(config) not in transformers.MODEL_MAPPING:
        raise ValueError(
            f"the model {model!r} is a {config.model_type}, for which transformers has no encoder class of its own; "
            f"wrap it in an encoder and register it."
        )
    found = transformers.MODEL_MAPPING[type(config)]
    model_class: Any = found[0] if isinstance(found, tuple) else found
    image, video = (hasattr(model_class, f"get_{kind}_features") for kind in ("image", "video"))
    if image and not hasattr(model_class, "get_text_features"):
        image = False  # a language model that looks at pictures, not a tower
    several = any(getattr(config, name, 1) not in (None, 1) for name in _FRAME_COUNTS)
    main_input = str(model_class.main_input_name)
    if video and not image and hasattr(model_class, "get_text_features"):
        return "video-text tower", config
    if image:
        return "image-text tower", config
    if main_input.startswith("pixel_values"):
        return "video backbone" if several or main_input == "pixel_values_videos" else "image backbone", config
    if main_input == "input_ids":
        return "text", config
    raise ValueError(f"the model {model!r} is a {model_class.__name__}, which reads {main_input}, no text or pixels.")


def require_ability(
    model: str, revision: str | None, verb: str, *abilities: Ability
) -> tuple[Ability, "PretrainedConfig"]:
    """What `ability_of` gives, which must be one of `abilities`: the model must `verb`, such as `see images`.

    Raises:
        ValueError, OSError: see `ability_of`; and if it is none of them.
    """
    ability, config = ability_of(model, revision)
    if ability not in abilities:
        kind = "reads text only" if ability == "text" else f"is a {ability}"
        raise ValueError(f"the model must {verb}, received {model!r} ({config.model_type}), which {kind}.")
    return ability, config


def load_model(model: str, device: Any, dtype: Any, revision: str | None) -> Any:
    """The model, without gradients and in evaluation mode.

    Raises:
        OSError: if there is no such model, or no access to it.
    """
    loaded = load_or_explain(transformers.AutoModel, model, revision=revision, dtype=dtype)
    return loaded.to(device).eval().requires_grad_(False)


def load_or_explain(auto_class: Any, model: str, **options: Any) -> Any:
    """`auto_class.from_pretrained(model, ...)`, whose failure becomes one clear sentence.

    Raises:
        OSError: if there is no such folder or repository, or access to it is restricted.
    """
    if not os.path.isdir(model) and not is_offline_mode():
        # A checkpoint of somebody else may name any repository, so whoever runs it is told.
        logger.warning_once(
            f"the encoder's model {model!r} is no folder here: it is looked up on the Hub, which learns of it, and "
            "fetched if it is not in the local cache (HF_HUB_OFFLINE=1 keeps to the cache)"
        )
    try:
        return auto_class.from_pretrained(model, **options)
    except OSError as error:
        reason = " ".join(str(error).split())
        if "access a gated repo" in reason:
            hint = "its owner restricts access: accept the terms on its page and log in (hf auth login)"
        else:
            hint = (
                "there is no such folder or repository, or it cannot be reached from here; if the folder has moved, "
                "name its new place in the feature contract"
            )
        raise OSError(f"cannot load the encoder's model {model!r}: {hint}. ({reason[:300]})") from error


def frames_per_clip_of(config: "PretrainedConfig") -> int | None:
    """Frames of a clip that a video model was made for, or None if its configuration does not say."""
    for part in (config, *(getattr(config, name, None) for name in ("vision_config", "video_config"))):
        for name in _FRAME_COUNTS:
            if isinstance(value := getattr(part, name, None), int) and value > 0:
                return value
    return None


def first_parameter(function: Any) -> str:
    """Name of the first parameter of a method: what the model calls its pixels."""
    return next(name for name in inspect.signature(function).parameters if name != "self")


def pooling_for(model: Any, output: Any) -> Pooling:
    """How to make one row of a backbone's output: its class token, else what its class pools, else the mean.

    The pooler of a model with a class token is passed over: it is often trained for another task, or not at all.
    """
    tokens = output.last_hidden_state.ndim == 3
    if tokens and any(name.rsplit(".", 1)[-1] in _CLASS_TOKENS for name, _ in model.named_parameters()):
        return "class"
    return "pooled" if getattr(output, "pooler_output", None) is not None else "mean"


def pooled_rows(output: Any, pooling: Pooling) -> torch.Tensor:
    """Rows `(images, dim)` of what a backbone gives.

    Raises:
        ValueError: if the model gives nothing of the kind asked for.
    """
    states = output.last_hidden_state
    if pooling == "pooled" and getattr(output, "pooler_output", None) is not None:
        return output.pooler_output.flatten(1)
    if pooling == "class" and states.ndim == 3:
        return states[:, 0]
    if pooling == "mean":
        return states.mean(dim=1) if states.ndim == 3 else states.flatten(2).mean(dim=2)
    has = "no pooled output" if pooling == "pooled" else f"no tokens, but states of shape {tuple(states.shape)}"
    raise ValueError(f"pooling must fit the model, received {pooling!r}, but it has {has}; take 'mean'.")


@dataclass(frozen=True)
class FramePreparation:
    """How frames become the pixels of a video model, as its folder says: resize, crop the centre, scale, normalise.

    Attributes:
        size: what frames are resized to: the shorter side, `(width, height)`, or None to keep them.
        interpolation: how, as `iter_frames` takes it.
        crop: height and width cut from the middle afterwards, or None.
        scale, shift: of values from 0 to 255, before normalisation.
        mean, std: of the three channels.
    """

    size: int | tuple[int, int] | None
    interpolation: str
    crop: tuple[int, int] | None
    scale: float
    shift: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of_model(cls, model: str, revision: str | None = None) -> "FramePreparation":
        """The preparation that a model's folder or repository states.

        Raises:
            ValueError: if it states none.
        """
        for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
            path = cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False)
            if path is not None:
                with open(path, encoding="utf-8") as file:
                    return cls.from_dict(json.load(file))
        raise ValueError(f"the model {model!r} has no preprocessor_config.json, which says how frames are prepared.")

    @classmethod
    def from_dict(cls, stated: dict[str, Any]) -> "FramePreparation":
        """The preparation of a preprocessor's configuration."""
        size = _sides(stated.get("size")) if stated.get("do_resize", True) else None
        crop = _sides(stated.get("crop_size")) if stated.get("do_center_crop", False) else None
        if isinstance(crop, int):
            crop = (crop, crop)
        normalise = stated.get("do_normalize", True)
        return cls(
            size=size,
            interpolation=_INTERPOLATIONS.get(stated.get("resample", 2), "bilinear"),
            crop=(crop[1], crop[0]) if crop else None,
            scale=float(stated.get("rescale_factor", 1 / 255)) if stated.get("do_rescale", True) else 1.0,
            shift=-1.0 if stated.get("offset", False) else 0.0,
            mean=tuple(stated.get("image_mean") or (0.0,) * 3) if normalise else (0.0,) * 3,
            std=tuple(stated.get("image_std") or (1.0,) * 3) if normalise else (1.0,) * 3,
        )

    def __call__(self, frames: Iterable[np.ndarray]) -> torch.Tensor:
        """`(frames, 3, height, width)` float32 of `(height, width, 3)` uint8 frames of one size."""
        pixels = torch.from_numpy(np.stack(list(frames))).permute(0, 3, 1, 2).float()
        pixels = self._cropped(self._resized(pixels))
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (pixels * self.scale + self.shift - mean) / std

    def _resized(self, pixels: torch.Tensor) -> torch.Tensor:
        """Frames from a file come in this size already; others are resized here."""
        height, width = pixels.shape[-2:]
        if isinstance(self.size, int):
            if min(height, width) == self.size:
                return pixels
            factor = self.size / min(height, width)
            wanted = (max(1, round(height * factor)), max(1, round(width * factor)))
        elif self.size is None or (width, height) == self.size:
            return pixels
        else:
            wanted = (self.size[1], self.size[0])
        mode = "bicubic" if self.interpolation in ("bicubic", "lanczos") else "bilinear"
        resized = torch.nn.functional.interpolate(pixels, wanted, mode=mode, align_corners=False, antialias=True)
        return resized.clamp(0, 255)

    def _cropped(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.crop is None:
            return pixels
        height, width = pixels.shape[-2:]
        top, left = (max(0, (side - cut) // 2) for side, cut in zip((height, width), self.crop, strict=True))
        return pixels[..., top : top + self.crop[0], left : left + self.crop[1]]


def _sides(stated: Any) -> int | tuple[int, int] | None:
    """A size as preprocessors state it, as the shorter side or `(width, height)`; None where it states neither."""
    if isinstance(stated, int):
        return stated
    sides = {key: value for key, value in dict(stated or {}).items() if value}
    if set(sides) == {"shortest_edge"}:
        return int(sides["shortest_edge"])
    if set(sides) == {"height", "width"}:
        return int(sides["width"]), int(sides["height"])
    return None


def decoding_size(image_processor: Any) -> int | tuple[int, int] | None:
    """The size that an image processor resizes to first, so that full frames are never held; None where it varies."""
    size = _sides(getattr(image_processor, "size", None))
    share = getattr(image_processor, "crop_pct", None)
    return round(size / share) if isinstance(size, int) and share else size


def load_image_processor(model: str, revision: str | None) -> Any:
    """The image processor of a model, on Pillow, which resamples as the models' authors did and needs no torchvision.

    None where it has no form without torchvision: [`FramePreparation`] does what its configuration says.

    Raises:
        ImportError: if Pillow is not installed.
        OSError: if the model has none.
    """
    if not is_vision_available():
        raise ImportError("preparing frames needs Pillow (pip install pillow)")
    from transformers import AutoImageProcessor

    try:
        return load_or_explain(AutoImageProcessor, model, revision=revision, backend="pil")
    except ValueError as error:
        if "torchvision" not in str(error):
            raise
        return None


class PretrainedVideoEncoder(VideoEncoder):
    """A video encoder that runs a model of transformers: one of towers, or a backbone whose states are pooled.

    Args:
        model: name on the Hub, or local folder.
        frames_per_clip: frames per clip, at the centres of equal parts of it; by default as the subclass says.
        pooling: backbones: `class` takes the class token, `pooled` what the model pools, `mean` the mean over places.
            By default the first of these that the model has; the contract says which.
        batch_size: frames per forward pass, rounded to whole clips.
        device: where to run, such as `cpu` or `cuda`.
        dtype: precision of the model; rows are float32 all the same.
        revision: branch, tag or commit on the Hub; pin it where rows must stay the same.
        prefix: what the encoder's name begins with.
        clips: how clips are counted; a subclass that has other ways than `started` says which.

    Raises:
        ValueError: if the model does not see what the encoder shows it.
        OSError: if there is no such model, or no access to it.
    """

    # What the model must do, and the abilities of a tower and of a backbone that does.
    NEEDS: ClassVar[tuple[str, Ability, Ability]]
    CLIPS: ClassVar[tuple[Clips, ...]] = ("started",)
    DEFAULT_FRAMES: ClassVar[int | None] = None  # per clip; None for as many as the model was made for
    BLANK_SIDE: ClassVar[int]  # of the frames that the width of rows is found with

    def __init__(
        self,
        model: str,
        frames_per_clip: int | None = None,
        pooling: Pooling | None = None,
        batch_size: int = 32,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        revision: str | None = None,
        prefix: str = "hf:",
        clips: Clips = "started",
    ) -> None:
        if clips not in self.CLIPS:
            raise ValueError(f"clips must be {' or '.join(map(repr, self.CLIPS))}, received {clips!r}.")
        self.clips: Clips = clips
        ability, config = require_ability(model, revision, *self.NEEDS)
        if frames_per_clip is None:
            frames_per_clip = self.DEFAULT_FRAMES or frames_per_clip_of(config)
        if frames_per_clip is None:
            raise ValueError(f"the model {model!r} does not say how many frames it sees; give frames_per_clip.")
        require_at_least_one(frames_per_clip=frames_per_clip, batch_size=batch_size)
        self.is_tower = ability == self.NEEDS[1]
        if self.is_tower and pooling is not None:
            raise ValueError(f"pooling is for backbones, received {pooling!r} for {model!r}, whose tower has its own.")
        self.name, self.revision = prefix + str(model), revision
        self.frames_per_clip, self.clips_per_batch = frames_per_clip, max(1, batch_size // frames_per_clip)
        self.model = load_model(model, device, dtype, revision)
        if self.is_tower and hasattr(self.model, "text_model"):
            self.model.text_model = None  # the other tower would only take memory
        self.pooling: Pooling | None = pooling
        self._prepare(model)
        self._find_width([np.zeros((self.BLANK_SIDE, self.BLANK_SIDE, 3), np.uint8)] * frames_per_clip)

    def _find_width(self, blank: list[np.ndarray]) -> None:
        """Sets `dim`, and `pooling` where none was given, by what the model makes of the frames of a blank clip."""
        if not self.is_tower and self.pooling is None:
            self.pooling = pooling_for(self.model, self._output(blank))
        self.dim = self._encode_clips(blank).shape[-1]

    def spec(self) -> dict[str, Any]:
        options = {"pooling": self.pooling, "revision": self.revision}
        given = {name: value for name, value in options.items() if value is not None}
        return {"name": self.name, "dim": self.dim, "frames_per_clip": self.frames_per_clip, **given}

    def _prepare(self, model: str) -> None:
        """Finds out how the model's frames are prepared."""
        self.preparation = FramePreparation.of_model(model, self.revision)
        self.frame_size, self.interpolation = self.preparation.size, self.preparation.interpolation

    @abstractmethod
    def _output(self, frames: list[np.ndarray]) -> Any:
        """What the model gives for the frames of whole clips."""

    def _rows(self, frames: list[np.ndarray]) -> torch.Tensor:
        """One row per image or clip that the model saw, float32 on the CPU."""
        output = self._output(frames)
        if self.pooling is not None:
            return pooled_rows(output, self.pooling).float().cpu()
        # transformers 5 returns an output object whose pooled rows are the features; earlier versions return them bare.
        return (output if isinstance(output, torch.Tensor) else output.pooler_output).float().cpu()
