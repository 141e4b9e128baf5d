"""Comparison of two runs over the same questions.

McNemar's test looks at the questions that exactly one of the runs answers right. The exact test is the binomial test of
their split; it treats questions as independent. The clustered statistic (Durkalski et al. 2003) adds the differences of
each video first and is chi-squared with one degree of freedom; it needs some ten videos with differences.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

from pydantic import BaseModel, ConfigDict

__all__ = ["McNemar", "holm", "mcnemar"]


class McNemar(BaseModel):
    """Two runs over the same questions."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    both: int
    """Questions that both answer right."""
    only_first: int
    """Questions that only the first answers right."""
    only_second: int
    """Questions that only the second answers right."""
    neither: int
    """Questions that neither answers right."""
    p: float
    """Two-sided p of the exact test; 1 if the runs differ nowhere."""
    p_clustered: float
    """p of the clustered statistic; 1 if the runs differ nowhere."""
    difference: float
    """Share of the second minus share of the first."""


def mcnemar(first: Sequence[bool], second: Sequence[bool], clusters: Sequence[Hashable]) -> McNemar:
    """Compare the answers of two runs to the same questions; `clusters` names the video of each.

    Raises:
        ValueError: the sequences differ in length.
    """
    counts = {(a, b): 0 for a in (False, True) for b in (False, True)}
    sums: dict[Hashable, int] = defaultdict(int)
    for one, other, cluster in zip(first, second, clusters, strict=True):
        counts[bool(one), bool(other)] += 1
        sums[cluster] += int(other) - int(one)
    lost, won = counts[True, False], counts[False, True]
    squares = sum(value * value for value in sums.values())
    statistic = (won - lost) ** 2 / squares if squares else 0.0
    return McNemar(
        both=counts[True, True],
        only_first=lost,
        only_second=won,
        neither=counts[False, False],
        p=_binomial_p(min(lost, won), lost + won),
        p_clustered=math.erfc(math.sqrt(statistic / 2)),
        difference=(won - lost) / max(1, len(first)),
    )


def holm(values: Sequence[float]) -> list[float]:
    """p values of several tests, adjusted by Holm's method, in their order: the chance that any test of the family is
    this small by accident is at most the adjusted value."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    adjusted, highest = [0.0] * len(values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - place) * values[i]))
        adjusted[i] = highest
    return adjusted


def _binomial_p(fewer: int, total: int) -> float:
    """Two-sided p of `fewer` or less out of `total` fair coins."""
    tail = sum(math.comb(total, i) for i in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << total))
