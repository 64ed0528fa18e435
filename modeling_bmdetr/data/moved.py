"""Modules of `modeling_bmdetr.data` by the names that they had in version 0.1.0, for one version more.

Importing one of them warns and gives the module that holds its contents now.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = __name__.rpartition(".")[0]
_MOVED = {
    "cleaning": ["rows.cleaning"],
    "collator": ["batches.collator", "batches.examples"],
    "extract": ["features.extraction"],
    "feature_checks": ["features.fit"],
    "feature_files": ["features.published"],
    "feature_store": ["features.store"],
    "feature_writer": ["features.writer"],
    "file_checks": ["features.file_checks", "features.video_files"],
    "negative_sampling": ["batches.negative_sampling"],
    "negatives": ["batches.negatives"],
    "packed_features": ["features.packed"],
    "packing": ["features.packing"],
    "sampler": ["batches.sampler"],
    "schema": ["rows.schema", "rows.jsonl", "rows.qids"],
    "shifting": ["batches.shifting"],
    "validation": ["rows.validation"],
}


class MovedModules(MetaPathFinder, Loader):
    """Finds the old names of modules."""

    def find_spec(self, name: str, *more: Any) -> ModuleSpec | None:  # noqa: ARG002
        package, _, module = name.rpartition(".")
        return ModuleSpec(name, self) if package == _PACKAGE and module in _MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        places = [f"{_PACKAGE}.{place}" for place in _MOVED[module.__name__.rpartition(".")[2]]]
        warnings.warn(f"{module.__name__} has moved to {' and '.join(places)}", DeprecationWarning, stacklevel=2)
        for place in places:
            held = vars(import_module(place))
            module.__dict__.update({name: value for name, value in held.items() if not name.startswith("__")})


def find_moved_modules() -> None:
    """Makes the old names importable; called when the package is imported."""
    sys.meta_path.append(MovedModules())
