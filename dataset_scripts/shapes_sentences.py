"""The sentences of Moving Shapes, and how loosely they fit what happens.

The alignment is weak on purpose, as in hand-made annotation: boundaries are off by a few tenths of a second, and some
sentences leave out the colour, the shape or the exact action, where what they say still fits no other event of the
video.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dataset_scripts.shapes_scenes import SLIDES, Event, Scene

BOUNDARY_JITTER_S = 0.35  # standard deviation
LARGEST_JITTER_S = 0.8
SHORTEST_MOMENT_S = 2.0
VAGUE_SHARE = 0.35  # of the sentences try to leave something out

SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
}
ANY_SHAPE_WORDS = ("shape", "thing")
SLIDE_VERBS = (("slides", "sliding"), ("moves", "moving"), ("glides", "gliding"))  # third person, participle
DIRECTION_WORDS = {
    "slide left": ("to the left", "left"),
    "slide right": ("to the right", "right"),
    "slide up": ("up", "upwards"),
    "slide down": ("down", "downwards"),
}
VERBS = {
    "grow": (("grows", "growing"), ("gets bigger", "getting bigger")),
    "spin": (("spins", "spinning"), ("rotates", "rotating")),
    "blink": (("blinks", "blinking"), ("flashes", "flashing")),
    "bounce": (("bounces", "bouncing"), ("hops", "hopping")),
}
VAGUE_VERBS = {
    "slide": (("changes its place", "changing its place"),),
    "size": (("changes its size", "changing its size"),),
}
ACTION_FAMILIES = {**dict.fromkeys(SLIDES, "slide"), "grow": "size"}
TEMPLATES = (
    "{subject} {verb}.",
    "{subject} {verb}",
    "{subject} is {verbing}.",
    "we see {subject} {verbing}.",
    "now {subject} {verb}.",
    "the moment when {subject} {verb}",
)


@dataclass
class Description:
    """A sentence, the event it describes, what it says of it (None for what it leaves open) and the annotated moment.

    `action` is an action, or the family (`slide`, `size`) of one.
    """

    sentence: str
    event_index: int
    colour: str | None
    shape: str | None
    action: str
    start_s: float
    end_s: float


def describe_scene(rng: np.random.Generator, scene: Scene) -> list[Description]:
    """One description of every event."""
    return [_describe(rng, scene, index) for index in range(len(scene.events))]


def fits(scene: Scene, event: Event, colour: str | None, shape: str | None, action: str) -> bool:
    """Whether these words, None for those left out, are true of an event."""
    obj = scene.objects[event.object_index]
    family = ACTION_FAMILIES.get(event.action)
    return colour in (None, obj.colour) and shape in (None, obj.shape) and action in (event.action, family)


def _describe(rng: np.random.Generator, scene: Scene, index: int) -> Description:
    event = scene.events[index]
    obj = scene.objects[event.object_index]
    said: tuple[str | None, str | None, str] = (obj.colour, obj.shape, event.action)
    if rng.random() < VAGUE_SHARE:
        family = ACTION_FAMILIES.get(event.action, event.action)
        vaguer = [(None, obj.shape, event.action), (obj.colour, None, event.action), (obj.colour, obj.shape, family)]
        choice = vaguer[rng.integers(len(vaguer))]
        if sum(fits(scene, other, *choice) for other in scene.events) == 1:
            said = choice
    start_s, end_s = _annotated_moment(rng, event, scene.duration_s)
    return Description(say(rng, *said), index, *said, start_s, end_s)


def say(rng: np.random.Generator, colour: str | None, shape: str | None, action: str) -> str:
    """A sentence with these words, or synonyms; None is left out."""

    def one_of(options: tuple) -> Any:
        return options[rng.integers(len(options))]

    article = one_of(("the", "the", "a"))
    nouns = [colour] if colour else []
    nouns.append(one_of(SHAPE_WORDS[shape] if shape else ANY_SHAPE_WORDS))
    if action in SLIDES:
        direction = one_of(DIRECTION_WORDS[action])
        verb, verbing = (f"{form} {direction}" for form in one_of(SLIDE_VERBS))
    else:
        verb, verbing = one_of(VERBS[action] if action in VERBS else VAGUE_VERBS[action])
    sentence = one_of(TEMPLATES).format(subject=" ".join([article, *nouns]), verb=verb, verbing=verbing)
    return sentence[0].upper() + sentence[1:]


def _annotated_moment(rng: np.random.Generator, event: Event, duration_s: float) -> tuple[float, float]:
    """The event's boundaries, each off by a little, to a tenth of a second, inside the video."""
    jitter_s = np.clip(rng.normal(0.0, BOUNDARY_JITTER_S, size=2), -LARGEST_JITTER_S, LARGEST_JITTER_S)
    start_s = max(0.0, round(event.start_s + jitter_s[0], 1))
    end_s = min(duration_s, round(event.end_s + jitter_s[1], 1))
    return float(start_s), float(max(end_s, min(duration_s, start_s + SHORTEST_MOMENT_S)))
