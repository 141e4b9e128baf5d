"""Bulk commits store the same rows as `append`, also when they are repeated or killed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from index.commits import bulk
from index.delta.row_filter import in_window
from index.errors import CommitFenced, StoreCorrupt
from index.patches.codec import PatchEncoding
from index.records import FrameRecords
from index.store import Store
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment
from tests.support.stores import assert_same

DAY = 86_400 * SECOND


def footage() -> list[tuple[FrameRecords, int]]:
    """Three chunks of each of two streams; one passes midnight."""
    return [
        (make_records(stream, BEGAN + DAY * chunk + (16 * 3600 - 10) * SECOND * (chunk == 1), seed=chunk), chunk)
        for stream in ("front", "rear")
        for chunk in range(3)
    ]


def written(store: Store, some: Sequence[tuple[FrameRecords, int]]) -> list[bulk.WrittenChunk]:
    chunks = [bulk.write(store.tables, make_segment(records, chunk), records) for records, chunk in some]
    return [chunk for chunk in chunks if chunk is not None]


def versions(store: Store) -> list[int]:
    return [table.open().version() for table in store.tables.all()]


@pytest.fixture
def appended(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "appended", PAIR)
    for records, chunk in footage():
        store.append(make_segment(records, chunk), records)
    return store


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_one_commit_a_group_and_the_rows_of_append(tmp_path: Path, kind: str) -> None:
    encoding = PatchEncoding(kind=kind)
    store, other = (Store.create(tmp_path / name, PAIR, encoding) for name in ("one", "two"))
    for records, chunk in footage():
        other.append(make_segment(records, chunk), records)
    group = written(store, footage())
    assert versions(store) == [0, 0, 0]
    assert not store.segments()  # readers do not see what is not committed
    assert bulk.commit(store.tables, group) == 6
    assert versions(store) == [1, 1, 1]
    assert_same(store, other)


def test_repeated_in_other_groups_it_changes_nothing(store: Store, appended: Store) -> None:
    first, second, third = (written(store, footage()) for _ in range(3))
    bulk.commit(store.tables, [*first[:2], *first[3:4]])
    assert bulk.commit(store.tables, second) == 3
    before = versions(store)
    assert bulk.commit(store.tables, third) == 0
    assert versions(store) == before
    assert written(store, footage()) == []
    assert_same(store, appended)


def test_a_commit_killed_between_two_tables_is_completed(
    store: Store, appended: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    once = type(store.tables.frames).commit_new

    def dies(table: object, *arguments: object) -> int:
        if table is store.tables.frames:
            raise Killed
        return once(table, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(type(store.tables.frames), "commit_new", dies)
        with pytest.raises(Killed):
            bulk.commit(store.tables, written(store, footage()))
    assert versions(store) == [0, 1, 0]
    bulk.commit(store.tables, written(store, footage()))
    assert_same(store, appended)


def test_concurrent_commits_of_the_same_chunks(store: Store, appended: Store) -> None:
    tries = [written(store, footage()) for _ in range(4)]
    opened = [Store.open(store.url) for _ in tries]
    with ThreadPoolExecutor(4) as pool:
        new = list(pool.map(bulk.commit, [each.tables for each in opened], tries))
    assert sum(new) == 6
    assert_same(store, appended)


def test_a_chunk_without_frames_and_one_whose_frames_are_there(store: Store) -> None:
    records = make_records()
    store.append(make_segment(records, source="other"), records)
    empty = make_segment(records, source="none").model_copy(update={"frames": 0})
    found = [bulk.write(store.tables, make_segment(records), records), bulk.write(store.tables, empty, None)]
    assert [chunk.segment.frames for chunk in found if chunk] == [0, 0]
    assert bulk.commit(store.tables, [chunk for chunk in found if chunk]) == 2
    assert sorted(segment.frames for segment in store.segments()) == [0, 0, 20]
    assert store.verify() == []


def test_files_that_a_forget_removed_are_not_committed(store: Store) -> None:
    records = make_records("front")
    store.append(make_segment(records, source="other"), records)
    group = written(store, footage()[:2])
    store.forget("front")
    with pytest.raises(CommitFenced, match="footage was deleted in between; run the same command again"):
        bulk.commit(store.tables, group)
    assert store.segments() == []
    group = written(store, footage()[:2])
    Path(store.tables.frames.uri, group[0].frames[0].path).unlink()
    with pytest.raises(StoreCorrupt, match="written and now gone; run the same backfill again"):
        bulk.commit(store.tables, group)
    assert store.segments() == []


def test_forgetting_another_stream_leaves_what_is_about_to_be_committed(store: Store) -> None:
    records = make_records("rear")
    store.append(make_segment(records), records)
    group = written(store, footage()[:2])
    store.forget("rear")
    assert bulk.commit(store.tables, group) == 2
    assert {segment.stream_id for segment in store.segments()} == {"front"}
    assert store.verify() == []


def test_time_skips_files(store: Store) -> None:
    bulk.commit(store.tables, written(store, footage()))
    dataset = store.tables.frames.dataset()
    assert len(list(dataset.get_fragments())) == 8  # a chunk is a file, and two where it passes midnight
    where = in_window(["front"], BEGAN, BEGAN + 5 * SECOND)
    assert len(list(dataset.get_fragments(where.rows))) == 1
    assert len(store.tables.frames.dataset(in_window(["front"], BEGAN, None)).files) == 4
