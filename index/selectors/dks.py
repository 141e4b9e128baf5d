"""DKS, the default: differential keyframe selection (ViLAMP, section 3.1 and Algorithm 1).

With the redundancy `fixed` this is exactly the paper's; `adaptive` and `background` are for cameras whose frames are
all alike. The algorithm itself is `index.keyframes`.
"""

from __future__ import annotations

import dataclasses

from index.keyframes import fill_gaps, select_adaptive, select_keyframes
from index.selectors.selector import Candidates, Chosen, SelectionRule

__all__ = ["dks"]


def dks(candidates: Candidates, rule: SelectionRule) -> Chosen:
    """Accept frames in descending relevance that are not similar to an accepted one, until there are K.

    Raises:
        UsageError: as `index.keyframes.select_keyframes`.
    """
    frames, query = candidates.frames, candidates.query
    if rule.redundancy == "fixed":
        rows = select_keyframes(frames, query, k=rule.k, tau=rule.tau, floor=rule.floor, inclusive=rule.inclusive)
        chosen = Chosen(rows, rule.tau)
    else:
        scores = None
        if rule.redundancy == "background":
            frames, scores = candidates.compared(rule.redundancy)
        found, tau = select_adaptive(
            frames, query, k=rule.k, tau=rule.tau, floor=rule.floor, inclusive=rule.inclusive, scores=scores
        )
        chosen = Chosen(found, tau)
    if not rule.fill:
        return chosen
    filled = fill_gaps(chosen.rows, len(candidates), rule.k)
    return dataclasses.replace(chosen, rows=filled, distinct=len(chosen.rows))
