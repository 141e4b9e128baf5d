"""Removal of parts of pictures: what a box covers becomes a few flat cells, from which it cannot be restored.

A cell has the mean colour of what it covers. There are at most `CELLS` × `CELLS` of them in a box, whatever its size,
so that at most that many colours remain of a face. This module does not know where faces are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["CELLS", "Box", "box_pixels", "redact"]

CELLS = 4
"""Most cells in a row or column of a box."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a box as shares of width and height, in [0, 1]."""


def box_pixels(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom (exclusive) of a box in pixels; every pixel that it touches is inside."""
    left, top, right, bottom = box
    return (
        max(0, math.floor(left * width)),
        max(0, math.floor(top * height)),
        min(width, math.ceil(right * width)),
        min(height, math.ceil(bottom * height)),
    )


def redact(pixels: NDArray[np.uint8], boxes: Sequence[Box]) -> None:
    """Replace what the boxes cover, in place.

    Args:
        pixels: uint8[height, width, 3].
        boxes: boxes; each is made of cells of its own, computed from the picture after the boxes before it.
    """
    height, width = pixels.shape[:2]
    for box in boxes:
        left, top, right, bottom = box_pixels(box, width, height)
        if right <= left or bottom <= top:
            continue
        rows = np.linspace(top, bottom, min(CELLS, bottom - top) + 1).astype(int)
        columns = np.linspace(left, right, min(CELLS, right - left) + 1).astype(int)
        if min(bottom - top, right - left) < 4 * CELLS:  # a small box: cells of single pixels would show it
            rows, columns = np.array([top, bottom]), np.array([left, right])
        for y0, y1 in pairwise(rows.tolist()):
            for x0, x1 in pairwise(columns.tolist()):
                cell = pixels[y0:y1, x0:x1]
                cell[:] = cell.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
