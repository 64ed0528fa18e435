"""Annotations as people have them, turned into canonical rows: `import_annotations` and `bmdetr import`."""

from .importing import FORMATS, ImportOptions, ImportReport, import_annotations
from .moments import AnnotationError

__all__ = ["import_annotations", "ImportOptions", "ImportReport", "AnnotationError", "FORMATS"]
