"""When a live frame was captured: wall clock at arrival, advanced by pts.

A packet can be late, never early: `arrival − pts` is smallest for the packet that had the quickest way, so the smallest
value of a segment tells the stream's zero best, also where a server sends what it had buffered in one burst. Hence time
is given a segment at a time:

- The first segment of a connection, or behind a discontinuity, is anchored by its quickest packet.
- Every further one begins where pts say, which keeps the frames' distances, whatever the network does.
- Drift is what the quickest packet of the last segments disagrees by. Past `step` seconds the stream is anchored anew,
  forward at once, backward as far as no time is given twice.

Packets are followed by dts, which ascend where pts need not. A counter that wraps (33 bits in MPEG-TS, 32 in RTP) goes
on; one that goes back or leaps ahead of the wall clock is a discontinuity, and the caller begins a segment there.

Nothing here reads a clock or knows of packets: times come in, times go out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["CaptureClock", "Span", "Timeline"]

_WRAPS = (2**33, 2**32)
_APART = 1_000  # microseconds between frames that would stand before one another; containers round times
_WINDOW = 3  # segments whose quickest packet tells the drift


@dataclass(slots=True)
class Timeline:
    """The ticks of one connection as seconds that ascend: wraps undone, discontinuities found.

    Args:
        base: seconds a tick.
        leap: how far pts may run ahead of the wall clock between two packets, in seconds.
        back: how far dts may go back and count as a packet out of order, in seconds.
    """

    base: float
    leap: float = 5.0
    back: float = 0.5
    offset: int = 0
    _dts: int | None = None
    _arrival: float = 0.0

    def follow(self, dts: int, arrival: float) -> Literal["next", "stray", "break"]:
        """Take the next packet: it goes on, is out of order by a little, or the timeline breaks before it.

        Args:
            dts: in ticks, as it came; add `offset` and multiply by `base` for its seconds.
            arrival: wall clock in seconds.
        """
        if self._dts is None:
            self._dts, self._arrival = dts, arrival
            return "next"
        passed = max(0.0, arrival - self._arrival)
        step = (dts + self.offset - self._dts) * self.base
        if abs(step) > self.leap:
            for wrap in (*_WRAPS, *(-wrap for wrap in _WRAPS)):
                unwrapped = (dts + self.offset + wrap - self._dts) * self.base
                if -self.back <= unwrapped <= passed + self.leap:
                    self.offset, step = self.offset + wrap, unwrapped
                    break
        if -self.back <= step <= 0:
            return "stray"
        broken = step < 0 or step > passed + self.leap
        if broken:
            self.offset = 0
        self._dts, self._arrival = dts + self.offset, arrival
        return "break" if broken else "next"


@dataclass(slots=True)
class Span:
    """What a segment's packets tell of time: the smallest of `arrival − pts`, and the pts it covers, in seconds."""

    first: float
    quickest: float = float("inf")
    last: float = float("-inf")

    def add(self, pts: float, arrival: float) -> None:
        self.quickest = min(self.quickest, arrival - pts)
        self.last = max(self.last, pts)


@dataclass(slots=True)
class CaptureClock:
    """UTC microseconds for the segments of one stream, strictly ascending over all its connections.

    Args:
        newest: the last time that was given to a frame of the stream, None when there is none.
        step: drift in seconds past which the stream is anchored anew.

    `drift` is the wall clock less the stream's clock, in seconds; `anchors` counts how often it was anchored.
    """

    newest: int | None = None
    step: float = 0.5
    drift: float = 0.0
    anchors: int = 0
    _zero: int | None = None
    _quick: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def break_off(self) -> None:
        """The stream's own clock does not go on: the next segment is anchored."""
        self._zero = None

    def place(self, span: Span) -> int:
        """The time of pts `span.first`; the whole segment is given away with it."""
        if self._zero is None:
            self._anchor(span.quickest)
            self._quick.append(span.quickest)
        else:
            self._quick.append(span.quickest)
            # One segment may be late as a whole; all of a window are only where the clocks differ.
            slow = min(self._quick) - self._zero / 1e6
            early = span.quickest - self._zero / 1e6
            self.drift = early if early < 0 else slow
            if (len(self._quick) == _WINDOW and slow > self.step) or early < -self.step:
                self._anchor(min(self._quick) if early >= 0 else span.quickest)
        start = self.at(span.first)
        if self.newest is not None and start <= self.newest:
            assert self._zero is not None  # it was anchored above
            self._zero += self.newest + _APART - start
            start = self.newest + _APART
        self.newest = start + max(0, round((span.last - span.first) * 1e6))
        return start

    def at(self, pts: float) -> int:
        """The time of a pts by the anchor there is. Raises ValueError before the first."""
        if self._zero is None:
            raise ValueError("the clock is not anchored")
        return self._zero + round(pts * 1e6)

    @property
    def anchored(self) -> bool:
        return self._zero is not None

    def _anchor(self, quickest: float) -> None:
        self._zero = round(quickest * 1e6)
        self._quick.clear()
        self.anchors += 1
        self.drift = 0.0
