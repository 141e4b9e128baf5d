"""Shares with confidence intervals that respect clusters: questions about one video are not independent.

Wilson's score interval is computed with the effective number of questions n / deff, where the design effect deff is the
variance of the share over clusters divided by the binomial variance (Kish 1965; for intervals of proportions, Korn and
Graubard 1998). deff is at least 1. Where every question is right, or none, the variance says nothing, and answers in
one cluster are assumed to be equal: deff = Σ n_c² / n.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

from pydantic import BaseModel, ConfigDict

__all__ = ["ClusteredShare", "clustered_mean", "clustered_share", "wilson"]

_Z = 1.959964


class ClusteredShare(BaseModel):
    """A mean of values in [0, 1], with its 95 % interval."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    right: float
    """Sum of the values: the number of right answers where each value is 0 or 1."""
    total: int
    """Number of values."""
    share: float
    """`right` by `total`; 0 if there are none."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    clusters: int
    """Number of clusters."""


def wilson(share: float, total: float) -> tuple[float, float]:
    """Wilson's score interval at 95 % of a share of `total` values; `total` may be an effective number."""
    if total <= 0:
        return 0.0, 1.0
    middle = (share + _Z * _Z / (2 * total)) / (1 + _Z * _Z / total)
    half = _Z * math.sqrt(share * (1 - share) / total + _Z * _Z / (4 * total * total)) / (1 + _Z * _Z / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def clustered_share(right: Sequence[bool], clusters: Sequence[Hashable]) -> ClusteredShare:
    """Share of right answers; `clusters` names the video of each."""
    return clustered_mean([float(value) for value in right], clusters)


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> ClusteredShare:
    """Mean of values in [0, 1], such as IoUs; `clusters` names the video of each.

    For values between 0 and 1 the binomial variance is an upper bound, so the interval is conservative.
    """
    total = len(values)
    if not total:
        return ClusteredShare(right=0, total=0, share=0.0, low=0.0, high=1.0, clusters=0)
    share = min(1.0, math.fsum(values) / total)
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        groups[cluster].append(value)
    count = len(groups)
    binomial = share * (1 - share) / total
    if binomial <= 1e-15:
        effect = math.fsum(len(group) ** 2 for group in groups.values()) / total
    elif count == 1:
        effect = float(total)
    else:
        spread = math.fsum(math.fsum(value - share for value in group) ** 2 for group in groups.values())
        effect = spread / total**2 * count / (count - 1) / binomial
    low, high = wilson(share, total / max(1.0, effect))
    return ClusteredShare(right=math.fsum(values), total=total, share=share, low=low, high=high, clusters=count)
