"""A determinantal point process over relevance and similarity, maximized greedily (MDP3, arXiv 2501.02885; the greedy
algorithm is that of Chen, Zhang and Zhou, arXiv 1709.05135, section 3).

    L = diag(r) S diag(r),   S = cosines of the frames,   r = normalized relevance in (0, 1]
    take the row with the largest gain d² = L_ii − ‖c_i‖², K times; c_i is its row of the incremental Cholesky factor

The gain of a row never grows, so an old value is a bound: only rows whose bound exceeds the best present gain are
computed again. The result is that of the plain algorithm, with a fraction of its products.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from index.selectors.selector import Candidates, Chosen, SelectionRule

__all__ = ["dpp"]

_LEAST_QUALITY = 1e-3  # of the least relevant frame
_LEAST_GAIN = 1e-10  # below it a row is a copy of the chosen ones
_BLOCK = 256


def dpp(candidates: Candidates, rule: SelectionRule) -> Chosen:
    """At most K rows in the order of their gain. Raises UsageError for arrays that are not finite."""
    vectors, scores = candidates.compared(rule.redundancy)
    if len(scores) == 0:
        return Chosen(np.zeros(0, np.int64))
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    norms[norms == 0] = 1.0
    wide = scores.astype(np.float64)
    spread = float(np.ptp(wide))
    quality = np.ones(len(wide)) if spread <= 0 else np.maximum((wide - wide.min()) / spread, _LEAST_QUALITY)
    return Chosen(_greedy(vectors, norms, quality, min(rule.k, len(wide))))


def _greedy(
    vectors: NDArray[np.float32], norms: NDArray[np.float64], quality: NDArray[np.float64], wanted: int
) -> NDArray[np.int64]:
    bounds = quality**2  # of the gains; exact where `known` equals the number of chosen rows
    known = np.zeros(len(bounds), np.int64)
    factor = np.zeros((len(bounds), wanted))  # c_i, as far as `known` says
    chosen: list[int] = []
    basis = np.zeros((wanted, vectors.shape[1]))  # unit vectors of the chosen rows
    while len(chosen) < wanted:
        count = len(chosen)
        while True:
            best = int(np.argmax(bounds))
            if known[best] == count:
                break
            size = min(_BLOCK, len(bounds))
            stale = np.argpartition(-bounds, size - 1)[:size]
            stale = stale[known[stale] < count]
            _update(stale, vectors, norms, quality, basis, chosen, factor, bounds, known)
        if bounds[best] <= _LEAST_GAIN:
            break
        chosen.append(best)
        basis[count] = vectors[best] / norms[best]
        factor[best, count] = np.sqrt(bounds[best])
        bounds[best] = -np.inf
        known[best] = wanted + 1
    return np.asarray(chosen, np.int64)


def _update(
    rows: NDArray[np.int64],
    vectors: NDArray[np.float32],
    norms: NDArray[np.float64],
    quality: NDArray[np.float64],
    basis: NDArray[np.float64],
    chosen: list[int],
    factor: NDArray[np.float64],
    bounds: NDArray[np.float64],
    known: NDArray[np.int64],
) -> None:
    """Bring the gains and factors of some rows up to date with the chosen rows."""
    kernel = (vectors[rows].astype(np.float64) @ basis[: len(chosen)].T) / norms[rows, None]
    kernel *= quality[rows, None] * quality[chosen][None, :]
    for j, row in enumerate(chosen):
        late = known[rows] <= j
        if not late.any():
            continue
        which = rows[late]
        step = (kernel[late, j] - factor[which, :j] @ factor[row, :j]) / factor[row, j]
        factor[which, j] = step
        bounds[which] -= step**2
    known[rows] = len(chosen)
