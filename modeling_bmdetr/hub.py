"""Where conversion and model cards were in version 0.1; the names forward to their new places for one version."""

import warnings
from importlib import import_module
from typing import Any

_CONVERSION = ("convert_released_checkpoint", "convert_to_folder", "export_released", "to_released_state_dict")
_MOVED = {
    **dict.fromkeys((*_CONVERSION, "ConversionReport"), "modeling_bmdetr.released"),
    "render_model_card": "modeling_bmdetr.cards",
    "write_model_card": "modeling_bmdetr.cards",
    "training_record": "modeling_bmdetr.training.record",
}


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    warnings.warn(f"{__name__}.{name} has moved to {_MOVED[name]}.{name}", DeprecationWarning, stacklevel=2)
    return getattr(import_module(_MOVED[name]), name)
