"""The grid of seconds that the pieces of a stream share, wherever it was cut.

A stream that arrives in pieces has no first frame to count from: pieces begin between seconds, last what they last, and
some never come. So the grid is UTC itself. The rule:

- the second of a frame is the UTC second of `captured_at`, a frame at most a millisecond early belonging to the next
  (containers round times, a stream of 90 kHz by some microseconds);
- of each second a piece yields its first frame, so a piece that begins at 9.98 also yields one for second 9;
- of each second the store keeps one frame a stream: that of the piece that was committed first. The piece before has
  second 9 already, and the frame at 9.98 is left out; where that piece is missing, it is what there is of second 9.

So every UTC second of which footage was recorded has exactly one frame, neither lost nor doubled at a border. (Where a
decoder reads key frames only, which stand at most a second apart, the second that a stream ends in may have none.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["EARLY", "phase_of", "seconds_of"]

EARLY = 1_000  # microseconds
_SECOND = 1_000_000


def seconds_of(captured_at: NDArray[np.int64]) -> NDArray[np.int64]:
    """The UTC second, since the epoch, of each time in microseconds; int64[N] to int64[N]."""
    return (captured_at + EARLY) // _SECOND


def phase_of(start: int) -> float:
    """How far into its second a piece that starts at `start` (UTC microseconds) begins, in seconds, in [0, 1)."""
    return ((start + EARLY) % _SECOND) / _SECOND
