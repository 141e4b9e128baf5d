"""Search hits, and the moments they are merged into.

A hit is one frame. A moment is a run of neighbouring hits of one stream, shown as one result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Hit", "Moment", "merge_moments"]


@dataclass(frozen=True, slots=True)
class Hit:
    """One frame that a search returned."""

    stream_id: str
    """The stream of the frame."""

    captured_at: int
    """UTC microseconds."""

    score: float
    """Cosine of the frame's vector and the query, in [−1, 1]."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Neighbouring hits of one stream as one stretch of time."""

    stream_id: str
    """The stream of the hits."""

    start: int
    """Time of the first hit, UTC microseconds."""

    end: int
    """Time of the last hit, UTC microseconds, inclusive."""

    best: int
    """Time of the hit with the highest score, UTC microseconds."""

    score: float
    """The highest score of the hits."""


def merge_moments(hits: Sequence[Hit], gap_seconds: float = 5.0) -> list[Moment]:
    """Merge hits of one stream that are at most `gap_seconds` apart.

    Returns:
        Moments by descending score; of equal scores, by stream and time.
    """
    moments: list[Moment] = []
    for hit in sorted(hits, key=lambda h: (h.stream_id, h.captured_at)):
        last = moments[-1] if moments else None
        if last and last.stream_id == hit.stream_id and hit.captured_at - last.end <= gap_seconds * 1e6:
            better = hit.score > last.score
            best, score = (hit.captured_at, hit.score) if better else (last.best, last.score)
            moments[-1] = Moment(hit.stream_id, last.start, hit.captured_at, best, score)
        else:
            moments.append(Moment(hit.stream_id, hit.captured_at, hit.captured_at, hit.captured_at, hit.score))
    return sorted(moments, key=lambda m: (-m.score, m.stream_id, m.start))
