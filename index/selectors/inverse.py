"""Inverse transform sampling of the relevance (BOLT, arXiv 2503.21483, section 3.2): K quantiles of its distribution.

    w = ((R − min R) / (max R − min R))^α,   F = cumulative sum of w / Σ w,   rows F⁻¹((i + ½) / K)

A sharper relevance (larger α) gathers the frames around its peaks, α = 0 spreads them evenly. If all scores are equal
the frames are even too. A quantile that falls on a row that is taken is replaced by the heaviest row that is free.
"""

from __future__ import annotations

import numpy as np

from index.selectors.selector import Candidates, Chosen, SelectionRule

__all__ = ["SHARPNESS", "inverse"]

SHARPNESS = 3.0
"""α, the exponent of the normalized relevance."""


def inverse(candidates: Candidates, rule: SelectionRule) -> Chosen:
    """Rows at K quantiles of the sharpened relevance, in the order of time. Raises UsageError for arrays that are not
    finite."""
    _, scores = candidates.compared(rule.redundancy)
    wanted = min(rule.k, len(scores))
    if wanted == 0:
        return Chosen(np.zeros(0, np.int64))
    wide = scores.astype(np.float64)
    spread = float(np.ptp(wide))
    weights = np.ones(len(wide)) if spread <= 0 else ((wide - wide.min()) / spread) ** SHARPNESS
    cumulative = np.cumsum(weights)
    quantiles = (np.arange(wanted) + 0.5) / wanted * cumulative[-1]
    rows = np.unique(np.minimum(np.searchsorted(cumulative, quantiles), len(wide) - 1))
    if len(rows) < wanted:
        free = np.ones(len(wide), bool)
        free[rows] = False
        rest = np.flatnonzero(free)
        heaviest = rest[np.argsort(-weights[rest], kind="stable")[: wanted - len(rows)]]
        rows = np.sort(np.concatenate([rows, heaviest]))
    return Chosen(rows.astype(np.int64))
