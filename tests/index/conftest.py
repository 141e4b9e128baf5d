"""A small store and frames to put into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index.records import EncoderIdentity, EncoderPair, FrameRecords, Segment
from index.store import Store

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


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", PAIR)


@pytest.fixture
def fill(store: Store) -> Callable[..., list[FrameRecords]]:
    """Append `chunks` chunks of 20 frames to each stream and return the records."""

    def run(*streams: str, chunks: int = 2) -> list[FrameRecords]:
        result = []
        for s, stream in enumerate(streams or ("front",)):
            for chunk in range(chunks):
                records = make_records(stream, BEGAN + chunk * 20 * SECOND, seed=100 * s + chunk)
                assert store.append(make_segment(records, chunk), records)
                result.append(records)
        return result

    return run
