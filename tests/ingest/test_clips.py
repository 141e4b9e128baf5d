"""Clips through ingest: every way into the store encodes whole clips, and a reader finds them by capture time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.commits.offset import OffsetAdvance
from index.records import Segment
from index.store import Store
from ingest.chunks import BATCH_FRAMES
from ingest.decoding.frame import FrameBatch
from ingest.decoding.limits import DecodeLimits
from ingest.embedding import encode_records
from ingest.file_ingest import ingest_sources
from ingest.segment_indexer import DecodedSegment, SegmentIndexer
from ingest.segments.frames import decode_segment
from model.encoders.clips import clip_numbers
from tests.support.footage import make_video
from tests.support.kafka_worker import counting
from tests.support.records import PAIR

SECOND = 1_000_000
BEGAN = 1_709_280_002 * SECOND  # 2024-03-01T08:00:02Z, in the middle of a cell of four seconds
AT = datetime.fromtimestamp(BEGAN / SECOND, UTC)
CLIP_PAIR = PAIR.model_copy(update={"clip_frames": 4})


class ClipLengths:
    """Patches that say how many frames were encoded as one clip with this one, and which of them it was."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode_frames(self, frames: Sequence[NDArray[np.uint8]], clips: NDArray[np.int64]) -> Any:
        self.batches.append(len(frames))
        patches = np.zeros((len(frames), 4, 12), np.float16)
        for number in np.unique(clips):
            rows = np.flatnonzero(clips == number)
            assert (np.diff(rows) == 1).all()
            patches[rows, 0, 0], patches[rows, 0, 1] = len(rows), np.arange(len(rows))
        return np.ones((len(frames), 12), np.float32), patches


def _encoders() -> Any:
    return SimpleNamespace(frame=counting().frame, patch=ClipLengths(), pair=CLIP_PAIR)


def _stored_clips(store: Store) -> list[tuple[int, int]]:
    """Length of its clip, and place in it, of each stored frame in order of time."""
    patches = store.patches(store.window())
    return [(int(row[0, 0]), int(row[0, 1])) for row in patches]


def _runs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    return [(length, place) for length in lengths for place in range(length)]


def test_a_file_is_encoded_by_clips_that_chunks_alone_cut(tmp_path: Path) -> None:
    make_video(tmp_path / f"front_{AT:%Y-%m-%dT%H-%M-%SZ}.mp4", seconds=59, gop=10)
    store, encoders = Store.create(tmp_path / "store", CLIP_PAIR), _encoders()
    ingest_sources([tmp_path], store=store, encoders=encoders, segment_seconds=45)
    # 08:00:02 to 08:00:46 is the first chunk, which ends three seconds into a cell.
    assert _stored_clips(store) == _runs([2, *[4] * 10, 3, 1, *[4] * 3, 1])
    assert encoders.patch.batches == [30, 15, 14]  # of at most 32 frames, and none cuts a clip
    assert max(encoders.patch.batches) <= BATCH_FRAMES
    # A reader numbers clips by time alone: cells that a chunk cut are one clip with as many rows.
    numbers = clip_numbers(store.window().captured_at)
    assert np.bincount(numbers).tolist() == [2, *[4] * 14, 1]


def test_encoder_batches_of_many_streams_cut_no_clip() -> None:
    encoders, sizes = _encoders(), list[int]()
    inputs = [
        (name, "given", FrameBatch([BEGAN + i * SECOND for i in range(n)], [float(i) for i in range(n)], _pixels(n)))
        for name, n in (("a", 5), ("b", 3), ("a", 7))
    ]
    records = encode_records(encoders, inputs, batch_frames=6, on_batch=sizes.append)  # type: ignore[arg-type]
    assert [[(int(row[0, 0]), int(row[0, 1])) for row in each.patches] for each in records] == [
        _runs([2, 3]),
        _runs([2, 1]),
        _runs([2, 4, 1]),
    ]
    assert sizes == encoders.patch.batches == [5, 5, 5]


@given(
    steps=st.lists(st.integers(400_000, 5_000_000), max_size=30),
    batch_frames=st.integers(1, 12),
    streams=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_clips_do_not_depend_on_batches(steps: list[int], batch_frames: int, streams: list[int]) -> None:
    times = np.cumsum([BEGAN, *steps]).tolist()
    pieces = [times[at : at + streams[at % len(streams)]] for at in range(0, len(times), max(streams))]
    expected = []
    for piece in pieces:
        counts = np.bincount(clip_numbers(piece))
        expected += _runs([int(n) for n in counts])
    encoders = _encoders()
    inputs: list[Any] = [
        ("s", "given", FrameBatch(list(piece), [0.0] * len(piece), _pixels(len(piece)))) for piece in pieces
    ]
    records = encode_records(encoders, inputs, batch_frames=batch_frames)
    found = [(int(row[0, 0]), int(row[0, 1])) for each in records for row in each.patches]
    assert found == expected
    assert max(encoders.patch.batches) <= max(batch_frames, 4)


def test_parts_of_a_long_segment_end_with_clips(tmp_path: Path) -> None:
    make_video(tmp_path / "long.mp4", seconds=31, gop=10)
    store, encoders = Store.create(tmp_path / "store", CLIP_PAIR), _encoders()
    indexer = SegmentIndexer(store, encoders, lambda stored, alerts: True, batch_frames=10)
    frames = decode_segment(
        tmp_path / "long.mp4",
        name="gate",
        start=BEGAN,
        duration=31.0,
        limits=DecodeLimits(),
        parts=indexer.parts("gate", "given"),
    )
    row = Segment(
        stream_id="gate",
        source="topic/0",
        chunk=0,
        uri="test://gate/0",
        start=BEGAN,
        end=BEGAN + 31 * SECOND,
        frames=0,
        decode_mode="all",
        clock_source="given",
    )
    segment = DecodedSegment("topic/0", row, frames)
    indexer.encode([segment])
    indexer.commit([segment], {"topic/0": OffsetAdvance(None, 1)})
    assert _stored_clips(store) == _runs([2, *[4] * 7, 1])
    assert encoders.patch.batches == [10, 8, 8, 5]


@pytest.mark.parametrize("clip_frames", [1, 4])
def test_a_batch_of_large_frames_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip_frames: int) -> None:
    """At most six frames' bytes: six single frames, or one clip of four and not a second."""
    monkeypatch.setattr("ingest.chunks.BATCH_BYTES", 6 * 64 * 48 * 3)
    make_video(tmp_path / f"front_{AT:%Y-%m-%dT%H-%M-%SZ}.mp4", seconds=12, gop=10)
    encoders = _encoders()
    encoders.pair = PAIR.model_copy(update={"clip_frames": clip_frames})
    store = Store.create(tmp_path / "store", encoders.pair)
    ingest_sources([tmp_path], store=store, encoders=encoders, segment_seconds=60)
    assert encoders.patch.batches == ([6, 6] if clip_frames == 1 else [6, 4, 2])


def _pixels(n: int) -> list[NDArray[np.uint8]]:
    return [np.full((48, 64, 3), i, np.uint8) for i in range(n)]
