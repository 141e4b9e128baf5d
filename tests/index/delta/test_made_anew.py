"""A store that is deleted and made anew at the same place while a process keeps it open."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from deltalake import DeltaTable

from index.delta.log_mark import LogMark
from index.errors import IdentityMismatch
from index.records import EncoderPair
from index.search.resident_frames import ResidentFrames
from index.store import Store
from tests.support.records import BEGAN, PAIR, SECOND, identity, make_records, make_segment


def fill(store: Store, segments: int, stream: str) -> None:
    for number in range(segments):
        records = make_records(stream, BEGAN + number * 100 * SECOND, 10, seed=number)
        assert store.append(make_segment(records, number), records)


def anew(store: Store, pair: EncoderPair = PAIR) -> Store:
    shutil.rmtree(store.url)
    return Store.create(store.url, pair)


@pytest.mark.parametrize("segments", [0, 1, 3, 5])
def test_a_reader_sees_the_new_store_at_once_whatever_its_version(tmp_path: Path, segments: int) -> None:
    kept = Store.create(tmp_path / "store", PAIR)
    fill(kept, 3, "old")
    resident = ResidentFrames(kept.tables.frames, dimension=PAIR.frame.dimension, fresh_seconds=0)
    before = resident.refresh()
    assert len(before.streams["old"]) == 30
    assert [(each.stream_id, each.frames) for each in kept.streams()] == [("old", 30)]
    fill(anew(kept), segments, "new")
    want = [("new", 10 * segments)] if segments else []
    assert [(each.stream_id, each.frames) for each in kept.streams()] == want
    assert {name: len(stream) for name, stream in resident.refresh().streams.items()} == dict(want)
    assert resident.refresh().version > before.version, "what was kept of a version is not taken for this one"


@pytest.mark.parametrize("segments", [0, 2, 6])
def test_a_writer_appends_to_the_new_store_without_a_gap_in_its_log(tmp_path: Path, segments: int) -> None:
    kept = Store.create(tmp_path / "store", PAIR)
    fill(kept, 3, "gate")
    fill(anew(kept), segments, "gate")
    records = make_records("gate", BEGAN + 5000 * SECOND, 10, seed=77)
    assert kept.append(make_segment(records, 77), records)
    for table in kept.tables.all():
        entries = sorted(int(path.stem) for path in Path(table.uri, "_delta_log").glob("*.json"))
        assert entries == list(range(len(entries)))
    opened = Store.open(kept.url)
    assert opened.streams()[0].frames == 10 * segments + 10
    assert opened.verify() == []


def test_footage_that_the_old_store_had_is_stored_again(tmp_path: Path) -> None:
    kept = Store.create(tmp_path / "store", PAIR)
    fill(kept, 2, "gate")
    anew(kept)
    fill(kept, 2, "gate")
    assert kept.streams()[0].frames == 20


def test_a_store_of_other_encoders_is_refused(tmp_path: Path) -> None:
    kept = Store.create(tmp_path / "store", PAIR)
    fill(kept, 1, "gate")
    kept.streams()
    anew(kept, EncoderPair(frame=identity("other", 12), patch=identity("siglip", 4), patches=1))
    for act in (kept.streams, lambda: fill(kept, 1, "gate")):
        with pytest.raises(IdentityMismatch, match="made anew for other encoders; open it again"):
            act()


def test_one_stat_tells(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    fill(store, 2, "gate")
    mark = LogMark(store.tables.frames.uri)
    assert mark.stays(), "nothing is known"
    mark.note(2)
    assert mark.stays()
    fill(store, 4, "back")
    assert mark.stays(), "entries after it do not matter"
    shutil.copytree(store.url, tmp_path / "copy")
    shutil.rmtree(store.url)
    shutil.copytree(tmp_path / "copy", store.url)
    assert not mark.stays()


def test_the_marked_entry_stays_for_a_minute_whatever_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    fill(store, 4, "gate")
    now = [1000.0]
    monkeypatch.setattr("index.delta.log_mark.time.monotonic", lambda: now[0])
    mark, log = LogMark(store.tables.frames.uri), Path(store.tables.frames.uri, "_delta_log")
    mark.note(1)
    for version in (2, 3):  # a handle that follows a busy log
        now[0] += 29
        mark.note(version)
    (log / f"{1:020d}.json").rename(log / "kept")
    assert not mark.stays()
    (log / "kept").rename(log / f"{1:020d}.json")
    now[0] += 2
    mark.note(3)
    (log / f"{1:020d}.json").unlink()  # the log was cleaned
    assert mark.stays()
    (log / f"{3:020d}.json").unlink()
    assert not mark.stays()


def test_a_table_without_new_entries_is_not_asked_for_them(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    fill(store, 2, "gate")
    uri = store.tables.frames.uri
    mark, asked = LogMark(uri), list[int]()

    class Handle(DeltaTable):  # type: ignore[misc]
        def update_incremental(self) -> None:
            asked.append(self.version())
            super().update_incremental()

    handle = Handle(uri)
    mark.note(handle.version())
    assert mark.follow(handle)
    assert not asked
    records = make_records("gate", BEGAN + 5000 * SECOND, 10, seed=77)
    assert store.append(make_segment(records, 77), records)
    before = handle.version()
    assert mark.follow(handle)
    assert (asked, handle.version()) == ([before], before + 1)
    assert mark.follow(handle)
    assert asked == [before]
    unmarked = LogMark(uri)  # it cannot tell
    assert unmarked.follow(handle)
    assert asked == [before, before + 1]
