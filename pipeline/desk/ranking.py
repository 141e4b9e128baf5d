"""Moments by descending score, computed as they are read: a first page costs the same however many follow.

The moments are those of `index.search.moments.find_moments`: a frame that matches best, extended over its neighbours;
a frame near a better moment starts none of its own. Streams do not influence each other, so each is ranked for itself
and the results are merged.
"""

from __future__ import annotations

import heapq
import threading
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.search.moments import GAP_SECONDS, SURROUNDINGS_SECONDS, Hit, Moment, moment_around

__all__ = ["RankedMoments", "ScoredStream", "rank_stream"]

_FIRST = 2_048  # frames that are sorted at first
_GAP, _REACH = round(GAP_SECONDS * 1e6), round(SURROUNDINGS_SECONDS * 1e6)


@dataclass(frozen=True, slots=True)
class ScoredStream:
    """The n frames of a stream that a search is about, ascending in time."""

    stream_id: str
    """Name of the stream."""
    captured_at: NDArray[np.int64]
    """int64[n]: UTC microseconds."""
    scores: NDArray[np.float32]
    """float32[n]: how well each frame matches."""
    least: float = -np.inf
    """A moment whose best frame scores less is left out."""


def rank_stream(stream: ScoredStream) -> Iterator[Moment]:
    """The moments of one stream, the best first; of equal scores, the earlier first."""
    times, scores = stream.captured_at, stream.scores
    taken = np.zeros(len(times), bool)
    starts: list[int] = []
    ends: dict[int, int] = {}
    for row in _best_rows(scores, stream.least):
        if taken[row]:
            continue
        at = int(times[row])
        place = bisect_left(starts, at)
        low, high = at - _REACH, at + _REACH
        if place:
            low = max(low, ends[starts[place - 1]] + 1)
        if place < len(starts):
            high = min(high, starts[place] - 1)
        first, last = int(np.searchsorted(times, low)), int(np.searchsorted(times, high, side="right"))
        near = zip(times[first:last].tolist(), scores[first:last].tolist(), strict=True)
        hits = [Hit(stream.stream_id, time, score) for time, score in near]
        moment = moment_around(Hit(stream.stream_id, at, float(scores[row])), hits)
        insort(starts, moment.start)
        ends[moment.start] = moment.end
        first, last = (
            int(np.searchsorted(times, moment.start - _GAP)),
            int(np.searchsorted(times, moment.end + _GAP, side="right")),
        )
        taken[first:last] = True
        yield moment


def _best_rows(scores: NDArray[np.float32], least: float) -> Iterator[int]:
    """Rows by descending score, of equal scores the earlier first; rows below `least` are left out."""
    size, done = _FIRST, 0
    while done < len(scores):
        if size < len(scores):
            bound = np.partition(scores, len(scores) - size)[len(scores) - size]
            rows = np.flatnonzero(scores >= bound)
        else:
            rows = np.arange(len(scores))
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        for row in rows[done:].tolist():
            if scores[row] < least:
                return
            yield row
        done, size = len(rows), size * 8


class RankedMoments:
    """The moments of several streams, the best first, of equal scores by stream and time. Thread-safe.

    Args:
        streams: the streams.
        most: largest number of moments.
    """

    def __init__(self, streams: Sequence[ScoredStream], most: int) -> None:
        self.most = most
        self.nbytes = sum(each.captured_at.nbytes + each.scores.nbytes for each in streams)
        ranked = [rank_stream(each) for each in streams]
        self._rest = heapq.merge(*ranked, key=lambda moment: (-moment.score, moment.stream_id, moment.best))
        self._found: list[Moment] = []
        self._lock = threading.Lock()

    def slice(self, first: int, count: int) -> list[Moment]:
        """The moments from place `first` on, at most `count` of them."""
        until = min(first + count, self.most)
        with self._lock:
            while len(self._found) < until:
                moment = next(self._rest, None)
                if moment is None:
                    break
                self._found.append(moment)
            return self._found[first:until]

    def after(self, score: float, stream_id: str, best: int) -> int:
        """The place of the first moment that is behind a moment with this score, stream and best frame."""
        place = 0
        while page := self.slice(place, 1_000):
            for moment in page:
                if (-moment.score, moment.stream_id, moment.best) > (-score, stream_id, best):
                    return place
                place += 1
        return place
