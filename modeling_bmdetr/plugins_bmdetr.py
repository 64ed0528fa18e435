"""Modules of users and of other packages that register encoders and losses, and the losses that they register.

Encoders are registered by `register_video_encoder` and `register_text_encoder` of `encoders_bmdetr.py`.
"""

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

GROUP = "modeling_bmdetr.plugins"
_imported: list[str] = []
_losses: dict[str, Callable[[Any], Any]] = {}


def import_plugins(modules: Iterable[str]) -> None:
    """Imports modules that register encoders or losses, by name, from the working directory too.

    Worker processes do the same.

    Raises:
        ImportError: if there is no such module, or it does not import.
    """
    for module in modules:
        if module in _imported:
            continue
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(f"cannot import the plug-in {module!r}: {error}") from error
        _imported.append(module)


def imported_plugins() -> tuple[str, ...]:
    """The modules that `import_plugins` has imported, for processes and recipes that must know the same."""
    return tuple(_imported)


def load_declared_plugins() -> None:
    """Imports what installed packages declare as entry points of `GROUP`."""
    for entry_point in importlib.metadata.entry_points(group=GROUP):
        entry_point.load()


def register_loss(name: str, factory: Callable[[Any], Any]) -> None:
    """Makes `BMDetrConfig(loss=name)` train with `factory(config)`, which is called as `BMDetrLoss` is."""
    _losses[name] = factory


def require_loss(name: str) -> None:
    """Raises `ValueError` unless a module that was imported, or an installed package, registers a loss of this name."""
    if name not in _losses:
        load_declared_plugins()
    if name not in _losses:
        known = ", ".join(repr(other) for other in sorted(_losses)) or "none"
        raise ValueError(
            f"`loss` must be the name of a registered loss (known: {known}), received {name!r}. Import the module that "
            "registers it (`import` of a recipe, --import, import_plugins)"
        )


def registered_loss(name: str, config: Any) -> Any:
    """The loss of this name; where none is registered, one that says so when it is called.

    A checkpoint that was trained with a plug-in's loss so answers without it.
    """
    if name not in _losses:
        load_declared_plugins()
    return _losses[name](config) if name in _losses else MissingLoss(name)


class MissingLoss:
    """Stands for a loss that is not registered."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, *arguments: Any) -> Any:  # noqa: ARG002
        require_loss(self.name)
        raise ValueError(f"the loss {self.name!r} was registered after the model was made; load the model again")
