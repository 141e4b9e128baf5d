"""Sampling at a fixed number of frames a second of stream time, by pts and never by counting frames.

For second k, the first frame with pts ≥ k is taken; k counts from the stream's first pts. Taking every `int(fps)`-th
frame instead drifts by two minutes an hour at 29.97 frames a second.
"""

from __future__ import annotations

import math

__all__ = ["Sampler"]

# Time bases such as 1/90000 and float seconds can put a frame that belongs to a second some nanoseconds before it.
_ROUNDING = 1e-6


class Sampler:
    """Decides for each pts, in order of arrival, whether its frame is taken.

    Args:
        fps: frames wanted a second of stream time, above 0.
        first: the stream's first pts in seconds; None takes it from the first frame offered.
        after: seconds at the start of the stream to skip.
    """

    def __init__(self, fps: float = 1.0, *, first: float | None = None, after: float = 0.0) -> None:
        self.fps, self.first, self.after = fps, first, after
        self._next = math.ceil(after * fps - _ROUNDING)

    def copy(self) -> Sampler:
        """A sampler in the same state, which goes its own way."""
        other = Sampler(self.fps, first=self.first, after=self.after)
        other._next = self._next
        return other

    def wants(self, pts: float) -> bool:
        """Whether `take` would take the frame at `pts` seconds. Changes nothing."""
        return self._elapsed(pts) >= self._next

    def take(self, pts: float) -> bool:
        """Whether the frame at `pts` seconds is the first of a second that has no frame yet."""
        if self.first is None:
            self.first = pts
        elapsed = self._elapsed(pts)
        if elapsed < self._next:
            return False
        self._next = math.floor(elapsed) + 1
        return True

    def _elapsed(self, pts: float) -> float:
        first = pts if self.first is None else self.first
        return (pts - first) * self.fps + _ROUNDING * self.fps
