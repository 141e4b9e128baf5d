"""Small synthetic frames and segments for tests of the store; no encoder and no footage is needed."""

from __future__ import annotations

import numpy as np

from index.commits.offset import OffsetSegment
from index.records import EncoderIdentity, EncoderPair, FrameRecords, Segment

BEGAN = 1_709_280_000_000_000
"""2024-03-01T08:00:00Z, where the footage of most tests begins; UTC microseconds."""

SECOND = 1_000_000
"""One second in microseconds."""

APP = "footage/0"
"""The application id of `offset_segment`."""


def identity(name: str, dimension: int) -> EncoderIdentity:
    """An encoder of this name whose vectors have `dimension` floats."""
    return EncoderIdentity(name=name, revision="1", weights_digest="aa", preprocessing_digest="bb", dimension=dimension)


PAIR = EncoderPair(frame=identity("clip", 16), patch=identity("siglip", 12), patches=4)
"""The encoders of all records here: Df = 16, Dp = 12, M = 4."""


def make_records(
    stream: str = "front",
    start: int = BEGAN,
    n: int = 20,
    seed: int = 0,
    mark: str = "",
    *,
    pair: EncoderPair = PAIR,
    picture: bytes | None = None,
) -> FrameRecords:
    """`n` frames of random vectors, one a second from `start`; the pictures contain `mark`, or are all `picture`."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, pair.frame.dimension)).astype(np.float32)
    return FrameRecords(
        stream_id=stream,
        clock_source="given",
        captured_at=start + np.arange(n, dtype=np.int64) * SECOND,
        pts_seconds=np.arange(n, dtype=np.float64),
        frame_vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        patch_pooled=rng.normal(size=(n, pair.patch.dimension)).astype(np.float32),
        patches=rng.normal(size=(n, pair.patches, pair.patch.dimension)).astype(np.float16),
        pictures=[f"JPEG {mark} {i}".encode() if picture is None else picture for i in range(n)],
    )


def make_segment(records: FrameRecords, chunk: int = 0, source: str = "file") -> Segment:
    """The segment of these records; its URI has credentials."""
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


def offset_segment(
    offset: int, n: int = 5, stream: str = "front", start: int | None = None, app: str = APP
) -> OffsetSegment:
    """`n` seconds of footage at an offset of `app`, right after those of the offset before unless `start` is given."""
    began = BEGAN + offset * n * SECOND if start is None else start
    records = make_records(stream, began, n, seed=offset)
    return OffsetSegment(app, make_segment(records, offset, app), records)
