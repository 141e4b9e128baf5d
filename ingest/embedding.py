"""From pixels to what is stored of a frame: its vectors and its picture. The same for files and for live segments."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.records import ClockSource, FrameRecords
from ingest.segments.frames import SegmentFrames
from model.encoders.encoder import Encoders

__all__ = ["embed", "picture", "records_of"]


def embed(
    encoders: Encoders, frames: Sequence[NDArray[np.uint8]]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float16]]:
    """Frame vectors float32[N, Df], pooled patches float32[N, Dp], patches float16[N, M, Dp] of N frames [H, W, 3]."""
    vectors = encoders.frame.encode_frames(frames)
    pooled, patches = encoders.patch.encode_frames(frames)
    return vectors, pooled, patches


def records_of(
    encoders: Encoders, segments: Sequence[tuple[str, ClockSource, SegmentFrames]], *, batch_frames: int
) -> list[FrameRecords]:
    """The records of decoded segments (stream, clock, frames), all cameras in one batch; their pixels are let go."""
    pixels = [frame for _, _, frames in segments for frame in frames.pixels]
    if not pixels:
        return []
    parts = [embed(encoders, pixels[at : at + batch_frames]) for at in range(0, len(pixels), batch_frames)]
    vectors, pooled, patches = (np.concatenate([part[i] for part in parts]) for i in range(3))
    records, at = [], 0
    for stream, clock, frames in segments:
        here = slice(at, at + len(frames.pixels))
        at = here.stop
        records.append(
            FrameRecords(
                stream_id=stream,
                clock_source=clock,
                captured_at=np.asarray(frames.captured_at, np.int64),
                pts_seconds=np.asarray(frames.pts_seconds, np.float64),
                frame_vectors=vectors[here],
                patch_pooled=pooled[here],
                patches=patches[here],
                pictures=[picture(frame) for frame in frames.pixels],
            )
        )
        frames.pixels.clear()
    return records


def picture(pixels: NDArray[np.uint8]) -> bytes:
    """A JPEG of at most 320 pixels on the longer side."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((320, 320))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()
