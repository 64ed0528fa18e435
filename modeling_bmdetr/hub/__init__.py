"""Between this package and other homes of its checkpoints."""

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
