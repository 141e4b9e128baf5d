"""Search hits, and the moments they belong to.

A hit is one frame. A moment is a run of neighbouring frames of one stream, shown as one result. `find_moments` starts
at the frame that matches best and extends the moment over its neighbours, whatever number of moments is asked for: the
best three moments of a search for ten are those of a search for three. Does not know how frames are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Hit", "Moment", "find_moments", "merge_moments", "moment_around"]

GAP_SECONDS = 5.0
"""Frames that are farther apart than this belong to different moments."""
SURROUNDINGS_SECONDS = 300.0
"""A frame is compared with the frames that are at most this far from it, so no moment is longer than twice that."""
_HITS_A_MOMENT = 16  # hits that are read at first for each moment, because most are neighbours of a better one


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


def merge_moments(hits: Sequence[Hit], gap_seconds: float = GAP_SECONDS) -> list[Moment]:
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


def moment_around(peak: Hit, surroundings: Sequence[Hit], gap_seconds: float = GAP_SECONDS) -> Moment:
    """The moment of the frame `peak`: its neighbours that score at least half as far above the usual score as it does.

    The usual score is the lower quartile of the surroundings. The moment ends where no such frame follows within
    `gap_seconds`.

    Args:
        peak: a frame that matches better than its neighbours.
        surroundings: the frames around it, of its stream, in any order; `peak` may be among them.
        gap_seconds: largest distance of two neighbours.
    """
    usual = float(np.quantile([hit.score for hit in surroundings], 0.25)) if surroundings else peak.score
    least = usual + (peak.score - usual) / 2
    times = sorted(hit.captured_at for hit in surroundings if hit.score >= least)
    start = end = peak.captured_at
    for at in times:
        if end < at <= end + gap_seconds * 1e6:
            end = at
    for at in reversed(times):
        if start - gap_seconds * 1e6 <= at < start:
            start = at
    return Moment(peak.stream_id, start, end, peak.captured_at, peak.score)


def find_moments(
    best_hits: Callable[[int], Sequence[Hit]],
    surroundings: Callable[[Hit, int, int], Sequence[Hit]],
    top: int,
    gap_seconds: float = GAP_SECONDS,
) -> list[Moment]:
    """The `top` moments that match best, the best first; fewer if there are no more.

    A frame within `gap_seconds` of a better moment belongs to that moment's edge and starts none of its own. Moments
    never overlap.

    Args:
        best_hits: returns the given number of best frames, the best first; fewer only if there are no more.
        surroundings: returns the frames of a hit's stream from one time to another, both inclusive, UTC microseconds.
        top: largest number of moments.
        gap_seconds: largest distance of two neighbours.
    """
    moments: list[Moment] = []
    gap, reach = round(gap_seconds * 1e6), round(SURROUNDINGS_SECONDS * 1e6)
    size, seen = top * _HITS_A_MOMENT, 0
    while True:
        hits = best_hits(size)
        for hit in hits[seen:]:
            at = hit.captured_at
            of_stream = [moment for moment in moments if moment.stream_id == hit.stream_id]
            if any(moment.start - gap <= at <= moment.end + gap for moment in of_stream):
                continue
            low = max([at - reach, *(moment.end + 1 for moment in of_stream if moment.end < at)])
            high = min([at + reach, *(moment.start - 1 for moment in of_stream if moment.start > at)])
            moments.append(moment_around(hit, surroundings(hit, low, high), gap_seconds))
            if len(moments) == top:
                return moments
        if len(hits) < size:
            return moments
        size, seen = size * 4, len(hits)
