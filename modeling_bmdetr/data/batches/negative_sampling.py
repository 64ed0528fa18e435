"""Draws the negative queries of a training row, by the sampling strategies of Figure 3."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from ..rows.qids import canonical_qid
from ..rows.validation import require_fields
from .negatives import normalize_sentence

Strategy = Literal["mined", "mined_only", "same_video", "random_video", "none"]
# A random query repeats the row's own sentence with a chance of a few percent at most, so that this many draws suffice
# unless nearly all sentences of the data set are the same.
_MAX_DRAWS = 32


class NegativeSampler:
    """Draws negative queries for rows, as row indices.

    | strategy | draws from | where that is empty |
    |---|---|---|
    | `mined` | `neg_query_ids`: Principles 1 and 2 | a query of another video |
    | `mined_only` | `neg_query_ids` | nothing |
    | `same_video` | every other query of the video, whatever its moment and meaning | a query of another video |
    | `random_video` | queries of other videos | nothing |
    | `none` | nothing | nothing |

    `mined` is the paper's sampling strategy, `same_video` its model without that strategy (Figure 3, left). Where
    several negatives are asked for, they are filled up in the same way. A query of another video is drawn evenly from
    all of them, except those whose sentence equals the row's own but for case, punctuation and articles. Draws depend
    on the rows, the row and the generator alone. Nothing is drawn twice for one row.

    The sampler holds arrays of numbers, no rows; a draw takes the same time whatever the size of the data set.

    Args:
        rows: canonical rows of the training split.
        strategy: one of the above.
        absent_share: the share of draws that take queries of other videos only, whatever the strategy (but `none`):
            what they say is absent from the row's video, which is what presence is learned from.

    Raises:
        ValueError: if a row lacks `vid` or `query`, the strategy is unknown, `absent_share` is outside [0, 1], qids
            repeat, no row has `neg_query_ids` although `mined` is asked for, or they name a query twice, one that is
            not among the rows or one of another video.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], strategy: Strategy = "mined", absent_share: float = 0.0
    ) -> None:
        if strategy not in get_args(Strategy):
            raise ValueError(f"`strategy` must be one of {list(get_args(Strategy))}, received {strategy!r}")
        if not 0 <= absent_share <= 1:
            raise ValueError(f"`absent_share` must lie in [0, 1], received {absent_share}")
        rows = require_fields(
            rows, ("qid", "vid", "query") if strategy in ("mined", "mined_only") else ("vid", "query")
        )
        self.strategy, self.absent_share = strategy, absent_share
        videos: dict[str, int] = {}
        sentences: dict[str, int] = {}
        self._video_of = np.array([videos.setdefault(row["vid"], len(videos)) for row in rows], dtype=np.int64)
        self._sentence_of = np.array(
            [sentences.setdefault(normalize_sentence(row["query"]), len(sentences)) for row in rows], dtype=np.int64
        )
        # Rows sorted by video: a video is a block, and all others are what remains of the order without it.
        self._order = np.argsort(self._video_of, kind="stable")
        sizes = np.bincount(self._video_of, minlength=len(videos))
        self._block_end = np.cumsum(sizes)
        self._block_start = self._block_end - sizes
        self._mined = self._mined_end = np.zeros(0, dtype=np.int64)
        self._mined_weights: np.ndarray | None = None
        if strategy in ("mined", "mined_only"):
            self._mined, self._mined_end = self._mined_rows(rows)
            self._mined_weights = self._weights(rows)

    def __len__(self) -> int:
        return len(self._video_of)

    def draw(self, row_index: int, rng: np.random.Generator, num_negatives: int = 1) -> list[int]:
        """Row indices of negative queries for a row: `num_negatives`, or fewer where there are not so many.

        Candidates of the strategy come first; what they leave open is filled from other videos (`mined_only`: left).
        """
        if self.strategy == "none" or num_negatives < 1:
            return []
        if self.absent_share and rng.random() < self.absent_share:
            return self._draw_elsewhere(row_index, rng, num_negatives)
        candidates = self._candidates(row_index)
        drawn: list[int] = []
        if len(candidates):
            chosen = rng.choice(len(candidates), size=min(num_negatives, len(candidates)), replace=False)
            drawn = [int(candidates[i]) for i in chosen]
        if self.strategy == "mined_only":
            return drawn
        return drawn + self._draw_elsewhere(row_index, rng, num_negatives - len(drawn))

    @property
    def is_weighted(self) -> bool:
        """Whether any row has `neg_query_weights`."""
        return self._mined_weights is not None

    def weight(self, row_index: int, negative_index: int) -> float:
        """How much a negative drawn for a row counts, in [0, 1]: 1 where the row has no `neg_query_weights`, or the
        negative is of another video."""
        if self._mined_weights is None or not self.is_same_video(row_index, negative_index):
            return 1.0
        start = self._mined_end[row_index - 1] if row_index else 0
        place = start + np.flatnonzero(self._candidates(row_index) == negative_index)[0]
        return float(self._mined_weights[place])

    def is_same_video(self, row_index: int, negative_index: int) -> bool:
        """Whether a negative belongs to the row's video: then its own moments are labels that are known there."""
        return bool(self._video_of[row_index] == self._video_of[negative_index])

    def shares(self) -> dict[str, float]:
        """How an epoch with one negative per row divides: the shares of rows whose negative is mined, is of the same
        video without being mined, is of another video, and of rows that get none. They add up to 1."""
        shares = {"mined": 0.0, "same_video": 0.0, "other_video": 0.0, "none": 0.0}
        if not len(self):
            return shares
        kind = {"mined": "mined", "mined_only": "mined", "same_video": "same_video"}.get(self.strategy)
        with_candidates = np.array([len(self._candidates(i)) > 0 for i in range(len(self))])
        elsewhere = self._has_elsewhere() & (self.strategy not in ("mined_only", "none")) & ~with_candidates
        if kind:
            shares[kind] = float(with_candidates.mean())
        shares["other_video"] = float(elsewhere.mean())
        shares["none"] = float((~with_candidates & ~elsewhere).mean())
        if self.absent_share and self.strategy != "none":
            shares = {name: (1 - self.absent_share) * share for name, share in shares.items()}
            possible = float(self._has_elsewhere().mean())
            shares["other_video"] += self.absent_share * possible
            shares["none"] += self.absent_share * (1 - possible)
        return shares

    def _candidates(self, row_index: int) -> np.ndarray:
        if self.strategy in ("mined", "mined_only"):
            start = self._mined_end[row_index - 1] if row_index else 0
            return self._mined[start : self._mined_end[row_index]]
        if self.strategy == "same_video":
            video = self._video_of[row_index]
            block = self._order[self._block_start[video] : self._block_end[video]]
            return block[block != row_index]
        return self._order[:0]

    def _draw_elsewhere(self, row_index: int, rng: np.random.Generator, number: int) -> list[int]:
        """Distinct rows of other videos with other sentences."""
        video = self._video_of[row_index]
        start, end = int(self._block_start[video]), int(self._block_end[video])
        available = len(self) - (end - start)
        drawn: list[int] = []
        for _ in range(_MAX_DRAWS * number if available else 0):
            if len(drawn) == number:
                break
            place = int(rng.integers(available))
            other = int(self._order[place if place < start else place + end - start])
            if other not in drawn and self._sentence_of[other] != self._sentence_of[row_index]:
                drawn.append(other)
        return drawn

    def _has_elsewhere(self) -> np.ndarray:
        """For each row, whether a query of another video with another sentence exists."""
        _, pair_of, pair_sizes = np.unique(
            np.stack([self._video_of, self._sentence_of]), axis=1, return_inverse=True, return_counts=True
        )
        in_video = (self._block_end - self._block_start)[self._video_of]
        same_sentence = np.bincount(self._sentence_of)[self._sentence_of]
        return len(self) - in_video - same_sentence + pair_sizes[pair_of.reshape(-1)] > 0

    def _mined_rows(self, rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        """`neg_query_ids` as row indices, all rows in one array, and where each row's part ends."""
        if rows and not any(row.get("neg_query_ids") is not None for row in rows):
            raise ValueError(
                "no row has `neg_query_ids`: mine them with `mine_negative_queries` or `bmdetr mine-negatives`, or "
                "choose another strategy"
            )
        index_of = {canonical_qid(row["qid"]): number for number, row in enumerate(rows)}
        if len(index_of) != len(rows):
            raise ValueError(f"qids must be distinct, received {len(rows)} rows with {len(index_of)} different qids")
        flat: list[int] = []
        ends: list[int] = []
        for number, row in enumerate(rows):
            qids = [canonical_qid(qid) for qid in row.get("neg_query_ids") or ()]
            if len(set(qids)) < len(qids):
                raise ValueError(f"`neg_query_ids` of query '{row['qid']}' names a query more than once: {qids}")
            for qid in qids:
                other = index_of.get(qid)
                if other is None or other == number or self._video_of[other] != self._video_of[number]:
                    problem = "is not among the rows" if other is None else "is not another query of the same video"
                    raise ValueError(
                        f"`neg_query_ids` of query '{row['qid']}' names '{qid}', which {problem}: mine again from "
                        "exactly these rows"
                    )
                flat.append(other)
            ends.append(len(flat))
        return np.array(flat, dtype=np.int64), np.array(ends, dtype=np.int64)

    def _weights(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
        """`neg_query_weights` of all rows in the order of `_mined`, 1 where a row has none; None if no row has any."""
        if not any(row.get("neg_query_weights") for row in rows):
            return None
        flat: list[float] = []
        for row in rows:
            number, weights = len(row.get("neg_query_ids") or ()), row.get("neg_query_weights")
            if weights is not None and len(weights) != number:
                raise ValueError(
                    f"`neg_query_weights` of query '{row['qid']}' has {len(weights)} entries for {number} "
                    "`neg_query_ids`: mine again"
                )
            flat += [1.0] * number if weights is None else weights
        weights_of_all = np.array(flat, dtype=np.float32)
        if not ((weights_of_all >= 0) & (weights_of_all <= 1)).all():
            raise ValueError("`neg_query_weights` must lie in [0, 1]: mine again")
        return weights_of_all
