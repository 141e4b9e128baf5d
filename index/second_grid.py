"""The grid of UTC seconds that assigns every frame of a stream to one second, however the stream was cut.

A stream that arrives in segments has no first frame to count from: segments begin between two seconds, have any length,
and some are lost. The grid is therefore UTC itself:

- The second of a frame is the UTC second of its `captured_at`. A frame at most `EARLY_MICROS` before a second belongs
  to that second, because containers round times (a 90 kHz stream by some microseconds).
- A segment yields its first frame of each second, so a segment that begins at 9.98 yields one frame for second 9 too.
- The store keeps one frame of each second of a stream: that of the segment that was committed first. In the example,
  the segment before has second 9 already, and the frame at 9.98 is left out. If that segment is missing, it is kept.

So each UTC second of which footage was recorded has exactly one frame; none is lost or doubled where segments meet. One
exception: where the decoder reads intra frames only, which are at most a second apart, the second in which a stream
ends may have none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["EARLY_MICROS", "phase_of", "seconds_of"]

EARLY_MICROS = 1_000
"""How long before a second, in microseconds, a frame still belongs to it."""

_SECOND = 1_000_000


def seconds_of(captured_at: NDArray[np.int64]) -> NDArray[np.int64]:
    """The second of each frame: int64[N] UTC microseconds to int64[N] seconds since the epoch."""
    return (captured_at + EARLY_MICROS) // _SECOND


def phase_of(start: int) -> float:
    """How far into its second a segment begins that starts at `start` (UTC microseconds): seconds, in [0, 1)."""
    return ((start + EARLY_MICROS) % _SECOND) / _SECOND
