"""Annotations, features, negative queries and batches: everything between the files of a data set and the model."""

from .cleaning import CleaningReport, CleaningRules, clean_rows
from .file_checks import check_text_features, validate_file
from .schema import CanonicalRow, Problem, RowFile, ValidationReport, original_qid, read_rows, write_rows
from .validation import validate_rows

__all__ = [
    "CanonicalRow",
    "RowFile",
    "original_qid",
    "read_rows",
    "write_rows",
    "validate_rows",
    "validate_file",
    "check_text_features",
    "Problem",
    "ValidationReport",
    "clean_rows",
    "CleaningReport",
    "CleaningRules",
]
