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
SLOTS = ((54, 92), (160, 92), (266, 92), (54, 190), (160, 190), (266, 190))  # centres of the six places, px
WALK_SECONDS = 2.0
ARRIVE_SECONDS = 0.45  # an actor that walks in is inside its place's part of the picture so long before it stands


def rng_of(*key: object) -> np.random.Generator:
    """A generator seeded by a stable digest of `key` (never by `hash`, which changes from run to run)."""
    return np.random.default_rng([zlib.crc32(repr(part).encode()) for part in key])


@dataclass(frozen=True, slots=True)
class Actor:
    """One participant: indices into KINDS and COLOURS."""

    kind: int
    colour: int

    @property
    def name(self) -> str:
        return f"{COLOURS[self.colour]} {KINDS[self.kind]}"


@dataclass(frozen=True, slots=True)
class Event:
    """Actors at a place from `start` to `end` (seconds of stream time); `count` copies of a single actor, or two in a meeting."""

    kind: int
    actors: tuple[Actor, ...]
    count: int
    place: int
    start: float
    end: float
    side: int  # −1 enters from the left, +1 from the right
    phase: float

    @property
    def seen_from(self) -> float:
        return self.start - ARRIVE_SECONDS

    @property
    def seen_until(self) -> float:
        return self.end + ARRIVE_SECONDS

    def shifted(self, seconds: float) -> Event:
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
    """What stays the same in one stream: where the places are, the ground, the noise, the pole before the lens."""

    seed: int
    layout: tuple[int, ...]  # layout[place] is the slot of that place
    ground: tuple[float, float, float]
    sky: tuple[float, float, float]
    noise: float  # standard deviation in grey levels
    pole: int | None  # x of an occluding pole, px
    light_period: float  # seconds of one slow change of light
    light_phase: float
    clutter: int

    def light(self, t: float) -> float:
        """Brightness factor at stream second `t`."""
        return 0.82 + 0.2 * float(np.sin(2 * np.pi * t / self.light_period + self.light_phase))


def make_camera(seed: int) -> SceneCamera:
    """The camera of a seed."""
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
    """A stretch of stream time in which something happens: one event, or two at different places."""

    start: float
    end: float
    events: tuple[Event, ...] = field(default=())


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
    """A clip beginning at `start`: an event of 6–12 s at its place, in a third of the cases another one beside it.

    Events name their place by index into PLACES; where that is in the picture is the camera's business.
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
    """The clips of one stream in order, without overlap, with long empty stretches among the gaps."""
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
