"""What a browser needs to know of a file: its container and codec, found out in a confined process."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass

from ingest.decoding.decoder_process import DecoderProcess, MessageReader
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.protocol import DONE
from ingest.decoding.sandbox import shared_memory

__all__ = ["MediaFacts", "probe"]

_PLAIN_PIXELS = ("yuv420p", "yuvj420p")


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """What a file has."""

    format: str
    """FFmpeg's name of the container format, such as `mov,mp4,m4a,3gp,3g2,mj2`."""
    codec: str
    """FFmpeg's name of the video codec."""
    pixels: str
    """FFmpeg's name of the pixel format."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    first: float
    """pts of the first frame, in seconds."""
    seconds: float | None
    """Duration, None if the container does not state it."""

    @property
    def codec_plays(self) -> bool:
        """Whether every browser decodes the video: H.264 with 8 bits and 4:2:0."""
        return self.codec == "h264" and self.pixels in _PLAIN_PIXELS

    @property
    def plays(self) -> bool:
        """Whether every browser plays the file as it is."""
        return self.codec_plays and "mp4" in self.format.split(",")

    @property
    def copies(self) -> bool:
        """Whether its packets can be copied to MP4; AVI has no times of presentation."""
        return self.codec_plays and self.format != "avi"


def probe(source: int, *, name: str, limits: DecodeLimits | None = None) -> MediaFacts:
    """What a file has.

    Args:
        source: descriptor of the file, open for reading; its position changes.
        name: of the file, in error messages, without credentials.
        limits: limits of the process.

    Raises:
        NotVideo, DecodeFailed, SandboxUnavailable: see `index.errors`.
    """
    limits = limits or DecodeLimits()
    memory = shared_memory(4096)
    try:
        process = DecoderProcess({"task": "probe", "limits": asdict(limits)}, source=source, memory=memory)
    finally:
        os.close(memory)
    with MessageReader(process, name=name, stall_seconds=limits.stall_seconds) as messages:
        kind, body = messages.receive()
        if kind != DONE:
            messages.raise_reported(kind, body)
        try:
            values = json.loads(body)
            container, codec, pixels = (str(values[key])[:64] for key in ("format", "codec", "pixels"))
            width, height, first = int(values["width"]), int(values["height"]), float(values["first"])
            seconds = None if values["seconds"] is None else float(values["seconds"])
            if not math.isfinite(first) or not (seconds is None or math.isfinite(seconds)):
                raise ValueError(first)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            messages.raise_invalid()
    return MediaFacts(container, codec, pixels, width, height, first, seconds)
