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
none because more than P frames are equally relevant; so the passes end. Relevance is computed in float32 first; its
error is bounded by ε (`index.keyframes.score_error`), and c + ε takes the place of c, τ + ε that of τ in (2).

Usually there is one pass: P is 16,384, and K frames are accepted among them unless the most relevant ones are nearly
all alike. Memory is that of P vectors twice and of a block. Does not know stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.errors import UsageError
from index.keyframes import relevance, score_error, select_keyframes

__all__ = ["VectorBlocks", "select_streamed"]

_KEPT = 16_384


class VectorBlocks(Protocol):
    """Vectors that can be read from the first to the last, as often as needed."""

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Blocks float32[n, d], in the order of the frames."""


def select_streamed(
    blocks: Iterable[NDArray[np.float32]] | VectorBlocks,
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
        blocks: the vectors; iterated once for each pass.
        query: float32[d].
        k, tau, floor, inclusive: as in `select_keyframes`.
        kept: P, the number of frames that a pass keeps, at least 1; any number gives the same result.

    Returns:
        int64[n], n ≤ k, in the order of selection.

    Raises:
        UsageError: as `select_keyframes`, or `kept` is less than 1.
    """
    if kept < 1:
        raise UsageError(f"at least 1 frame must be kept in a pass, got {kept}")
    query = np.ascontiguousarray(query, np.float32)
    error = score_error(query.shape[0])
    accepted, vectors = np.zeros(0, np.int64), np.zeros((0, query.shape[0]), np.float32)
    decided = np.inf  # frames with a float32 relevance above this are decided
    while True:
        alike = tau + (2 * error if inclusive else error)
        rows, found, bound = _most_relevant(blocks, query, accepted, vectors, alike, decided, kept)
        places, frames = np.concatenate([accepted, rows]), np.concatenate([vectors, found])
        order = np.argsort(places, kind="stable")
        chosen = order[select_keyframes(frames[order], query, k=k, tau=tau, floor=floor, inclusive=inclusive)]
        if bound == -np.inf or bound + error < floor:
            return places[chosen]
        scores = relevance(frames[chosen], query) if len(chosen) else np.zeros(0, np.float32)
        sure = chosen[: int(np.argmin(np.append(scores > bound + 2 * error, False)))]
        if len(sure) == k:
            return places[sure]
        accepted, vectors = places[sure], frames[sure]
        if bound + 3 * error >= decided or not (relevance(found, query) > bound + 3 * error).any():
            kept *= 2  # more frames than these are equally relevant
        decided = min(decided, bound + 3 * error)


def _most_relevant(
    blocks: Iterable[NDArray[np.float32]],
    query: NDArray[np.float32],
    held: NDArray[np.int64],
    accepted: NDArray[np.float32],
    alike: float,
    decided: float,
    kept: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32], float]:
    """The undecided frames that are most relevant, in the order of the frames.

    Args:
        blocks, query: see `select_streamed`.
        held, accepted: positions int64[m] and vectors float32[m, d] of the accepted frames.
        alike: frames with a cosine of at least this to an accepted one are never accepted.
        decided: frames with a higher relevance are decided.
        kept: largest number of frames to return.

    Returns:
        Positions int64[n], n ≤ `kept`; vectors float32[n, d]; and the highest relevance of an undecided frame that is
        not among them, −∞ if there is none.
    """
    norms = np.linalg.norm(accepted, axis=1, keepdims=True)
    units = accepted / np.where(norms == 0, 1, norms)
    places, pool, scores = np.zeros(0, np.int64), np.zeros((0, query.shape[0]), np.float32), np.zeros(0, np.float32)
    bound, before = -np.inf, 0
    for block in blocks:
        found = relevance(block, query)
        rows = np.flatnonzero((found <= decided) & (found > bound))
        if len(units) and len(rows):
            lengths = np.linalg.norm(block[rows], axis=1)
            nearest = (block[rows] @ units.T).max(axis=1) / np.where(lengths == 0, 1, lengths)
            rows = rows[nearest < alike]
        rows = rows[~np.isin(before + rows, held)]
        places = np.concatenate([places, before + rows])
        pool = np.concatenate([pool, block[rows]])
        scores = np.concatenate([scores, found[rows]])
        before += len(block)
        if len(scores) > kept:
            best = np.argpartition(-scores, kept - 1)
            bound = max(bound, float(scores[best[kept:]].max()))
            best = np.sort(best[:kept])
            places, pool, scores = places[best], pool[best], scores[best]
    return places, pool, bound
