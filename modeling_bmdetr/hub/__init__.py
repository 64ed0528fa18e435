"""Between this package and other homes of its checkpoints."""

from .conversion import (
    ConversionReport,
    convert_released_checkpoint,
    convert_to_folder,
    export_released,
    to_released_state_dict,
)
from .model_card import render_model_card, write_model_card
from .training_record import training_record

__all__ = [
    "convert_released_checkpoint",
    "convert_to_folder",
    "export_released",
    "to_released_state_dict",
    "ConversionReport",
    "render_model_card",
    "write_model_card",
    "training_record",
]
