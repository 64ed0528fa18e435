"""Queries of Moving Shapes about what a video does not show, from nothing in common to near misses.

All are said in full (colour, shape and action), so that there is no doubt that they are absent. The kinds, from far to
near:

- `unrelated`: neither the colour nor the shape nor the action occurs in the video;
- `no_such_object`: an action of the video, by an object that is not there;
- `other_action`: an object that is there, with an action that nothing in the video does;
- `exchanged`: an object and an action of the video that do not belong together: another object does it.

Training videos have a fifth kind besides, `another_form`: what happens, with another form. Colour and action alone tell
most events of a video from its others, so hardly any other sentence teaches forms; searching many videos needs them.
"""

from dataclasses import dataclass

import numpy as np

from .shapes_scenes import ACTIONS, COLOURS, SHAPES, Scene
from .shapes_sentences import say

ABSENT_KINDS = ("unrelated", "no_such_object", "other_action", "exchanged")
ANOTHER_FORM = "another_form"
# An object that bounces goes up and down as well, so "moves up" would be no clear absence.
_ALSO_SEEN_AS = {"bounce": ("slide up", "slide down")}


@dataclass(frozen=True)
class AbsentQuery:
    """A sentence that nothing in the video fits, what it says, and in which way it is absent."""

    sentence: str
    kind: str
    colour: str
    shape: str
    action: str


def absent_queries(rng: np.random.Generator, scene: Scene) -> list[AbsentQuery]:
    """One query of every kind that the scene allows, in the order of `ABSENT_KINDS`."""
    queries = []
    for kind in ABSENT_KINDS:
        candidates = _candidates(scene, kind)
        if candidates:
            colour, shape, action = candidates[rng.integers(len(candidates))]
            queries.append(AbsentQuery(say(rng, colour, shape, action), kind, colour, shape, action))
    return queries


def other_forms(rng: np.random.Generator, scene: Scene) -> list[AbsentQuery]:
    """Every second event with a form that nothing of its colour does the same with, in the order of the events."""
    done, queries = _done(scene), []
    for event in scene.events[::2]:
        colour, action = scene.objects[event.object_index].colour, event.action
        forms = [s for s in SHAPES if action not in done.get((colour, s), ()) and _can(s, action)]
        if forms:
            shape = forms[rng.integers(len(forms))]
            queries.append(AbsentQuery(say(rng, colour, shape, action), ANOTHER_FORM, colour, shape, action))
    return queries


def _done(scene: Scene) -> dict[tuple[str, str], set[str]]:
    """What each (colour, shape) of the video does, or seems to do."""
    done: dict[tuple[str, str], set[str]] = {(obj.colour, obj.shape): set() for obj in scene.objects}
    for event in scene.events:
        obj = scene.objects[event.object_index]
        done[obj.colour, obj.shape] |= {event.action, *_ALSO_SEEN_AS.get(event.action, ())}
    return done


def _can(shape: str, action: str) -> bool:
    """Whether it would show: a circle that spins looks like one that does not."""
    return (shape, action) != ("circle", "spin")


def _candidates(scene: Scene, kind: str) -> list[tuple[str, str, str]]:
    """Everything of a kind that could be said: (colour, shape, action)."""
    done = _done(scene)
    looks = set(done)
    colours, shapes = {colour for colour, _ in looks}, {shape for _, shape in looks}
    occurs = {event.action for event in scene.events}
    seen = set().union(*done.values())
    fits_kind = {
        "unrelated": lambda c, s, a: c not in colours and s not in shapes and a not in seen,
        "no_such_object": lambda c, s, a: (c, s) not in looks and a in occurs,
        "other_action": lambda c, s, a: (c, s) in looks and a not in seen,
        "exchanged": lambda c, s, a: bool(done.get((c, s))) and a in occurs and a not in done[c, s],
    }[kind]
    said = [(c, s, a) for c in COLOURS for s in SHAPES for a in ACTIONS if _can(s, a)]
    return [triple for triple in said if fits_kind(*triple)]
