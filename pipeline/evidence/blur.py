"""Removal of boxes from pictures, as it is done in clips; see `ingest.segments.redaction`."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from index.errors import StoreCorrupt, UsageError
from ingest.segments.clipping import Redaction
from ingest.segments.redaction import redact

__all__ = ["MAX_REDACTIONS", "checked_redactions", "cover"]

MAX_REDACTIONS = 500
"""Most boxes of one bundle."""


def checked_redactions(redactions: Sequence[Redaction]) -> tuple[Redaction, ...]:
    """The boxes. Raises UsageError if one is empty or reaches beyond the picture, or there are too many."""
    if len(redactions) > MAX_REDACTIONS:
        raise UsageError(f"{len(redactions)} boxes are more than {MAX_REDACTIONS}")
    for each in redactions:
        left, top, right, bottom = each.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1) or each.start >= each.end:
            raise UsageError(
                f"a box is left, top, right and bottom as shares of the picture, and a stretch of time; got {each.box}"
            )
    return tuple(redactions)


def cover(picture: bytes, at: int, redactions: Sequence[Redaction]) -> bytes:
    """A picture without what the boxes of its time cover; the same bytes where there are none.

    Nothing of the file is taken over but its pixels, so that no thumbnail inside it shows what is removed.

    Args:
        picture: JPEG.
        at: its time, UTC microseconds.
        redactions: the boxes.

    Raises:
        StoreCorrupt: the picture cannot be decoded.
    """
    boxes = [each.box for each in redactions if each.start <= at < each.end]
    if not boxes:
        return picture
    try:
        with Image.open(io.BytesIO(picture), formats=("JPEG",)) as image:
            pixels = np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise StoreCorrupt(f"a stored picture cannot be decoded ({error})") from None
    redact(pixels, boxes)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()
