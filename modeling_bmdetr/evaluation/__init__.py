"""Metrics of video moment retrieval and highlight detection, in NumPy; see `evaluate_submission`."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from ..data.rows.jsonl import read_jsonl as read_jsonl
    from ..data.rows.jsonl import write_jsonl as write_jsonl
    from ..data.rows.qids import canonical_qid as canonical_qid
    from ..data.rows.qids import restore_qid_types as restore_qid_types
    from .evaluator import METRIC_FORMATS as METRIC_FORMATS
    from .evaluator import evaluate_module_path as evaluate_module_path
    from .evaluator import evaluate_submission as evaluate_submission
    from .evaluator import format_metrics as format_metrics
    from .evaluator import submission_reliability as submission_reliability
    from .presence import rejection_f1 as rejection_f1
    from .reliability import auroc as auroc
    from .reliability import brier_score as brier_score
    from .reliability import expected_calibration_error as expected_calibration_error
    from .reliability import reliability_bins as reliability_bins

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
