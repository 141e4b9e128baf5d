"""The interface of the store: exactly-once appends, windows, search, verification and deletion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable

from index.delta.table import StoreTable
from index.errors import (
    EmptyWindow,
    IdentityMismatch,
    StoreCorrupt,
    StoreNotFound,
    StoreVersion,
    UnknownStream,
    UsageError,
)
from index.records import FrameRecords
from index.schemas import TABLES
from index.search.moments import Hit, merge_moments
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


@pytest.mark.parametrize("sealed", [False, True])
def test_search_is_exact_with_and_without_shards(store: Store, fill: Fill, sealed: bool) -> None:
    fill("front", "back")
    if sealed:
        assert store.seal() == 2
        late = make_records("front", BEGAN + 100 * SECOND, seed=77)  # a fresh tail behind the shard
        store.append(make_segment(late, 5), late)
    window = store.window()
    query = window.frame_vectors[33]
    scores = window.frame_vectors @ query
    hits = store.search(query, top=7)
    assert [h.captured_at for h in hits] == window.captured_at[np.argsort(-scores)[:7]].tolist()
    assert hits[0].score == pytest.approx(1.0)
    only = store.search(query, top=50, streams=["front"], start=BEGAN + 3 * SECOND, end=BEGAN + 6 * SECOND)
    assert sorted(h.captured_at for h in only) == [BEGAN + i * SECOND for i in (3, 4, 5)]


def test_neighbouring_hits_are_one_moment() -> None:
    hits = [Hit("a", SECOND * t, s) for t, s in ((1, 0.2), (3, 0.9), (4, 0.1), (30, 0.5))] + [Hit("b", SECOND * 4, 0.3)]
    moments = merge_moments(hits, gap_seconds=5)
    assert [(m.stream_id, m.start // SECOND, m.end // SECOND, m.best // SECOND) for m in moments] == [
        ("a", 1, 4, 3),
        ("a", 30, 30, 30),
        ("b", 4, 4, 4),
    ]


def test_shards_are_a_cache(store: Store, fill: Fill) -> None:
    fill()
    query = store.window().frame_vectors[4]
    before = store.search(query, top=3)
    store.seal()
    shard = next(Path(store.url).glob("faiss/*/*.faiss"))
    shard.unlink()
    assert [h.captured_at for h in store.search(query, top=3)] == [h.captured_at for h in before]
    assert store.verify() == []
    assert store.reindex() == 1
    assert shard.exists()


def test_verify_names_a_damaged_shard(store: Store, fill: Fill) -> None:
    fill()
    store.seal()
    shard = next(Path(store.url).glob("faiss/*/*.faiss"))
    raw = bytearray(shard.read_bytes())
    raw[-3] ^= 0xFF
    shard.write_bytes(raw)
    assert any("differs from the vectors in Parquet" in p for p in store.verify())
    store.reindex()
    assert store.verify() == []


def test_verify_names_a_lost_file(store: Store, fill: Fill) -> None:
    fill()
    next(Path(store.url).glob("patches/stream_id=front/*/*.parquet")).unlink()
    assert any("patches" in p for p in store.verify())
    with pytest.raises(StoreCorrupt, match="verify"):
        store.patches(store.window())


@pytest.mark.parametrize("before", [None, BEGAN + 30 * SECOND])
def test_what_is_forgotten_is_nowhere_in_the_bytes(store: Store, before: int | None) -> None:
    secret, kept = make_records("secret-camera", mark="KEEPNOT"), make_records("public-camera", seed=1, mark="KEEPME")
    later = make_records("secret-camera", BEGAN + 40 * SECOND, seed=5, mark="LATER")
    for chunk, records in ((0, secret), (0, kept), (1, later)):
        store.append(make_segment(records, chunk), records)
    store.seal()
    needles = [b"KEEPNOT", secret.frame_vectors[3].tobytes(), secret.patches[3].tobytes()]

    def found(needle: bytes) -> bool:
        return any(needle in path.read_bytes() for path in Path(store.url).rglob("*") if path.is_file())

    assert all(found(n) for n in needles)  # the search would find them
    assert store.forget("secret-camera", before) == (40 if before is None else 20)
    assert not any(found(n) for n in needles)
    assert found(b"KEEPME")
    assert found(b"LATER") == (before is not None)
    if before is None:
        assert not found(b"secret-camera")
        assert not [p for p in Path(store.url).rglob("*") if "secret-camera" in p.name]
    assert store.verify() == []
    assert {s.stream_id for s in store.streams()} == (
        {"public-camera"} if before is None else {"public-camera", "secret-camera"}
    )


@pytest.mark.parametrize("stop", ["delete", "purge"])
@pytest.mark.parametrize("table", ["frames", "patches", "segments"])
def test_a_forget_that_was_killed_is_completed_by_the_same_call(
    store: Store, monkeypatch: pytest.MonkeyPatch, stop: str, table: str
) -> None:
    records = make_records("yard", mark="KEEPNOT")
    store.append(make_segment(records), records)
    act = getattr(StoreTable, stop)

    class Killed(BaseException):
        pass

    def dies(self: StoreTable, *args: object) -> object:
        if self.name == table:
            raise Killed
        return act(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(StoreTable, stop, dies)
        with pytest.raises(Killed):
            store.forget("yard")
    Store.open(store.url).forget("yard")
    files = [path for path in Path(store.url).rglob("*") if path.is_file()]
    assert not [
        path
        for path in files
        if "yard" in str(path) or any(secret in path.read_bytes() for secret in (b"yard", b"KEEPNOT"))
    ]
    assert store.verify() == []
    with pytest.raises(UnknownStream):
        store.forget("yard")


def test_forgotten_footage_can_come_again(store: Store, fill: Fill) -> None:
    records = fill(chunks=1)[0]
    store.forget("front")
    assert store.append(make_segment(records, 0), records)
    assert store.streams()[0].frames == 20
    assert store.verify() == []


def test_forgotten_seconds_do_not_come_back_with_the_rest(store: Store, fill: Fill) -> None:
    records = fill(chunks=2)
    store.forget("front", BEGAN + 10 * SECOND)
    assert not store.append(make_segment(records[0], 0), records[0])
    assert store.streams()[0].frames == 30
    more = make_records("front", BEGAN + 40 * SECOND, seed=9)
    assert store.append(make_segment(more, 2), more)  # next to files that the deletion has rewritten
    store.seal(today="1970-01-01")
    best = store.search(more.frame_vectors[3], top=1)[0]
    assert best.captured_at == int(more.captured_at[3])
    assert store.verify() == []


def test_staged_frames_of_a_backfill_are_deleted_too(store: Store, fill: Fill) -> None:
    fill(chunks=1)
    waiting = Path(store.url, "staging", "footage", "0.parquet")
    waiting.parent.mkdir(parents=True)
    waiting.write_bytes(b"frames")
    store.forget("front")
    assert not waiting.exists()


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
