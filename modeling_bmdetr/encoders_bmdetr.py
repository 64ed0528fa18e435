"""Frozen encoders by name: a video to one row per clip, a sentence to one row per token.

| name | encoder |
|---|---|
| `pixel-grid`, `moving-things`, `hashed-words` | weightless; need no download and no accelerator |
| `hf:NAME_OR_PATH` | any model of transformers that sees images or videos, or reads text, by what it can do |
| `clip:NAME_OR_PATH` | the same for CLIP-like models and other image models; the name that first checkpoints have |
| `timm:NAME` | an image backbone of timm |
| `slowfast`, `slowfast:FILE` | SlowFast 8x8 R50 of pytorchvideo |
| `minilm` | for text: all-MiniLM-L6-v2, whose weights install as a package |
| `words:NAME` | for text: each word by itself, by the text encoder of that name |

Further ones are registered by a module of their own (`register_video_encoder`, `register_text_encoder`), which is
imported by name (`import_plugins`, `--import` of the command) or declared by an installed package as an entry point of
the group `modeling_bmdetr.plugins`.

Encoders return raw rows: normalisation and the largest number of clips belong to the feature contract. Each encoder
describes itself with `spec()`, a dict of plain JSON types with its name, its width and every option that changes its
rows. `build_video_encoder` and `build_text_encoder` take such a dict, or a name.
"""

import inspect
import os
from collections.abc import Callable, Mapping
from functools import partial
from types import NoneType
from typing import Any, get_args

from .encoder_interface_bmdetr import EncodedVideo, TextEncoder, Video, VideoEncoder, encode_video
from .image_encoders_bmdetr import ImageEncoder
from .plugins_bmdetr import import_plugins, imported_plugins, load_declared_plugins
from .pretrained_models_bmdetr import Clips, Pooling, ability_of
from .slowfast_encoder_bmdetr import SlowFastEncoder
from .text_encoders_bmdetr import MINILM, WORDS_PREFIX, TokenEncoder, WordEncoder, minilm_encoder
from .timm_encoders_bmdetr import TimmEncoder
from .video_encoders_bmdetr import FrameSequenceEncoder
from .weightless_encoders_bmdetr import HashedWordTextEncoder, MovingThingsVideoEncoder, PixelGridVideoEncoder

__all__ = [
    "Video",
    "EncodedVideo",
    "encode_video",
    "VideoEncoder",
    "TextEncoder",
    "PixelGridVideoEncoder",
    "MovingThingsVideoEncoder",
    "HashedWordTextEncoder",
    "ImageEncoder",
    "FrameSequenceEncoder",
    "TimmEncoder",
    "SlowFastEncoder",
    "TokenEncoder",
    "WordEncoder",
    "build_video_encoder",
    "build_text_encoder",
    "register_video_encoder",
    "register_text_encoder",
    "import_plugins",
    "imported_plugins",
]

CLIP_PREFIX, PRETRAINED_PREFIX = "clip:", "hf:"


def pretrained_video_encoder(
    model: str,
    frames_per_clip: int | None = None,
    pooling: Pooling | None = None,
    batch_size: int = 32,
    device: Any = "cpu",
    dtype: Any = "float32",
    revision: str | None = None,
    clips: Clips = "started",
) -> VideoEncoder:
    """The encoder for a model of transformers: `FrameSequenceEncoder` where it sees videos, else `ImageEncoder`."""
    ability, _ = ability_of(model, revision)
    sees_videos = ability in ("video-text tower", "video backbone")
    options = (frames_per_clip, pooling, batch_size, device, dtype, revision, PRETRAINED_PREFIX, clips)
    return (FrameSequenceEncoder if sees_videos else ImageEncoder)(model, *options)


WEIGHTLESS_VIDEO_ENCODERS = (PixelGridVideoEncoder.name, MovingThingsVideoEncoder.name)
# A name that ends in a colon is followed by an argument of its own.
_VIDEO_ENCODERS: dict[str, Callable[..., VideoEncoder]] = {
    PixelGridVideoEncoder.name: PixelGridVideoEncoder,
    MovingThingsVideoEncoder.name: MovingThingsVideoEncoder,
    CLIP_PREFIX: partial(ImageEncoder, prefix=CLIP_PREFIX),
    PRETRAINED_PREFIX: pretrained_video_encoder,
    "timm:": TimmEncoder,
    "slowfast": SlowFastEncoder,
    "slowfast:": SlowFastEncoder,
}
_TEXT_ENCODERS: dict[str, Callable[..., TextEncoder]] = {
    HashedWordTextEncoder.name: HashedWordTextEncoder,
    CLIP_PREFIX: partial(TokenEncoder, prefix=CLIP_PREFIX),
    PRETRAINED_PREFIX: TokenEncoder,
    MINILM: minilm_encoder,
    WORDS_PREFIX: lambda name, **options: WordEncoder(build_text_encoder(name, **options)),
}


def build_video_encoder(spec: str | Mapping[str, Any], **options: Any) -> VideoEncoder:
    """Builds a video encoder.

    Args:
        spec: `"pixel-grid"`, `"hf:NAME_OR_PATH"` or another registered name; or what `VideoEncoder.spec()` returned, as
            a feature contract holds it.
        **options: further options of the encoder. `device` is where its weights lie; one without any ignores it.

    Raises:
        ValueError: if the name is unknown, an option is, or the encoder is not as wide as the spec says.
    """
    return _build("video", _VIDEO_ENCODERS, spec, options)


def build_text_encoder(spec: str | Mapping[str, Any], **options: Any) -> TextEncoder:
    """Builds a text encoder; as `build_video_encoder`, with `"hashed-words"` and `"hf:NAME_OR_PATH"`."""
    return _build("text", _TEXT_ENCODERS, spec, options)


def register_video_encoder(name: str, factory: Callable[..., VideoEncoder]) -> None:
    """Makes `build_video_encoder(name, ...)` call `factory(...)`; `"kind:"` passes what follows the colon first."""
    _VIDEO_ENCODERS[name] = factory


def register_text_encoder(name: str, factory: Callable[..., TextEncoder]) -> None:
    """Makes `build_text_encoder(name, ...)` call `factory(...)`; `"kind:"` passes what follows the colon first."""
    _TEXT_ENCODERS[name] = factory


def _require_whole_numbers(what: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuses options that are no whole numbers where they must be: they may come from the file of a stranger.

    Raises:
        ValueError: there is one.
    """
    parameters = inspect.signature(factory).parameters
    for option, value in options.items():
        annotation = parameters[option].annotation if option in parameters else None
        kinds = get_args(annotation) or (annotation,)
        if int not in kinds or (value is None and NoneType in kinds):
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{what}: {option} must be a whole number, received {value!r}.")


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
    if kind + colon not in registry:
        load_declared_plugins()
    factory = registry.get(kind + colon)
    if factory is None or (colon and not argument):
        known = ", ".join(sorted(key + ("NAME_OR_PATH" if key.endswith(":") else "") for key in registry))
        raise ValueError(
            f"unknown {modality} encoder {name!r}; expected one of {known}. Import the module that registers another "
            f"one (import_plugins, --import), or give precomputed features in place of the {modality}."
        )
    arguments = (argument,) if colon else ()
    if dim is not None and not colon and "dim" in inspect.signature(factory).parameters:
        options["dim"] = dim  # the width is the encoder's own choice, not its model's
    parameters = inspect.signature(factory).parameters.values()
    if not any(parameter.name == "device" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        options = {**options}
        options.pop("device", None)  # says where the weights of an encoder lie, and this one has none
    try:
        inspect.signature(factory).bind(*arguments, **options)
    except TypeError as error:
        accepted = ", ".join(name for name in inspect.signature(factory).parameters if name != "prefix")
        raise ValueError(f"{modality} encoder {name!r}: {error}; its options are {accepted}.") from error
    _require_whole_numbers(f"{modality} encoder {name!r}", factory, options)
    try:
        encoder = factory(*arguments, **options)
    except OSError as error:
        remedy = (
            "If its folder has moved, put it back, or name its new place where the encoder is named (in a checkpoint, "
            "`config.json` and `processor_config.json`)"
            if os.path.isabs(argument)
            else "Where nothing can be downloaded, `pixel-grid` for videos and `hashed-words` for text need no download"
        )
        raise OSError(f"the {modality} encoder {name!r} cannot be built: {error} {remedy}") from error
    if dim is not None and encoder.dim != dim:
        raise ValueError(f"{modality} encoder {name!r} must be {dim} wide, received {encoder.dim}: another model.")
    return encoder
