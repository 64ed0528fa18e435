"""Tells transformers' auto classes and pipelines of BM-DETR, in whatever order the two packages are imported.

`import modeling_bmdetr` must be cheap, yet `AutoModel`, `AutoProcessor` and `pipeline("temporal-grounding")` must know
BM-DETR after it. So each registration is made as soon as the module of transformers that keeps the register has been
imported: at once if it has been already, and otherwise right after it is. The same is done for modules of this package,
which must not be imported by a registration while one of them is itself in the middle of its import.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_PACKAGE = __name__.rpartition(".")[0]


def _register_class(auto: str, module: str, name: str) -> None:
    """Tells an auto class of transformers of a class in one of our modules."""
    auto_class = getattr(import_module("transformers"), auto)

    from .configuration_bmdetr import BMDetrConfig

    key = BMDetrConfig.model_type if auto == "AutoConfig" else BMDetrConfig
    auto_class.register(key, getattr(import_module(module, _PACKAGE), name), exist_ok=True)


def _register_pipeline() -> None:
    from transformers import AutoModel
    from transformers.pipelines import PIPELINE_REGISTRY

    from .pipeline_bmdetr import MomentRetrievalPipeline
    from .saving_bmdetr import TASK

    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=MomentRetrievalPipeline, pt_model=AutoModel, type="multimodal"
    )


def _set_card_writer() -> None:
    from .modeling_bmdetr import BMDetrForMomentRetrieval

    def write_card(*args: Any, **kwargs: Any) -> Any:
        from .cards import write_model_card

        return write_model_card(*args, **kwargs)

    BMDetrForMomentRetrieval.card_writer = staticmethod(write_card)


class RegistrationFinder(MetaPathFinder):
    """Runs each registration once, after the import of the module that it waits for."""

    def __init__(self) -> None:
        self.waiting: dict[str, Callable[[], None]] = {
            **{
                f"transformers.models.auto.{kind}_auto": partial(_register_class, auto, f".{kind}_bmdetr", name)
                for kind, auto, name in (
                    ("configuration", "AutoConfig", "BMDetrConfig"),
                    ("modeling", "AutoModel", "BMDetrForMomentRetrieval"),
                    ("processing", "AutoProcessor", "BMDetrProcessor"),
                )
            },
            "transformers.pipelines": _register_pipeline,
            f"{_PACKAGE}.modeling_bmdetr": _set_card_writer,
        }
        self.imported = {name for name in self.waiting if name in sys.modules}
        self.own_imports_running = 0

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The usual spec of a module that matters here, whose execution is followed by the registrations now due."""
        own = name.startswith(f"{_PACKAGE}.")
        if not own and name not in self.waiting:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_then_register(module: ModuleType) -> None:
            self.own_imports_running += own
            try:
                execute(module)
            finally:
                self.own_imports_running -= own
            self.imported.add(name)
            self.register_due()

        spec.loader.exec_module = execute_then_register  # type: ignore[method-assign]
        return spec

    def register_due(self) -> None:
        """Makes the registrations whose module has been imported, unless one of our modules is half imported."""
        for name in list(self.waiting):
            if name in self.imported and not self.own_imports_running and name in self.waiting:
                self.waiting.pop(name)()


def register_with_transformers() -> None:
    """Makes the registrations that are possible now and sees to the others; called when the package is imported."""
    finder = RegistrationFinder()
    sys.meta_path.insert(0, finder)
    finder.register_due()
