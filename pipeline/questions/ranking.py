"""Moments of a search in their order, found as they are read: the first page costs the same however many follow.

`RankedMoments` is made from the scores of all frames in scope, wherever they come from, and keeps the moments that were
read, so that a page that was turned once is not computed again. Its percentiles are those of `index.search.scores`.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from index.search.moments import Moment, merged_moments, moments_of
from index.search.scores import ScoredFrames, percentile
from index.search.vector_search import IndexedMoments

__all__ = ["SAMPLE", "Position", "RankedMoments", "meaning_of", "position_of"]

SAMPLE = 2000
"""Number of frames of a stream that its percentiles are measured with."""

Position = tuple[float, str, int]
"""The place of a moment in the order of results: −score, stream, time of the best frame."""


def position_of(moment: Moment) -> Position:
    """The place of a moment in the order of results."""
    return -moment.score, moment.stream_id, moment.best


def meaning_of(share: float, stream_id: str) -> str:
    """What a percentile means, in a few words."""
    return f"higher than {math.floor(share * 10) / 10:g} % of the frames of {stream_id}"


class RankedMoments:
    """The moments of several streams, the best first; of equal scores, by stream and time. Thread-safe.

    Args:
        scored: the frames that are searched, one entry for each stream.
        background: returns scores of a sample of everything stored of a stream, ascending, float32[n], n ≥ 1; called
            once for each stream whose percentiles are needed.
        min_percentile: only moments whose percentile is at least this, 0 to 100.
        most: largest number of moments; no limit if None.
        indexed: the moments, from the large index; `scored` is empty and `min_percentile` 0 then.
    """

    def __init__(
        self,
        scored: Sequence[ScoredFrames],
        background: Callable[[str], NDArray[np.float32]],
        *,
        min_percentile: float = 0.0,
        most: int | None = None,
        indexed: IndexedMoments | None = None,
    ) -> None:
        self.frames, self.streams = sum(map(len, scored)), len(scored)
        self.nbytes = sum(each.captured_at.nbytes + each.scores.nbytes for each in scored)
        self._background = background
        self._backgrounds: dict[str, NDArray[np.float32]] = {}
        ranked = merged_moments(self._at_least(moments_of(frames), min_percentile) for frames in scored)
        if indexed is not None:
            ranked, self.frames, self.streams = indexed.moments, indexed.frames, indexed.streams
        self._rest = ranked if most is None else itertools.islice(ranked, most)
        self._found: list[Moment] = []
        self._lock = threading.RLock()

    def slice(self, first: int, count: int) -> list[Moment]:
        """The moments from place `first` on, at most `count` of them."""
        with self._lock:
            self._found += itertools.islice(self._rest, max(0, first + count - len(self._found)))
            return self._found[first : first + count]

    def after(self, position: Position) -> int:
        """The place of the first moment that follows a position."""
        place = 0
        while page := self.slice(place, 256):
            for moment in page:
                if position_of(moment) > position:
                    return place
                place += 1
        return place

    def percentile(self, moment: Moment) -> float:
        """The percentile of a moment's best frame."""
        held = self._backgrounds.get(moment.stream_id)
        if held is None:
            held = self._backgrounds[moment.stream_id] = self._background(moment.stream_id)
        return percentile(moment.score, held)

    def _at_least(self, moments: Iterator[Moment], least: float) -> Iterator[Moment]:
        """The moments of a stream, best first, up to the first one below `least`."""
        return moments if least <= 0 else itertools.takewhile(lambda moment: self.percentile(moment) >= least, moments)
