"""Metrics of video moment retrieval and highlight detection, in NumPy; see `evaluate_submission`."""

from .evaluator import METRIC_FORMATS, evaluate_module_path, evaluate_submission, format_metrics
from .submission import canonical_qid, read_jsonl, restore_qid_types, write_jsonl

__all__ = [
    "evaluate_submission",
    "format_metrics",
    "METRIC_FORMATS",
    "read_jsonl",
    "write_jsonl",
    "restore_qid_types",
    "canonical_qid",
    "evaluate_module_path",
]
