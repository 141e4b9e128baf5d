"""One timeline for the timestamps of a file, a segment or a live stream: wraps undone, discontinuities found and
bridged.

Timestamps are followed in decoding order by dts, which ascend in sound footage where pts do not. Counters that wrap (33
bits in MPEG-TS, 32 bits in RTP) go on. What remains is a discontinuity:

- **step back**: joined recordings, a recorder whose clock is set back, another program. What follows is placed right
  behind what came before, since footage goes on though its clock does not.
- **gap**: the clock leaps ahead by more than `gap`. The leap counts as time that passed without footage.
- **step ahead**: a leap of more than `max_gap`, or past what the wall clock allows. No pause lasts that long, so it is
  a fault of the clock, and what follows is placed right behind.

Nothing here reads a clock or knows of packets: ticks come in, offsets go out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Discontinuity", "Timeline"]

_WRAPS = (2**33, 2**32)
_MAX_RECORDED = 100
_MAX_GAPS = 60 * 86_400.0  # seconds of all gaps of one file together; more are steps of its clock


@dataclass(frozen=True, slots=True)
class Discontinuity:
    """A place at which timestamps do not go on."""

    at: float
    """Stream time in seconds at which the footage before it ends."""

    by: float
    """Seconds from the end of the footage before to the next timestamp: negative where the clock was set back."""

    bridged: bool
    """True where the footage behind was placed right behind the footage before; False for a gap in time."""

    def __str__(self) -> str:
        if not self.bridged:
            return f"no footage for {self.by:.1f} s after {self.at:.1f} s"
        which = "back" if self.by < 0 else "ahead"
        return f"the footage's clock steps {which} by {abs(self.by):.1f} s at {self.at:.1f} s; later frames follow on"


@dataclass(slots=True)
class Timeline:
    """Follows the timestamps of one stream.

    After each `follow`, `offset` is what to add to the ticks of that packet.
    """

    base: float
    """Seconds a tick."""
    frame: float = 0.04
    """Seconds from one frame to the next, to place footage behind a step."""
    gap: float = 10.0
    """Leaps ahead of more seconds than this are recorded as gaps."""
    max_gap: float = 7 * 86_400.0
    """Leaps ahead of more seconds than this are steps of the clock."""
    back: float = 0.5
    """Seconds that dts may go back and still count as packets out of order."""
    offset: int = 0
    """Ticks to add to the timestamps of the packet that was followed last."""
    found: list[Discontinuity] = field(default_factory=list)
    """The first discontinuities, at most a hundred."""
    count: int = 0
    """How many discontinuities there were."""
    _last: int | None = None
    _arrival: float = 0.0
    _gaps: float = 0.0

    def follow(self, dts: int, arrival: float | None = None) -> Literal["next", "stray", "break"]:
        """Take the next packet: it goes on, is out of order by a little, or the timeline breaks before it.

        Args:
            dts: in ticks, as it came.
            arrival: wall clock in seconds when the packet arrived from a live source; None for recorded footage. A live
                source cannot leap further ahead than the wall clock by more than `gap`.
        """
        last = self._last
        if last is None:
            self._last, self._arrival = dts + self.offset, arrival or 0.0
            return "next"
        room = self.max_gap if arrival is None else max(0.0, arrival - self._arrival) + self.gap
        step = (dts + self.offset - last) * self.base
        if step < -self.back or step > min(room, self.gap):
            step = self._unwrapped(dts, last, step, room)
        if -self.back <= step <= 0:
            return "stray"
        if step < 0 or step > room or (arrival is None and self._gaps + step > _MAX_GAPS):
            self._bridge(dts, last, step)
            self._arrival = arrival or 0.0
            return "break"
        if step > self.gap and arrival is None:
            self._record(Discontinuity(last * self.base + self.frame, step - self.frame, bridged=False))
            self._gaps += step
        self._last, self._arrival = dts + self.offset, arrival or 0.0
        return "next"

    def rebase(self, base: float, *, frame: float) -> None:
        """Go on with the packets of another stream, whose tick is `base` seconds and whose frames last `frame`
        seconds."""
        if self._last is not None:
            self._last = round(self._last * self.base / base)
        self.offset = round(self.offset * self.base / base)
        self.base, self.frame = base, frame

    def forget(self) -> None:
        """Take the next packet as it comes: the reader has moved to another place of the file."""
        self._last = None

    def _unwrapped(self, dts: int, last: int, step: float, room: float) -> float:
        """The step after a wrap of the counter is undone, where that makes it go on; else `step`."""
        for wrap in (*_WRAPS, *(-wrap for wrap in _WRAPS)):
            unwrapped = (dts + self.offset + wrap - last) * self.base
            if -self.back <= unwrapped <= min(room, self.gap):
                self.offset += wrap
                return unwrapped
        return step

    def _bridge(self, dts: int, last: int, step: float) -> None:
        self._record(Discontinuity(last * self.base + self.frame, step - self.frame, bridged=True))
        self._last = last + max(1, round(self.frame / self.base))
        self.offset = self._last - dts

    def _record(self, discontinuity: Discontinuity) -> None:
        self.count += 1
        if len(self.found) < _MAX_RECORDED:
            self.found.append(discontinuity)
