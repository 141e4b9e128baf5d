"""Estimate of what a backfill costs, from a sample of its files and the encoders' speed on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from index.errors import SourceError, UsageError
from ingest.chunks import BATCH_FRAMES
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding
from ingest.embedding import embed, picture
from ingest.sources.files import fetched
from pipeline.backfill.manifest import Entry

if TYPE_CHECKING:
    from model.encoders.encoder import Encoders

__all__ = ["DryRun", "dry_run"]

_MEASURED = 3


class DryRun(BaseModel):
    """Estimated cost of a backfill."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    files: int
    """Files of the manifest."""
    sampled: int
    """Files that were opened."""
    unreadable: int
    """Sampled files that do not open."""
    hours: float
    """Hours of footage."""
    frames: int
    """Frames, one a second."""
    footage_bytes: int
    """Bytes of the files."""
    store_bytes: int
    """Bytes in the store, without what Parquet and the table logs add."""
    device: str
    """Device of the encoders."""
    frames_per_second: float
    """The encoders' speed, measured or given."""
    gpu_hours: float
    """Hours of one such device; decoding is not included."""


def dry_run(
    entries: Sequence[Entry],
    encoders: Encoders,
    *,
    device: str,
    sample: int = 16,
    limits: DecodeLimits | None = None,
    frames_per_second: float | None = None,
) -> DryRun:
    """Open `sample` files, spread evenly over the manifest, and embed a few of their frames.

    Args:
        entries: the files of the backfill.
        encoders: the encoders of its profile.
        device: name of the device that the encoders run on, for the report.
        sample: number of files to open.
        limits: limits of the decoder's process.
        frames_per_second: the encoders' speed where the backfill will run; measured here if None.

    Raises:
        UsageError: `sample` is below 1, `frames_per_second` is not above 0, or none of the sampled files opens.
    """
    if sample < 1:
        raise UsageError(f"--sample must be at least 1, got {sample}")
    if frames_per_second is not None and frames_per_second <= 0:
        raise UsageError(f"--frames-per-second must be above 0, got {frames_per_second:g}")
    chosen = [entries[i * len(entries) // min(sample, len(entries))] for i in range(min(sample, len(entries)))]
    seconds, sizes, unreadable = [], [], 0
    frames: list[NDArray[np.uint8]] = []
    for entry in chosen:
        try:
            with (
                fetched(entry.uri) as path,
                Decoding(path, limits=(limits or DecodeLimits()).in_software()) as decoding,
            ):
                duration = decoding.info().duration
                if duration is None or not frames:
                    some = [pixels for _, pixels in islice(decoding, None if duration is None else BATCH_FRAMES)]
                    duration = duration or float(len(some))
                    frames = frames or some[:BATCH_FRAMES]
                seconds.append(duration)
                sizes.append(path.stat().st_size)
        except SourceError:
            unreadable += 1
    if not frames:
        raise UsageError(f"none of {len(chosen)} sampled files can be read; check the manifest, or ingest one of them")
    share = len(seconds) / len(chosen)
    total = float(np.mean(seconds)) * len(entries) * share
    pictures = float(np.mean([len(picture(frame)) for frame in frames]))
    pair = encoders.pair
    a_frame = 4 * (pair.frame.dimension + pair.patch.dimension) + 2 * pair.patches * pair.patch.dimension + pictures
    speed = frames_per_second or _speed(encoders, frames)
    return DryRun(
        files=len(entries),
        sampled=len(chosen),
        unreadable=unreadable,
        hours=total / 3600,
        frames=round(total),
        footage_bytes=round(float(np.mean(sizes)) * len(entries) * share),
        store_bytes=round(total * a_frame),
        device=device,
        frames_per_second=speed,
        gpu_hours=total / speed / 3600,
    )


def _speed(encoders: Encoders, frames: list[NDArray[np.uint8]]) -> float:
    """Measure frames a second: the median of a few full batches, after one that warms up."""
    batch = (frames * BATCH_FRAMES)[:BATCH_FRAMES]
    embed(encoders, batch)
    took = []
    for _ in range(_MEASURED):
        since = perf_counter()
        embed(encoders, batch)
        took.append(perf_counter() - since)
    return len(batch) / float(np.median(took))
