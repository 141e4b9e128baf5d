"""One sampled frame."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from index.errors import UsageError

__all__ = ["Frame"]


@dataclass(frozen=True, slots=True)
class Frame:
    """pixels uint8[H, W, 3] RGB, upright and with square pixels; pts_seconds on the stream's own clock; captured_at UTC.

    Raises:
        UsageError: pixels of another shape or dtype, or a time without a zone.
    """

    pixels: NDArray[np.uint8]
    pts_seconds: float
    captured_at: datetime

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 3 or self.pixels.shape[2] != 3:
            raise UsageError(f"pixels: expected uint8 [H, W, 3], got {self.pixels.dtype} {list(self.pixels.shape)}")
        if self.captured_at.tzinfo is None:
            raise UsageError(f"captured_at: {self.captured_at.isoformat()} has no time zone")
