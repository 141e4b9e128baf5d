"""Uploaded pictures of the desk: decoded in the confined process, encoded at once, and kept for half an hour.

Only the vector is kept. A picture belongs to the caller who sent it.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.errors import UnknownItem
from pipeline.access.caller import Caller
from pipeline.desk.desk import Desk
from pipeline.pictures.uploaded import decode_picture

__all__ = ["Upload", "picture_vector", "upload"]

_KEEP_SECONDS = 1_800.0


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """One picture."""

    id: str
    """Id, URL-safe."""
    vector: NDArray[np.float32]
    """The vector of the frame encoder, float32[Df]."""
    width: int
    """Width in pixels, after scaling."""
    height: int
    """Height in pixels, after scaling."""
    until: float
    """`time.monotonic()` at which it is forgotten."""


def upload(desk: Desk, caller: Caller, data: bytes) -> Upload:
    """Decode and encode a picture, and keep it for the caller.

    Raises:
        PictureInvalid: it is too large, damaged, or of a format that is not read.
        UsageError: the models run in a model service, which encodes texts only.
        ModelError: the models cannot be loaded.
    """
    pixels = decode_picture(data, "the upload")
    found = Upload(
        secrets.token_urlsafe(12),
        desk.models.picture_vector(pixels),
        pixels.shape[1],
        pixels.shape[0],
        time.monotonic() + _KEEP_SECONDS,
    )
    desk.uploads.put((caller.name, found.id), found)
    return found


def picture_vector(desk: Desk, caller: Caller, picture_id: str) -> NDArray[np.float32]:
    """The vector of a picture that the caller sent, float32[Df]. Raises UnknownItem."""
    found = desk.uploads.find((caller.name, picture_id))
    if not isinstance(found, Upload) or found.until < time.monotonic():
        raise UnknownItem("there is no such picture; it is kept for 30 minutes, so send it again")
    return found.vector
