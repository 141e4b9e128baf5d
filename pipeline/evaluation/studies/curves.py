"""Statistics of the preliminary studies: how concentrated attention is, and how alike what it attends to.

Everything works on attention that is already summed over rows, layers and heads. "In rank" means sorted by attention,
descending, earlier items first among equals. Knows numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "GRID",
    "bootstrap",
    "by_rank",
    "cumulative",
    "in_rank",
    "neighbour_similarity",
    "neighbours",
    "on_grid",
    "random_similarity",
    "rank_correlation",
    "share_needed",
    "slope",
]

Floats = NDArray[np.float64]

GRID = 101
"""Points of a cumulative curve: 0, 1, … 100 % of the items."""


def in_rank(attention: Floats) -> NDArray[np.int64]:
    """Items by their attention, descending, int64[N]; the earlier one first among equals."""
    return np.argsort(-attention, kind="stable")


def cumulative(attention: Floats) -> Floats:
    """Share of all attention that the first 1, 2, … N items in rank hold, float64[N]; the last is 1.

    Attention must not be negative; where all of it is 0 every item holds the same share.
    """
    ranked = np.sort(attention)[::-1].astype(np.float64)
    if ranked.sum() <= 0:
        ranked = np.ones(len(ranked))
    held: Floats = np.cumsum(ranked)
    held /= held[-1]
    return held


def on_grid(curve: Floats) -> Floats:
    """A cumulative curve of N items at 0, 1, … 100 % of them, float64[GRID], linear between items."""
    places = np.arange(len(curve) + 1) / len(curve)
    values: Floats = np.interp(np.linspace(0, 1, GRID), places, np.concatenate([[0.0], curve]))
    return values


def share_needed(curve: Floats, share: float) -> float:
    """Share of the items, the first in rank, that hold at least `share` of the attention."""
    needed = int(np.searchsorted(curve, share - 1e-12)) + 1
    return min(needed, len(curve)) / len(curve)


def neighbours(count: int) -> NDArray[np.int64]:
    """The three places nearest to each of `count` places, int64[count, min(3, count − 1)].

    On a tie the lower place; at the ends the nearest that exist.
    """
    wanted = min(3, count - 1)
    rows = [
        sorted(
            (other for other in range(max(0, i - 3), min(count, i + 4)) if other != i), key=lambda o: (abs(o - i), o)
        )
        for i in range(count)
    ]
    return np.array([row[:wanted] for row in rows], np.int64).reshape(count, wanted)


def neighbour_similarity(vectors: Floats, order: NDArray[np.int64]) -> Floats:
    """Mean cosine of each item with its three neighbours in rank, in rank order, float64[N].

    Args:
        vectors: of unit norm, [N, d].
        order: the items in rank.
    """
    ranked = vectors[order]
    near = neighbours(len(ranked))
    means: Floats = np.einsum("nd,nkd->nk", ranked, ranked[near]).mean(axis=1)
    return means


def random_similarity(vectors: Floats, pairs: int, rng: np.random.Generator) -> float:
    """Mean cosine of `pairs` random pairs of different items; `vectors` are of unit norm, [N, d]."""
    first = rng.integers(len(vectors), size=pairs)
    second = (first + rng.integers(1, len(vectors), size=pairs)) % len(vectors)
    return float(np.einsum("nd,nd->n", vectors[first], vectors[second]).mean())


def by_rank(values: Floats, bins: int = 10) -> Floats:
    """Means of values in rank order over `bins` stretches of equal length, float64[bins]."""
    edges = np.round(np.linspace(0, len(values), bins + 1)).astype(int)
    return np.array([values[a:b].mean() if b > a else np.nan for a, b in pairwise(edges)])


def slope(values: Floats) -> float:
    """Change of values in rank order from the first item to the last, by least squares."""
    place = np.linspace(0, 1, len(values))
    centred = place - place.mean()
    spread = float(centred @ centred)
    return float(centred @ (values - values.mean()) / spread) if spread > 0 else 0.0


def rank_correlation(first: Floats, second: Floats) -> float:
    """Spearman's correlation without correction for ties; 0 for fewer than two items."""
    if len(first) < 2:
        return 0.0
    ranks = [np.argsort(np.argsort(each, kind="stable"), kind="stable").astype(float) for each in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def bootstrap(videos: Sequence[float], *, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean of one value a video, by resampling videos; equal ends for a single video."""
    values = np.asarray(videos, np.float64)
    rng = np.random.default_rng(seed)
    drawn = values[rng.integers(len(values), size=(draws, len(values)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
