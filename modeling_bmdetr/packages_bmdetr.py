"""Packages that only some tasks need: they are imported when such a task begins."""

from importlib import import_module
from types import ModuleType


def needed_module(name: str, otherwise: str) -> ModuleType:
    """A module of a package that may not be installed.

    Raises:
        ImportError: it is not installed; `otherwise` is the message, which says what needs it and how to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(otherwise) from error
