"""The rendered world: what happens in front of a camera, second by second, before any pixel is drawn.

A camera looks at six places. Clips of one or two events follow each other with empty stretches between them; each
event has actors of a kind and a colour, a place, and an interval in which the actors stand there. Everything is a
pure function of the seed, so the truth of the footage is known exactly.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

KINDS = ("person", "dog", "car", "truck", "bicycle", "bird", "umbrella", "balloon")
PLURALS = ("people", "dogs", "cars", "trucks", "bicycles", "birds", "umbrellas", "balloons")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
PLACES = ("gate", "door", "bench", "fountain", "tree", "tower")
EVENTS = ("stop", "pass", "gather", "meet", "fall", "flash", "burn", "drop")
COUNTS = ("one", "two", "three", "four")

WIDTH, HEIGHT = 320, 240
"""Size of a picture, pixels."""
SLOTS = ((54, 92), (160, 92), (266, 92), (54, 190), (160, 190), (266, 190))
"""Centres of the six places, pixels."""
WALK_SECONDS = 2.0
"""Time that actors take to walk in or out."""
ARRIVE_SECONDS = 0.45
"""An actor that walks in is inside the picture of its place this long before it reaches it."""


def rng_of(*key: object) -> np.random.Generator:
    """A generator seeded by a stable digest of `key` (never by `hash`, which changes from run to run)."""
    return np.random.default_rng([zlib.crc32(repr(part).encode()) for part in key])


@dataclass(frozen=True, slots=True)
class Actor:
    """One participant."""

    kind: int
    """Index into KINDS."""
    colour: int
    """Index into COLOURS."""

    @property
    def name(self) -> str:
        """Colour and kind, such as `red dog`."""
        return f"{COLOURS[self.colour]} {KINDS[self.kind]}"


@dataclass(frozen=True, slots=True)
class Event:
    """Actors at a place for some seconds."""

    kind: int
    """Index into EVENTS."""
    actors: tuple[Actor, ...]
    """One actor, or the two of a meeting."""
    count: int
    """Copies of a single actor."""
    place: int
    """Index into PLACES."""
    start: float
    """When the actors reach the place, seconds of stream time."""
    end: float
    """When they leave it, seconds of stream time."""
    side: int
    """Where they enter: -1 from the left, +1 from the right."""
    phase: float
    """Phase of their movement, 0 to 1."""

    @property
    def seen_from(self) -> float:
        """When the actors enter the picture of the place, seconds of stream time."""
        return self.start - ARRIVE_SECONDS

    @property
    def seen_until(self) -> float:
        """When the actors leave the picture of the place, seconds of stream time."""
        return self.end + ARRIVE_SECONDS

    def shifted(self, seconds: float) -> Event:
        """The same event, `seconds` later."""
        return Event(
            self.kind,
            self.actors,
            self.count,
            self.place,
            self.start + seconds,
            self.end + seconds,
            self.side,
            self.phase,
        )


@dataclass(frozen=True, slots=True)
class SceneCamera:
    """The constant properties of one rendered stream."""

    seed: int
    """Seed of background and noise."""
    layout: tuple[int, ...]
    """Slot (index into SLOTS) of each place."""
    ground: tuple[float, float, float]
    """Colour of the ground, RGB."""
    sky: tuple[float, float, float]
    """Colour of the sky, RGB."""
    noise: float
    """Standard deviation of the noise, grey levels."""
    pole: int | None
    """x of a pole that occludes part of the picture, pixels."""
    light_period: float
    """Period of the slow change of light, seconds."""
    light_phase: float
    """Phase of it, radians."""
    clutter: int
    """Number of grey objects on the ground."""

    def light(self, t: float) -> float:
        """Brightness factor at stream second `t`."""
        return 0.82 + 0.2 * float(np.sin(2 * np.pi * t / self.light_period + self.light_phase))


def make_camera(seed: int) -> SceneCamera:
    """The camera of a seed; a pure function."""
    rng = rng_of("camera", seed)
    base = rng.uniform(70, 135)
    tint = rng.uniform(-14, 14, 3)
    return SceneCamera(
        seed=seed,
        layout=tuple(int(i) for i in rng.permutation(len(PLACES))),
        ground=tuple(float(v) for v in base + tint),  # type: ignore[arg-type]
        sky=tuple(float(v) for v in base * 0.75 + rng.uniform(-10, 30, 3)),  # type: ignore[arg-type]
        noise=float(rng.uniform(1.5, 6.0)),
        pole=int(rng.integers(30, WIDTH - 30)) if rng.random() < 0.4 else None,
        light_period=float(rng.uniform(500, 2400)),
        light_phase=float(rng.uniform(0, 2 * np.pi)),
        clutter=int(rng.integers(2, 7)),
    )


@dataclass(frozen=True, slots=True)
class Clip:
    """A stretch of stream time with one event, or with two at different places."""

    start: float
    """Seconds of stream time."""
    end: float
    """Seconds of stream time."""
    events: tuple[Event, ...] = field(default=())
    """The events."""


def _make_event(rng: np.random.Generator, place: int, start: float, end: float, taken: set[Actor]) -> Event:
    def actor() -> Actor:
        while True:
            one = Actor(int(rng.integers(len(KINDS))), int(rng.integers(len(COLOURS))))
            if one not in taken:
                taken.add(one)
                return one

    kind = int(rng.integers(len(EVENTS)))
    actors = (actor(), actor()) if EVENTS[kind] == "meet" else (actor(),)
    count = int(rng.integers(2, 5)) if EVENTS[kind] == "gather" else 1
    side = -1 if SLOTS[place][0] < WIDTH / 2 else 1
    return Event(kind, actors, count, place, start, end, side, float(rng.uniform(0, 1)))


def make_clip(rng: np.random.Generator, start: float) -> Clip:
    """A random clip that starts at `start`: one event of 6 to 12 s, in a third of the clips a second one elsewhere.

    Places are indices into PLACES; their position in the picture depends on the camera.
    """
    taken: set[Actor] = set()
    places = rng.permutation(len(PLACES))
    first_start = start + WALK_SECONDS
    first_end = first_start + float(rng.uniform(6, 12))
    events = [_make_event(rng, int(places[0]), first_start, first_end, taken)]
    if rng.random() < 0.35:
        second_start = first_start + float(rng.uniform(0, 4))
        events.append(_make_event(rng, int(places[1]), second_start, second_start + float(rng.uniform(5, 10)), taken))
    return Clip(start, max(e.end for e in events) + WALK_SECONDS, tuple(events))


def make_timeline(seed: int, seconds: float) -> list[Clip]:
    """The clips of one stream of `seconds`, in order and without overlap; some gaps between them are long."""
    rng = rng_of("timeline", seed)
    clips: list[Clip] = []
    t = float(rng.uniform(8, 40))
    while True:
        clip = make_clip(rng, t)
        if clip.end > seconds - 2:
            return clips
        clips.append(clip)
        quiet = float(rng.uniform(90, 200)) if rng.random() < 0.12 else 4 + float(rng.exponential(16))
        t = clip.end + quiet
