"""Search hits, and the moments they belong to.

A hit is one frame. A moment is a run of neighbouring frames of one stream, shown as one result. `moments_of` starts
at the frame that matches best and extends the moment over its neighbours, whatever number of moments is read: the best
three moments of a search for ten are those of a search for three, and the moments of a stream do not depend on which
other streams are searched. Does not know how frames are compared.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.search.scores import ScoredFrames

__all__ = ["Hit", "Moment", "merge_moments", "merged_moments", "moments_among", "moments_of"]

GAP_SECONDS = 5.0
"""Frames that are farther apart than this belong to different moments."""
SURROUNDINGS_SECONDS = 300.0
"""A frame is compared with the frames that are at most this far from it, so no moment is longer than twice that."""


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


def moments_of(frames: ScoredFrames, gap_seconds: float = GAP_SECONDS) -> Iterator[Moment]:
    """The moments of one stream, the best first; of equal scores, by time. They never overlap.

    A moment consists of its best frame and the neighbours that score at least half as far above the usual score as it
    does; the usual score is the lower quartile of the frames at most `SURROUNDINGS_SECONDS` away. It ends where no such
    frame follows within `gap_seconds`. A frame within `gap_seconds` of a better moment belongs to that moment's edge
    and starts none of its own.

    Args:
        frames: all frames of the stream that are searched.
        gap_seconds: largest distance of two neighbours.
    """
    times, scores = frames.captured_at, frames.scores
    gap, reach = round(gap_seconds * 1e6), round(SURROUNDINGS_SECONDS * 1e6)
    free = np.ones(len(frames), bool)
    bounds: list[tuple[int, int]] = []  # first and last time of each moment so far, ascending
    for block in _descending(scores):
        for row in block[free[block]].tolist():
            if not free[row]:  # since the block began, by a moment nearby
                continue
            at = int(times[row])
            place = bisect_left(bounds, (at, at))
            low = max(at - reach, bounds[place - 1][1] + 1 if place else at - reach)
            high = min(at + reach, bounds[place][0] - 1 if place < len(bounds) else at + reach)
            first, last = _extent(times, scores, row, low, high, gap)
            bounds.insert(place, (first, last))
            free[np.searchsorted(times, first - gap) : np.searchsorted(times, last + gap, "right")] = False
            yield Moment(frames.stream_id, first, last, at, float(scores[row]))


def moments_among(
    hits: Iterable[Hit], around: Callable[[str, int, int], ScoredFrames], gap_seconds: float = GAP_SECONDS
) -> Iterator[Moment]:
    """The moments of hits that are read best first: those that `moments_of` and `merged_moments` find among all frames,
    as far as the hits are the best of all frames in their order.

    Args:
        hits: by descending score; of equal scores, by stream and time.
        around: returns all frames of a stream that are searched, from one time to another, both inclusive, UTC
            microseconds.
        gap_seconds: as in `moments_of`.
    """
    gap, reach = round(gap_seconds * 1e6), round(SURROUNDINGS_SECONDS * 1e6)
    found: dict[str, list[tuple[int, int]]] = {}  # first and last time of each moment so far, ascending
    for hit in hits:
        at, bounds = hit.captured_at, found.setdefault(hit.stream_id, [])
        place = bisect_left(bounds, (at, at))
        before = bounds[place - 1][1] if place else None
        after = bounds[place][0] if place < len(bounds) else None
        if (before is not None and at - before <= gap) or (after is not None and after - at <= gap):
            continue
        low = at - reach if before is None else max(at - reach, before + 1)
        high = at + reach if after is None else min(at + reach, after - 1)
        frames = around(hit.stream_id, low, high)
        row = int(np.searchsorted(frames.captured_at, at))
        first, last = _extent(frames.captured_at, frames.scores, row, low, high, gap)
        bounds.insert(place, (first, last))
        yield Moment(hit.stream_id, first, last, at, hit.score)


def _extent(
    times: NDArray[np.int64], scores: NDArray[np.float32], row: int, low: int, high: int, gap: int
) -> tuple[int, int]:
    """The first and the last time of the moment around a row, within the times `low` to `high`; microseconds."""
    begin, end = int(np.searchsorted(times, low)), int(np.searchsorted(times, high, "right"))
    around = scores[begin:end].astype(np.float64)
    usual, peak = float(np.quantile(around, 0.25)), float(scores[row])
    belongs = around >= usual + (peak - usual) / 2
    belongs[row - begin] = True  # also where the frame scores less than usual
    members = times[begin:end][belongs]
    breaks = np.flatnonzero(np.diff(members) > gap)  # break i is between the members i and i + 1
    place = int(np.searchsorted(breaks, np.searchsorted(members, times[row])))
    first = int(breaks[place - 1]) + 1 if place else 0
    last = int(breaks[place]) if place < len(breaks) else len(members) - 1
    return int(members[first]), int(members[last])


def _descending(scores: NDArray[np.float32]) -> Iterator[NDArray[np.intp]]:
    """All rows by descending score, of equal scores ascending, in blocks; only the blocks that are read are sorted."""
    rows, size = np.arange(len(scores)), 4096
    while len(rows):
        held = scores[rows]
        least = np.partition(held, len(rows) - size)[len(rows) - size] if len(rows) > size else held.min()
        block, rows = rows[held >= least], rows[held < least]
        yield block[np.argsort(-scores[block], kind="stable")]
        size *= 8


def merged_moments(streams: Iterable[Iterator[Moment]]) -> Iterator[Moment]:
    """The moments of several streams in one order: by descending score; of equal scores, by stream and time."""
    return heapq.merge(*streams, key=lambda moment: (-moment.score, moment.stream_id, moment.best))
