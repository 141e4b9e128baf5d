"""Encoding of decoded frames: their vectors and their picture, as records that the store takes.

Files, segments from Kafka, live cameras and backfills all call `encode_records`. Frames of several streams share one
batch of the encoders, and no batch cuts a clip of a profile that reads clips. This module knows nothing of decoding or
of how records are stored.
"""

from __future__ import annotations

import io
from collections.abc import Callable, MutableMapping, Sequence
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from index.records import ClockSource, FrameRecords
from ingest.decoding.frame import FrameBatch
from model.encoders.clips import clip_batches, clip_numbers
from model.encoders.encoder import Encoders
from model.encoders.norms import split_norms

__all__ = ["embed", "encode_records", "picture"]

_PICTURE_SIZE = (320, 320)
_PICTURE_QUALITY = 80


def embed(
    encoders: Encoders, frames: Sequence[NDArray[np.uint8]], clips: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float16]]:
    """Vectors of N frames uint8[H, W, 3], encoded as one batch.

    Args:
        encoders: both encoders of a profile.
        frames: the frames.
        clips: the clip of each, int64[N]; None if each is a clip of its own.

    Returns:
        Embeddings of the frames float32[N, Df], not of unit norm, pooled patches float32[N, Dp] and patches
        float16[N, M, Dp].
    """
    features = encoders.frame.frame_features(frames)
    pooled, patches = encoders.patch.encode_frames(frames, clips)
    return features, pooled, patches


def encode_records(
    encoders: Encoders,
    batches: Sequence[tuple[str, ClockSource, FrameBatch]],
    *,
    batch_frames: int,
    seconds: MutableMapping[str, float] | None = None,
    on_batch: Callable[[int], None] = lambda _: None,
) -> list[FrameRecords]:
    """Encode frames of any number of streams together; one `FrameRecords` for each batch, in order.

    Args:
        batches: stream id, source of its clock, and frames. Each must hold at least one frame. The pixels are removed
            from each batch once they are encoded, so that their memory is free before the records are stored. A clip
            begins and ends within one of them.
        batch_frames: most frames that the encoders get at once; a clip that is longer is one batch.
        seconds: if given, the time spent is added to its entries `encode` and `pictures`.
        on_batch: called with the number of frames of each batch of the encoders.
    """
    pixels = [frame for _, _, frames in batches for frame in frames.pixels]
    if not pixels:
        return []
    began = perf_counter()
    clips = clip_numbers(
        [at for _, _, frames in batches for at in frames.captured_at],
        np.repeat(np.arange(len(batches)), [len(frames) for _, _, frames in batches]),
        encoders.pair.clip_frames,
    )
    parts = []
    for rows in clip_batches(clips, batch_frames):
        on_batch(rows.stop - rows.start)
        parts.append(embed(encoders, pixels[rows], clips[rows]))
    features, pooled, patches = (np.concatenate([part[i] for part in parts]) for i in range(3))
    vectors, norms = split_norms(features)
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
                frame_norms=norms[rows],
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
