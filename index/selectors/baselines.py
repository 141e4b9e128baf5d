"""The baselines of every comparison: the most relevant frames, and frames at even distances."""

from __future__ import annotations

from index.keyframes import select_top_k, select_uniform
from index.selectors.selector import Candidates, Chosen, SelectionRule

__all__ = ["top_k", "uniform"]


def top_k(candidates: Candidates, rule: SelectionRule) -> Chosen:
    """The K most relevant frames, however similar they are. Raises UsageError for arrays that are not finite."""
    return Chosen(select_top_k(candidates.frames, candidates.query, k=rule.k))


def uniform(candidates: Candidates, rule: SelectionRule) -> Chosen:
    """The midpoints of K equal stretches of the rows; the question plays no part."""
    return Chosen(select_uniform(len(candidates), k=rule.k))
