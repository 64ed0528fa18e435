"""Packages whose names are imported when they are first used, so that importing a package costs next to nothing."""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, names_by_module: Mapping[str, Sequence[str]], moved: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package that imports a name when it is first used (PEP 562).

    Editors and type checkers do not run this, so the package imports the same names under `TYPE_CHECKING` too.

    Args:
        package: The package's `__name__`.
        names_by_module: Public names by the module, relative to the package (".rows.schema"), that they come from.
        moved: Modules by the names that they had before; they keep working for one version, with a warning.
    """
    places = {name: module for module, names in names_by_module.items() for name in names}

    def get(name: str) -> Any:
        if moved and name in moved:
            warnings.warn(f"{package}.{name} is now {package}{moved[name]}", DeprecationWarning, stacklevel=2)
            return import_module(moved[name], package)
        if name not in places:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(import_module(places[name], package), name)
        vars(sys.modules[package])[name] = value
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *places}), list(places)
