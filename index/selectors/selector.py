"""The interface of a selector: candidates and a rule in, rows out.

Does not know profiles, stores or time ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from index.errors import UsageError
from index.keyframes import relevance
from index.selectors.background import reduce_background

__all__ = ["REDUNDANCIES", "Candidates", "Chosen", "Redundancy", "SelectionRule", "Selector"]

Redundancy = Literal["fixed", "adaptive", "background"]
"""When two frames are alike.

`fixed`: a cosine of τ, the paper's rule. `adaptive`: the smallest τ' ≥ τ that gives K keyframes. `background`: as
`adaptive`, with vectors without the stream's own background (see `index.selectors.background`)."""

REDUNDANCIES: tuple[Redundancy, ...] = ("fixed", "adaptive", "background")


@dataclass(frozen=True, slots=True)
class SelectionRule:
    """The parameters of a selection.

    Raises:
        UsageError: `k` is less than 1.
    """

    k: int
    """Largest number of frames, K."""
    tau: float = 0.85
    """Similarity threshold τ of Algorithm 1; selectors without a threshold ignore it."""
    redundancy: Redundancy = "fixed"
    """When two frames are alike."""
    fill: bool = False
    """Fill the gaps between the frames evenly until there are min(K, N); see `index.keyframes.fill_gaps`."""
    floor: float = -1.0
    """Frames of lower relevance are not selected by DKS."""
    inclusive: bool = False
    """DKS also accepts a cosine equal to τ, as the authors' code does."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"k must be at least 1, got {self.k}")


@dataclass(frozen=True, slots=True)
class Candidates:
    """The frames of a window.

    Raises:
        UsageError: the arrays do not fit each other.
    """

    frames: NDArray[np.float32]
    """Vectors of the frame encoder, float32[N, d]."""
    query: NDArray[np.float32]
    """The question's vector of the same encoder, float32[d]."""
    stream_index: NDArray[np.integer] | None = None
    """The stream of each row, int[N], rows of a stream together and in the order of time; one stream if None."""

    def __post_init__(self) -> None:
        if self.frames.ndim != 2 or self.frames.shape[1:] != self.query.shape:
            raise UsageError(f"expected frames [N, d] and query [d], got {self.frames.shape} and {self.query.shape}")
        if self.stream_index is not None and len(self.stream_index) != len(self.frames):
            raise UsageError(f"stream_index has {len(self.stream_index)} rows, the frames have {len(self.frames)}")

    def __len__(self) -> int:
        return len(self.frames)

    def compared(self, redundancy: Redundancy) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Vectors whose cosines say which frames are alike, float32[N, d], and the relevance, float32[N]."""
        if redundancy != "background":
            return self.frames, relevance(self.frames, self.query)
        return reduce_background(self.frames, self.query, self.stream_index)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The frames that a selector chose."""

    rows: NDArray[np.int64]
    """Rows in the order of selection, int64[n], n ≤ K, each once."""
    tau: float | None = None
    """The threshold that applied, τ or τ'; None for a selector without one."""
    distinct: int | None = None
    """Rows before the gaps were filled; None if none were filled."""


class Selector(Protocol):
    """Selects at most K rows of the candidates. Raises UsageError for arrays that are not finite."""

    def __call__(self, candidates: Candidates, rule: SelectionRule) -> Chosen:
        """Select rows."""
