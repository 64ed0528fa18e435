"""Whether text features belong to the sentences of their rows, which a join by qid alone cannot show.

A feature file does not hold its sentence. But rows with one sentence must have one feature, and rows with different
sentences different features: a shuffled or shifted join fails this wherever sentences repeat (1,152 sentences do in
Charades-STA's training split, 31 in QVHighlights'). Where none repeats it shows nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from tqdm.auto import tqdm

# Two encodings of one sentence differ by less than this share of their largest value (half precision, padding).
SAME_FEATURE_TOLERANCE = 0.02
Item = TypeVar("Item")


@dataclass(frozen=True)
class Disagreement:
    """Two queries whose features contradict their sentences: of one sentence (`repeats`), or of two."""

    qid: str
    other: str
    repeats: bool


def same_sentence(left: str, right: str) -> bool:
    """Whether two sentences are equal but for white space."""
    return left.split() == right.split()


def same_feature(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two arrays can be encodings of one sentence."""
    if left.shape != right.shape:
        return False
    return bool(np.abs(left - right).max(initial=0.0) <= SAME_FEATURE_TOLERANCE * np.abs(left).max(initial=1e-6))


def compare_repeated(
    sentences: Mapping[str, str], read: Callable[[str], np.ndarray], limit: int, *, progress: bool = False
) -> tuple[list[Disagreement], int]:
    """Compares the features of repeated sentences with each other, and with those of the sentence before.

    Args:
        sentences: the sentence of each qid.
        read: gives the features of a qid.
        limit: at most so many repeated sentences are compared, evenly spread.
        progress: whether to show a progress bar.

    Returns:
        What disagrees, and how many sentences were compared.
    """
    groups: dict[str, list[str]] = {}
    for qid, sentence in sentences.items():
        groups.setdefault(" ".join(sentence.split()), []).append(qid)
    repeated = spread([group for group in groups.values() if len(group) > 1], limit)
    found: list[Disagreement] = []
    previous: tuple[str, np.ndarray] | None = None
    for first, *_, last in tqdm(repeated, desc="text features", unit="sentence", disable=not progress):
        feature = read(first)
        if not same_feature(feature, read(last)):
            found.append(Disagreement(last, first, repeats=True))
        if previous is not None and same_feature(feature, previous[1]):
            found.append(Disagreement(first, previous[0], repeats=False))
        previous = first, feature
    return found, len(repeated)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items, evenly spread from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int)]
