"""Frames and segments made up for the store's tests."""

from __future__ import annotations

import numpy as np

from index.commits.offset import OffsetSegment
from index.records import EncoderIdentity, EncoderPair, FrameRecords, Segment

BEGAN = 1_709_280_000_000_000  # 2024-03-01T08:00:00Z


SECOND = 1_000_000


def identity(name: str, dimension: int) -> EncoderIdentity:
    return EncoderIdentity(name=name, revision="1", weights_digest="aa", preprocessing_digest="bb", dimension=dimension)


PAIR = EncoderPair(frame=identity("clip", 16), patch=identity("siglip", 12), patches=4)


def make_records(stream: str = "front", start: int = BEGAN, n: int = 20, seed: int = 0, mark: str = "") -> FrameRecords:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 16)).astype(np.float32)
    return FrameRecords(
        stream_id=stream,
        clock_source="given",
        captured_at=start + np.arange(n, dtype=np.int64) * SECOND,
        pts_seconds=np.arange(n, dtype=np.float64),
        frame_vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        patch_pooled=rng.normal(size=(n, 12)).astype(np.float32),
        patches=rng.normal(size=(n, 4, 12)).astype(np.float16),
        pictures=[f"JPEG {mark} {i}".encode() for i in range(n)],
    )


def make_segment(records: FrameRecords, chunk: int = 0, source: str = "file") -> Segment:
    return Segment(
        stream_id=records.stream_id,
        source=source,
        chunk=chunk,
        uri="rtsp://user:hunter2@camera/front",
        start=int(records.captured_at[0]),
        end=int(records.captured_at[-1]) + SECOND,
        frames=len(records),
        decode_mode="all",
        clock_source="given",
    )


APP = "footage/0"


def piece(offset: int, n: int = 5, stream: str = "front", start: int | None = None, app: str = APP) -> OffsetSegment:
    """Footage of `n` seconds that follows the piece of the offset before."""
    began = BEGAN + offset * n * SECOND if start is None else start
    records = make_records(stream, began, n, seed=offset)
    return OffsetSegment(app, make_segment(records, offset, app), records)
