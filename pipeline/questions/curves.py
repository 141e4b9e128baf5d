"""Relevance over time of what a question selected, in a size that does not depend on the window.

A day of a hundred cameras has millions of frames; a picture of their relevance has some hundred columns.
`relevance_curves` takes a few streams, those that the answer rests on, and of each the frames that a picture shows: the
most relevant frame of each stretch of frames, and every keyframe.

Does not know how they are drawn or sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.questions.asked import Selection

__all__ = ["MOST_CURVES", "MOST_POINTS", "RelevanceCurve", "relevance_curves"]

MOST_CURVES = 16
"""Largest number of streams that have a curve."""

MOST_POINTS = 4_000
"""Largest number of stretches of all curves together; the keyframes come on top."""

_OF_ONE = 2_000


@dataclass(frozen=True, slots=True)
class RelevanceCurve:
    """Relevance of n frames of one stream."""

    stream_id: str
    """The stream."""

    captured_at: NDArray[np.int64]
    """int64[n]: UTC microseconds, ascending."""

    scores: NDArray[np.float32]
    """float32[n]: relevance R_f of each."""


def relevance_curves(selection: Selection) -> list[RelevanceCurve]:
    """The curves of a selection, stream by stream.

    Of more than `MOST_CURVES` streams, those with the most keyframes have one; of equal numbers, those with the most
    relevant frame. A stream of which there is room for all frames has all of them.
    """
    window, scores = selection.window, selection.scores
    present, first = np.unique(window.stream_index, return_index=True)  # the frames are sorted by stream
    if not len(present):
        return []
    bounds = np.append(first, len(window))
    keyframes = np.bincount(np.searchsorted(present, window.stream_index[selection.keyframes]), minlength=len(present))
    order = np.lexsort((-np.maximum.reduceat(scores, first), -keyframes))
    shown = np.sort(order[:MOST_CURVES])
    room = min(_OF_ONE, MOST_POINTS // len(shown))
    curves = []
    for place in shown.tolist():
        low, high = int(bounds[place]), int(bounds[place + 1])
        inside = (selection.keyframes >= low) & (selection.keyframes < high)
        rows = np.union1d(_best_rows(scores[low:high], room) + low, selection.keyframes[inside])
        curves.append(RelevanceCurve(window.stream_ids[present[place]], window.captured_at[rows], scores[rows]))
    return curves


def _best_rows(scores: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """The row of the best of each of `most` stretches of n frames, int64[≤ most], ascending; all rows if n ≤ most."""
    if len(scores) <= most:
        return np.arange(len(scores), dtype=np.int64)
    bounds = np.linspace(0, len(scores), most + 1).astype(np.int64)
    best = [a + int(np.argmax(scores[a:b])) for a, b in pairwise(bounds)]
    return np.asarray(best, np.int64)
