"""From pixels to what is stored of a frame: its vectors and its picture. The same for files and for live segments."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.encoders import Encoders

__all__ = ["embed", "picture"]


def embed(
    encoders: Encoders, frames: Sequence[NDArray[np.uint8]]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float16]]:
    """Frame vectors float32[N, Df], pooled patches float32[N, Dp], patches float16[N, M, Dp] of N frames [H, W, 3]."""
    vectors = encoders.frame.encode_frames(frames)
    pooled, patches = encoders.patch.encode_frames(frames)
    return vectors, pooled, patches


def picture(pixels: NDArray[np.uint8]) -> bytes:
    """A JPEG of at most 320 pixels on the longer side."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((320, 320))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()
