"""Hits of a search, and the moments they merge into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Hit", "Moment", "merge_moments"]


@dataclass(frozen=True, slots=True)
class Hit:
    """One frame that was found; captured_at in UTC microseconds, score the cosine."""

    stream_id: str
    captured_at: int
    score: float


@dataclass(frozen=True, slots=True)
class Moment:
    """Neighbouring hits of one stream as one stretch of time, UTC microseconds; `best` is its highest frame."""

    stream_id: str
    start: int
    end: int
    best: int
    score: float


def merge_moments(hits: Sequence[Hit], gap_seconds: float = 5.0) -> list[Moment]:
    """Join hits of a stream that lie at most `gap_seconds` apart; the best moment first, ties to the earlier."""
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
