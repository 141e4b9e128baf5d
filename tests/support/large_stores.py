"""Stores with enough frames for a large index of several shards, with vectors of cameras."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.records import EncoderPair, FrameRecords
from index.search.moments import Hit
from index.store import Store
from tests.support.records import BEGAN, SECOND, identity, make_records, make_segment

__all__ = ["DAY", "PAIR", "STREAMS", "add", "exact", "files_of", "fill", "queries", "scenes"]

DAY = 86_400 * SECOND
PAIR = EncoderPair(frame=identity("clip", 64), patch=identity("siglip", 4), patches=1)
STREAMS = ("back", "front", "gate-1")


def scenes(stream: str, start: int, n: int, seed: int) -> FrameRecords:
    """Frames of a camera: a scene, and events of twenty seconds."""
    records = make_records(stream, start, n, seed=seed, pair=PAIR)
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=64) + 0.3 * rng.normal(size=(n, 64))
    for first in range(0, n, 50):
        vectors[first : first + 20] += 1.2 * rng.normal(size=64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return dataclasses.replace(records, frame_vectors=vectors.astype(np.float32))


def add(store: Store, stream: str, start: int, n: int, seed: int) -> None:
    """Store a segment of such frames."""
    records = scenes(stream, start, n, seed)
    assert store.append(make_segment(records, seed), records)


def fill(store: Store) -> None:
    """Two days of three streams, 3,000 frames."""
    for number, stream in enumerate(STREAMS):
        for day in range(2):
            add(store, stream, BEGAN + day * DAY, 500, 10 * number + day)


def exact(store: Store) -> Store:
    """The same store, searched exactly."""
    other = Store.open(store.url)
    other.vectors.flat_rows = 10**9
    return other


def places(hits: list[Hit]) -> list[tuple[str, int]]:
    """Stream and time of each hit."""
    return [(hit.stream_id, hit.captured_at) for hit in hits]


def queries(count: int) -> list[NDArray[np.float32]]:
    """Unit vectors float32[64]."""
    found = np.random.default_rng(5).normal(size=(count, 64)).astype(np.float32)
    return list(found / np.linalg.norm(found, axis=1, keepdims=True))


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of all files of an index, by their path below it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
