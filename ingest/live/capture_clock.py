"""The capture time of live frames: the wall clock at arrival, continued by the stream's own timestamps.

A packet may arrive late, never early. `arrival - pts` is therefore smallest for the packet with the shortest delay, and
the smallest value within a segment is the best estimate of the wall clock at pts 0, even when a server sends buffered
packets in one burst. Times are assigned one segment at a time:

- The first segment of a connection, or after a discontinuity, is anchored by the packet with the shortest delay.
- Each further segment starts where its pts says, which keeps the distances between frames whatever the network does.
- Drift is the disagreement between the anchor and the shortest delay of the latest segments. Beyond `step` seconds the
  stream is anchored again: forward at once, backward only as far as times stay strictly ascending.

Timestamps come from `ingest.decoding.timeline`; at a discontinuity the caller starts a new segment.

Nothing here reads a clock or knows what packets contain: all times are arguments.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

__all__ = ["CaptureClock", "Span"]

_MIN_STEP = 1_000  # microseconds between frames whose order would be reversed; containers round times
_WINDOW = 3  # segments over which the drift is measured


@dataclass(slots=True)
class Span:
    """The range of pts of one segment, and the shortest delay of its packets."""

    first: float
    """The first pts in seconds."""
    min_delay: float = float("inf")
    """The smallest `arrival - pts` of any packet, in seconds."""
    last: float = float("-inf")
    """The largest pts in seconds."""

    def add(self, pts: float, arrival: float) -> None:
        """Add a packet; both times in seconds."""
        self.min_delay = min(self.min_delay, arrival - pts)
        self.last = max(self.last, pts)


@dataclass(slots=True)
class CaptureClock:
    """Assigns UTC times to the segments of one stream, strictly ascending over all its connections."""

    newest: int | None = None
    """The last time assigned to a frame of the stream, in UTC microseconds; None when there is none."""
    step: float = 0.5
    """Drift in seconds beyond which the stream is anchored again."""
    drift: float = 0.0
    """The wall clock minus the stream's clock, in seconds."""
    anchors: int = 0
    """How often the stream was anchored."""
    _zero: int | None = None  # UTC microseconds of pts 0; None until the next segment is anchored
    _delays: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def discontinuity(self) -> None:
        """Note that the stream's own clock does not continue: the next segment is anchored."""
        self._zero = None

    def assign(self, span: Span) -> int:
        """Assign times to a segment, once. Returns the time of pts `span.first` in UTC microseconds."""
        if self._zero is None:
            self._anchor(span.min_delay)
            self._delays.append(span.min_delay)
        else:
            self._delays.append(span.min_delay)
            # A single segment may be late as a whole; all segments of a window are late only when the clocks differ.
            late = min(self._delays) - self._zero / 1e6
            early = span.min_delay - self._zero / 1e6
            self.drift = early if early < 0 else late
            if (len(self._delays) == _WINDOW and late > self.step) or early < -self.step:
                self._anchor(min(self._delays) if early >= 0 else span.min_delay)
        start = self.time_at(span.first)
        if self.newest is not None and start <= self.newest:
            assert self._zero is not None  # it was anchored above
            self._zero += self.newest + _MIN_STEP - start
            start = self.newest + _MIN_STEP
        self.newest = start + max(0, round((span.last - span.first) * 1e6))
        return start

    def time_at(self, pts: float) -> int:
        """The time of a pts in seconds, by the current anchor, in UTC microseconds. Raises ValueError without one."""
        if self._zero is None:
            raise ValueError("the clock is not anchored")
        return self._zero + round(pts * 1e6)

    @property
    def anchored(self) -> bool:
        """Whether there is an anchor."""
        return self._zero is not None

    def _anchor(self, delay: float) -> None:
        self._zero = round(delay * 1e6)
        self._delays.clear()
        self.anchors += 1
        self.drift = 0.0
