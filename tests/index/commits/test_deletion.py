"""Deletions between the commits of an append: rows are stored once, whoever is killed where."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index.commits import bulk
from index.commits.deletion import deletion_in_progress
from index.commits.offset import OffsetAdvance, OffsetCommitter
from index.delta.table import StoreTable
from index.errors import StoreFull
from index.patches.codec import PatchEncoding
from index.records import FrameRecords
from index.schemas import GENERATION_KEY
from index.store import Store
from tests.support.killed_append import KILLED, start
from tests.support.records import APP, BEGAN, PAIR, SECOND, make_records, make_segment, offset_segment

Fill = Callable[..., list[FrameRecords]]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def kill_append(store: Store, stop: str) -> None:
    """Append to "front" in a process that is killed before it commits to the table `stop`."""
    child = start(KILLED, store.url, stop)
    assert child.stdout is not None
    assert child.stdout.readline() == "in the middle\n"
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


@pytest.mark.system
@pytest.mark.parametrize("before", [None, BEGAN + 7 * SECOND])
@pytest.mark.parametrize("forgotten", ["back", "front"])
@pytest.mark.parametrize("stop", ["frames", "segments"])
def test_a_killed_append_then_a_forget_then_the_same_append(
    store: Store, fill: Fill, stop: str, forgotten: str, before: int | None
) -> None:
    fill("back", chunks=1)
    kill_append(store, stop)
    store = Store.open(store.url)
    store.forget(forgotten, before)
    records = make_records()
    assert store.append(make_segment(records), records)
    assert not store.append(make_segment(records), records)
    assert next(s for s in store.streams() if s.stream_id == "front").frames == 20
    assert (store.patches(store.window(["front"])) == records.patches).all()
    assert store.verify() == []


def forget_within(store: Store, monkeypatch: pytest.MonkeyPatch, method: str, name: str, before: int | None) -> None:
    """Forget "front" once, just before the next commit of `method` to the table `name`."""
    act = getattr(StoreTable, method)

    def waits(self: StoreTable, *args: Any, **kwargs: Any) -> Any:
        if self.name == name:
            monkeypatch.undo()
            Store.open(store.url).forget("front", before)
        return act(self, *args, **kwargs)

    monkeypatch.setattr(StoreTable, method, waits)


@pytest.mark.parametrize("before", [None, BEGAN + 27 * SECOND])
@pytest.mark.parametrize("name", ["patches", "frames", "segments"])
def test_a_forget_between_the_commits_of_an_append(
    store: Store, fill: Fill, monkeypatch: pytest.MonkeyPatch, name: str, before: int | None
) -> None:
    fill(chunks=1)
    records = make_records("front", BEGAN + 20 * SECOND, seed=7)
    forget_within(store, monkeypatch, "append_if_new", name, before)
    assert store.append(make_segment(records, 1), records)
    assert store.streams()[0].frames == 20
    assert store.verify() == []


@pytest.mark.parametrize("before", [None, BEGAN + 7 * SECOND])
@pytest.mark.parametrize("name", ["patches", "frames", "segments"])
def test_a_forget_between_the_commits_of_a_batch(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str, before: int | None
) -> None:
    committer = OffsetCommitter(store.tables)
    committer.commit([offset_segment(0)], {APP: OffsetAdvance(None, 1)})
    forget_within(store, monkeypatch, "append_and_advance", name, before)
    batch = [offset_segment(1), offset_segment(2)]
    assert len(committer.commit(batch, {APP: OffsetAdvance(1, 3)})) == 2
    committer.commit([offset_segment(3)], {APP: OffsetAdvance(3, 4)})
    assert store.streams()[0].frames == 15
    assert store.verify() == []


@pytest.mark.parametrize("encoding", ["fp16", "differential"])
@pytest.mark.parametrize("before", [None, BEGAN + 7 * SECOND, BEGAN + 20 * SECOND, BEGAN + 33 * SECOND])
def test_a_full_disk_at_any_moment_of_a_forget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int | None, encoding: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    moments = ["change_configuration", "delete_once", "append_and_advance"]
    for number, (moment, name) in enumerate((m, n) for m in moments for n in ("frames", "patches", "segments")):
        store = Store.create(tmp_path / str(number), PAIR, PatchEncoding(kind=encoding))
        for chunk in range(2):
            records = make_records("front", BEGAN + chunk * 20 * SECOND, seed=chunk)
            store.append(make_segment(records, chunk), records)
        act = getattr(StoreTable, moment)

        def fails(self: StoreTable, *args: Any, act: Any = act, name: str = name, **kwargs: Any) -> Any:
            if self.name == name:
                monkeypatch.setattr("index.delta.table.write_deltalake", full)
                monkeypatch.setattr("index.delta.table.DeltaTable", full)
            return act(self, *args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(StoreTable, moment, fails)
            try:
                store.forget("front", before)
            except StoreFull:
                stopped = True
            else:
                stopped = False
        monkeypatch.undo()
        again = Store.open(store.url)
        if stopped and deletion_in_progress(again.tables, "front"):
            (problem,) = again.verify()
            assert "run `sightline forget front` as before" in problem
            again.compact()
        elif stopped:
            again.forget("front", before)
        assert again.verify() == []
        expected = 0 if before is None else 40 - (before - BEGAN) // SECOND
        assert sum(s.frames for s in again.streams()) == expected
        assert sum(s.frames for s in again.segments()) == expected


def test_a_stopped_deletion_is_completed_by_the_next_append(
    store: Store, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(chunks=1)

    def dies(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(StoreTable, "delete_once", dies)
        with pytest.raises(Killed):
            store.forget("front")
    store = Store.open(store.url)
    assert store.streams()[0].frames == 20  # readers see all or nothing
    records = make_records("front", BEGAN + 100 * SECOND, seed=3)
    assert store.append(make_segment(records, source="other"), records)
    assert store.streams()[0].frames == 20
    assert store.streams()[0].first == BEGAN + 100 * SECOND
    assert store.verify() == [
        "front: footage was deleted with `forget`, which did not finish; run `sightline forget front` as before, or "
        "`sightline compact`"
    ]
    store.compact()
    assert store.verify() == []
    assert store.streams()[0].frames == 20


def test_a_chunk_written_before_a_forget_is_refused_after_it(store: Store, fill: Fill) -> None:
    fill(chunks=1)
    records = make_records("front", BEGAN + 100 * SECOND)
    chunk = bulk.write(store.tables, make_segment(records, source="other"), records)
    assert chunk is not None
    store.forget("front", BEGAN + 50 * SECOND)  # leaves the file of a later time
    again = bulk.write(store.tables, make_segment(records, source="other"), records)
    assert again is not None
    assert again.generation == chunk.generation + 1
    assert bulk.commit(store.tables, [again]) == 1
    assert store.verify() == []


@pytest.mark.parametrize("gone", ["segments", "frames and segments"])
def test_a_store_of_the_version_that_counted_the_deletions_of_all_streams(store: Store, gone: str) -> None:
    """Its killed append, then its deletion of another stream; this version goes on with the same append."""
    records = make_records()
    assert store.append(make_segment(records), records)
    for name in gone.split(" and "):
        getattr(store.tables, name).delete("stream_id = 'front'")
    store.tables.segments.configure({GENERATION_KEY: "1"})
    store = Store.open(store.url)
    assert store.append(make_segment(records), records)
    assert store.streams()[0].frames == 20
    assert store.verify() == []
    store.forget("front")
    assert store.append(make_segment(records), records)
    assert store.verify() == []
    assert store.tables.segments.configuration()[GENERATION_KEY] == "1"
