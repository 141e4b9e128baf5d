"""A share of questions with its confidence interval."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict

__all__ = ["Share", "share"]


class Share(BaseModel):
    """A share with its 95 % Wilson interval."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    right: int
    """Questions that are right."""
    total: int
    """Questions that were asked."""
    share: float
    """`right` by `total`."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


def share(right: int, total: int) -> Share:
    """Return the share with Wilson's score interval at 95 %."""
    if total == 0:
        return Share(right=0, total=0, share=0.0, low=0.0, high=1.0)
    z, p = 1.959964, right / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return Share(right=right, total=total, share=p, low=max(0.0, middle - half), high=min(1.0, middle + half))
