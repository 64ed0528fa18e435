"""Checkpoints of the authors' released code: to this package, and back."""

from .conversion import (
    ConversionReport,
    convert_released_checkpoint,
    convert_to_folder,
    export_released,
    to_released_state_dict,
)

__all__ = [
    "convert_released_checkpoint",
    "convert_to_folder",
    "export_released",
    "to_released_state_dict",
    "ConversionReport",
]
