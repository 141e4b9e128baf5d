"""The segment indexer: shared encoder batches, commits that are refused, and announcements that fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from index.commits.offset import OffsetAdvance
from index.errors import CommitFenced
from index.records import Segment
from index.store import Store
from ingest import segment_indexer
from ingest.decoding.limits import DecodeLimits
from ingest.messages import AlertMessage
from ingest.segment_indexer import DecodedSegment, SegmentIndexer
from ingest.segments.frames import SegmentFrames, decode_segment
from tests.support.brightness import BEGAN, ENCODERS, SECOND, film
from tests.support.records import PAIR


class Announcements:
    """Records what is announced; reports failure while it is `down`."""

    def __init__(self) -> None:
        self.stored: list[Segment] = []
        self.down = False

    def __call__(self, stored: Sequence[Segment], alerts: Sequence[AlertMessage]) -> bool:
        if not self.down:
            self.stored += stored
        return not self.down


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", PAIR)


def segment(stream: str, offset: int, seconds: int = 3) -> DecodedSegment:
    start = BEGAN + offset * seconds * SECOND
    app = f"source/{stream}"
    row = Segment(
        stream_id=stream,
        source=app,
        chunk=offset,
        uri=f"test://{stream}/{offset}",
        start=start,
        end=start + seconds * SECOND,
        frames=0,
        decode_mode="all",
        clock_source="given",
    )
    frames = SegmentFrames(
        captured_at=[start + i * SECOND for i in range(seconds)],
        pts_seconds=[float(i) for i in range(seconds)],
        pixels=[np.full((48, 64, 3), 20, np.uint8) for _ in range(seconds)],
        decode_mode="all",
    )
    return DecodedSegment(app, row, frames)


def test_streams_share_encoder_batches_and_a_commit(store: Store) -> None:
    batches: list[int] = []
    announcements = Announcements()
    indexer = SegmentIndexer(store, ENCODERS, announcements, batch_frames=4, on_batch=batches.append)
    first, second = segment("front", 0), segment("back", 0)
    indexer.encode([first], min_frames=4)
    assert (batches, first.records) == ([], None)  # three frames wait for more
    indexer.encode([first, second], min_frames=4)
    assert batches == [4, 2]
    assert first.frames is not None
    assert first.frames.pixels == []  # released
    advances = {each.app: OffsetAdvance(None, 1) for each in (first, second)}
    batch = indexer.commit([first, second], advances)
    assert (batch.frames, len(batch.stored)) == (6, 2)
    assert announcements.stored == []  # committing announces nothing
    assert indexer.announce(batch)
    assert [(each.stream_id, each.frames) for each in announcements.stored] == [("front", 3), ("back", 3)]
    assert indexer.committer.offsets(["source/front", "source/back"]) == {"source/front": 1, "source/back": 1}


def test_a_refused_commit_stores_nothing(store: Store) -> None:
    indexer = SegmentIndexer(store, ENCODERS, Announcements(), batch_frames=4)
    one = segment("front", 0)
    with pytest.raises(CommitFenced, match="ownership"):
        indexer.commit([one], {one.app: OffsetAdvance(None, 1)}, is_owner=lambda: False)
    with pytest.raises(CommitFenced):
        indexer.commit([one], {one.app: OffsetAdvance(5, 6)})
    assert indexer.committer.offsets([one.app]) == {one.app: None}
    assert store.streams() == []
    assert indexer.commit([one], {one.app: OffsetAdvance(None, 1)}).frames == 3


def test_a_rejected_segment_moves_the_offset_and_gets_no_row(store: Store) -> None:
    indexer = SegmentIndexer(store, ENCODERS, Announcements(), batch_frames=4)
    bad = segment("front", 0)
    bad.frames, bad.rejected = None, True
    batch = indexer.commit([bad], {bad.app: OffsetAdvance(None, 1)})
    assert batch.stored == []
    assert indexer.committer.offsets([bad.app]) == {bad.app: 1}
    assert store.segments() == []


def test_a_second_that_is_stored_is_not_stored_again(store: Store) -> None:
    announcements = Announcements()
    announcements.down = True
    indexer = SegmentIndexer(store, ENCODERS, announcements, batch_frames=4)
    one, again = segment("front", 0), segment("front", 0)
    assert not indexer.announce(indexer.commit([one], {one.app: OffsetAdvance(None, 1)}))
    announcements.down = False
    again.row = again.row.model_copy(update={"chunk": 1})
    batch = indexer.commit([again], {again.app: OffsetAdvance(1, 2)})
    assert batch.frames == 0
    assert indexer.announce(batch)
    assert [each.frames for each in announcements.stored] == [0]


def test_a_segment_encoded_in_parts_is_one_commit_with_all_its_frames(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_indexer, "BATCH_BYTES", 2 * 3 * 48 * 64 * 3)  # three frames for each of two decoders
    batches: list[int] = []
    indexer = SegmentIndexer(store, ENCODERS, Announcements(), batch_frames=32, decoders=2, on_batch=batches.append)
    path = film(tmp_path / "film", range(7, 9), 0, 20)
    one = segment("gate", 0, seconds=20)
    one.frames = decode_segment(
        path, name="gate", start=BEGAN, duration=20, limits=DecodeLimits(), parts=indexer.parts("gate", "given")
    )
    assert batches == [3] * 6
    assert len(one.frames) == 2
    batch = indexer.commit([one], {one.app: OffsetAdvance(None, 1)})
    assert batches == [3] * 6 + [2]
    assert (batch.frames, len(batch.stored), store.segments()[0].frames) == (20, 1, 20)
    for table in ("frames", "patches", "segments"):
        assert len(list((tmp_path / "store" / table / "_delta_log").glob("*.json"))) == 2  # its creation, one commit
    assert store.window(["gate"]).captured_at.tolist() == [BEGAN + i * SECOND for i in range(20)]


def test_a_commit_is_full_by_the_bytes_of_its_frames(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    indexer = SegmentIndexer(store, ENCODERS, Announcements(), batch_frames=32)
    some = [segment("gate", offset) for offset in range(3)]
    assert not indexer.full(some)
    indexer.encode(some)
    one = some[0].records
    assert one is not None
    assert one.nbytes == 3 * (one.frame_vectors.shape[1] * 4 + 12 * 4 + 4 * 12 * 2) + sum(map(len, one.pictures))
    monkeypatch.setattr(segment_indexer, "COMMIT_BYTES", 3 * one.nbytes)
    assert not indexer.full(some[:2])
    assert indexer.full(some)
