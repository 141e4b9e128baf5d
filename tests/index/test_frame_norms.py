"""The norms of frame vectors are stored beside them, also in a store that was made before there was a column for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index import columns, schemas
from index.commits import bulk
from index.commits.offset import OffsetAdvance, OffsetCommitter, OffsetSegment
from index.delta import table as delta_table
from index.errors import UsageError
from index.records import FrameRecords
from index.schemas import FRAMES
from index.store import Store
from tests.support.records import APP, BEGAN, PAIR, SECOND, make_records, make_segment

NORMS = np.linspace(3, 12, 20).astype(np.float32)


def with_norms(start: int = BEGAN, stream: str = "front") -> FrameRecords:
    return dataclasses.replace(make_records(stream, start), frame_norms=NORMS)


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store without the column, as an earlier version writes it: one segment of the stream "front"."""
    early = pa.schema([field for field in FRAMES if field.name != "frame_norm"])
    make = columns.frame_rows
    with monkeypatch.context() as earlier:
        earlier.setitem(schemas.TABLES, "frames", (early, ["stream_id", "date"]))
        earlier.setattr(delta_table, "TABLES", schemas.TABLES)
        earlier.setattr("index.commits.append.frame_rows", lambda *of: make(*of).select(early.names))
        store = Store.create(tmp_path / "store", PAIR)
        records = make_records()
        store.append(make_segment(records), records)
    opened = Store.open(store.url)
    assert "frame_norm" not in held_columns(opened)
    return opened


def held_columns(store: Store) -> set[str]:
    return {field.name for field in store.tables.frames.open().schema().fields}


def assert_features(store: Store, records: FrameRecords) -> None:
    assert records.frame_norms is not None
    window = store.window([records.stream_id], int(records.captured_at[0]), int(records.captured_at[-1]) + 1)
    np.testing.assert_array_equal(store.frame_features(window), records.frame_vectors * records.frame_norms[:, None])


def test_norms_come_back_in_the_windows_order(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    first, second = with_norms(), with_norms(BEGAN + 100 * SECOND)
    store.append(make_segment(second, 0, "later"), second)  # so that the order of the files is not that of time
    store.append(make_segment(first), first)
    assert_features(store, first)
    window = store.window()
    assert window.frame_vectors.shape == (40, 16)
    np.testing.assert_allclose(np.linalg.norm(store.frame_features(window), axis=1), NORMS.tolist() * 2, rtol=1e-6)
    odd = window.take(np.arange(1, 40, 3))
    np.testing.assert_array_equal(store.frame_features(odd), store.frame_features(window)[1::3])
    store.compact()
    assert_features(Store.open(store.url), second)


def test_an_old_store_opens_and_says_what_it_lacks(old: Store) -> None:
    window = old.window()
    assert len(window) == 20
    with pytest.raises(UsageError, match=r"no norms of frame vectors for 20 of 20 frames.*single_token.*ingest"):
        old.frame_features(window)
    assert old.verify() == []


def test_an_append_adds_the_column(old: Store) -> None:
    records = with_norms(BEGAN + 40 * SECOND)
    assert old.append(make_segment(records, 1), records)
    assert "frame_norm" in held_columns(old)
    assert_features(old, records)
    with pytest.raises(UsageError, match="for 20 of 40 frames"):
        old.frame_features(old.window())
    old.compact()
    assert_features(Store.open(old.url), records)
    assert old.verify() == []


def test_records_without_norms_leave_an_old_store_as_it_is(old: Store) -> None:
    records = make_records("front", BEGAN + 40 * SECOND)
    assert old.append(make_segment(records, 1), records)
    assert "frame_norm" not in held_columns(old)


def test_a_backfill_adds_the_column(old: Store) -> None:
    records = with_norms(stream="back")
    chunk = bulk.write(old.tables, make_segment(records), records)
    assert chunk is not None
    assert bulk.commit(old.tables, [chunk]) == 1
    assert_features(Store.open(old.url), records)
    assert old.verify() == []


def test_an_offset_commit_adds_the_column(old: Store) -> None:
    records = with_norms(BEGAN + 40 * SECOND)
    batch = [OffsetSegment(APP, make_segment(records, 0, APP), records)]
    OffsetCommitter(old.tables).commit(batch, {APP: OffsetAdvance(None, 1)})
    assert_features(old, records)


def test_norms_need_one_dtype() -> None:
    records = make_records()
    with pytest.raises(UsageError, match="frame_norms"):
        dataclasses.replace(records, frame_norms=np.ones(len(records)))  # type: ignore[arg-type]  # float64
