"""Sampled frames of a video: a single one, and a batch of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from index.errors import UsageError

__all__ = ["Frame", "FrameBatch"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One sampled frame.

    Raises:
        UsageError: `pixels` has another shape or dtype, or `captured_at` has no time zone.
    """

    pixels: NDArray[np.uint8]
    """RGB, uint8[H, W, 3], upright and with square pixels."""
    pts_seconds: float
    """Presentation time on the stream's own clock."""
    captured_at: datetime
    """Time of capture, with a time zone."""

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 3 or self.pixels.shape[2] != 3:
            raise UsageError(f"pixels: expected uint8 [H, W, 3], got {self.pixels.dtype} {list(self.pixels.shape)}")
        if self.captured_at.tzinfo is None:
            raise UsageError(f"captured_at: {self.captured_at.isoformat()} has no time zone")


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """Sampled frames of one stream, ascending in time. Item i of every list belongs to the same frame."""

    captured_at: list[int]
    """UTC microseconds."""
    pts_seconds: list[float]
    """Presentation times on the stream's own clock."""
    pixels: list[NDArray[np.uint8]]
    """RGB, uint8[H, W, 3] each, upright and with square pixels."""

    def __len__(self) -> int:
        return len(self.captured_at)
