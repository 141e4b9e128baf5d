"""Scores of all frames of a search: what moments, percentiles and pages are made from.

A search that pages through thousands of moments needs the score of every frame once, 12 bytes a frame, and no vector
after that. The score of a frame does not depend on which frames are scored with it, bit by bit, so the order of results
is the same for every window and page that contains them. Does not know where vectors are stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_SCORED_FRAMES", "ScoredFrames", "cosines", "percentile"]

MAX_SCORED_FRAMES = 50_000_000
"""The largest number of frames of one search, 600 MB of times and scores."""


@dataclass(frozen=True, slots=True)
class ScoredFrames:
    """Frames of one stream with their scores, ascending in time; row i of both arrays is one frame."""

    stream_id: str
    """The stream."""

    captured_at: NDArray[np.int64]
    """int64[N]: UTC microseconds."""

    scores: NDArray[np.float32]
    """float32[N]: cosine of the frame's vector and the query, in [−1, 1]."""

    def __len__(self) -> int:
        return len(self.captured_at)

    def where(self, keep: NDArray[np.bool_]) -> ScoredFrames:
        """The rows where `keep`, bool[N], is true; the object itself if all are."""
        if keep.all():
            return self
        return ScoredFrames(self.stream_id, self.captured_at[keep], self.scores[keep])


def cosines(vectors: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner products of float32[N, Df] and float32[Df], float32[N].

    Unlike a product of matrices, it adds the terms of every row in the same order.
    """
    result: NDArray[np.float32] = np.einsum("ij,j->i", vectors, query)
    return result


def percentile(score: float, background: NDArray[np.float32]) -> float:
    """The share of a stream's frames that score less, in percent, 0 to 100.

    Args:
        score: the score of a frame.
        background: scores of a sample of the stream's frames for the same query, ascending, float32[n], n ≥ 1.
    """
    return 100.0 * int(np.searchsorted(background, np.float32(score), "left")) / len(background)
