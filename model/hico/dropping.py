"""Progressive visual dropping of VideoChat-Flash (arXiv 2501.00574): which visual tokens deep layers still read.

    n visual tokens ─ behind layers[0] ─▶ int(n · ratios[1]) ─ behind layers[1] ─▶ int(n · ratios[2]) ─▶ …

A stage keeps evenly spaced tokens, or those that the last token of the prompt attends to most in the next layer. The
tokens that remain keep their order, and tokens of text are never dropped. How many remain is arithmetic of
`model.profiles.profile.DroppingSpec`. Does not know layers or caches: see `model.language.staged_layers`.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "evenly_spaced",
    "most_attended",
    "remaining_rows",
]


def evenly_spaced(count: int, kept: int, device: torch.device | None = None) -> Tensor:
    """`kept` of `count` indices, evenly spaced from the first to the last, rounded down; int64[kept], ascending.

    Computed in integers: a float32 `linspace` of 10,000 frames' tokens can round a whole number down to the one before.
    """
    at = torch.arange(kept, dtype=torch.int64, device=device)
    return at * (count - 1) // max(1, kept - 1)


def most_attended(attention: Tensor, kept: int) -> Tensor:
    """The `kept` indices with the highest values of `attention` [n], ascending, int64[kept].

    Of equal values the earlier index is kept.
    """
    order = torch.sort(attention, descending=True, stable=True).indices
    return torch.sort(order[:kept]).values


def remaining_rows(visual: Tensor, chosen: Tensor) -> Tensor:
    """Rows of a prompt that remain, ascending, int64[t].

    Args:
        visual: bool[T], True for visual tokens.
        chosen: int64[k], the visual tokens that remain, counted among visual tokens.
    """
    keep = ~visual
    keep[visual.nonzero()[chosen, 0]] = True
    return keep.nonzero()[:, 0]
