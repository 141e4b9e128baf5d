"""Thumbnails: pictures of the store, scaled down.

The pictures are JPEGs that this project has written. A damaged one becomes a grey card instead of an error, because a
result of a hundred moments must not fail by one picture.
"""

from __future__ import annotations

import io

from PIL import Image

from index.errors import UsageError

__all__ = ["MAX_SIDE", "open_jpeg", "thumbnail", "to_jpeg"]

MAX_SIDE = 4096
"""The largest width and height of a thumbnail, in pixels."""
_GREY = (71, 85, 105)


def open_jpeg(jpeg: bytes, width: int, height: int) -> Image.Image:
    """A JPEG as an RGB image that fits into `width` × `height` pixels, never enlarged; a grey card if it is damaged."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise UsageError(f"a thumbnail has 1 to {MAX_SIDE} pixels a side, not {width} × {height}")
    try:
        image = Image.open(io.BytesIO(jpeg), formats=["JPEG"])
        image.draft("RGB", (width, height))  # decodes at a half, a quarter or an eighth where that suffices
        result = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return Image.new("RGB", (width, height), _GREY)
    result.thumbnail((width, height), Image.Resampling.LANCZOS)
    return result


def to_jpeg(image: Image.Image, quality: int = 85) -> bytes:
    """An image as JPEG bytes."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue()


def thumbnail(jpeg: bytes, width: int, height: int | None = None) -> bytes:
    """A JPEG scaled down to fit into `width` × `height` pixels (a square when None), as JPEG.

    Raises:
        UsageError: a side is not 1 to `MAX_SIDE` pixels.
    """
    return to_jpeg(open_jpeg(jpeg, width, height or width))
