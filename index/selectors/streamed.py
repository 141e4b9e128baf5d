"""Algorithm 1 over more frames than fit into memory: the same keyframes, in a few passes over blocks of vectors.

A pass keeps the P most relevant frames that are undecided, and c, the highest relevance of an undecided frame that it
did not keep: the bound on what is not looked at. Algorithm 1 runs on the kept frames and those accepted so far. What it
accepts with a relevance above c is accepted; if that is not K frames, there is another pass.

Claim: the result is that of Algorithm 1 on all frames. Algorithm 1 visits frames in descending relevance, and a
decision depends on the frames before it alone. (1) A frame that is never accepted changes nothing, so it may be left
out. (2) A frame with a cosine of at least τ to an accepted frame is never accepted: if it is less relevant, it is
refused; if it is more relevant, it was decided before. (3) So every frame that is left out of a pass was decided, is
never accepted, or has a relevance of at most c; the accepted frames with a relevance above c are therefore those of
Algorithm 1 on all frames, in its order. Each pass decides all frames above its c, and P doubles where a pass decides
none because more than P frames are equally relevant; so the passes end. A relevance that is a cosine is computed in
float32 first; its error is bounded by ε (`index.keyframes.score_error`), and c + ε takes the place of c. τ + ε always
takes that of τ in (2). A relevance that is given, as `index.selectors.background` computes it, is exact.

Where τ' is looked for (`adaptive`, `background`), Algorithm 1 runs with up to ten thresholds. None was decided before
the first pass, so all begin with the frames that it kept; most need no other.

Usually there is one pass: P is 16,384, and K frames are accepted among them unless the most relevant ones are nearly
all alike. Memory is that of P vectors twice, of a block, and of 8 bytes a frame. Does not know stores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from index.errors import UsageError
from index.keyframes import adapted, fill_gaps, relevance, score_error, select_keyframes
from index.selectors.background import (
    Reduction,
    direction_of,
    mean_of,
    reduced_stretch,
    reductions,
    stretches,
    unit_rows,
)
from index.selectors.selector import Chosen, SelectionRule

__all__ = ["FrameReader", "dks_streamed", "select_streamed"]

Result = TypeVar("Result")

_KEPT = 16_384
_THREADS = 2
_BLOCK_BYTES = 32 * 2**20
_STREAM_BYTES = 192 * 2**20  # more than a day of one stream with 512 dimensions


class FrameReader(Protocol):
    """Vectors of N frames that are read in parts."""

    @property
    def stream_index(self) -> NDArray[np.integer]:
        """The stream of each frame, int[N]; frames of a stream are together."""

    def read(self, first: int, last: int) -> NDArray[np.float32]:
        """The vectors of the frames from `first` to `last`, exclusive, which are of one stream; float32[n, d]."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive frames."""

    first: int
    """Position of the first frame."""
    vectors: NDArray[np.float32]
    """Vectors whose cosines say which frames are alike, float32[n, d]."""
    scores: NDArray[np.float32]
    """Relevance, float32[n]."""


_Blocks = Iterable[_Block]
"""All frames in their order; iterated once for each pass."""


@dataclass(frozen=True, slots=True)
class _Pool:
    """The undecided frames that a pass kept, in the order of the frames."""

    places: NDArray[np.int64]
    """Positions, int64[n]."""
    vectors: NDArray[np.float32]
    """Vectors, float32[n, d]."""
    scores: NDArray[np.float32]
    """Relevance, float32[n]."""
    bound: float
    """Highest relevance of an undecided frame that was not kept; −∞ if there is none."""


def select_streamed(
    blocks: Iterable[NDArray[np.float32]],
    query: NDArray[np.float32],
    *,
    k: int = 32,
    tau: float = 0.85,
    floor: float = -1.0,
    inclusive: bool = False,
    kept: int = _KEPT,
) -> NDArray[np.int64]:
    """Positions of at most `k` keyframes among all frames of the blocks: those of `index.keyframes.select_keyframes`.

    Args:
        blocks: the vectors, float32[n, d] each, in the order of the frames; iterated once for each pass.
        query: float32[d].
        k, tau, floor, inclusive: as in `select_keyframes`.
        kept: P, the number of frames that a pass keeps, at least 1; any number gives the same result.

    Returns:
        int64[n], n ≤ k, in the order of selection.

    Raises:
        UsageError: as `select_keyframes`, or `kept` is less than 1.
    """
    query = np.ascontiguousarray(query, np.float32)
    rule = SelectionRule(k=k, tau=tau, floor=floor, inclusive=inclusive)
    return _Passes(_ArrayBlocks(blocks, query), query, rule, kept, given=False).select(tau)


def dks_streamed(
    frames: FrameReader,
    query: NDArray[np.float32],
    rule: SelectionRule,
    *,
    kept: int = _KEPT,
    block: int | None = None,
    whole: int | None = None,
) -> tuple[Chosen, NDArray[np.float32]]:
    """The choice of `index.selectors.dks.dks`, with memory for a small part of the vectors.

    Each pass reads every vector once, but the first pass of `background` reads those of a stream with more than `whole`
    frames twice, because their mean comes first.

    Args:
        frames: the frames.
        query: float32[d].
        rule: as of `dks`.
        kept: P, as in `select_streamed`.
        block: most frames that are read at once, unless a stretch has more; 32 MiB of vectors if None.
        whole: most frames of a stream that is read at once; 192 MiB of vectors if None.

    Returns:
        The choice, and the cosine of every frame to the query, float32[N].

    Raises:
        UsageError: as `dks`, or `kept` is less than 1.
    """
    query = np.ascontiguousarray(query, np.float32)
    total, width = len(frames.stream_index), 4 * max(1, len(query))
    block, whole = block or max(1, _BLOCK_BYTES // width), whole or max(1, _STREAM_BYTES // width)
    reduced = rule.redundancy == "background"
    blocks = _ReducedBlocks(frames, query, block, whole) if reduced else _StoredBlocks(frames, query, block)
    passes = _Passes(blocks, query, rule, kept, given=reduced)
    if rule.redundancy == "fixed":
        chosen = Chosen(passes.select(rule.tau), rule.tau)
    else:
        chosen = Chosen(*adapted(passes.select, min(rule.k, total), rule.tau))
    if rule.fill:
        rows = fill_gaps(chosen.rows, total, rule.k)
        chosen = dataclasses.replace(chosen, rows=rows, distinct=len(chosen.rows))
    return chosen, blocks.cosines


class _Passes:
    """Selections at several thresholds among the same frames.

    Args:
        blocks: the frames.
        query: float32[d].
        rule: K, the floor, and whether a cosine equal to τ is accepted.
        kept: P.
        given: whether the relevance is exact; else it is the cosine to `query`.
    """

    def __init__(
        self, blocks: _Blocks, query: NDArray[np.float32], rule: SelectionRule, kept: int, *, given: bool
    ) -> None:
        if kept < 1:
            raise UsageError(f"at least 1 frame must be kept in a pass, got {kept}")
        self._blocks, self._query, self._rule, self._kept, self._given = blocks, query, rule, kept, given
        self._alike = score_error(query.shape[0])  # error of a cosine of two frames
        self._error = 0.0 if given else self._alike  # error of a relevance
        nothing = np.zeros((0, query.shape[0]), np.float32)
        self._first = _most_relevant(blocks, np.zeros(0, np.int64), nothing, 0.0, np.inf, kept)

    def select(self, tau: float) -> NDArray[np.int64]:
        """Positions that Algorithm 1 accepts at a threshold, in their order; int64[n], n ≤ K."""
        rule, error, kept, pool = self._rule, self._error, self._kept, self._first
        alike = tau + (2 if rule.inclusive else 1) * self._alike
        held = _Pool(np.zeros(0, np.int64), pool.vectors[:0], pool.scores[:0], -np.inf)
        decided = np.inf  # frames with a float32 relevance above this are decided
        while True:
            places = np.concatenate([held.places, pool.places])
            order = np.argsort(places, kind="stable")
            places = places[order]
            frames = np.concatenate([held.vectors, pool.vectors])[order]
            scores = np.concatenate([held.scores, pool.scores])[order]
            chosen = select_keyframes(
                frames,
                self._query,
                k=rule.k,
                tau=tau,
                floor=rule.floor,
                inclusive=rule.inclusive,
                scores=scores if self._given else None,
            )
            bound = pool.bound
            if bound == -np.inf or bound + error < rule.floor:
                return places[chosen]
            sure = chosen[: int(np.argmin(np.append(scores[chosen] > bound + 2 * error, False)))]
            if len(sure) == rule.k:
                return places[sure]
            held = _Pool(places[sure], frames[sure], scores[sure], -np.inf)
            if bound + 3 * error >= decided or not (pool.scores > bound + 3 * error).any():
                kept *= 2  # more frames than these are equally relevant
            decided = min(decided, bound + 3 * error)
            pool = _most_relevant(self._blocks, held.places, held.vectors, alike, decided, kept)


def _most_relevant(
    blocks: _Blocks,
    held: NDArray[np.int64],
    accepted: NDArray[np.float32],
    alike: float,
    decided: float,
    kept: int,
) -> _Pool:
    """The undecided frames that are most relevant.

    Args:
        blocks: all frames.
        held, accepted: positions int64[m] and vectors float32[m, d] of the accepted frames.
        alike: frames with a cosine of at least this to an accepted one are never accepted.
        decided: frames with a higher relevance are decided.
        kept: largest number of frames to return.
    """
    norms = np.linalg.norm(accepted, axis=1, keepdims=True)
    units = accepted / np.where(norms == 0, 1, norms)
    pool = [_Pool(np.zeros(0, np.int64), accepted[:0], np.zeros(0, np.float32), -np.inf)]
    bound, held_rows = -np.inf, 0
    for block in blocks:
        rows = np.flatnonzero((block.scores <= decided) & (block.scores > bound))
        if len(units) == 0:  # else it is not known yet how many of the rows are alike to an accepted frame
            best, bound = _best(block.scores[rows], kept, bound)
            rows = rows[best]
        if len(rows) == 0:
            continue
        vectors = block.vectors[rows]
        if len(units):
            lengths = np.linalg.norm(vectors, axis=1)
            nearest = (vectors @ units.T).max(axis=1) / np.where(lengths == 0, 1, lengths)
            other = (nearest < alike) & ~np.isin(block.first + rows, held)
            rows, vectors = rows[other], vectors[other]
        pool.append(_Pool(block.first + rows, vectors, block.scores[rows], -np.inf))
        held_rows += len(rows)
        if held_rows > 2 * kept:  # so that what is kept is not copied for every block
            pool = [_joined_pool(pool, kept, bound)]
            bound, held_rows = pool[0].bound, len(pool[0].places)
    return _joined_pool(pool, kept, bound)


def _best(scores: NDArray[np.float32], kept: int, bound: float) -> tuple[NDArray[np.int64] | slice, float]:
    """Ascending places of the `kept` largest scores, and the larger one of the bound and the largest other score."""
    if len(scores) <= kept:
        return slice(None), bound
    order = np.argpartition(-scores, kept - 1)
    return np.sort(order[:kept]), max(bound, float(scores[order[kept:]].max()))


def _joined_pool(parts: list[_Pool], kept: int, bound: float) -> _Pool:
    """The `kept` most relevant frames of some pools in the order of the frames."""
    scores = np.concatenate([part.scores for part in parts])
    best, bound = _best(scores, kept, bound)
    places = np.concatenate([part.places for part in parts])[best]
    if isinstance(best, slice):
        return _Pool(places, np.concatenate([part.vectors for part in parts]), scores, bound)
    vectors = np.empty((len(best), parts[0].vectors.shape[1]), np.float32)
    edges = np.cumsum([0, *(len(part.places) for part in parts)])
    for part, (low, high) in zip(parts, pairwise(np.searchsorted(best, edges).tolist()), strict=True):
        np.take(part.vectors, best[low:high] - edges[0], axis=0, out=vectors[low:high])
        edges = edges[1:]
    return _Pool(places, vectors, scores[best], bound)


# ---- blocks ----------------------------------------------------------------------------------------------------------


class _ArrayBlocks:
    """Arrays with their cosines to a query; two threads compute those of the next arrays."""

    def __init__(self, arrays: Iterable[NDArray[np.float32]], query: NDArray[np.float32]) -> None:
        self._arrays, self._query = arrays, query

    def __iter__(self) -> Iterator[_Block]:
        """Each array."""
        first = 0
        for vectors, scores in _ahead((partial(_scored, each, self._query) for each in self._arrays), _THREADS):
            yield _Block(first, vectors, scores)
            first += len(vectors)


class _StoredBlocks:
    """Frames that are read in parts, with their cosines to a query.

    Attributes:
        cosines: the cosine of every frame that was read, float32[N].
    """

    def __init__(self, frames: FrameReader, query: NDArray[np.float32], block: int) -> None:
        self._frames, self._query = frames, query
        self.cosines = np.zeros(len(frames.stream_index), np.float32)
        self._parts = [part for stream in _streams(frames.stream_index) for part in _cut(*stream, block)]

    def __iter__(self) -> Iterator[_Block]:
        """Parts of a stream; two threads read the next ones and compute their cosines."""
        jobs = (partial(self._part, *part) for part in self._parts)
        for (first, last), (vectors, scores) in zip(self._parts, _ahead(jobs, _THREADS), strict=True):
            self.cosines[first:last] = scores
            yield _Block(first, vectors, scores)

    def _part(self, first: int, last: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The vectors of a part, with their cosines."""
        return _scored(self._frames.read(first, last), self._query)


class _ReducedBlocks:
    """Stretches of frames that are read in parts, without their background; see `index.selectors.background`.

    Attributes:
        cosines: the cosine of every frame that was read to the query, float32[N].
    """

    def __init__(self, frames: FrameReader, query: NDArray[np.float32], block: int, whole: int) -> None:
        self._frames, self._query, self._direction = frames, query, direction_of(query)
        self._block, self._whole = block, whole
        self.cosines = np.zeros(len(frames.stream_index), np.float32)
        self._edges = stretches(len(frames.stream_index), frames.stream_index)
        self._reductions: dict[int, list[Reduction] | None] = {}  # by the first frame of the stream

    def __iter__(self) -> Iterator[_Block]:
        """Stretches."""
        for first, last in _streams(self._frames.stream_index):
            low, high = np.searchsorted(self._edges, [first, last])
            edges = self._edges[low : high + 1].tolist()
            known = first in self._reductions
            parts = _joined(edges, self._whole if not known and last - first <= self._whole else self._block)
            arrays: Iterable[NDArray[np.float32]] = self._units(parts)
            if not known:
                arrays = list(arrays) if len(parts) == 1 else arrays
                means = [
                    mean_of(stretch)
                    for array, part in zip(arrays, parts, strict=True)
                    for stretch in _stretches(array, part)
                ]
                self._reductions[first] = reductions(np.stack(means), self._direction)
                arrays = arrays if len(parts) == 1 else self._units(parts)
            yield from self._blocks(parts, arrays, self._reductions[first])

    def _units(self, parts: list[list[int]]) -> Iterator[NDArray[np.float32]]:
        """The unit vectors of each part, whose edges are given."""
        return map(unit_rows, _read(self._frames, [(part[0], part[-1]) for part in parts]))

    def _blocks(
        self, parts: list[list[int]], arrays: Iterable[NDArray[np.float32]], of_stream: list[Reduction] | None
    ) -> Iterator[_Block]:
        """The stretches of the parts of one stream."""
        number = 0
        for part, array in zip(parts, arrays, strict=True):
            self.cosines[part[0] : part[-1]] = relevance(array, self._query)
            for first, stretch in zip(part, _stretches(array, part), strict=False):
                reduction = None if of_stream is None else of_stream[number]
                yield _Block(first, *reduced_stretch(stretch, self._direction, reduction))
                number += 1


def _scored(
    vectors: NDArray[np.float32], query: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors, float32[n, d], with their relevance, float32[n]."""
    return vectors, relevance(vectors, query)


def _streams(stream_index: NDArray[np.integer]) -> Iterator[tuple[int, int]]:
    """The first frame of each stream, and the one behind its last."""
    changes = np.flatnonzero(np.diff(stream_index)) + 1
    return pairwise([0, *changes.tolist(), len(stream_index)]) if len(stream_index) else iter(())


def _cut(first: int, last: int, rows: int) -> list[tuple[int, int]]:
    """A range in parts of at most `rows`."""
    return [(at, min(at + rows, last)) for at in range(first, last, rows)]


def _joined(edges: list[int], rows: int) -> list[list[int]]:
    """Neighbouring stretches in parts of at most `rows` frames, or of one stretch: the edges of each part."""
    parts: list[list[int]] = []
    for first, last in pairwise(edges):
        if parts and last - parts[-1][0] <= rows:
            parts[-1].append(last)
        else:
            parts.append([first, last])
    return parts


def _stretches(vectors: NDArray[np.float32], edges: list[int]) -> list[NDArray[np.float32]]:
    """The vectors of a part, float32[n, d], cut at its edges."""
    return [vectors[first - edges[0] : last - edges[0]] for first, last in pairwise(edges)]


def _read(frames: FrameReader, parts: list[tuple[int, int]]) -> Iterator[NDArray[np.float32]]:
    """The vectors of each part; the next part is read while one is in use."""
    return _ahead((partial(frames.read, *part) for part in parts), 1)


def _ahead(jobs: Iterable[Callable[[], Result]], threads: int) -> Iterator[Result]:
    """The results of jobs in their order, each computed by one of some threads before it is asked for."""
    with ThreadPoolExecutor(threads) as pool:
        pending = []
        for job in jobs:
            pending.append(pool.submit(job))
            if len(pending) > threads:
                yield pending.pop(0).result()
        for each in pending:
            yield each.result()
