"""A window: the frames of some streams in some time, with the vectors that keyframes are chosen by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Window"]


@dataclass(frozen=True, slots=True)
class Window:
    """Rows sorted by stream and time; row i of every array is the same frame.

    Shapes: stream_index int32[N] into `stream_ids`, captured_at int64[N] (UTC microseconds), pts_seconds float64[N],
    frame_vectors float32[N, Df] of unit norm.
    """

    stream_ids: list[str]
    stream_index: NDArray[np.int32]
    captured_at: NDArray[np.int64]
    pts_seconds: NDArray[np.float64]
    frame_vectors: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.captured_at)

    def take(self, positions: NDArray[np.integer] | slice) -> Window:
        """The rows at `positions`, which must be ascending for the window to stay sorted."""
        return Window(
            self.stream_ids,
            self.stream_index[positions],
            self.captured_at[positions],
            self.pts_seconds[positions],
            self.frame_vectors[positions],
        )
