"""Metrics of video moment retrieval and highlight detection, in NumPy; see `evaluate_submission`."""

from ..data.rows.jsonl import read_jsonl, write_jsonl
from ..data.rows.qids import canonical_qid, restore_qid_types
from .evaluator import METRIC_FORMATS, evaluate_module_path, evaluate_submission, format_metrics

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
