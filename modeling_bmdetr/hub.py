"""Where conversion and model cards were before version 0.2; the names forward to their new places for one version."""

import warnings
from typing import Any

from . import cards, released
from .training import record

_MOVED = {
    **dict.fromkeys(released.__all__, released),
    "render_model_card": cards,
    "write_model_card": cards,
    "training_record": record,
}


def __getattr__(name: str) -> Any:
    if (room := _MOVED.get(name)) is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    warnings.warn(f"{__name__}.{name} has moved to {room.__name__}.{name}", DeprecationWarning, stacklevel=2)
    return getattr(room, name)
