"""Relevance timeline: how well every frame of some streams fits, with marks and stretches, to scale.

Each stream has a lane of `CELLS` cells; a cell has the colour of the best frame in its time, and a time without frames
has no cell, so that gaps in the footage are visible. The template `timeline.html.j2` draws a `Timeline` as SVG.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from index.records import from_micros
from index.search.scores import ScoredFrames

__all__ = ["CELLS", "WIDTH", "Cell", "Lane", "Mark", "Span", "Timeline", "clock", "heat_strip", "timeline"]

WIDTH = 1000  # width of a timeline in its own units, which the page scales
CELLS = 250
_LEAST_CELL = 2_000_000  # microseconds; with a frame a second, a shorter cell could have none
_TICKS = 6
_LONG = 20 * 3600 * 1_000_000  # from this length on, the axis shows dates
_RAMP = ((241, 245, 249), (199, 210, 254), (129, 140, 248), (79, 70, 229), (49, 46, 129))


@dataclass(frozen=True, slots=True)
class Mark:
    """A frame that is marked, such as a keyframe."""

    stream: str
    """Its stream."""
    at: int
    """Its time, UTC microseconds."""
    proof: bool = False
    """Whether it is drawn in the colour of evidence."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time that is framed, such as a moment or true evidence."""

    stream: str
    """Its stream."""
    start: int
    """UTC microseconds."""
    end: int
    """UTC microseconds."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A coloured part of a lane, in units of `WIDTH`."""

    x: float
    """Left edge."""
    width: float
    """Width."""
    colour: str = ""
    """Colour, `#rrggbb`."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One stream of a timeline."""

    stream: str
    """The stream."""
    heat: list[Cell]
    """How well its frames fit."""
    marks: list[tuple[float, bool]] = field(default_factory=list)
    """Place of each mark, and whether it is evidence."""
    spans: list[Cell] = field(default_factory=list)
    """Framed stretches."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A label of the time axis."""

    x: float
    """Its place."""
    text: str
    """The time, UTC."""
    anchor: str
    """Alignment in SVG: start, middle or end."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Lanes with a common time axis."""

    lanes: list[Lane]
    """The lanes, one for each stream."""
    axis: list[Tick]
    """The labels below them."""
    width: int = WIDTH
    """Width of the drawing in its own units."""


def clock(micros: int, *, days: bool = False) -> str:
    """A time, UTC, as the labels show it: `08:00:07`, with `days` after the date."""
    return from_micros(micros).strftime("%d %b %H:%M:%S" if days else "%H:%M:%S")


def _colour(level: float) -> str:
    place = min(max(level, 0.0), 1.0) * (len(_RAMP) - 1)
    low = min(int(place), len(_RAMP) - 2)
    mixed = (round(a + (b - a) * (place - low)) for a, b in zip(_RAMP[low], _RAMP[low + 1], strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def heat_strip(
    captured_at: NDArray[np.int64], scores: NDArray[np.float32], *, start: int, end: int, low: float, high: float
) -> list[Cell]:
    """The largest score in each of CELLS equal intervals of [start, end); of fewer ones, if they would be below 2 s.

    An interval without a frame has no cell, so that gaps in the footage are visible.

    Args:
        captured_at: capture times, UTC microseconds, int64[N].
        scores: scores of the frames, float32[N].
        start: start of the strip, UTC microseconds.
        end: end of the strip, UTC microseconds.
        low: score of the lightest colour.
        high: score of the darkest colour.
    """
    cells = max(1, min(CELLS, (end - start) // _LEAST_CELL))
    width = WIDTH / cells
    cell = np.minimum((captured_at - start) * cells // max(1, end - start), cells - 1)
    best = np.full(cells, -np.inf, np.float32)
    np.maximum.at(best, cell, scores)
    span = max(high - low, 1e-9)
    return [
        Cell(round(i * width, 2), round(width + 0.5, 2), _colour((float(best[i]) - low) / span))
        for i in np.flatnonzero(np.isfinite(best)).tolist()
    ]


def timeline(scored: Sequence[ScoredFrames], marks: Iterable[Mark] = (), spans: Iterable[Span] = ()) -> Timeline:
    """The timeline of some streams, from their first frame to their last.

    Args:
        scored: the frames of each stream, at least one frame in all.
        marks: frames to mark; those of other streams are left out.
        spans: stretches to frame, likewise.
    """
    start = min(int(each.captured_at[0]) for each in scored)
    end = max(int(each.captured_at[-1]) for each in scored) + 1_000_000
    low, high = min(float(each.scores.min()) for each in scored), max(float(each.scores.max()) for each in scored)

    def place(micros: int) -> float:
        """The horizontal position of a time."""
        return round((min(max(micros, start), end) - start) / (end - start) * WIDTH, 2)

    marked, framed = list(marks), [span for span in spans if span.start < end and span.end >= start]
    lanes = [
        Lane(
            each.stream_id,
            heat_strip(each.captured_at, each.scores, start=start, end=end, low=low, high=high),
            sorted((place(mark.at), mark.proof) for mark in marked if mark.stream == each.stream_id),
            [
                Cell(place(span.start), max(4.0, round(place(span.end) - place(span.start), 2)))
                for span in framed
                if span.stream == each.stream_id
            ],
        )
        for each in scored
    ]
    anchors = ["start", *["middle"] * (_TICKS - 1), "end"]
    axis = [
        Tick(WIDTH * i / _TICKS, clock(start + (end - start) * i // _TICKS, days=end - start > _LONG), anchor)
        for i, anchor in enumerate(anchors)
    ]
    return Timeline(lanes, axis)
