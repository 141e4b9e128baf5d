"""A window: the frames a question is about, with the vectors that keyframes are selected by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

__all__ = ["Window"]


@dataclass(frozen=True, slots=True)
class Window:
    """Frames of some streams in some stretch of time, sorted by stream and time; row i of every array is one frame."""

    stream_ids: list[str]
    """The streams the window was read for, ascending; some may have no rows."""

    stream_index: NDArray[np.int32]
    """int32[N]: the stream of each frame, as an index into `stream_ids`."""

    captured_at: NDArray[np.int64]
    """int64[N]: UTC microseconds."""

    pts_seconds: NDArray[np.float64]
    """float64[N]: seconds of the stream's own clock."""

    frame_vectors: NDArray[np.float32]
    """float32[N, Df]: CLIP embeddings, unit norm; float32[N, 0] in a window that was read without them."""

    def __len__(self) -> int:
        return len(self.captured_at)

    def locate(self, stream_ids: pa.Array, captured_at: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each of n frames, int64[n]; −1 for a frame that is not in the window.

        Args:
            stream_ids: Arrow array of n strings.
            captured_at: int64[n], UTC microseconds.
        """
        rows = np.full(len(captured_at), -1, np.int64)
        for name in pc.unique(stream_ids).to_pylist():
            if name not in self.stream_ids:
                continue
            number = self.stream_ids.index(name)
            low, high = np.searchsorted(self.stream_index, [number, number + 1])
            if low == high:
                continue
            found = np.minimum(np.searchsorted(self.captured_at[low:high], captured_at), high - low - 1) + low
            hit = pc.equal(stream_ids, name).to_numpy(zero_copy_only=False) & (self.captured_at[found] == captured_at)
            rows[hit] = found[hit]
        return rows

    @property
    def streams(self) -> list[str]:
        """The streams that have rows in the window."""
        return [self.stream_ids[i] for i in np.unique(self.stream_index)]

    def take(self, positions: NDArray[np.integer] | slice) -> Window:
        """The rows at `positions`, which must ascend so that the result is sorted."""
        return Window(
            self.stream_ids,
            self.stream_index[positions],
            self.captured_at[positions],
            self.pts_seconds[positions],
            self.frame_vectors[positions],
        )
