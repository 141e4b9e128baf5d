"""Differential Keyframe Selection (ViLAMP, Algorithm 1), exact, without an N × N matrix.

    R_n = cos(f_n, q)                                   relevance, equation 3
    accept f in descending R while max cos(f, accepted) < τ, until K are accepted

What "exact" means: cosines are those of float64 arithmetic on the float32 values, rounded to 12 decimals because the
last bits of float64 depend on the order of summation. So cosines that are equal on paper are ties, the earlier frame
goes first, and a cosine that equals τ on paper is not below it. Most of the work is done in float32, whose error is
bounded; whatever that bound leaves undecided is computed again in float64.

The baselines that keyframes are compared with stand here too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from index.errors import UsageError

__all__ = ["fill_gaps", "relevance", "select_keyframes", "select_top_k", "select_uniform"]

_BLOCK = 64  # candidates that are looked at together
_WIDE = 4096  # the same where nearly all of them repeat what was accepted
_SCAN_BYTES = 1 << 19  # rows that stay in cache between the two things done with them
_DECIMALS = 12


def relevance(frames: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """R_f of every frame, float32[N]: the cosine of each row of `frames` [N, d] and `query` [d]; 0 for zero vectors."""
    return _Footage(frames, query).scores


def select_keyframes(
    frames: NDArray[np.float32],
    query: NDArray[np.float32],
    *,
    k: int = 32,
    tau: float = 0.85,
    fill: bool = False,
    floor: float = -1.0,
    inclusive: bool = False,
) -> NDArray[np.int64]:
    """Positions of at most `k` keyframes in the order of selection.

    Candidates are walked in descending relevance, a block at a time, and a block is compared with the frames accepted
    so far by one small matrix product. So the work is proportional to the candidates looked at: a few hundred where
    footage is varied, all N only where nearly everything repeats what was accepted.

    Args:
        frames: float32[N, d]; rows need not be normalised.
        query: float32[d].
        k: most keyframes, at least 1.
        tau: τ, a frame is accepted when its largest cosine to the accepted ones is below it; in (−1, 1].
        fill: afterwards fill the gaps between keyframes evenly until there are min(k, N) (see `fill_gaps`).
        floor: frames whose relevance is below it are not selected (but may be filled in); in [−1, 1].
        inclusive: a frame whose largest cosine equals τ is accepted too, as in the released code.

    Returns:
        int64[≤ k].

    Raises:
        UsageError: k, τ or the floor out of range, arrays of another shape, or a value that is not finite.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    if not -1.0 < tau <= 1.0:
        raise UsageError(f"tau must lie above −1 and be at most 1, got {tau}")
    if not -1.0 <= floor <= 1.0:
        raise UsageError(f"the relevance floor must lie between −1 and 1, got {floor}")
    footage = _Footage(frames, query)
    selected = _walk(footage, k, tau, floor, inclusive)
    return fill_gaps(selected, len(footage.frames), k) if fill else selected


def _walk(footage: _Footage, k: int, tau: float, floor: float, inclusive: bool) -> NDArray[np.int64]:
    """Algorithm 1: positions in the order of acceptance."""
    order, slack = _Order(footage.scores), footage.slack
    if inclusive:
        slack *= 2  # what equals τ must not be refused by the bound, which it may just reach
    limit, least = round(tau, _DECIMALS), round(floor, _DECIMALS)
    accepted = np.empty((min(k, len(footage)), footage.frames.shape[1]), np.float32)
    chosen: list[int] = []
    queue = np.zeros(0, np.int64)  # descending in float32 relevance, none of it refused yet
    block = front = _BLOCK
    while len(chosen) < k:
        while len(queue) <= front and len(order):
            fresh = order.take(block)
            live = fresh[footage.nearness(fresh, accepted[: len(chosen)]) < tau + slack]
            block = min(2 * block, _WIDE) if 8 * len(live) < len(fresh) else _BLOCK
            queue = np.concatenate([queue, live])
        if len(queue) == 0:
            break
        turn, queue = queue[:front], queue[front:]
        # Beyond this relevance nothing outside `turn` can come first, so there the exact order is known.
        horizon = slack + (footage.scores[queue[0]] if len(queue) else order.best())
        near = footage.nearness(turn, accepted[: len(chosen)])
        turn, near = turn[near < tau + slack], near[near < tau + slack]
        exact = _cosines(footage.frames, turn, footage.query)
        settled = np.flatnonzero(exact > horizon)
        settled = settled[np.lexsort((turn[settled], -exact[settled]))]
        for place, i in enumerate(settled.tolist()):
            if exact[i] < least:
                return np.asarray(chosen, np.int64)
            if near[i] >= tau + slack:
                continue  # an acceptance of this turn repeats it
            if chosen and near[i] > tau - slack:
                close = float(_cosines(footage.frames, np.asarray(chosen), footage.frames[turn[i]]).max())
                if close > limit or (close == limit and not inclusive):
                    continue
            accepted[len(chosen)] = footage.unit(int(turn[i]))
            chosen.append(int(turn[i]))
            if len(chosen) == k:
                break
            rest = settled[place + 1 :]
            near[rest] = np.maximum(near[rest], footage.nearness(turn[rest], accepted[len(chosen) - 1 : len(chosen)]))
        open_ = exact <= horizon
        # Where more frames than a turn holds are as good as equal, the next turn is longer.
        front = _BLOCK if len(settled) or not open_.any() else 2 * front
        queue = np.concatenate([turn[open_], queue])
    return np.asarray(chosen, np.int64)


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
    """Plain query-guided selection: the `k` most relevant frames, whatever they repeat. int64[min(k, N)].

    Raises:
        UsageError: as `select_keyframes`.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    footage = _Footage(frames, query)
    if k < len(footage):
        cut = np.partition(footage.scores, len(footage) - k)[len(footage) - k]
        near = np.flatnonzero(footage.scores >= cut - 2 * footage.slack)
    else:
        near = np.arange(len(footage))
    return near[np.argsort(-_cosines(footage.frames, near, footage.query), kind="stable")[:k]]


def select_uniform(n: int, *, k: int) -> NDArray[np.int64]:
    """The midpoints of `k` equal stretches of `n` frames, ascending. int64[min(k, n)]."""
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    k = min(k, n)
    return ((2 * np.arange(k, dtype=np.int64) + 1) * n) // (2 * max(k, 1))


class _Footage:
    """Checked frames with their float32 relevance and lengths.

    `scores` and `norms` are float32[N]; no score, and no cosine of two rows, is off by more than `slack`.
    """

    def __init__(self, frames: NDArray[np.float32], query: NDArray[np.float32]) -> None:
        frames, query = np.ascontiguousarray(frames, np.float32), np.ascontiguousarray(query, np.float32)
        if frames.ndim != 2 or query.ndim != 1 or frames.shape[1:] != query.shape:
            raise UsageError(f"expected frames [N, d] and query [d], got {frames.shape} and {query.shape}")
        self.frames, self.query = frames, _scaled(query[None])[0]
        # Unit roundoff times the additions of a dot product (d) and of two lengths (d / 2 each), in any order, and a
        # few for the square roots and divisions.
        self.slack = float(2 * frames.shape[1] + 16) * 2.0**-24
        self.scores, self.norms = np.empty(len(frames), np.float32), np.empty(len(frames), np.float32)
        self._scan()
        odd = np.flatnonzero(~((self.norms > 1e-30) & (self.norms < 1e30)))
        odd = odd[self.frames[odd].any(axis=1)]
        if len(odd):  # squares that float32 cannot hold, or a NaN
            self.frames = self.frames.copy()
            self.frames[odd] = _scaled(self.frames[odd])
            self._scan()
        np.sqrt(self.norms, out=self.norms)
        self.norms[self.norms == 0] = 1.0
        self.scores /= self.norms

    def __len__(self) -> int:
        return len(self.frames)

    def _scan(self) -> None:
        """Products with the query's direction and squared lengths, in one pass over memory."""
        length = np.sqrt(np.dot(self.query, self.query))
        direction = self.query / (length if length > 0 else np.float32(1))
        rows = max(1, _SCAN_BYTES // max(1, 4 * self.frames.shape[1]))
        with np.errstate(over="ignore", invalid="ignore"):  # `__init__` looks for it
            for first in range(0, len(self.frames), rows):
                block = self.frames[first : first + rows]
                np.einsum("nd,nd->n", block, block, out=self.norms[first : first + rows])
                np.dot(block, direction, out=self.scores[first : first + rows])

    def unit(self, position: int) -> NDArray[np.float32]:
        row: NDArray[np.float32] = self.frames[position] / self.norms[position]
        return row

    def nearness(self, positions: NDArray[np.int64], accepted: NDArray[np.float32]) -> NDArray[np.float32]:
        """The largest cosine of each row to the accepted ones (float32[k, d], unit length); −2 without any."""
        result = np.full(len(positions), -2.0, np.float32)
        if len(accepted):
            for first in range(0, len(positions), _WIDE):
                part = positions[first : first + _WIDE]
                result[first : first + _WIDE] = (self.frames[part] @ accepted.T).max(axis=1) / self.norms[part]
        return result


class _Order:
    """Positions by descending float32 relevance, sorted only as far as they are taken."""

    def __init__(self, scores: NDArray[np.float32]) -> None:
        self._scores = scores
        self._sorted, self._rest = np.zeros(0, np.int64), np.arange(len(scores))
        self._step = 4096

    def __len__(self) -> int:
        return len(self._sorted) + len(self._rest)

    def best(self) -> float:
        """The relevance of the next, −∞ when there is none."""
        self._sort(1)
        return float(self._scores[self._sorted[0]]) if len(self) else -np.inf

    def take(self, count: int) -> NDArray[np.int64]:
        self._sort(count)
        taken, self._sorted = self._sorted[:count], self._sorted[count:]
        return taken

    def _sort(self, count: int) -> None:
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
    """`rows` times powers of two, without rounding, so that float32 can hold the square of their lengths."""
    if not np.isfinite(rows).all():
        raise UsageError("frames and query must be finite; there is a NaN or infinity among them")
    _, exponents = np.frexp(np.abs(rows).max(axis=1, initial=0, keepdims=True))
    scaled: NDArray[np.float32] = np.ldexp(rows, -exponents).astype(np.float32)
    return scaled


def _cosines(
    frames: NDArray[np.float32], positions: NDArray[np.int64], other: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Exact cosines of rows to `other`, float64[len(positions)]; every row is summed in the same order."""
    result = np.zeros(len(positions))
    wide = other.astype(np.float64)
    length = np.sqrt(np.einsum("d,d->", wide, wide))
    for first in range(0, len(positions), _WIDE):
        rows = frames[positions[first : first + _WIDE]].astype(np.float64)
        norms = np.sqrt(np.einsum("nd,nd->n", rows, rows)) * length
        norms[norms == 0] = 1.0
        result[first : first + _WIDE] = np.einsum("nd,d->n", rows, wide) / norms
    return np.round(result, _DECIMALS)
