"""The interface of the store: exactly-once appends, windows, search, verification and deletion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable

from index.errors import (
    EmptyWindow,
    IdentityMismatch,
    StoreNotFound,
    StoreVersion,
    UnknownStream,
    UsageError,
)
from index.records import FrameRecords
from index.schemas import TABLES
from index.store import Store
from tests.support.records import BEGAN, PAIR, SECOND, identity, make_records, make_segment

Fill = Callable[..., list[FrameRecords]]


def test_frames_come_back_as_they_went_in(store: Store, fill: Fill) -> None:
    written = fill("front", "back")
    window = store.window()
    assert window.stream_ids == ["back", "front"]
    expected = written[2:] + written[:2]
    assert np.array_equal(window.captured_at, np.concatenate([r.captured_at for r in expected]))
    assert np.array_equal(window.frame_vectors, np.concatenate([r.frame_vectors for r in expected]))
    assert np.array_equal(store.patches(window), np.concatenate([r.patches for r in expected]))
    assert store.pictures(window) == [p for r in expected for p in r.pictures]


def test_any_rows_of_a_window_can_be_read(store: Store, fill: Fill) -> None:
    fill("front", "back")
    window = store.window()
    rows = np.array([0, 3, 19, 20, 41, 66, 79])
    assert np.array_equal(store.patches(window.take(rows)), store.patches(window)[rows])
    assert store.pictures(window.take(rows)) == [store.pictures(window)[i] for i in rows]


def test_a_window_ends_before_its_end(store: Store, fill: Fill) -> None:
    fill()
    window = store.window(["front"], BEGAN + 5 * SECOND, BEGAN + 8 * SECOND)
    assert window.captured_at.tolist() == [BEGAN + i * SECOND for i in (5, 6, 7)]


def test_a_segment_is_stored_once(store: Store, fill: Fill) -> None:
    records = fill(chunks=1)[0]
    assert not store.append(make_segment(records, 0), records)
    assert [s.frames for s in store.streams()] == [20]


def test_the_same_seconds_from_another_file_are_not_doubled(store: Store, fill: Fill) -> None:
    fill(chunks=1)
    overlapping = make_records("front", BEGAN + 10 * SECOND, seed=9)
    assert store.append(make_segment(overlapping, 0, "other file"), overlapping)
    assert store.streams()[0].frames == 30
    assert store.verify() == []


def test_a_segment_without_frames_is_remembered(store: Store) -> None:
    empty = make_segment(make_records(), 0).model_copy(update={"frames": 0, "problem": "nothing decodes"})
    assert store.append(empty, None)
    assert store.segments()[0].problem == "nothing decodes"
    assert store.streams() == []


def test_credentials_of_a_source_are_not_stored(store: Store, fill: Fill) -> None:
    fill()
    assert "hunter2" not in store.segments()[0].uri


def test_a_missing_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match="sightline ingest"):
        Store.open(tmp_path / "nowhere")


def test_a_newer_format_is_refused(store: Store) -> None:
    table = DeltaTable(f"{store.url}/segments")
    table.alter.set_table_properties({"sightline.format": "99"}, raise_if_not_exists=False)
    with pytest.raises(StoreVersion, match="99"):
        Store.open(store.url)


def test_vectors_of_another_encoder_are_refused(store: Store) -> None:
    other = PAIR.model_copy(update={"frame": identity("clip", 16).model_copy(update={"weights_digest": "cc"})})
    with pytest.raises(IdentityMismatch, match="ingest the footage again"):
        Store.open_or_create(store.url, other)


def test_unknown_streams_and_empty_windows(store: Store, fill: Fill) -> None:
    fill()
    with pytest.raises(UnknownStream, match="front"):
        store.window(["unknown"])
    with pytest.raises(EmptyWindow, match="2024-03-01T08:00:00Z"):
        store.window(["front"], BEGAN + 3600 * SECOND)
    with pytest.raises(UsageError, match="ends"):
        store.window(["front"], BEGAN + SECOND, BEGAN)
    with pytest.raises(UnknownStream):
        store.forget("unknown")


def test_records_of_another_shape_are_refused(store: Store) -> None:
    records = make_records()
    with pytest.raises(UsageError, match="stream"):
        store.append(make_segment(records).model_copy(update={"stream_id": "../etc"}), records)
    with pytest.raises(UsageError, match="patches: expected float16"):
        FrameRecords(
            **{n: getattr(records, n) for n in records.__slots__ if n != "patches"},
            patches=records.patches.astype(np.float32),
        )


def test_every_column_names_its_unit() -> None:
    for schema, _ in TABLES.values():
        assert all(field.metadata[b"unit"] for field in schema)
