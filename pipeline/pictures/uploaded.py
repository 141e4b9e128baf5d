"""Pictures from outside, such as an upload to search with.

A picture is not trusted. Its bytes are counted before anything reads them; then the confined decoder of footage opens
it, which compares its width and height with a limit before it decodes a pixel, has a limit on memory and time, and is
upright when it returns. The process of the caller never parses the file. JPEG, PNG, WebP and BMP are read.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from index.errors import DecodeFailed, NoFrames, NotVideo, PictureInvalid, SourceNotFound, shown_text
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding, open_regular

__all__ = ["MAX_PICTURE_BYTES", "MAX_PICTURE_PIXELS", "decode_picture", "read_picture"]

MAX_PICTURE_BYTES = 20 * 2**20
"""The largest file of a picture, in bytes."""
MAX_PICTURE_PIXELS = 50_000_000
"""The largest width × height of a picture."""
_LIMITS = DecodeLimits(pixels=MAX_PICTURE_PIXELS, frames=1, memory_bytes=2 * 2**30, cpu_seconds=30, stall_seconds=20.0)
_SIDE = 1024  # pixels; encoders read less


def read_picture(path: Path, *, require_sandbox: bool = False) -> NDArray[np.uint8]:
    """The picture of a file, see `decode_picture`.

    Raises:
        SourceNotFound: there is no such file, or no permission to read it.
        PictureInvalid: it is not a regular file; or as `decode_picture`.
    """
    try:
        descriptor = open_regular(path)
    except NotVideo:
        raise PictureInvalid(f"{path}: not a regular file; name a JPEG, PNG, WebP or BMP file") from None
    with os.fdopen(descriptor, "rb") as file:
        return decode_picture(file.read(MAX_PICTURE_BYTES + 1), str(path), require_sandbox=require_sandbox)


def decode_picture(data: bytes, name: str = "the picture", *, require_sandbox: bool = False) -> NDArray[np.uint8]:
    """RGB pixels of a picture, uint8[H, W, 3], upright, at most 1024 pixels on the longer side.

    Args:
        data: the file's bytes.
        name: its name in error messages.
        require_sandbox: refuse to decode where the decoder cannot be confined.

    Raises:
        PictureInvalid: it is too large, damaged, or of a format that is not read.
        SandboxUnavailable: `require_sandbox`, and this machine cannot confine the decoder.
    """
    shown = shown_text(name)
    if len(data) > MAX_PICTURE_BYTES:
        raise PictureInvalid(f"{shown}: larger than {MAX_PICTURE_BYTES // 2**20} MiB; scale the picture down")
    limits = replace(_LIMITS, require_sandbox=require_sandbox)
    with tempfile.NamedTemporaryFile(prefix="sightline-picture-") as file:
        file.write(data)
        file.flush()
        try:
            with Decoding(file.name, name=shown, limits=limits, pictures=True) as decoding:
                pixels = next((pixels for _, pixels in decoding), None)
        except (NotVideo, NoFrames):
            pixels = None
        except DecodeFailed as error:
            raise PictureInvalid(f"{error}; pictures have at most {MAX_PICTURE_PIXELS // 10**6} megapixels") from None
        except SourceNotFound as error:  # the temporary file: the disk of the machine, not the picture
            raise PictureInvalid(f"{shown}: cannot be read here ({error})") from None
    if pixels is None:
        raise PictureInvalid(f"{shown}: not a picture that can be read; give a JPEG, PNG, WebP or BMP file")
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    return np.asarray(image, np.uint8)
