"""Segments of the relevance curve (after WFS-SB, "Wavelet-based frame selection by detecting semantic boundaries").

    1. smooth the relevance over time: a Haar wavelet transform whose details below Donoho's universal threshold are
       dropped
    2. cut where the smooth curve changes most: local maxima of |ΔR| above their mean plus one standard deviation
    3. share K among the segments by exp of their mean relevance times the square root of their length
    4. inside a segment, maximal marginal relevance: R' − largest cosine to the frames taken, half each

Numbers and the order of steps are ours; the idea is the paper's. Streams are cut apart first.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from index.selectors.background import stretches
from index.selectors.selector import Candidates, Chosen, SelectionRule

__all__ = ["segments", "smooth"]

_LEVELS = 4
_BALANCE = 0.5  # weight of the relevance against the similarity


def segments(candidates: Candidates, rule: SelectionRule) -> Chosen:
    """At most K rows, segment after segment, in the order of selection. Raises UsageError for arrays that are not
    finite."""
    vectors, scores = candidates.compared(rule.redundancy)
    count = len(scores)
    if count == 0:
        return Chosen(np.zeros(0, np.int64))
    edges = _cut(scores, stretches(count, candidates.stream_index))
    spread = float(np.ptp(scores)) or 1.0
    level = (scores - scores.min()) / spread
    lengths = np.diff(edges)
    means = np.add.reduceat(level, edges[:-1]) / lengths
    shares = _shared(np.exp(4 * means) * np.sqrt(lengths), lengths, min(rule.k, count))
    rows: list[int] = []
    for first, last, share in zip(edges[:-1].tolist(), edges[1:].tolist(), shares.tolist(), strict=True):
        rows += [first + row for row in _marginal(vectors[first:last], level[first:last], share)]
    return Chosen(np.asarray(rows, np.int64))


def smooth(values: NDArray[np.floating], levels: int = _LEVELS) -> NDArray[np.float64]:
    """Denoise a curve by Haar wavelets, float64[N]; its last value is repeated up to a power of two."""
    size = 1 << max(0, int(len(values) - 1)).bit_length()
    curve = np.concatenate([values, np.full(size - len(values), values[-1])]).astype(np.float64)
    details: list[NDArray[np.float64]] = []
    for _ in range(min(levels, size.bit_length() - 1)):
        pairs = curve.reshape(-1, 2)
        details.append((pairs[:, 0] - pairs[:, 1]) / 2**0.5)
        curve = (pairs[:, 0] + pairs[:, 1]) / 2**0.5
    if details:
        noise = float(np.median(np.abs(details[0]))) / 0.6745
        threshold = noise * (2 * np.log(max(2, size))) ** 0.5
        for detail in reversed(details):
            kept = np.where(np.abs(detail) > threshold, detail, 0.0)
            curve = np.stack([curve + kept, curve - kept], axis=1).reshape(-1) / 2**0.5
    return curve[: len(values)]


def _cut(scores: NDArray[np.float32], stretch_edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """The edges of the segments, int64[segments + 1]; a stretch is smoothed on its own."""
    edges = [0]
    for first, last in pairwise(stretch_edges.tolist()):
        change = np.abs(np.diff(smooth(scores[first:last])))
        if len(change):
            high = change > change.mean() + change.std()
            left = np.concatenate([[True], change[1:] >= change[:-1]])
            right = np.concatenate([change[:-1] > change[1:], [True]])
            edges += (first + 1 + np.flatnonzero(high & left & right)).tolist()
        edges.append(last)
    return np.unique(np.asarray(edges, np.int64))


def _shared(weights: NDArray[np.float64], room: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """`total` shared in proportion to `weights`, at most `room` each, by largest remainders; int64[len(weights)]."""
    shares = np.zeros(len(weights), np.int64)
    while (left := total - int(shares.sum())) > 0:
        open_ = np.flatnonzero(shares < room)
        exact = weights[open_] / weights[open_].sum() * left
        add = np.minimum(np.floor(exact).astype(np.int64), room[open_] - shares[open_])
        if not add.any():
            largest = open_[np.argsort(-exact, kind="stable")[:left]]
            shares[largest] += 1
        else:
            shares[open_] += add
    return shares


def _marginal(vectors: NDArray[np.float32], level: NDArray[np.floating], count: int) -> list[int]:
    """Rows by maximal marginal relevance, at most `count`."""
    if count == 0:
        return []
    norms = np.linalg.norm(vectors, axis=1)
    units = vectors / np.where(norms == 0, 1, norms)[:, None]
    nearest = np.full(len(units), -1.0)
    taken: list[int] = []
    value = _BALANCE * np.asarray(level, np.float64)
    free = np.ones(len(units), bool)
    for _ in range(min(count, len(units))):
        gain = np.where(free, value - (1 - _BALANCE) * nearest, -np.inf)
        best = int(np.argmax(gain))
        taken.append(best)
        free[best] = False
        nearest = np.maximum(nearest, units @ units[best])
    return taken
