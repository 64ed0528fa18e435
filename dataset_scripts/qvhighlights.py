"""QVHighlights: 10,310 queries about 10,148 videos of at most 150 s, with several moments and saliency for each."""

from modeling_bmdetr.data import CanonicalRow, read_rows

from .builder import ROW_FEATURES, SALIENCY_FEATURES, BenchmarkBuilder, SourceFile

_ORIGIN = "github.com/jayleicn/moment_detr @ b7e553ac3b0c898ee6b85e03ee507c064eab89ca : data/"
_FILES = {
    "train": "highlight_train_release.jsonl",
    "val": "highlight_val_release.jsonl",
    "test": "highlight_test_release.jsonl",
    "test_with_gt": "highlight_test_with_gt.jsonl",
}


class QVHighlights(BenchmarkBuilder):
    """QVHighlights in its original JSONL format, which is the canonical row.

    The qids are the original ones, so `test` and `test_with_gt` share theirs: they are the same queries, without labels
    and with the labels that the authors published after their evaluation server had closed. Never train or select on
    those. Windows are multiples of 2 s, saliency scores are those of three annotators for each relevant clip of 2 s.
    """

    TITLE = "QVHighlights"
    DESCRIPTION = (
        "Queries about vlogs and news with all the moments they describe and saliency scores of three annotators. "
        "The split test_with_gt holds the test labels: never train or select on it."
    )
    FILES = (
        SourceFile(_FILES["train"], _ORIGIN + _FILES["train"], "train", "fd28404187468f57"),
        SourceFile(_FILES["val"], _ORIGIN + _FILES["val"], "val", "f668a1eaea156ec5"),
        SourceFile(_FILES["test"], _ORIGIN + _FILES["test"], "test", "0462f0cb582b5491"),
        SourceFile(_FILES["test_with_gt"], _ORIGIN + _FILES["test_with_gt"], "test_with_gt", "bd50ec6bb5dd3f72"),
    )
    LICENCE = "CC BY-NC-SA 4.0, stated by the authors for the annotations (data/LICENSE in their repository)"
    HUB_LICENCE = "cc-by-nc-sa-4.0"
    HOMEPAGE = "https://github.com/jayleicn/moment_detr"
    CITATION = (
        "Lei, Berg, Bansal. QVHighlights: Detecting Moments and Highlights in Videos via Natural Language Queries. "
        "NeurIPS 2021."
    )
    FEATURES = {**ROW_FEATURES, **SALIENCY_FEATURES}
    TOTALS = {"train + val + test_with_gt": ("train", "val", "test_with_gt")}
    INTEGER_QIDS = True

    def stored_rows(self, split: str) -> list[CanonicalRow]:
        rows = list(read_rows(self.path(_FILES[split])))
        for row in rows:
            row["duration"] = float(row["duration"])
            windows = row.get("relevant_windows")
            row["relevant_windows"] = None if windows is None else [[float(s), float(e)] for s, e in windows]
        return rows
