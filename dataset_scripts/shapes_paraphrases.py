"""Free text about Moving Shapes: sentences in words and in forms that no sentence of the data set has.

A model that has learnt what words mean answers them; one that has learnt the words alone cannot. `paraphrase` says the
same as a sentence of `shapes_sentences.py`, leaving out what that leaves out: "Show me a scarlet dot drifting left."
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .moving_shapes import FPS, NUM_VIDEOS
from .shapes_scenes import sample_scene
from .shapes_sentences import Description, describe_scene

COLOUR_WORDS = {
    "red": ("scarlet", "crimson", "reddish"),
    "yellow": ("golden", "yellowish"),
    "green": ("emerald", "greenish"),
    "blue": ("navy", "bluish"),
    "purple": ("violet", "purplish"),
}
SHAPE_WORDS = {
    "circle": ("ring", "dot", "round spot"),
    "square": ("block", "cube", "rectangle"),
    "triangle": ("pyramid", "triangular figure"),
    "star": ("asterisk", "starburst"),
    "cross": ("crucifix", "crosshair"),
}
ANY_SHAPE_WORDS = ("object", "figure", "item")
SLIDE_VERBS = (("drifts", "drifting"), ("travels", "travelling"), ("floats", "floating"), ("heads", "heading"))
DIRECTION_WORDS = {  # English has no other everyday words for these
    "slide left": ("left", "towards the left"),
    "slide right": ("right", "towards the right"),
    "slide up": ("up", "further up"),
    "slide down": ("down", "further down"),
}
VERBS = {
    "grow": (("expands", "expanding"), ("swells", "swelling"), ("enlarges", "enlarging")),
    "spin": (("turns", "turning"), ("whirls", "whirling"), ("revolves", "revolving")),
    "blink": (("flickers", "flickering"), ("winks", "winking"), ("twinkles", "twinkling")),
    "bounce": (("jumps", "jumping"), ("leaps", "leaping"), ("springs", "springing")),
    "slide": (("relocates", "relocating"), ("wanders", "wandering")),
    "size": (("resizes", "resizing"), ("scales", "scaling")),
}
TEMPLATES = (
    "{subject} {verb}, look!",
    "Find where {subject} {verb}!",
    "Does {subject} start {verbing}?",
    "Show me {subject} {verbing}.",
    "At this point {subject} begins {verbing}.",
)
# The only words that paraphrases share with the sentences of the data set.
SHARED_WORDS = frozenset({"a", "the", "left", "right", "up", "down"})


def paraphrase(rng: np.random.Generator, told: Description) -> str:
    """Says what a description says, in words that no description has but for articles and directions."""

    def one_of(options: tuple) -> Any:
        return options[rng.integers(len(options))]

    nouns = [one_of(COLOUR_WORDS[told.colour])] if told.colour else []
    nouns.append(one_of(SHAPE_WORDS[told.shape] if told.shape else ANY_SHAPE_WORDS))
    if told.action in DIRECTION_WORDS:
        direction = one_of(DIRECTION_WORDS[told.action])
        verb, verbing = (f"{form} {direction}" for form in one_of(SLIDE_VERBS))
    else:
        verb, verbing = one_of(VERBS[told.action])
    subject = " ".join([one_of(("the", "a")), *nouns])
    sentence = one_of(TEMPLATES).format(subject=subject, verb=verb, verbing=verbing)
    return sentence[0].upper() + sentence[1:]


def paraphrase_rows(rows: Sequence[Mapping[str, Any]], seed: int, split: str) -> list[dict[str, Any]]:
    """The rows of a split of Moving Shapes, rendered with `seed`, with their sentences said in other words.

    Rows that describe no event of their video are left out.
    """
    said: dict[str, str] = {}
    for vid in dict.fromkeys(row["vid"] for row in rows):
        key = (seed, list(NUM_VIDEOS).index(split), int(vid.rsplit("_", 1)[1]))
        rng = np.random.default_rng(key)
        described = describe_scene(rng, sample_scene(rng, FPS))
        words = np.random.default_rng((*key, 2))
        said |= {f"{vid}_{number}": paraphrase(words, told) for number, told in enumerate(described)}
    return [{**row, "query": said[row["qid"]]} for row in rows if row["qid"] in said]
