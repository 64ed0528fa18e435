"""Queries about what a video does not show: made by rule from other videos' sentences, or read from published files."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from .jsonl import read_rows
from .plain import plain_rows
from .qids import text_qid
from .schema import CanonicalRow
from .validation import require_fields

UNRELATED = "unrelated"
# Words that say little of what happens; what a sentence shares with another beyond them is content.
_EMPTY_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the and or of to in on at with from into up down out off over for by is are was were be being been it "
        "its this that there their they he she his her him them then while as who person people man woman someone some",
    )
)
_MAX_DRAWS = 64


@dataclass
class AbsentReport:
    """How many absent rows were added to how many, from which seed, and for how many no sentence was found."""

    rows: int
    added: int
    without_partner: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.added} absent rows added to {self.rows} rows (seed {self.seed}); "
            f"{self.without_partner} videos drawn had no sentence without a content word in common"
        )


def content_words(sentence: str) -> frozenset[str]:
    """The words of a sentence in lower case, without articles, pronouns, prepositions and endings of three kinds."""
    words = re.findall(r"[a-z0-9]+", sentence.lower())
    return frozenset(re.sub(r"(ing|ed|es|s)$", "", word) for word in words if word not in _EMPTY_WORDS)


def add_absent_rows(
    rows: Sequence[CanonicalRow], share: float = 0.5, seed: int = 0
) -> tuple[list[CanonicalRow], AbsentReport]:
    """Rows, followed by absent ones: sentences of other videos that share no content word with those of the video.

    A video is taken from the rows, as often as they name it, and a sentence from another video is drawn until it has no
    content word in common with any sentence of the video. That a sentence is unlike all that is said of a video does
    not prove that the video does not show it: such rows are labels by rule, and say so by `absent_kind` "unrelated".

    Args:
        rows: canonical rows with labels.
        share: absent rows per row that has a moment.
        seed: of all draws.

    Returns:
        The rows as they are and the new ones, whose `qid` is that of the row their video comes from with `_absent`
        behind it, whose `text_qid` is the query their sentence comes from (so that they need no text features of
        their own), and whose `relevant_windows` are empty; and the report.

    Raises:
        ValueError: `share` is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"`share` must lie in [0, 1], received {share}: absent rows per row that has a moment")
    rows = cast(list[CanonicalRow], plain_rows(rows))
    labelled = [row for row in rows if row.get("relevant_windows")]
    rng = np.random.default_rng(seed)
    said: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        said[row["vid"]] |= content_words(row["query"])
    words = [content_words(row["query"]) for row in labelled]
    chosen = np.sort(rng.permutation(len(labelled))[: round(share * len(labelled))])
    added: list[CanonicalRow] = []
    for index in chosen:
        row = labelled[index]
        for other in rng.integers(len(labelled), size=_MAX_DRAWS):
            if words[other] and labelled[other]["vid"] != row["vid"] and not words[other] & said[row["vid"]]:
                absent: CanonicalRow = {
                    "qid": f"{row['qid']}_absent",
                    "vid": row["vid"],
                    "query": labelled[other]["query"],
                    "duration": row["duration"],
                    "relevant_windows": [],
                    "absent_kind": UNRELATED,
                    "text_qid": text_qid(labelled[other]),
                }
                if row.get("video") is not None:
                    absent["video"] = row["video"]
                added.append(absent)
                break
    return [*rows, *added], AbsentReport(len(rows), len(added), len(chosen) - len(added), seed)


def read_absent_rows(path: str | Path, kind: str | None = None) -> list[CanonicalRow]:
    """Rows of a published file with absent queries, as canonical rows.

    Two forms are read. The files of generalised moment retrieval (GMR) are canonical already: absent queries have
    `relevant_windows: []`. The negative queries of Moment of Untruth (for QVHighlights and Charades-STA) have
    `[[0, 0]]` and `saliency_scores: [[]]`, and may repeat the `qid` of the query their sentence comes from: a repeated
    qid is given `_absent` (then `_absent2`, ...) at its end, and the repeated one as `text_qid`: both have its text
    features.

    Args:
        path: the JSONL file.
        kind: the `absent_kind` to write into absent rows that have none, such as `in_domain` or `out_of_domain`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is no JSON object, or has no qid.
    """
    rows: list[CanonicalRow] = []
    taken: set[str] = set()
    read_from = read_rows(path)
    require_fields(read_from, ("qid",))
    for read in read_from:
        row: CanonicalRow = {**read}
        if row.get("relevant_windows") in ([], [[0.0, 0.0]]):
            row["relevant_windows"] = []
            for name in ("relevant_clip_ids", "saliency_scores"):
                row.pop(name, None)  # type: ignore[misc]
            if kind is not None:
                row.setdefault("absent_kind", kind)
        qid, number = row["qid"], 1
        while row["qid"] in taken:
            row["qid"] = f"{qid}_absent{number if number > 1 else ''}"
            row["text_qid"] = qid
            number += 1
        taken.add(row["qid"])
        rows.append(row)
    return rows
