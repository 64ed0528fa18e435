"""Annotations, features, negative queries and batches: everything between the files of a data set and the model."""

from .batches.collator import MomentRetrievalCollator
from .batches.examples import MomentRetrievalDataset
from .batches.negative_sampling import NegativeSampler
from .batches.negatives import NegativeMiningReport, mine_negative_queries
from .batches.sampler import UniqueVideoBatchSampler
from .batches.shifting import shift_moment
from .features.extraction import ExtractionReport, extract_features
from .features.file_checks import check_text_features, validate_file
from .features.packing import pack_features
from .features.published import count_tokens
from .features.store import FeatureStore
from .features.writer import FeatureWriter
from .rows.cleaning import CleaningReport, CleaningRules, clean_rows
from .rows.schema import CanonicalRow, Problem, RowFile, ValidationReport, original_qid, read_rows, write_rows
from .rows.validation import validate_rows

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
