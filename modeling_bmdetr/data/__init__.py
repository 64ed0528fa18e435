"""Annotations, features, negative queries and batches: everything between the files of a data set and the model."""

from .cleaning import CleaningReport, CleaningRules, clean_rows
from .collator import MomentRetrievalCollator, MomentRetrievalDataset
from .extract import ExtractionReport, extract_features
from .feature_files import count_tokens
from .feature_store import FeatureStore
from .feature_writer import FeatureWriter
from .file_checks import check_text_features, validate_file
from .negative_sampling import NegativeSampler
from .negatives import NegativeMiningReport, mine_negative_queries
from .packing import pack_features
from .sampler import UniqueVideoBatchSampler
from .schema import CanonicalRow, Problem, RowFile, ValidationReport, original_qid, read_rows, write_rows
from .shifting import shift_moment
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
    "FeatureStore",
    "FeatureWriter",
    "pack_features",
    "count_tokens",
    "extract_features",
    "ExtractionReport",
    "mine_negative_queries",
    "NegativeMiningReport",
    "NegativeSampler",
    "MomentRetrievalCollator",
    "MomentRetrievalDataset",
    "UniqueVideoBatchSampler",
    "shift_moment",
]
