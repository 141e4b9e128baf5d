"""Pictures of a stretch of footage, read again at a rate of its own.

    file or recorded segments ─ confined decoder ─▶ the first frame at or after the middle of each of T equal intervals

The store has one frame a second, which is too few of a short stretch for a model that reads at least T_min frames. Does
not know stores or models, nor who may see a stream.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.errors import DecodeFailed
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding
from ingest.live.clip import fetch_segment
from pipeline.media.footage import Footage, RecordedFootage

__all__ = ["read_stretch"]

_MAX_BYTES = 2**30
"""Most bytes of pixels of one stretch; 64 frames of 1080p are 400 MB."""


def read_stretch(
    footage: Footage, start: int, end: int, count: int, *, limits: DecodeLimits | None = None
) -> tuple[NDArray[np.int64], list[NDArray[np.uint8]]]:
    """At most `count` frames of footage between two times, evenly apart; fewer where the footage has fewer.

    Args:
        footage: where the stretch is; see `pipeline.media.footage`.
        start, end: UTC microseconds, `end` exclusive.
        count: T, the number of intervals.
        limits: limits of the process that decodes.

    Returns:
        Capture times int64[n], ascending, and RGB pixels, uint8[H, W, 3] each.

    Raises:
        SourceNotFound, NotVideo, NoFrames, DecodeFailed: the footage cannot be read, or its pixels are more than the
            limit of a stretch.
    """
    times, pictures, size = list[int](), list[NDArray[np.uint8]](), 0
    step = (end - start) / 1e6 / count
    for at, pixels in _frames(footage, start, end, step, limits or DecodeLimits()):
        slot = math.floor((at - start) / 1e6 / step - 0.5 + 1e-3)
        last = math.floor((times[-1] - start) / 1e6 / step - 0.5 + 1e-3) if times else -1
        if slot <= last or at >= end:
            continue  # before the middle of the first interval, or a second frame of one, where two segments overlap
        size += pixels.nbytes
        if size > _MAX_BYTES:
            raise DecodeFailed(f"{footage.stream_id}: {count} frames are more than {_MAX_BYTES >> 20} MiB of pixels")
        times.append(at)
        pictures.append(pixels)
    return np.array(times, np.int64), pictures


def _frames(
    footage: Footage, start: int, end: int, step: float, limits: DecodeLimits
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Capture times (UTC microseconds) and pixels of the files of a stretch, one file after another."""
    if not isinstance(footage, RecordedFootage):
        with footage.opened() as descriptor:
            yield from _of_file(f"/dev/fd/{descriptor}", str(footage.path), footage.began, start, end, step, limits)
        return
    for part in footage.segments:
        with tempfile.NamedTemporaryFile(prefix="sightline-") as file:
            fetch_segment(part.uri, file)
            began, until = part.segment.start, min(end, part.end)  # a segment may hold frames of the next one
            for at, pixels in _of_file(file.name, part.segment.name, began, start, until, step, limits):
                if part.after is None or at >= part.after:
                    yield at, pixels


def _of_file(
    path: str | Path, name: str, began: int, start: int, end: int, step: float, limits: DecodeLimits
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The frames of one file whose first frame was captured at `began`."""
    offset = (start - began) / 1e6
    # The decoder takes the first frame of each cell of `step` seconds; the cells begin at the middles of the intervals.
    phase = -(offset + step / 2) % step
    with Decoding(path, name=name, fps=1 / step, after=max(0.0, offset), phase=phase, limits=limits) as decoding:
        decoding.until = (end - began) / 1e6
        first = decoding.info().first
        for pts, pixels in decoding:
            yield began + round((pts - first) * 1e6), pixels
