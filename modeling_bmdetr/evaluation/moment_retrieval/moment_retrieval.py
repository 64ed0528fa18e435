"""The metrics of `evaluate_submission` as a module of the `evaluate` library."""

from typing import Any

import datasets
import evaluate

from modeling_bmdetr.evaluation import canonical_qid, evaluate_submission

_DESCRIPTION = """
Video moment retrieval and highlight detection: R@1 and R@5 at temporal IoU 0.3, 0.5 and 0.7, mean IoU, mAP (also by
moment length), and highlight mAP and HIT@1 where saliency is annotated; recall of several moments, calibration
of scores and presence where the rows have them. Equal to Moment-DETR's released evaluator.
"""

_INPUTS_DESCRIPTION = """
Rows are matched by `qid` over everything that was added, so predictions and references may come in different orders.

Args:
    predictions (`list` of `dict`): `qid` (string or integer), optional `vid`, `pred_relevant_windows`
        [[start s, end s, score], ...] best first, optional `pred_saliency_scores` (one for each clip) and
        `pred_exist_score` (probability that the video shows what the query says).
    references (`list` of `dict`): `qid`, optional `vid`, `relevant_windows` [[start s, end s], ...], empty for
        a query that the video does not answer, optional `absent_kind`; for highlights
        also `duration` (s), `relevant_clip_ids`, `saliency_scores` (clips x annotators). Other fields are ignored.
    clip_length_s (`float`): seconds per clip of the saliency annotation, 2 by default (`compute` only).

Returns:
    `dict` of `float`: percent, rounded to two digits; keys as in `modeling_bmdetr.evaluation.evaluate_submission`.
"""

_CITATION = """
@inproceedings{lei2021detecting,
    title = {Detecting Moments and Highlights in Videos via Natural Language Queries},
    author = {Lei, Jie and Berg, Tamara L. and Bansal, Mohit},
    booktitle = {Advances in Neural Information Processing Systems},
    year = {2021}
}
"""

_NUMBERS = datasets.List(datasets.Value("float64"))
_PREDICTION = {
    "qid": datasets.Value("string"),
    "vid": datasets.Value("string"),
    "pred_relevant_windows": datasets.List(_NUMBERS),
    "pred_saliency_scores": _NUMBERS,
    "pred_exist_score": datasets.Value("float64"),
}
_REFERENCE = {
    "qid": datasets.Value("string"),
    "vid": datasets.Value("string"),
    "duration": datasets.Value("float64"),
    "relevant_windows": datasets.List(_NUMBERS),
    "relevant_clip_ids": datasets.List(datasets.Value("int64")),
    "saliency_scores": datasets.List(_NUMBERS),
    "absent_kind": datasets.Value("string"),
}


class MomentRetrieval(evaluate.Metric):
    """`evaluate.load(evaluate_module_path())`; the metrics and their definitions are `evaluate_submission`'s."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": _PREDICTION, "references": _REFERENCE}),
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one prediction and one reference."""
        super().add(prediction=_select(prediction, _PREDICTION), reference=_select(reference, _REFERENCE), **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add as many predictions as references."""
        if predictions is None or references is None:
            raise ValueError("predictions and references must both be given, as lists of dictionaries.")
        super().add_batch(
            predictions=[_select(row, _PREDICTION) for row in predictions],
            references=[_select(row, _REFERENCE) for row in references],
            **kwargs,
        )

    def _compute(self, predictions: Any, references: Any, clip_length_s: float = 2.0) -> dict[str, float]:
        return evaluate_submission(
            [_drop_absent(row) for row in predictions],
            [_drop_absent(row) for row in references],
            clip_length_s=clip_length_s,
        )


def _select(row: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The fields of the schema: the table that `evaluate` keeps holds all of them, and no None for a string."""
    fields = {field: row.get(field) for field in schema}
    texts: dict[str, Any] = {
        field: row.get(field) or "" for field in ("vid", "absent_kind") if field in schema
    }  # never None
    return {**fields, **texts, "qid": canonical_qid(row.get("qid"))}


def _drop_absent(row: dict[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in row.items() if value is not None and value != ""}
