"""Differential keyframe selection (DKS; ViLAMP, Algorithm 1), exact and without an N × N matrix; and its baselines.

    R_n = cos(f_n, q)                                   relevance, equations 2 and 3
    accept f in descending R while max cos(f, accepted) < τ, until K are accepted

Exact means: the cosines are those of float64 arithmetic on the float32 values, rounded to 12 decimals, because the last
bits of a float64 sum depend on its order. So cosines that are mathematically equal are ties, which the earlier frame
wins, and a cosine that is mathematically equal to τ is not below τ. Most of the work is done in float32, whose error is
bounded; what that bound leaves undecided is computed again in float64.

This module uses numpy only. It does not know where frames come from, nor which K and τ a model needs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from index.errors import UsageError

__all__ = [
    "adapted",
    "fill_gaps",
    "relevance",
    "score_error",
    "select_adaptive",
    "select_keyframes",
    "select_top_k",
    "select_uniform",
]

_BLOCK = 64  # candidates that are compared together
_WIDE = 4096  # the same where nearly all of them are similar to an accepted frame
_SCAN_BYTES = 1 << 19  # bytes of rows that stay in the CPU's cache between the two products computed from them
_DECIMALS = 12
_BISECTIONS = 8


def relevance(frames: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Relevance of every frame, float32[N]: its cosine to the query (equations 2 and 3), 0 for a zero vector.

    Args:
        frames: float32[N, d]; rows need not be normalized.
        query: float32[d].

    Raises:
        UsageError: arrays of other shapes, or a value that is not finite.
    """
    return _ScoredFrames(frames, query).scores


def score_error(dimension: int) -> float:
    """Bound on the error of a relevance, and of a cosine of two rows, that was computed in float32.

    Unit roundoff times the additions of a dot product (d) and of two norms (d / 2 each), in any order, plus a few for
    square roots and divisions.
    """
    return float(2 * dimension + 16) * 2.0**-24


def select_keyframes(
    frames: NDArray[np.float32],
    query: NDArray[np.float32],
    *,
    k: int = 32,
    tau: float = 0.85,
    fill: bool = False,
    floor: float = -1.0,
    inclusive: bool = False,
    scores: NDArray[np.float32] | None = None,
) -> NDArray[np.int64]:
    """Positions of at most `k` keyframes, in the order of selection (Algorithm 1).

    Candidates are visited in descending relevance, a block at a time; one small matrix product compares a block with
    the frames accepted so far. So the work is proportional to the number of candidates visited: a few hundred in varied
    footage, all N only where nearly all frames are similar to accepted ones.

    Args:
        frames: float32[N, d]; rows need not be normalized.
        query: float32[d].
        k: K, the largest number of keyframes, at least 1.
        tau: τ in (−1, 1]; a frame is accepted if its largest cosine to the accepted frames is below τ.
        fill: afterwards fill the gaps between keyframes evenly until there are min(k, N); see `fill_gaps`.
        floor: in [−1, 1]; frames of lower relevance are not selected, but may be filled in.
        inclusive: also accept a frame whose largest cosine equals τ, as the released code does.
        scores: relevance of every frame, float32[N]; its cosine to the query if None.

    Returns:
        int64[n], n ≤ k.

    Raises:
        UsageError: k, τ or floor is out of range, arrays have other shapes, or a value is not finite.
    """
    _check(k, tau, floor)
    scored = _ScoredFrames(frames, query) if scores is None else _GivenScores(frames, query, scores)
    selected = _select(scored, k, tau, floor, inclusive)
    return fill_gaps(selected, len(scored), k) if fill else selected


def select_adaptive(
    frames: NDArray[np.float32],
    query: NDArray[np.float32],
    *,
    k: int = 32,
    tau: float = 0.85,
    floor: float = -1.0,
    inclusive: bool = False,
    scores: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.int64], float]:
    """Keyframes by Algorithm 1 with the smallest τ' ≥ τ that gives `k` of them, found by bisection.

    The frames of a fixed camera are alike, so at τ itself Algorithm 1 may stop after one keyframe. The result is that
    of `select_keyframes` wherever that finds `k`.

    Args:
        frames, query, k, tau, floor, inclusive: see `select_keyframes`.
        scores: relevance of every frame, float32[N]; its cosine to the query if None.

    Returns:
        The positions, int64[n], n ≤ k, and τ', at most (1 − τ) / 256 above the smallest; 1.0 if even then fewer than
        `k` frames differ from one another.

    Raises:
        UsageError: as `select_keyframes`.
    """
    _check(k, tau, floor)
    scored = _ScoredFrames(frames, query) if scores is None else _GivenScores(frames, query, scores)
    return adapted(lambda limit: _select(scored, k, limit, floor, inclusive), min(k, len(scored)), tau)


def adapted(select: Callable[[float], NDArray[np.int64]], wanted: int, tau: float) -> tuple[NDArray[np.int64], float]:
    """The selection at the smallest τ' ≥ τ that gives `wanted` frames, and τ'; 1.0 if there is none.

    Args:
        select: the selection at a threshold.
        wanted: number of frames.
        tau: the least threshold, τ.
    """
    selected = select(tau)
    if len(selected) >= wanted:
        return selected, tau
    low, high = tau, 1.0
    selected = select(high)
    if len(selected) < wanted:
        return selected, high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        tried = select(middle)
        if len(tried) >= wanted:
            high, selected = middle, tried
        else:
            low = middle
    return selected, high


def _check(k: int, tau: float, floor: float) -> None:
    """Raise UsageError for a parameter that is out of range."""
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    if not -1.0 < tau <= 1.0:
        raise UsageError(f"tau must be above −1 and at most 1, got {tau}")
    if not -1.0 <= floor <= 1.0:
        raise UsageError(f"the relevance floor must be between −1 and 1, got {floor}")


def _select(scored: _ScoredFrames, k: int, tau: float, floor: float, inclusive: bool) -> NDArray[np.int64]:
    """Algorithm 1: positions in the order of acceptance.

    1. Take candidates in float32 order into `queue`, without those that the bound alone shows to be similar.
    2. Compute the exact relevance of the first candidates. Those above `horizon` precede all others, so they are
       sorted.
    3. Accept or refuse them in that order; where the float32 cosine is within the bound of τ, compute it exactly.
    """
    ranking, slack = _Ranking(scored.scores), scored.slack
    if inclusive:
        slack *= 2  # the bound may be reached, and must not refuse a frame that equals τ
    limit, least = round(tau, _DECIMALS), round(floor, _DECIMALS)
    accepted = np.empty((min(k, len(scored)), scored.frames.shape[1]), np.float32)
    chosen: list[int] = []
    queue = np.zeros(0, np.int64)  # descending in float32 relevance, none refused yet
    block = front = _BLOCK
    while len(chosen) < k:
        while len(queue) <= front and len(ranking):
            fresh = ranking.take(block)
            remaining = fresh[scored.largest_cosines(fresh, accepted[: len(chosen)]) < tau + slack]
            block = min(2 * block, _WIDE) if 8 * len(remaining) < len(fresh) else _BLOCK
            queue = np.concatenate([queue, remaining])
        if len(queue) == 0:
            break
        candidates, queue = queue[:front], queue[front:]
        # No frame outside `candidates` is more relevant than this, so above it the exact order is known.
        horizon = slack + (scored.scores[queue[0]] if len(queue) else ranking.best())
        nearest = scored.largest_cosines(candidates, accepted[: len(chosen)])
        candidates, nearest = candidates[nearest < tau + slack], nearest[nearest < tau + slack]
        exact = scored.exact_scores(candidates)
        settled = np.flatnonzero(exact > horizon)
        settled = settled[np.lexsort((candidates[settled], -exact[settled]))]
        for place, i in enumerate(settled.tolist()):
            if exact[i] < least:
                return np.asarray(chosen, np.int64)
            if nearest[i] >= tau + slack:
                continue  # similar to a frame that was accepted from these candidates
            if chosen and nearest[i] > tau - slack:
                close = float(_exact_cosines(scored.frames, np.asarray(chosen), scored.frames[candidates[i]]).max())
                if close > limit or (close == limit and not inclusive):
                    continue
            accepted[len(chosen)] = scored.unit(int(candidates[i]))
            chosen.append(int(candidates[i]))
            if len(chosen) == k:
                break
            rest = settled[place + 1 :]
            newest = accepted[len(chosen) - 1 : len(chosen)]
            nearest[rest] = np.maximum(nearest[rest], scored.largest_cosines(candidates[rest], newest))
        unsettled = exact <= horizon
        # If no candidate could be settled, more frames than these are about equal: take more next time.
        front = _BLOCK if len(settled) or not unsettled.any() else 2 * front
        queue = np.concatenate([candidates[unsettled], queue])
    return np.asarray(chosen, np.int64)


def fill_gaps(selected: NDArray[np.int64], n: int, k: int) -> NDArray[np.int64]:
    """Fill the gaps between selected frames until there are min(k, n), as the released code does.

    For R missing frames, D is the smallest integer with Σ(⌈len/D⌉ − 1) ≤ R over the maximal runs of unselected frames.
    Each run receives ⌈len/D⌉ − 1 frames, evenly spaced. Frames still missing are taken backwards from the last run's
    end.

    Args:
        selected: int64[m], positions of selected frames.
        n: number of frames.
        k: wanted number of frames.

    Returns:
        int64[min(k, n)], or `selected` if it has as many already: first `selected`, then the added ones in time order.
    """
    wanted = min(k, n) - len(selected)
    if wanted <= 0:
        return selected
    free = np.ones(n, bool)
    free[selected] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[0], free.astype(np.int8), [0]])))
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    low, high = 1, n
    while low < high:
        middle = (low + high) // 2
        if int((-(-lengths // middle) - 1).sum()) <= wanted:
            high = middle
        else:
            low = middle + 1
    added: list[int] = []
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        count = -(-length // low) - 1
        step = -(-length // (count + 1))
        added += [start + min(step * (i + 1), length - 1) for i in range(count)]
    taken = sorted(set(added))
    free[taken] = False
    for position in np.flatnonzero(free)[::-1][: wanted - len(taken)].tolist():
        taken.append(int(position))
    return np.concatenate([selected, np.asarray(sorted(taken), np.int64)])


def select_top_k(frames: NDArray[np.float32], query: NDArray[np.float32], *, k: int) -> NDArray[np.int64]:
    """A baseline: the `k` most relevant frames, however similar they are.

    Args:
        frames: float32[N, d]; rows need not be normalized.
        query: float32[d].
        k: number of frames, at least 1.

    Returns:
        int64[min(k, N)], the most relevant first.

    Raises:
        UsageError: as `select_keyframes`.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    scored = _ScoredFrames(frames, query)
    if k < len(scored):
        cut = np.partition(scored.scores, len(scored) - k)[len(scored) - k]
        near = np.flatnonzero(scored.scores >= cut - 2 * scored.slack)
    else:
        near = np.arange(len(scored))
    return near[np.argsort(-_exact_cosines(scored.frames, near, scored.query), kind="stable")[:k]]


def select_uniform(n: int, *, k: int) -> NDArray[np.int64]:
    """A baseline: the midpoints of `k` equal stretches of `n` frames, ascending, int64[min(k, n)].

    Raises:
        UsageError: k is less than 1.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    k = min(k, n)
    return ((2 * np.arange(k, dtype=np.int64) + 1) * n) // (2 * max(k, 1))


class _ScoredFrames:
    """Checked frames with their relevance and norms in float32.

    Attributes:
        frames: float32[N, d].
        query: float32[d], scaled by a power of two.
        scores: float32[N], relevance.
        norms: float32[N], norms; 1 for a zero row.
        slack: bound on the error of a score, and of a cosine of two rows.
    """

    def __init__(self, frames: NDArray[np.float32], query: NDArray[np.float32]) -> None:
        frames, query = np.ascontiguousarray(frames, np.float32), np.ascontiguousarray(query, np.float32)
        if frames.ndim != 2 or query.ndim != 1 or frames.shape[1:] != query.shape:
            raise UsageError(f"expected frames [N, d] and query [d], got {frames.shape} and {query.shape}")
        self.frames, self.query = frames, _scaled(query[None])[0]
        self.slack = score_error(frames.shape[1])
        self.scores, self.norms = np.empty(len(frames), np.float32), np.empty(len(frames), np.float32)
        self._scan()
        extreme = np.flatnonzero(~((self.norms > 1e-30) & (self.norms < 1e30)))
        extreme = extreme[self.frames[extreme].any(axis=1)]
        if len(extreme):  # squares that overflow or underflow in float32, or a NaN
            self.frames = self.frames.copy()
            self.frames[extreme] = _scaled(self.frames[extreme])
            self._scan()
        np.sqrt(self.norms, out=self.norms)
        self.norms[self.norms == 0] = 1.0
        self.scores /= self.norms

    def __len__(self) -> int:
        return len(self.frames)

    def _scan(self) -> None:
        """Compute products with the query's direction, and squared norms, in one pass over memory."""
        length = np.sqrt(np.dot(self.query, self.query))
        direction = self.query / (length if length > 0 else np.float32(1))
        rows = max(1, _SCAN_BYTES // max(1, 4 * self.frames.shape[1]))
        with np.errstate(over="ignore", invalid="ignore"):  # `__init__` checks for it
            for first in range(0, len(self.frames), rows):
                block = self.frames[first : first + rows]
                np.einsum("nd,nd->n", block, block, out=self.norms[first : first + rows])
                np.dot(block, direction, out=self.scores[first : first + rows])

    def unit(self, position: int) -> NDArray[np.float32]:
        """A row scaled to unit norm, float32[d]."""
        row: NDArray[np.float32] = self.frames[position] / self.norms[position]
        return row

    def exact_scores(self, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """The relevance of some rows, without the error of float32, float64[len(positions)]."""
        return _exact_cosines(self.frames, positions, self.query)

    def largest_cosines(self, positions: NDArray[np.int64], accepted: NDArray[np.float32]) -> NDArray[np.float32]:
        """The largest cosine of each row to the rows of `accepted`, float32[k, d] of unit norm; −2 if k is 0."""
        result = np.full(len(positions), -2.0, np.float32)
        if len(accepted):
            for first in range(0, len(positions), _WIDE):
                part = positions[first : first + _WIDE]
                result[first : first + _WIDE] = (self.frames[part] @ accepted.T).max(axis=1) / self.norms[part]
        return result


class _GivenScores(_ScoredFrames):
    """Frames whose relevance is given, float32[N], and taken as exact; only their similarity is computed."""

    def __init__(self, frames: NDArray[np.float32], query: NDArray[np.float32], scores: NDArray[np.float32]) -> None:
        super().__init__(frames, query)
        if scores.shape != (len(frames),) or not np.isfinite(scores).all():
            raise UsageError(f"expected {len(frames)} finite scores, got an array of shape {scores.shape}")
        self.scores = np.ascontiguousarray(scores, np.float32)

    def exact_scores(self, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """The given relevance of some rows, float64[len(positions)]."""
        return self.scores[positions].astype(np.float64)


class _Ranking:
    """Positions by descending float32 relevance, sorted only as far as they are taken."""

    def __init__(self, scores: NDArray[np.float32]) -> None:
        self._scores = scores
        self._sorted, self._rest = np.zeros(0, np.int64), np.arange(len(scores))
        self._step = 4096

    def __len__(self) -> int:
        return len(self._sorted) + len(self._rest)

    def best(self) -> float:
        """The relevance of the next position, −∞ if there is none."""
        self._sort(1)
        return float(self._scores[self._sorted[0]]) if len(self) else -np.inf

    def take(self, count: int) -> NDArray[np.int64]:
        """Remove and return the next `count` positions, or all that are left."""
        self._sort(count)
        taken, self._sorted = self._sorted[:count], self._sorted[count:]
        return taken

    def _sort(self, count: int) -> None:
        """Sort at least the next `count` positions."""
        if len(self._sorted) >= count or len(self._rest) == 0:
            return
        scores = self._scores[self._rest]
        step = max(count, self._step)
        if len(scores) > 4 * step:
            top = scores >= np.partition(scores, len(scores) - step)[len(scores) - step]
            best, self._rest, scores = self._rest[top], self._rest[~top], scores[top]
        else:
            best, self._rest = self._rest, self._rest[:0]
        self._sorted = np.concatenate([self._sorted, best[np.argsort(-scores)]])
        self._step *= 16


def _scaled(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row times a power of two, without rounding, so that its squared norm neither overflows nor underflows."""
    if not np.isfinite(rows).all():
        raise UsageError("frames and query must be finite; they contain a NaN or an infinity")
    _, exponents = np.frexp(np.abs(rows).max(axis=1, initial=0, keepdims=True))
    scaled: NDArray[np.float32] = np.ldexp(rows, -exponents).astype(np.float32)
    return scaled


def _exact_cosines(
    frames: NDArray[np.float32], positions: NDArray[np.int64], other: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Cosines of rows to `other`, float64[len(positions)], rounded to 12 decimals; all rows are summed in one order."""
    result = np.zeros(len(positions))
    wide = other.astype(np.float64)
    length = np.sqrt(np.einsum("d,d->", wide, wide))
    for first in range(0, len(positions), _WIDE):
        rows = frames[positions[first : first + _WIDE]].astype(np.float64)
        norms = np.sqrt(np.einsum("nd,nd->n", rows, rows)) * length
        norms[norms == 0] = 1.0
        result[first : first + _WIDE] = np.einsum("nd,d->n", rows, wide) / norms
    return np.round(result, _DECIMALS)
