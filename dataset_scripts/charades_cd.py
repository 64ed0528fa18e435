"""Charades-CD: Charades-STA split anew, with a test set whose moments lie where those of the training set do not."""

import logging

from modeling_bmdetr.data import CanonicalRow

from .builder import BenchmarkBuilder, SourceFile
from .grouped_json import grouped_rows
from .released_qids import adopt_released_qids

logger = logging.getLogger(__name__)
_ORIGIN = "github.com/yytzsy/grounding_changing_distribution @ 83b07d484104e2b5a33da9e17352aeabcc10fe5a : Charades-CD/"


class CharadesCD(BenchmarkBuilder):
    """Charades-CD in its original format: `{vid: {timestamps, sentences, video_duration, ...}}`, times in seconds.

    The sentences are those of Charades-STA without full stops. With `released_jsonl` the rows carry the qids of
    released text features: those of Charades-CD's own release join sentence for sentence, those of Charades-STA's
    release only up to full stops, which is logged.
    """

    TITLE = "Charades-CD"
    DESCRIPTION = (
        "Charades-STA split anew: test_iid has the distribution of moments of the training split, test_ood another."
    )
    FILES = (
        SourceFile("charades_train.json", _ORIGIN + "charades_train.json", "train", "e8bd49b87d6e166b"),
        SourceFile("charades_val.json", _ORIGIN + "charades_val.json", "val", "05d451cbf0cc6441"),
        SourceFile("charades_test_iid.json", _ORIGIN + "charades_test_iid.json", "test_iid", "c75e4393425a2184"),
        SourceFile("charades_test_ood.json", _ORIGIN + "charades_test_ood.json", "test_ood", "a73847ada163bfcb"),
    )
    LICENCE = "none stated in the repository; the Charades videos have a licence of their own. Use for research"
    HOMEPAGE = "https://github.com/yytzsy/grounding_changing_distribution"
    CITATION = (
        "Yuan, Lan, Wang, Chen, Wang, Zhu. A Closer Look at Temporal Sentence Grounding in Videos: Dataset and Metric. "
        "HUMA at ACM Multimedia 2021."
    )
    TOTALS = {"all": ("train", "val", "test_iid", "test_ood")}
    READS_RELEASED_JSONL = True

    def stored_rows(self, split: str) -> list[CanonicalRow]:
        rows = grouped_rows(
            self.path(f"charades_{split}.json"),
            qid=lambda position: self.qid(split, position),
            duration_s=lambda record: float(record["video_duration"]),
        )
        if self.config.released_jsonl is not None:
            rows, without_stops = adopt_released_qids(rows, self.config.released_jsonl)
            if without_stops:
                logger.warning(
                    "%s %s: %d of %d rows were joined to released sentences that have full stops; their text features "
                    "were not made from these sentences to the letter",
                    self.TITLE, split, len(without_stops), len(rows),
                )  # fmt: skip
        return rows
