"""Deletions between the commits of an append: rows are stored once, whoever is killed where."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import CommitProperties
from deltalake.exceptions import CommitFailedError

from index.commits import bulk
from index.commits.deletion import deletion_in_progress
from index.commits.offset import OffsetAdvance, OffsetCommitter
from index.delta.table import StoreTable
from index.delta.unlisted import partition_files, remove_unlisted
from index.errors import StoreFull
from index.patches.codec import PatchEncoding
from index.records import FrameRecords
from index.schemas import GENERATION_KEY
from index.standing_questions import StandingQuestion, StandingQuestionStore, make_question
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


def stop_at_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget "front" in a process that is killed when its rows are gone and files are left."""

    def dies(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(StoreTable, "purge", dies)
        with pytest.raises(Killed):
            store.forget("front")


def question(streams: tuple[str, ...], text: str) -> StandingQuestion:
    """A standing question that is added now."""
    vector = np.zeros(PAIR.patch.dimension, np.float32)
    return make_question(text, vector, PAIR.patch, streams=streams, created_at=time.time_ns() // 1000)


@pytest.mark.parametrize("how", ["compact", "forget before"])
def test_what_is_newer_than_a_stopped_deletion_stays(
    store: Store, fill: Fill, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    fill(chunks=1)
    standing, staged = StandingQuestionStore(store.url), Path(store.url, "staging", "run")

    def dies(*_: object, **__: object) -> None:
        raise Killed

    standing.add(question(("front",), "an old question"))
    standing.write_state("front", b"old")
    staged.mkdir(parents=True)
    (staged / "old").touch()
    with monkeypatch.context() as patched:  # before any of these is removed
        patched.setattr(StandingQuestionStore, "delete_state", dies)
        with pytest.raises(Killed):
            store.forget("front")
    store, records = Store.open(store.url), make_records("front", BEGAN + 100 * SECOND, seed=3)
    assert store.append(make_segment(records, source="other"), records)  # which completes the deletion of the rows
    later = make_records("front", BEGAN + 200 * SECOND, seed=4)
    chunk = bulk.write(store.tables, make_segment(later, source="third"), later)  # not committed yet
    assert chunk is not None
    standing.add(question(("front",), "a new question"))
    standing.add(question(("front", "back"), "a question about two"))
    standing.write_state("front", b"new")
    (staged / "new").touch()
    if how == "compact":
        store.compact()
    else:
        store.forget("front", BEGAN + 50 * SECOND)
        chunk = bulk.write(store.tables, make_segment(later, source="third"), later)  # fenced off
        assert chunk is not None
    assert [(q.text, q.streams) for q in standing.questions()] == [
        ("a new question", ("front",)),
        ("a question about two", ("back", "front")),
    ]
    if how == "compact":
        assert standing.read_state("front") == b"new"
        assert [path.name for path in staged.iterdir()] == ["new"]
    assert bulk.commit(store.tables, [chunk]) == 1
    assert store.streams()[0].frames == 40
    assert (store.patches(store.window(["front"])) == np.concatenate([records.patches, later.patches])).all()
    assert store.verify() == []
    store.forget("front")
    assert [(q.text, q.streams) for q in standing.questions()] == [("a question about two", ("back",))]
    assert standing.read_state("front") is None
    assert not staged.exists()


def test_chunks_written_after_a_stopped_deletion_stay(
    store: Store, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(chunks=1)
    stop_at_files(store, monkeypatch)
    store, records = Store.open(store.url), make_records("front", BEGAN + 100 * SECOND)
    chunk = bulk.write(store.tables, make_segment(records, source="other"), records)
    assert chunk is not None
    store.compact()
    assert bulk.commit(store.tables, [chunk]) == 1
    assert store.streams()[0].frames == 20
    assert store.verify() == []


def test_files_that_a_refused_append_left_are_removed_and_those_of_commits_in_progress_are_not(
    store: Store, fill: Fill
) -> None:
    fill(chunks=1)
    records = make_records("front", BEGAN + 100 * SECOND)
    left = bulk.write(store.tables, make_segment(records, source="other"), records)
    assert left is not None
    table = store.tables.frames
    in_progress, found = table.open(), partition_files(table, "front")
    remove_unlisted(table, found)
    assert [path for path in found if not Path(path).exists()] == [
        path for path in found if path.endswith(left.frames[0].path.rsplit("/", 1)[-1])
    ]
    with pytest.raises(CommitFailedError):  # its files could have been among those that were found
        table.write(in_progress, table.schema.empty_table(), CommitProperties())
    assert store.verify() == []
    store.forget("front")
    assert partition_files(store.tables.patches, "front") == []


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
