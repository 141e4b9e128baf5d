"""Differential Keyframe Selection (ViLAMP, Algorithm 1), exact, without an N × N matrix.

    R_n = cos(f_n, q)                                   relevance, equation 3
    accept f in descending R while max cos(f, accepted) < τ, until K are accepted

Cosines are those of float64 arithmetic on the float32 values: float32 products only discard what cannot matter, and
whatever lies within rounding of τ or of another frame's relevance is computed again in float64. Equal relevance goes to
the earlier frame. Baselines that keyframes are compared with stand here too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from index.errors import UsageError

__all__ = ["fill_gaps", "relevance", "select_keyframes", "select_top_k", "select_uniform"]

_BLOCK = 64
_SCAN_BYTES = 1 << 19  # rows that stay in cache between the two things done with them
_MARGIN = 1e-5  # more than float32 can be wrong about a cosine; nearer than this to τ, float64 decides


def relevance(frames: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """R_f of every frame, float32[N]: the cosine of each row of `frames` [N, d] and `query` [d]; 0 for zero vectors."""
    frames, query = _checked(frames, query)
    return _scan(frames, query)[0]


def select_keyframes(
    frames: NDArray[np.float32],
    query: NDArray[np.float32],
    *,
    k: int = 32,
    tau: float = 0.85,
    fill: bool = False,
) -> NDArray[np.int64]:
    """Positions of at most `k` keyframes in the order of selection.

    Candidates are walked in descending relevance, a block at a time. A block is compared with the frames accepted so
    far by one small matrix product, so the work is proportional to the candidates looked at: a few hundred where
    footage is varied, all N only where nearly everything repeats itself.

    Args:
        frames: float32[N, d]; rows need not be normalised.
        query: float32[d].
        k: most keyframes, at least 1.
        tau: τ, a frame is accepted when its largest cosine to the accepted ones is below it; in (−1, 1].
        fill: afterwards fill the gaps between keyframes evenly until there are min(k, N) (see `fill_gaps`).

    Returns:
        int64[≤ k].

    Raises:
        UsageError: k or τ out of range, arrays of another shape, or a value that is not finite.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    if not -1.0 < tau <= 1.0:
        raise UsageError(f"tau must lie above −1 and be at most 1, got {tau}")
    frames, query = _checked(frames, query)
    scores, norms = _scan(frames, query)
    candidates = _Candidates(frames, query, scores, k)
    accepted = np.empty((min(k, len(frames)), frames.shape[1]), np.float32)
    chosen: list[int] = []
    block, at = _BLOCK, 0
    while len(chosen) < k and at < len(frames):
        positions = candidates.next(at, block)
        rows = frames[positions] / norms[positions, None]
        near = (rows @ accepted[: len(chosen)].T).max(axis=1, initial=-np.inf)
        for i in np.flatnonzero(near < tau + _MARGIN).tolist():
            close = float(near[i])  # an acceptance within this block may have raised it
            if chosen and abs(close - tau) <= _MARGIN:
                close = _nearest(frames, int(positions[i]), chosen)
            if close < tau:
                accepted[len(chosen)] = rows[i]
                chosen.append(int(positions[i]))
                if len(chosen) == k:
                    break
                np.maximum(near, rows @ rows[i], out=near)
        at += len(positions)
        block = min(2 * block, 8192)
    selected = np.asarray(chosen, np.int64)
    return fill_gaps(selected, len(frames), k) if fill else selected


def fill_gaps(selected: NDArray[np.int64], n: int, k: int) -> NDArray[np.int64]:
    """`selected` and as many frames from the gaps between them as make it min(k, n), the filled ones in time order.

    With R frames wanted, the smallest integer D is found for which Σ(⌈len/D⌉ − 1) ≤ R over the maximal runs of
    unselected frames; each run receives ⌈len/D⌉ − 1 frames, evenly spaced; what is left over goes backwards from the
    end of the last run (the released code's gap fill).
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
    """Plain query-guided selection: the `k` most relevant frames, whatever they repeat. int64[min(k, N)]."""
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    return np.argsort(-_exact_relevance(*_checked(frames, query)), kind="stable")[:k].astype(np.int64)


def select_uniform(n: int, *, k: int) -> NDArray[np.int64]:
    """The midpoints of `k` equal stretches of `n` frames, ascending. int64[min(k, n)]."""
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    k = min(k, n)
    return ((2 * np.arange(k, dtype=np.int64) + 1) * n) // (2 * max(k, 1))


class _Candidates:
    """Positions by descending relevance, ties to the earlier, sorted only as far as they are asked for."""

    def __init__(self, frames: NDArray[np.float32], query: NDArray[np.float32], scores: NDArray[np.float32], k: int) -> None:
        self.frames, self.query, self.scores = frames, query, scores
        self.sorted = np.zeros(0, np.int64)
        self.horizon = max(4 * k, 1024)

    def next(self, at: int, count: int) -> NDArray[np.int64]:
        n = len(self.scores)
        while len(self.sorted) < min(at + count, n):
            if self.horizon >= n // 4:
                positions = np.arange(n)
            else:
                cut = np.partition(self.scores, n - self.horizon)[n - self.horizon]
                positions = np.flatnonzero(self.scores >= cut - 2 * _MARGIN)
            exact = _exact_relevance(self.frames[positions], self.query)
            order = np.argsort(-exact, kind="stable")
            if len(positions) < n:  # beyond the cut the order is not settled
                order = order[: int((exact >= cut).sum())]
            self.sorted = positions[order]
            self.horizon *= 8
        return self.sorted[at : at + count]


def _exact_relevance(frames: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosines in float64, each row summed in the same order, so that equal rows are equal to the last bit."""
    wide = frames.astype(np.float64)
    norms = np.sqrt(np.einsum("nd,nd->n", wide, wide)) * np.linalg.norm(query.astype(np.float64))
    norms[norms == 0] = 1.0
    return np.einsum("nd,d->n", wide, query.astype(np.float64)) / norms


def _nearest(frames: NDArray[np.float32], position: int, chosen: list[int]) -> float:
    """The largest cosine of one frame to the chosen ones, in float64."""
    return float(_exact_relevance(frames[chosen], frames[position]).max())


def _scan(
    frames: NDArray[np.float32], query: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines to the query and lengths (1 for zero rows), float32[N] each, in one pass over memory.

    Raises:
        UsageError: a NaN or infinity, which shows in a row's length.
    """
    n = len(frames)
    scores, norms = np.empty(n, np.float32), np.empty(n, np.float32)
    length = np.sqrt(np.dot(query, query))
    direction = query / (length if length > 0 else np.float32(1))
    rows = max(1, _SCAN_BYTES // max(1, 4 * frames.shape[1]))
    for first in range(0, n, rows):
        block = frames[first : first + rows]
        np.einsum("nd,nd->n", block, block, out=norms[first : first + rows])
        np.dot(block, direction, out=scores[first : first + rows])
    if not (np.isfinite(norms).all() and np.isfinite(length)):
        raise UsageError("frames and query must be finite; there is a NaN or infinity among them")
    np.sqrt(norms, out=norms)
    norms[norms == 0] = 1.0
    scores /= norms
    return scores, norms


def _checked(
    frames: NDArray[np.float32], query: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    frames, query = np.ascontiguousarray(frames, np.float32), np.ascontiguousarray(query, np.float32)
    if frames.ndim != 2 or query.ndim != 1 or frames.shape[1:] != query.shape:
        raise UsageError(f"expected frames [N, d] and query [d], got {frames.shape} and {query.shape}")
    return frames, query
