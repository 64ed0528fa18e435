"""Checkpoints of the authors' released code, to this package and back.

The released code is github.com/minjoong507/BM-DETR; `docs/paper_and_release.md` says how it differs from the paper.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging

from ..cards import write_model_card
from ..configuration_bmdetr import WITHOUT_RANKING
from ..files_bmdetr import replacing_file, replacing_files, replacing_path
from ..modeling_bmdetr import BMDetrForMomentRetrieval
from ..processing_bmdetr import BMDetrProcessor, PredictionFormat
from ..saving_bmdetr import CONFIG_FILE, WEIGHT_FILES
from .checkpoint import ReleasedCheckpoint, read_released_checkpoint, released_config, released_options
from .names import idle_parameters, released_layout

logger = logging.get_logger(__name__)

# Forms that change the parameters or the predictions; with others, the released code would compute something else.
_RELEASED_FORMS = {
    "background_aware": True,
    "learnable_spans": True,
    "decoder_memory": "encoder",
    "frame_attention_scale": "literal",
    "alignment_pooling": "gated",
    "things_per_clip": 1,
    **{name: value for name, value in WITHOUT_RANKING.items() if value is False},
}


@dataclass(frozen=True)
class ConversionReport:
    """What became of every parameter of a released checkpoint.

    Attributes:
        origin: The source, as messages call it.
        converted: Released names whose values the model now has.
        dropped: Released names that no output depends on.
        unknown: Released names that the model has no place for; empty unless `strict=False`.
        missing: Released names that the checkpoint lacks; the model's own are freshly initialised. Empty unless
            `strict=False`.
        notes: What the checkpoint does not tell, one line each.
    """

    origin: str
    converted: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Counts, and every name that was not converted."""
        lines = [f"{self.origin}: {len(self.converted)} parameters converted"]
        for label in ("dropped", "unknown", "missing"):
            if names := getattr(self, label):
                lines += [f"{len(names)} {label}:", *(f"  {name}" for name in names)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def convert_released_checkpoint(
    source: str | os.PathLike | Mapping[str, Any], *, strict: bool = True, **config_options: Any
) -> BMDetrForMomentRetrieval:
    """A model with the weights and the forms of a checkpoint of the authors' released code.

    Sizes come from the weights; loss weights, dropout, margins and the feature contract from the options stored with
    them (`opt`, then `opt.json` beside the file), else they are those of `BMDetrConfig.released()`.

    Args:
        source: The checkpoint file (`.ckpt`), a file with a bare state dict (`.pt`, `.ckpt`, `.safetensors`), or
            either one as a mapping. Nothing inside a file is run.
        strict: Raise when a parameter is unknown or missing. Otherwise log them, leave unknown ones out and
            initialise missing ones.
        config_options: Fields of [`BMDetrConfig`] that override what the checkpoint says, such as `video_encoders`.

    Returns:
        The model, in evaluation mode, on the CPU, in float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, refused, or another model's; every unknown, missing or misshapen parameter
            is named.
    """
    model, report = _convert(read_released_checkpoint(source), strict, config_options)
    (logger.warning if report.unknown or report.missing else logger.info)(str(report))
    return model


def convert_to_folder(
    source: str | os.PathLike | Mapping[str, Any],
    out_dir: str | os.PathLike,
    *,
    strict: bool = True,
    prediction_format: PredictionFormat = "seconds",
    **config_options: Any,
) -> ConversionReport:
    """Converts a released checkpoint to a folder that `from_pretrained` loads.

    Writes `config.json`, `model.safetensors`, the processor and `README.md`. Nothing is written when the conversion
    fails.

    Args:
        source, strict, config_options: See [`convert_released_checkpoint`].
        out_dir: The folder, made if it does not exist.
        prediction_format: The processor's; `released` writes predictions as the released code does.

    Raises:
        FileExistsError: `out_dir` is a file.
        FileNotFoundError, ValueError: see [`convert_released_checkpoint`].
    """
    out_dir = Path(out_dir)
    model, report = _convert(read_released_checkpoint(source), strict, config_options)
    counts = {"parameters": len(report.converted), "dropped": len(report.dropped)}
    with replacing_files(out_dir, CONFIG_FILE, WEIGHT_FILES) as aside:
        # What is in the folder already stays when the model is saved, so card and processor come first.
        write_model_card(model, aside, {"converted": {"from": Path(report.origin).name, **counts}})
        BMDetrProcessor(model.config.feature_contract, prediction_format=prediction_format).save_pretrained(aside)
        model.save_pretrained(aside)
    return report


def to_released_state_dict(model: BMDetrForMomentRetrieval) -> dict[str, Tensor]:
    """The model's parameters under the names, and in the shapes, that the released code loads.

    Parameters that no output of the released code depends on are zeros.

    Raises:
        ValueError: the released code has no such model; names the fields of the configuration that differ.
    """
    if differing := [
        f"{name}={getattr(model.config, name)!r} (released: {wanted!r})"
        for name, wanted in _RELEASED_FORMS.items()
        if getattr(model.config, name) != wanted
    ]:
        raise ValueError(f"the released code does not have this form of the model: {', '.join(differing)}")
    own = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    released = {
        name: torch.cat([own[part] for part in parts]) if len(parts) > 1 else own[parts[0]].clone()
        for name, parts in released_layout(own).items()
    }
    return released | {name: torch.zeros(shape) for name, shape in idle_parameters(model.config).items()}


def export_released(model_dir: str | os.PathLike, out_file: str | os.PathLike) -> Path:
    """Writes a model of this package as a checkpoint for the released code.

    A `.safetensors` file holds the bare state dict. Any other holds `model`, `epoch` and `opt` as the released code's
    `--resume` reads them, and `opt.json`, which it wants beside the checkpoint, is written too unless one is there.

    Args:
        model_dir: Folder or Hub name, as `from_pretrained` takes it.
        out_file: The checkpoint to write.

    Returns:
        The path of the checkpoint.

    Raises:
        ValueError: see [`to_released_state_dict`].
    """
    out_file = Path(out_file)
    model = BMDetrForMomentRetrieval.from_pretrained(model_dir)
    state_dict, options = to_released_state_dict(model), released_options(model.config)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    if out_file.suffix == ".safetensors":
        with replacing_path(out_file) as aside:
            save_file(state_dict, aside)
        return out_file
    # Plain containers only, so that weights-only loading, the default since PyTorch 2.6, accepts the file.
    with replacing_file(out_file, binary=True) as file:
        torch.save({"model": state_dict, "epoch": 0, "opt": options}, file)
    options_file = out_file.with_name("opt.json")
    if options_file.exists():
        logger.warning(f"{options_file} is already there and was left as it is; it may belong to another checkpoint")
    else:
        with replacing_file(options_file) as file:
            file.write(json.dumps(options, indent=4) + "\n")
    return out_file


def _convert(
    checkpoint: ReleasedCheckpoint, strict: bool, config_options: Mapping[str, Any]
) -> tuple[BMDetrForMomentRetrieval, ConversionReport]:
    config, notes = released_config(checkpoint, **config_options)
    model = BMDetrForMomentRetrieval(config).eval()
    state_dict, own = checkpoint.state_dict, model.state_dict()
    layout, idle = released_layout(own), idle_parameters(config)
    report = ConversionReport(
        origin=checkpoint.origin,
        converted=tuple(name for name in state_dict if name in layout),
        dropped=tuple(name for name in state_dict if name in idle),
        unknown=tuple(name for name in state_dict if name not in layout and name not in idle),
        missing=tuple(name for name in layout if name not in state_dict),
        notes=tuple(notes),
    )
    if not report.converted:
        raise ValueError(
            f"{report.origin} is no checkpoint of BM-DETR's released code: none of its {len(state_dict)} entries "
            f"{list(state_dict)[:4]}... is a parameter of it"
        )
    if strict and (report.unknown or report.missing):
        raise ValueError(
            f"{report}\nThe checkpoint is of another model, or incomplete. Get it whole, or pass "
            "strict=False to leave unknown parameters out and initialise missing ones."
        )
    _check_shapes(checkpoint, own, layout)
    parts = {
        part: values
        for name in report.converted
        for part, values in zip(layout[name], state_dict[name].chunk(len(layout[name])), strict=True)
    }
    model.load_state_dict(parts, strict=not report.missing)
    return model, report


def _check_shapes(
    checkpoint: ReleasedCheckpoint, own: Mapping[str, Tensor], layout: Mapping[str, tuple[str, ...]]
) -> None:
    wrong = []
    for name, parts in layout.items():
        first = own[parts[0]].shape
        expected = (len(parts) * first[0], *first[1:])
        if name in checkpoint.state_dict and (shape := tuple(checkpoint.state_dict[name].shape)) != expected:
            wrong.append(f"  {name}: {shape}, expected {expected}")
    if wrong:
        raise ValueError(
            f"{checkpoint.origin}: parameters have unexpected shapes; the sizes were read from other parameters of the "
            "checkpoint, or given as options\n" + "\n".join(wrong)
        )
