"""Annotations, features, negative queries and batches: everything between the files of a data set and the model."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names
from .moved import find_moved_modules

if TYPE_CHECKING:
    from .batches.collator import MomentRetrievalCollator as MomentRetrievalCollator
    from .batches.examples import MomentRetrievalDataset as MomentRetrievalDataset
    from .batches.negative_sampling import NegativeSampler as NegativeSampler
    from .batches.negatives import NegativeMiningReport as NegativeMiningReport
    from .batches.negatives import mine_negative_queries as mine_negative_queries
    from .batches.sampler import UniqueVideoBatchSampler as UniqueVideoBatchSampler
    from .batches.shifting import shift_moment as shift_moment
    from .features.extraction import ExtractionReport as ExtractionReport
    from .features.extraction import extract_features as extract_features
    from .features.file_checks import check_text_features as check_text_features
    from .features.file_checks import validate_file as validate_file
    from .features.packing import pack_features as pack_features
    from .features.published import count_tokens as count_tokens
    from .features.store import FeatureStore as FeatureStore
    from .features.writer import FeatureWriter as FeatureWriter
    from .rows.absent import AbsentReport as AbsentReport
    from .rows.absent import add_absent_rows as add_absent_rows
    from .rows.absent import read_absent_rows as read_absent_rows
    from .rows.cleaning import CleaningReport as CleaningReport
    from .rows.cleaning import CleaningRules as CleaningRules
    from .rows.cleaning import clean_rows as clean_rows
    from .rows.jsonl import RowFile as RowFile
    from .rows.jsonl import read_rows as read_rows
    from .rows.jsonl import write_rows as write_rows
    from .rows.qids import original_qid as original_qid
    from .rows.schema import CanonicalRow as CanonicalRow
    from .rows.schema import Problem as Problem
    from .rows.schema import ValidationReport as ValidationReport
    from .rows.validation import validate_rows as validate_rows

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
find_moved_modules()
