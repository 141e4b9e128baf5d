"""Heat map: values of a frame's patches, drawn over its picture.

The values come in rows, from the top left; the grid is stretched over the whole picture, because the encoders of
patches squash a frame to their square input. Does not know what a value means.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from index.errors import UsageError
from pipeline.pictures.scaling import open_jpeg, to_jpeg

__all__ = ["grid_of", "heat_map"]

_RAMP = np.array([(30, 27, 75), (79, 70, 229), (219, 39, 119), (245, 158, 11), (254, 243, 199)], np.float32)
_STRENGTH = 0.65  # share of the colour where the value is highest


def grid_of(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Values of M patches as a square grid scaled to 0…1, float32[√M, √M]; a constant field becomes 0.

    Args:
        values: float[M], or a grid float[rows, columns], whose shape is kept.

    Raises:
        UsageError: M is not a square, there are no values, or one is not finite.
    """
    array = np.asarray(values, np.float32)
    if array.ndim == 1:
        side = math.isqrt(len(array))
        if side * side != len(array):
            raise UsageError(f"{len(array)} patches are not a square grid; pass a grid of rows and columns")
        array = array.reshape(side, side)
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise UsageError(f"expected finite values of patches, got an array of shape {list(array.shape)}")
    low, high = float(array.min()), float(array.max())
    return np.asarray((array - low) / (high - low) if high > low else np.zeros_like(array), np.float32)


def heat_map(jpeg: bytes, values: NDArray[np.floating], *, width: int = 640) -> bytes:
    """A picture with the values of its patches as colours over it, JPEG; the higher the value, the stronger.

    Args:
        jpeg: the picture.
        values: see `grid_of`.
        width: largest side of the result, in pixels.

    Raises:
        UsageError: the values are no grid, or the width is invalid.
    """
    grid = grid_of(values)
    picture = open_jpeg(jpeg, width, width)
    scale = width / max(picture.size)
    if scale > 1:  # the store's pictures are small; the grid's edges should be smooth all the same
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
        )
    field = Image.fromarray(np.asarray(grid * 255, np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    level = np.asarray(field, np.float32)[..., None] / 255
    place = level[..., 0] * (len(_RAMP) - 1)
    low = np.minimum(place.astype(np.int64), len(_RAMP) - 2)
    colour = _RAMP[low] + (_RAMP[low + 1] - _RAMP[low]) * (place - low)[..., None]
    share = _STRENGTH * np.sqrt(level)
    mixed = np.asarray(picture, np.float32) * (1 - share) + colour * share
    return to_jpeg(Image.fromarray(np.asarray(mixed.round(), np.uint8)))
