"""Encoding of decoded frames: their vectors and their picture, as records that the store takes.

Files, segments from Kafka, live cameras and backfills all call `encode_records`. Frames of several streams share one
batch of the encoders. This module knows nothing of decoding or of how records are stored.
"""

from __future__ import annotations

import io
from collections.abc import MutableMapping, Sequence
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from index.records import ClockSource, FrameRecords
from ingest.decoding.frame import FrameBatch
from model.encoders.encoder import Encoders

__all__ = ["embed", "encode_records", "picture"]

_PICTURE_SIZE = (320, 320)
_PICTURE_QUALITY = 80


def embed(
    encoders: Encoders, frames: Sequence[NDArray[np.uint8]]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float16]]:
    """Vectors of N frames uint8[H, W, 3], encoded as one batch.

    Returns:
        Frame vectors float32[N, Df], pooled patches float32[N, Dp] and patches float16[N, M, Dp].
    """
    vectors = encoders.frame.encode_frames(frames)
    pooled, patches = encoders.patch.encode_frames(frames)
    return vectors, pooled, patches


def encode_records(
    encoders: Encoders,
    batches: Sequence[tuple[str, ClockSource, FrameBatch]],
    *,
    batch_frames: int,
    seconds: MutableMapping[str, float] | None = None,
) -> list[FrameRecords]:
    """Encode frames of any number of streams together; one `FrameRecords` for each batch, in order.

    Args:
        batches: stream id, source of its clock, and frames. Each must hold at least one frame. The pixels are removed
            from each batch once they are encoded, so that their memory is free before the records are stored.
        batch_frames: most frames that the encoders get at once.
        seconds: if given, the time spent is added to its entries `encode` and `pictures`.
    """
    pixels = [frame for _, _, frames in batches for frame in frames.pixels]
    if not pixels:
        return []
    began = perf_counter()
    parts = [embed(encoders, pixels[at : at + batch_frames]) for at in range(0, len(pixels), batch_frames)]
    vectors, pooled, patches = (np.concatenate([part[i] for part in parts]) for i in range(3))
    encoded = perf_counter()
    pictures = [picture(frame) for frame in pixels]
    if seconds is not None:
        seconds["encode"] = seconds.get("encode", 0.0) + encoded - began
        seconds["pictures"] = seconds.get("pictures", 0.0) + perf_counter() - encoded
    records, at = [], 0
    for stream_id, clock_source, frames in batches:
        rows = slice(at, at + len(frames))
        at = rows.stop
        records.append(
            FrameRecords(
                stream_id=stream_id,
                clock_source=clock_source,
                captured_at=np.asarray(frames.captured_at, np.int64),
                pts_seconds=np.asarray(frames.pts_seconds, np.float64),
                frame_vectors=vectors[rows],
                patch_pooled=pooled[rows],
                patches=patches[rows],
                pictures=pictures[rows],
            )
        )
        frames.pixels.clear()
    return records


def picture(pixels: NDArray[np.uint8]) -> bytes:
    """A JPEG of a frame uint8[H, W, 3], scaled down to at most 320 pixels on the longer side."""
    image = Image.fromarray(pixels)
    image.thumbnail(_PICTURE_SIZE)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_PICTURE_QUALITY)
    return out.getvalue()
