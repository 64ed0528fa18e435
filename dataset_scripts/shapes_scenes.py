"""What happens in the videos of Moving Shapes: objects, their events, and where that puts them at any time.

Everything is drawn from a random generator that the caller seeds; nothing here touches a file. Lengths are in pixels of
a square canvas, times in seconds.
"""

from dataclasses import dataclass

import numpy as np

CANVAS_PX = 112
MARGIN_PX = 4

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 40, 40),
    "yellow": (240, 210, 40),
    "green": (40, 180, 70),
    "blue": (50, 100, 235),
    "purple": (190, 60, 200),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
SLIDES: dict[str, tuple[int, int]] = {  # direction in pixels, y downwards
    "slide left": (-1, 0),
    "slide right": (1, 0),
    "slide up": (0, -1),
    "slide down": (0, 1),
}
ACTIONS = (*SLIDES, "grow", "spin", "blink", "bounce")

RADIUS_RANGE_PX = (11.0, 14.0)
LARGEST_RADIUS_PX = 24.0
SHORTEST_SLIDE_PX = 28.0
SLOWEST_SLIDE_PX_S = 5.0
HOP_PX = 16.0

VIDEO_RANGE_S = (20.0, 40.0)
EVENT_RANGE_S = (5.0, 15.0)
REST_S = 0.6  # an object rests this long between two of its events
AT_ONCE = 2  # events that may happen at the same time
SECONDS_PER_EVENT = 5.8


@dataclass
class ShapeObject:
    """One coloured shape, and where it starts: centre and radius."""

    shape: str
    colour: str
    x_px: float
    y_px: float
    radius_px: float


@dataclass
class Event:
    """An action of one object between two times; `amount` is the pixels of a slide, the factor of a size, or the turns,
    flashes or hops a second.
    """

    object_index: int
    action: str
    start_s: float
    end_s: float
    amount: float = 0.0


@dataclass
class Scene:
    """A whole video: its length, its objects from back to front, and its events by the time they start."""

    duration_s: float
    objects: list[ShapeObject]
    events: list[Event]


def sample_scene(rng: np.random.Generator, fps: int) -> Scene:
    """Draws a scene whose length is a whole number of frames."""
    duration_s = round(rng.uniform(*VIDEO_RANGE_S) * fps) / fps
    objects = _sample_objects(rng)
    return Scene(duration_s, objects, _sample_events(rng, objects, duration_s))


def _sample_objects(rng: np.random.Generator) -> list[ShapeObject]:
    """Four or five different objects of which each shares its colour or its shape with another one."""
    count = int(rng.integers(4, 6))
    while True:
        colours = rng.choice(list(COLOURS), count - 1, replace=False)
        shapes = rng.choice(SHAPES, 3, replace=False)
        cells = rng.choice(len(colours) * 3, count, replace=False)
        looks = [(str(shapes[cell % 3]), str(colours[cell // 3])) for cell in cells]
        if all(any((a[0] == b[0]) != (a[1] == b[1]) for b in looks) for a in looks):
            break
    objects: list[ShapeObject] = []
    for shape, colour in looks:
        radius_px = float(rng.uniform(*RADIUS_RANGE_PX))
        x_px, y_px = _free_place(rng, objects, radius_px)
        objects.append(ShapeObject(shape, colour, x_px, y_px, radius_px))
    return objects


def _free_place(rng: np.random.Generator, objects: list[ShapeObject], radius_px: float) -> tuple[float, float]:
    """The roomiest of some random places."""
    low, high = MARGIN_PX + radius_px, CANVAS_PX - MARGIN_PX - radius_px
    places = rng.uniform(low, high, size=(12, 2))
    if not objects:
        return float(places[0, 0]), float(places[0, 1])
    others = np.array([(o.x_px, o.y_px) for o in objects])
    room = np.linalg.norm(places[:, None] - others[None], axis=-1).min(1)
    x_px, y_px = places[room.argmax()]
    return float(x_px), float(y_px)


def _sample_events(rng: np.random.Generator, objects: list[ShapeObject], duration_s: float) -> list[Event]:
    """Events placed anywhere, at most `AT_ONCE` at a time, by a few of the objects with a few of the actions."""
    actors = rng.permutation(len(objects))[: int(rng.integers(3, 5))]
    slots: list[Event] = []
    wanted = max(5, round(duration_s / SECONDS_PER_EVENT))
    for _ in range(400):
        length_s = EVENT_RANGE_S[0] + (EVENT_RANGE_S[1] - EVENT_RANGE_S[0]) * rng.beta(1.2, 2.2)
        start_s = float(rng.uniform(0.0, duration_s - length_s))
        slot = Event(int(rng.choice(actors)), "", start_s, start_s + float(length_s))
        if _fits(slot, slots):
            slots.append(slot)
        if len(slots) == wanted:
            break
    slots.sort(key=lambda slot: slot.start_s)
    pool = rng.choice(ACTIONS, 4, replace=False)
    events: list[Event] = []
    for slot in slots:
        if event := _choose_action(rng, slot, objects, events, pool):
            events.append(event)
    return events


def _fits(slot: Event, others: list[Event]) -> bool:
    """Whether the object is free then, and never more than `AT_ONCE` events coincide."""
    near = [o for o in others if o.start_s < slot.end_s + REST_S and slot.start_s < o.end_s + REST_S]
    if any(other.object_index == slot.object_index for other in near):
        return False
    moments = [slot.start_s] + [other.start_s for other in near if other.start_s > slot.start_s]
    return all(sum(o.start_s <= moment < o.end_s for o in near) < AT_ONCE for moment in moments)


def _choose_action(
    rng: np.random.Generator, slot: Event, objects: list[ShapeObject], before: list[Event], pool: np.ndarray
) -> Event | None:
    """The slot with an action that its object has room for and has not done before, from the pool if possible."""
    done = {event.action for event in before if event.object_index == slot.object_index}
    places = [_state_after(obj, [e for e in before if e.object_index == i]) for i, obj in enumerate(objects)]
    for actions in (rng.permutation(pool), rng.permutation(ACTIONS)):
        for action in actions:
            amount = _amount(rng, str(action), slot, objects[slot.object_index].shape, places)
            if action not in done and amount is not None:
                return Event(slot.object_index, str(action), slot.start_s, slot.end_s, amount)
    return None


def _state_after(obj: ShapeObject, events: list[Event]) -> tuple[float, float, float]:
    """Centre and radius once all these events are over."""
    x_px, y_px, radius_px = obj.x_px, obj.y_px, obj.radius_px
    for event in events:
        if event.action in SLIDES:
            dx, dy = SLIDES[event.action]
            x_px, y_px = x_px + dx * event.amount, y_px + dy * event.amount
        elif event.action == "grow":
            radius_px *= event.amount
    return x_px, y_px, radius_px


def _amount(
    rng: np.random.Generator, action: str, slot: Event, shape: str, places: list[tuple[float, float, float]]
) -> float | None:
    """How far, how much or how fast; None if the object has no room or the action would not show."""
    x_px, y_px, radius_px = places[slot.object_index]
    edge = MARGIN_PX + radius_px
    if action in SLIDES:
        dx, dy = SLIDES[action]
        room = min((CANVAS_PX - edge - c) if d > 0 else (c - edge) for c, d in ((x_px, dx), (y_px, dy)) if d)
        shortest = max(SHORTEST_SLIDE_PX, SLOWEST_SLIDE_PX_S * (slot.end_s - slot.start_s))
        if room < shortest:
            return None
        lengths = rng.uniform(max(shortest, 0.6 * room), room, size=4)
        others = np.array([place[:2] for i, place in enumerate(places) if i != slot.object_index])
        ends = np.array([(x_px + dx * length, y_px + dy * length) for length in lengths])
        clear = np.linalg.norm(ends[:, None] - others[None], axis=-1).min(1)
        return float(lengths[clear.argmax()])
    if action == "grow":
        fits = min(x_px, y_px, CANVAS_PX - x_px, CANVAS_PX - y_px)
        factor = float(rng.uniform(1.5, 1.8))
        return factor if radius_px * factor <= min(fits, LARGEST_RADIUS_PX) else None
    if action == "spin":
        return None if shape == "circle" else float(rng.uniform(0.4, 0.7) * rng.choice([-1, 1]))
    if action == "blink":
        return float(rng.uniform(1.0, 1.6))
    if action == "bounce":
        return float(rng.uniform(0.9, 1.3)) if y_px - edge > HOP_PX - MARGIN_PX else None
    raise ValueError(f"action must be one of {', '.join(ACTIONS)}, received {action!r}.")


def trajectories(scene: Scene, times_s: np.ndarray) -> np.ndarray:
    """Where everything is: `(objects, times, 5)` with centre x and y, radius, angle, and 1 if visible else 0."""
    states = np.empty((len(scene.objects), len(times_s), 5))
    for index, obj in enumerate(scene.objects):
        states[index] = (obj.x_px, obj.y_px, obj.radius_px, 0.0, 1.0)
        for event in scene.events:
            if event.object_index == index:
                _apply(states[index], event, times_s)
    return states


def _apply(states: np.ndarray, event: Event, times_s: np.ndarray) -> None:
    """Adds one event to the `(times, 5)` states of its object; slides, sizes and turns last, the rest ends with it."""
    elapsed_s = np.clip(times_s - event.start_s, 0.0, event.end_s - event.start_s)
    progress = elapsed_s / (event.end_s - event.start_s)
    phase = event.amount * elapsed_s * ((times_s >= event.start_s) & (times_s < event.end_s))
    if event.action in SLIDES:
        states[:, :2] += np.array(SLIDES[event.action]) * (event.amount * progress)[:, None]
    elif event.action == "grow":
        states[:, 2] *= 1.0 + (event.amount - 1.0) * progress
    elif event.action == "spin":
        states[:, 3] += 2 * np.pi * event.amount * elapsed_s
    elif event.action == "blink":
        states[:, 4] *= (phase % 1.0) < 0.5
    elif event.action == "bounce":
        states[:, 1] -= HOP_PX * np.abs(np.sin(np.pi * phase))
