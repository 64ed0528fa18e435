"""Packages whose names are imported when they are first used, so that importing a package costs next to nothing."""

import re
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

_FOR_TYPE_CHECKERS = re.compile(r"^    from (\.\S+) import (\w+) as \2$", re.MULTILINE)


def lazy_names(
    package: str, file: str, moved: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package that imports a name when it is first used (PEP 562).

    The names, and the modules that they come from, are those that the package imports for editors and type checkers,
    one on each line below `if TYPE_CHECKING:`, as in `from .rows.schema import Problem as Problem`.

    Args:
        package, file: The package's `__name__` and `__file__`.
        moved: Modules by the names that they had before; they keep working for one version, with a warning.
    """
    places = {name: module for module, name in _FOR_TYPE_CHECKERS.findall(Path(file).read_text(encoding="utf-8"))}

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
