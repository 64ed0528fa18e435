"""Reading checkpoints of the authors' released code: safely from the file, and from its options to a configuration."""

import argparse
import json
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..configuration_bmdetr import OTHER_NAMES, BMDetrConfig

# The one type beyond tensors and plain containers that a released checkpoint needs.
_NEEDED_TYPES = [argparse.Namespace]

# Released option: configuration field, and what one unit of the option is in units of the field. The losses here keep
# the paper's scale: the released L1 loss averages the two coordinates, the released margin loss is doubled.
_NUMBERS: dict[str, tuple[str, float]] = {
    "nheads": ("num_attention_heads", 1),
    "input_dropout": ("projection_dropout", 1),
    "dropout": ("dropout", 1),
    "label_loss_coef": ("class_loss_weight", 1),
    "span_loss_coef": ("l1_loss_weight", 0.5),
    "giou_loss_coef": ("giou_loss_weight", 1),
    "lw_saliency": ("margin_loss_weight", 2),
    "saliency_margin": ("margin", 1),
    "lw_prob_loss_coef": ("probability_loss_weight", 1),
    "lw_contrastive_loss_coef": ("alignment_loss_weight", 1),
    "temperature": ("temperature", 1),
    "eos_coef": ("no_object_weight", 1),
    "set_cost_class": ("class_cost", 1),
    "set_cost_span": ("l1_cost", 1),
    "set_cost_giou": ("giou_cost", 1),
    "clip_length": ("clip_length", 1),
    "max_v_l": ("max_clips", 1),
    "max_q_l": ("max_tokens", 1),
}

# Options whose other values make a model that BM-DETR's configuration does not describe.
_EXPECTED: dict[str, tuple[Any, ...]] = {
    "position_embedding": ("sine", "v2"),
    "use_txt_pos": (False,),
    "pre_norm": (False,),
    "span_loss_type": ("l1",),
    "transformer_activation": ("prelu", "relu", "gelu"),
}

# Released options that are sizes, which the weights tell.
_SIZES = (
    *("enc_layers", "dec_layers", "dim_feedforward", "hidden_dim", "n_input_proj"),
    *("contrastive_hdim", "v_feat_dim", "t_feat_dim"),
)

_CLIP = "clip:openai/clip-vit-base-patch32"
_ENCODER_NAMES = {"clip": _CLIP}
# How the published CLIP features of videos were sampled: the frame in the middle of each clip, clips rounded.
_ENCODER_OPTIONS: dict[str, dict[str, Any]] = {"clip": {"frames_per_clip": 1, "clips": "nearest"}}
_ENCODER_WIDTHS = {"slowfast": 2304, "clip": 512}


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """What a checkpoint of the released code holds that matters here.

    Attributes:
        state_dict: Parameters by released name.
        options: The released options (`opt` of the checkpoint before `opt.json`), empty when there are none.
        origin: What to call the source in messages.
    """

    state_dict: dict[str, Tensor]
    options: dict[str, Any]
    origin: str


def read_released_checkpoint(source: str | os.PathLike | Mapping[str, Any]) -> ReleasedCheckpoint:
    """Reads a released checkpoint without running anything that is in it.

    Args:
        source: A checkpoint file (`model`, `opt`, ... pickled by PyTorch; `opt.json` beside it is read too), a file
            with a bare state dict (`.pt`, `.ckpt`, `.safetensors`), or either one as a mapping.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, is something else, or asks for code to be run; names the file and the reason.
    """
    options: dict[str, Any] = {}
    if isinstance(source, Mapping):
        content, origin = source, "the mapping given"
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        content, origin = _read_file(path), str(path)
        options = _read_options(path.with_name("opt.json"))
    else:
        raise TypeError(f"`source` must be a path or a mapping, received {type(source).__name__}")

    state_dict = content.get("model", content)
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"{origin}: `model` must hold a state dict, received {type(state_dict).__name__}")
    strange = [str(name) for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if strange or not state_dict:
        raise ValueError(
            f"{origin} is neither a checkpoint with `model` nor a state dict: "
            + (f"its entries {strange[:8]} are no tensors" if strange else "it is empty")
        )
    hollow = [name for name, value in state_dict.items() if not _holds_its_values(value)]
    if hollow:
        raise ValueError(f"{origin}: the parameters {hollow[:8]} state more values than the file holds")
    own_options = content.get("opt") if state_dict is not content else None
    if isinstance(own_options, argparse.Namespace):
        own_options = vars(own_options)
    if own_options is not None and not isinstance(own_options, Mapping):
        raise ValueError(f"{origin}: `opt` must hold the released options, received {type(own_options).__name__}")
    return ReleasedCheckpoint(dict(state_dict), {**options, **(own_options or {})}, origin)


def _read_file(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    if path.is_dir():
        found = sorted(child.name for child in path.iterdir() if child.suffix in (".ckpt", ".pt", ".pth"))
        raise ValueError(
            f"{path} is a folder; pass the checkpoint file itself" + (f", one of {found}" if found else "")
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    # A type that the caller already allows must stay allowed afterwards.
    allowed: list[Any] = [kind for kind in _NEEDED_TYPES if kind not in torch.serialization.get_safe_globals()]
    with open(path, "rb") as file, torch.serialization.safe_globals(allowed):
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(_refusal(path, str(error))) from error
        except Exception as error:  # damaged bytes fail anywhere in the reader: struct, KeyError, RuntimeError, ...
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"{path} cannot be read as a PyTorch checkpoint; it is damaged, cut off, or another kind of file "
                f"({type(error).__name__}: {reason[:200]})"
            ) from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} must hold a mapping (a checkpoint or a state dict), received {type(content).__name__}"
        )
    return content


def _refusal(path: Path, message: str) -> str:
    """Why weights-only loading stopped, without the advice to switch it off."""
    if match := re.search(r"GLOBAL (\S+)", message):
        return (
            f"{path} was refused: unpickling it would call `{match[1]}`, which a checkpoint of the released code does "
            "not need. Nothing in the file was run. Get the file from its authors again."
        )
    detail = re.search(r"WeightsUnpickler error: (.*)", message)
    reason = detail[1] if detail else message.splitlines()[0] if message else ""
    return f"{path} cannot be read as a PyTorch checkpoint; it is damaged or another kind of file ({reason[:200]})"


def _read_options(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} beside the checkpoint is not valid JSON: {error}; repair or move it") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path} beside the checkpoint must hold an object, received {type(options).__name__}")
    return options


def released_config(checkpoint: ReleasedCheckpoint, **kwargs: Any) -> tuple[BMDetrConfig, list[str]]:
    """The configuration of a released checkpoint: sizes from the weights, the rest from its options.

    Args:
        kwargs: Fields of [`BMDetrConfig`] that override both.

    Returns:
        The configuration, and notes on what could not be told.

    Raises:
        ValueError: an option has a value that BM-DETR's configuration cannot express.
    """
    options, origin = checkpoint.options, checkpoint.origin
    for name, expected in _EXPECTED.items():
        if options.get(name, expected[0]) not in expected:
            raise ValueError(f"{origin}: option `{name}` must be one of {expected}, received {options[name]!r}")
    fields: dict[str, Any] = {
        field: _number(options, name, origin) * unit for name, (field, unit) in _NUMBERS.items() if name in options
    }
    if "dropout" in fields:
        fields["attention_dropout"] = fields["dropout"]
    fields["normalize_video"] = not options.get("no_norm_vfeat", False)
    fields["normalize_text"] = not options.get("no_norm_tfeat", False)
    fields["endpoint_features"] = "tef" in str(options.get("ctx_mode", "video_tef"))
    if options.get("dset_name") == "hl":
        # The text features of QVHighlights end with the sentence; those of the other data sets keep padding rows.
        fields["text_rows"] = "to_end_of_text"
    fields |= _sizes(checkpoint.state_dict)
    fields["activation"] = _activation(checkpoint, fields | kwargs)
    if kwargs.get("endpoint_features", fields["endpoint_features"]):
        fields["video_dim"] -= 2
    fields |= kwargs
    notes = []
    for field, found, width in (
        ("video_encoders", _video_encoders(options, fields["video_dim"]), fields["video_dim"]),
        ("text_encoder", _text_encoder(options, fields["text_dim"]), fields["text_dim"]),
    ):
        fields.setdefault(field, found)
        if fields[field] is None:
            notes.append(f"which features the model reads ({width} wide) is not known; pass `{field}` to say so")
    return BMDetrConfig.released(**fields), notes


def released_options(config: BMDetrConfig) -> dict[str, Any]:
    """The options with which the released code builds the same model: `released_config` backwards."""
    options = {name: getattr(config, field) / unit for name, (field, unit) in _NUMBERS.items()}
    for name in ("nheads", "max_v_l", "max_q_l"):
        options[name] = int(options[name])
    return {
        **options,
        **{name: getattr(config, OTHER_NAMES[name]) for name in _SIZES},
        "num_queries": config.num_queries,
        "transformer_activation": config.activation,
        "ctx_mode": "video_tef" if config.endpoint_features else "video",
        "no_norm_vfeat": not config.normalize_video,
        "no_norm_tfeat": not config.normalize_text,
        **{name: expected[0] for name, expected in _EXPECTED.items() if name != "transformer_activation"},
    }


def _number(options: Mapping[str, Any], name: str, origin: str) -> float:
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{origin}: option `{name}` must be a number, received {value!r}")
    return value


def _holds_its_values(tensor: Tensor) -> bool:
    """Whether each value of a tensor is there: in a file of a few bytes one may stand for any number of them."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _sizes(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Every size that the weights decide; a size whose tensor is missing keeps its default."""
    places = {
        "hidden_size": ("class_embed.weight", 1),
        "text_dim": ("input_txt_proj.0.net.1.weight", 1),
        "video_dim": ("input_vid_proj.0.net.1.weight", 1),
        "intermediate_size": ("transformer.encoder.layers.0.linear1.weight", 0),
        "num_queries": ("query_embed.weight", 0),
        "alignment_dim": ("contrastive_align_vid_proj.weight", 0),
        "max_tokens": ("txt_position_embed.position_embeddings.weight", 0),
    }
    sizes = {"video_dim": BMDetrConfig.video_dim + 2, "text_dim": BMDetrConfig.text_dim}
    for field, (name, dim) in places.items():
        if name in state_dict and state_dict[name].ndim == 2:
            sizes[field] = state_dict[name].shape[dim]
    stacks = {
        "encoder_layers": r"transformer\.encoder\.layers\.(\d+)\.",
        "decoder_layers": r"transformer\.decoder\.layers\.(\d+)\.",
        "projection_layers": r"input_vid_proj\.(\d+)\.",
    }
    for field, pattern in stacks.items():
        # The number of different indices, not the largest: a gap then shows as a missing layer.
        if layers := {match[1] for name in state_dict if (match := re.match(pattern, name))}:
            sizes[field] = len(layers)
    return sizes


def _activation(checkpoint: ReleasedCheckpoint, fields: Mapping[str, Any]) -> str:
    """PReLU where its slopes are stored; another activation has no weights, so that an option must tell."""
    if any(name.endswith(".activation.weight") for name in checkpoint.state_dict):
        return "prelu"
    activation = fields.get("activation", checkpoint.options.get("transformer_activation"))
    if activation in ("relu", "gelu"):
        return activation
    if not any(name.endswith(".linear1.weight") for name in checkpoint.state_dict):
        return "prelu"  # no feed-forward block at all: the missing parameters are reported with the rest
    raise ValueError(
        f"{checkpoint.origin} holds no slopes of PReLU and does not say which activation it was trained with; "
        "pass `activation`, 'relu' or 'gelu'"
    )


def _video_encoders(options: Mapping[str, Any], video_dim: int) -> list[dict[str, Any]] | None:
    """The encoders behind the feature folders of a released run; None when they do not explain the width."""
    folders = options.get("v_feat_dirs") or []
    folders = [folders] if isinstance(folders, str) else folders
    if not isinstance(folders, (list, tuple)):
        raise ValueError(f"the option `v_feat_dirs` must be a list of folders, received {folders!r}")
    kinds = [Path(str(folder)).name.removesuffix("_features") for folder in folders]
    widths = [_ENCODER_WIDTHS.get(kind, 0) for kind in kinds]
    if widths.count(0) == 1:
        widths[widths.index(0)] = max(0, video_dim - sum(widths))
    if not kinds or 0 in widths or sum(widths) != video_dim:
        return None
    return [
        {"name": _ENCODER_NAMES.get(kind, kind), "dim": dim, **_ENCODER_OPTIONS.get(kind, {})}
        for kind, dim in zip(kinds, widths, strict=True)
    ]


def _text_encoder(options: Mapping[str, Any], text_dim: int) -> dict[str, Any] | None:
    kind = str(options.get("t_feat_type") or "")
    if not kind or text_dim != _ENCODER_WIDTHS.get(kind, text_dim):
        return None
    return {"name": _ENCODER_NAMES.get(kind, kind), "dim": text_dim}
