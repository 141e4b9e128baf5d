"""Compaction keeps rows and offsets, also with concurrent appends, reads and deletions."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from index.commits.offset import OffsetAdvance, OffsetCommitter
from index.delta import time_order
from index.delta.table import StoreTable
from index.delta.writers import patch_writer
from index.errors import StoreBusy, StoreFull, UnknownStream
from index.maintenance import compaction, compaction_lock
from index.maintenance.compaction import TableCompaction, compact, count_log_entries
from index.patches.codec import PatchEncoding
from index.store import Store
from tests.support.faults import fault
from tests.support.killed_append import start
from tests.support.offset_batches import BACK, MARK, feed
from tests.support.records import APP, BEGAN, PAIR, SECOND, make_records, make_segment, offset_segment


def contents(store: Store) -> list[Any]:
    window = store.window()
    return [
        window.stream_ids,
        window.captured_at.tolist(),
        window.frame_vectors.tobytes(),
        store.patches(window).tobytes(),
        store.pictures(window),
        store.segments(),
        store.streams(),
    ]


def offsets(store: Store) -> list[dict[str, int | None]]:
    return [table.transaction_versions([APP, MARK, BACK]) for table in store.tables.all()]


def parquet(store: Store, table: str) -> list[Path]:
    uris = getattr(store.tables, table).open().file_uris()
    return [Path(uri.removeprefix("file://")) for uri in uris]


def on_disk(store: Store) -> dict[str, int]:
    return {str(p): p.stat().st_size for p in Path(store.url).rglob("*") if p.is_file()}


def by_table(report: list[TableCompaction]) -> dict[str, TableCompaction]:
    return {each.table: each for each in report}


@pytest.mark.parametrize("kind", ["fp16", "int8", "differential"])
def test_the_same_rows_in_fewer_files(tmp_path: Path, kind: Any) -> None:
    store = Store.create(tmp_path / "store", PAIR, PatchEncoding(kind=kind))
    feed(store, 0, 8)
    assert store.seal(today="2024-03-02") == 2
    was, stood, disk = contents(store), offsets(store), on_disk(store)

    planned = by_table(store.compact(dry_run=True))
    assert on_disk(store) == disk
    done = by_table(store.compact())
    for name in ("frames", "patches", "segments"):
        assert (done[name].files_before, done[name].files_after, done[name].partitions) == (16, 2, 2)
        assert (planned[name].merged, planned[name].partitions) == (done[name].merged, 2)
        assert len(parquet(store, name)) == 2
        assert done[name].log_before <= done[name].log_after <= done[name].log_before + 6
        codecs = {
            group.column(c).compression
            for path in parquet(store, name)
            for group in [pq.ParquetFile(path).metadata.row_group(0)]
            for c in range(group.num_columns)
        }
        if name == "frames" or (name, kind) == ("patches", "fp16"):
            assert codecs == {"UNCOMPRESSED"}
    assert contents(store) == was
    assert offsets(store) == stood
    assert stood[0] == {APP: 8, MARK: 8, BACK: 8}
    assert contents(Store.open(store.url)) == was
    assert store.verify() == []  # the shards are compared with Parquet here
    assert store.seal(today="2024-03-02") == 0  # and still cover their days
    assert [each.merged for each in store.compact()] == [0, 0, 0]


def test_row_groups_stay_small_enough_to_be_read_side_by_side(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.tables.patches.writer = patch_writer(compressed=False, rows=7)
    feed(store, 0, 6)
    store.compact(["front"])
    (path,) = [p for p in parquet(store, "patches") if "stream_id=front" in str(p)]
    sizes = [pq.ParquetFile(path).metadata.row_group(i).num_rows for i in range(5)]
    assert sizes == [7, 7, 7, 7, 2]
    assert len([p for p in parquet(store, "patches") if "stream_id=back" in str(p)]) == 6  # not asked for


@pytest.mark.parametrize("kind", ["fp16", "int8", "differential"])
def test_everything_works_on_a_compacted_store(tmp_path: Path, kind: Any) -> None:
    store = Store.create(tmp_path / "store", PAIR, PatchEncoding(kind=kind))
    feed(store, 0, 6)
    store.compact()
    # Deleted rows make Delta write the file anew, with string_view in it; one segment of each file is left at the end.
    assert store.forget("front", BEGAN + 25 * SECOND) == 25
    types = {str(f.type) for p in parquet(store, "frames") for f in pq.ParquetFile(p).schema_arrow}
    assert "string_view" in types
    assert store.verify() == []
    assert store.window(["front"]).captured_at.tolist() == [BEGAN + n * SECOND for n in range(25, 30)]
    assert store.patches(store.window()).shape == (35, 4, 12)

    late = make_records("front", BEGAN + 28 * SECOND, 10, seed=50)  # two of its seconds are there
    assert store.append(make_segment(late, 0, "late"), late) is not None
    assert store.append(make_segment(late, 0, "late"), late) is None
    assert len(store.window(["front"])) == 13
    feed(store, 6, 8)
    behind = offset_segment(8, start=BEGAN + 26 * SECOND, n=3)
    again = OffsetCommitter(store.tables).commit([behind], {APP: OffsetAdvance(8, 9, MARK)})
    assert [s.frames for s in again] == [0]
    assert store.verify() == []
    query = store.window(["front"]).frame_vectors[0]
    assert store.search(query, top=1)[0].score == pytest.approx(1, abs=1e-5)
    store.seal(today="2024-03-02")
    assert store.search(query, top=1)[0].score == pytest.approx(1, abs=1e-5)
    before = contents(store)
    store.compact()
    assert contents(store) == before
    assert store.verify() == []
    assert store.forget("back") == 40
    assert [s.stream_id for s in store.streams()] == ["front"]
    assert store.verify() == []


def test_what_a_killed_worker_left_is_removed_after_a_compaction(store: Store) -> None:
    feed(store, 0, 5)
    writer = OffsetCommitter(store.tables)
    real = store.tables.segments.append_and_advance
    store.tables.segments.append_and_advance = lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        writer.commit([offset_segment(5)], {APP: OffsetAdvance(5, 6, MARK)})
    store.tables.segments.append_and_advance = real
    assert store.verify() != []
    store.compact()
    assert [table[APP] for table in offsets(store)] == [6, 6, 5]
    feed(store, 5, 6)
    assert store.verify() == []
    assert len(store.window(["front"])) == 30


def test_concurrent_appends_reads_and_a_second_compaction(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_count = 60
    feed(store, 0, 8)
    failures: list[BaseException] = []
    merged: list[int] = []
    busy: list[bool] = []
    done = threading.Event()

    def guarded(act: Any) -> threading.Thread:
        def run() -> None:
            try:
                act()
            except BaseException as error:
                failures.append(error)
                done.set()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    met, merge = threading.Event(), StoreTable.merge_files

    def when_met(self: StoreTable, *arguments: Any) -> None:
        """The first to have the lock goes on when the other one has found it taken."""
        met.wait(300)
        merge(self, *arguments)

    monkeypatch.setattr(StoreTable, "merge_files", when_met)

    def write() -> None:
        """In four parts, each after some files were merged."""
        mine = Store.open(store.url)
        for number, part in enumerate(((8, 21), (21, 34), (34, 47), (47, batch_count))):
            while not done.is_set() and sum(count > 0 for count in merged) < number:
                done.wait(0.01)
            feed(mine, *part)
        done.set()

    def compact() -> None:
        mine = Store.open(store.url)
        while not done.is_set():
            try:
                merged.append(sum(each.merged for each in mine.compact()))
            except StoreBusy:
                busy.append(True)
                met.set()
                done.wait(0.05)

    def read() -> None:
        while not done.is_set():
            found = Store.open(store.url).window(["front"]).captured_at
            assert (np.diff(found) == SECOND).all()

    threads = [guarded(act) for act in (write, compact, compact, read)]
    for thread in threads:
        thread.join(timeout=600)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []
    assert sum(count > 0 for count in merged) > 2  # they did meet
    assert busy
    assert store.window(["front"]).captured_at.tolist() == [BEGAN + n * SECOND for n in range(5 * batch_count)]
    assert offsets(store) == [{APP: batch_count, MARK: batch_count, BACK: batch_count}] * 3
    assert store.verify() == []


def test_a_partition_that_changed_during_the_merge_is_merged_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(store, 0, 5)
    table = store.tables.frames
    real, opened = table.open, 0

    def open_and_lose_a_row() -> DeltaTable:
        nonlocal opened
        opened += 1
        handle = real()
        if opened == 4:  # the one that merges: counted, log asked, property
            real().delete(
                f"stream_id = 'front' AND captured_at = arrow_cast({BEGAN}, 'Timestamp(Microsecond, Some(\"UTC\"))')"
            )
            lost.append(handle.version())
        return handle

    lost: list[int] = []
    monkeypatch.setattr(table, "open", open_and_lose_a_row)
    done = by_table(store.compact(["front"]))["frames"]
    assert lost
    assert done.files_after == 5 + 1
    assert store.window(["front"]).captured_at.tolist() == [BEGAN + n * SECOND for n in range(1, 25)]  # not back again


def test_replaced_files_stay_for_readers_and_strays_for_writers(store: Store) -> None:
    feed(store, 0, 5)
    was = parquet(store, "frames")
    reading = store.tables.frames.dataset()
    folder = was[0].parent
    young, old = folder / "young.parquet", folder / "old.parquet"
    for stray in (young, old):
        shutil.copy(was[0], stray)
    os.utime(old, (BEGAN / 1e6, BEGAN / 1e6))
    assert by_table(store.compact())["frames"].removed == 1
    assert young.exists()
    assert not old.exists()
    assert all(path.exists() for path in was)
    assert reading.count_rows() == 50
    os.utime(young, (BEGAN / 1e6, BEGAN / 1e6))
    for path in was:  # their age does not matter, but since when they are replaced
        os.utime(path, (BEGAN / 1e6, BEGAN / 1e6))
    assert by_table(store.compact())["frames"].removed == 1
    assert all(path.exists() for path in was)


def test_forgotten_data_stays_gone(store: Store) -> None:
    feed(store, 0, 5)
    for chunk in range(5):
        records = make_records("yard", BEGAN + chunk * 20 * SECOND, seed=70 + chunk)
        store.append(make_segment(records, chunk), records)
    secret = store.window(["yard"]).frame_vectors[3].tobytes()

    def found(needle: bytes) -> bool:
        return any(needle in path.read_bytes() for path in Path(store.url).rglob("*") if path.is_file())

    store.compact()
    assert found(secret)
    assert found(b"stream_id=yard")
    elsewhere = Path(store.tables.frames.uri) / "stream_id=back" / "about-to-be-committed.parquet"
    shutil.copy(next(p for p in parquet(store, "frames") if "stream_id=back" in str(p)), elsewhere)
    store.forget("yard")
    assert not found(secret)
    assert not found(b"stream_id=yard")
    assert elsewhere.exists()  # another stream's writer can still commit it
    store.compact()
    assert not found(secret)
    assert [s.stream_id for s in store.streams()] == ["back", "front"]
    assert offsets(store) == [{APP: 5, MARK: 5, BACK: 5}] * 3


def test_a_worker_keeps_the_logs_short_by_itself(store: Store) -> None:
    writer = OffsetCommitter(store.tables, clean_every=5)
    longest = 0
    for n in range(17):
        writer.commit([offset_segment(n)], {APP: OffsetAdvance(n or None, n + 1, MARK)})
        for entry in Path(store.url).glob("*/_delta_log/[0-9]*"):
            os.utime(entry, (BEGAN / 1e6, BEGAN / 1e6))  # older than the ten minutes that they stay
        longest = max(longest, *(count_log_entries(table) for table in store.tables.all()))
    assert longest <= 12  # two checkpoints apart, and what was written since
    assert [table[APP] for table in offsets(store)] == [17] * 3
    assert store.verify() == []


KILLED = """
import os, signal, sys
from index.maintenance.compaction import compact
from index.store import Store
compact(Store.open(sys.argv[1]).tables, on_partition=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.system
def test_the_lock_of_a_killed_compaction(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine it expires; on this one, nothing holds it."""
    feed(store, 0, 5)
    assert start(KILLED, store.url).wait(timeout=300) == -signal.SIGKILL
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(compaction_lock, "_machine", lambda: "another machine")
        with pytest.raises(StoreBusy, match="another compaction is active, or was killed"):
            store.compact()
        now = time.time_ns()
        elsewhere.setattr(time, "time_ns", lambda: now + 10**9 * 3600)
        assert sum(each.merged for each in store.compact()) > 0
    feed(store, 5, 10)
    assert start(KILLED, store.url).wait(timeout=300) == -signal.SIGKILL
    assert sum(each.merged for each in store.compact()) > 0


def test_a_lock_of_an_earlier_version_is_respected(store: Store) -> None:
    """It names no machine, so that it expires only."""
    feed(store, 0, 5)
    store.compact()
    table, application, soon = store.tables.segments, "sightline.compaction", time.time_ns() // 10**6 + 60_000
    table.append_and_advance(table.schema.empty_table(), {application: (0, soon)})
    with pytest.raises(StoreBusy, match="another compaction is active, or was killed"):
        store.compact()


@pytest.mark.parametrize("after", range(12))
def test_a_full_disk_leaves_no_lock(store: Store, after: int) -> None:
    feed(store, 0, 5)
    with fault("full", after), pytest.raises(StoreFull, match="no space left"):
        store.compact()
    assert sum(each.merged for each in store.compact()) > 0
    assert store.verify() == []


def test_a_compaction_that_is_active_keeps_others_out(store: Store) -> None:
    feed(store, 0, 5)

    def meanwhile(table: str, partition: str) -> None:
        with pytest.raises(StoreBusy, match="another compaction is active"):
            Store.open(store.url).compact()

    assert sum(each.merged for each in compact(store.tables, on_partition=meanwhile)) > 0


def test_an_unknown_stream_is_refused(store: Store) -> None:
    feed(store, 0, 1)
    with pytest.raises(UnknownStream, match="nowhere"):
        store.compact(["nowhere"])


def test_a_run_merges_at_most_so_many_bytes_the_oldest_days_first(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    for day in range(3):
        for chunk in range(4):
            records = make_records("front", BEGAN + (day * 86_400 + chunk * 20) * SECOND, 20, seed=chunk)
            store.append(make_segment(records, 4 * day + chunk), records)
    expected = store.window()
    days = []
    for _ in range(3):
        store.compact(most_bytes=1)
        files = store.tables.frames.snapshot().by_day()
        days.append([len(files["front", f"2024-03-0{day}"]) for day in (1, 2, 3)])
    assert days == [[1, 4, 4], [1, 1, 4], [1, 1, 1]]
    np.testing.assert_array_equal(store.window().frame_vectors, expected.frame_vectors)
    assert store.verify() == []


def backfilled_out_of_order(store: Store, stream: str = "front") -> None:
    """64 segments of half a minute of one day, committed in no order, as workers of a backfill do."""
    for at in np.random.default_rng(7).permutation(64).tolist():
        records = make_records(stream, BEGAN + 30 * at * SECOND, n=30, seed=at)
        store.append(make_segment(records, at, f"file-{at}"), records)


def row_group_seconds(store: Store) -> list[int]:
    """The seconds between the first and the last frame of each row group of `frames`."""
    found = []
    for path in (Path(store.url, "frames", name) for name in store.tables.frames.snapshot().paths):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            times = file.read_row_group(group, columns=["captured_at"])["captured_at"].to_numpy().astype(np.int64)
            found.append(int(times.max() - times.min()) // SECOND)
    return found


@pytest.mark.parametrize("stream", ["front", "süd"])  # a folder is encoded once, and its path in the log once more
def test_frames_that_were_committed_in_no_order_are_sorted_by_time(store: Store, stream: str) -> None:
    backfilled_out_of_order(store, stream)
    was = contents(store)
    done = by_table(store.compact())
    assert (done["frames"].files_before, done["frames"].files_after) == (64, 1)
    assert contents(store) == was
    assert max(row_group_seconds(store)) == 255  # 256 frames, one a second; in the order of commits 1,700 and more
    assert store.verify() == []


def test_frames_stay_in_the_order_of_commits_where_sorting_needs_too_much_memory(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "_SORT_BYTES", 1)
    backfilled_out_of_order(store)
    was = contents(store)
    store.compact()
    assert contents(store) == was
    assert max(row_group_seconds(store)) > 1_000


@pytest.mark.parametrize("sorts", [True, False])
@pytest.mark.parametrize("other", ["append", "forget"])
def test_a_commit_while_frames_are_merged_is_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch, other: str, sorts: bool
) -> None:
    """The other commit comes after the files were listed and before they are read."""
    backfilled_out_of_order(store)
    reader, began = Store.open(store.url), time_order.runs

    def late(*arrays: Any) -> Any:
        monkeypatch.undo()
        if other == "append":
            records = make_records("front", BEGAN + 30 * 64 * SECOND, n=30, seed=64)
            reader.append(make_segment(records, 64, "file-64"), records)
        else:
            reader.forget("front", BEGAN + 30 * 32 * SECOND)
        return began(*arrays)

    if not sorts:
        monkeypatch.setattr(compaction, "_SORT_BYTES", 1)  # too small, after `runs`: Delta merges the files
    monkeypatch.setattr(time_order, "runs", late)
    store.compact()
    times = Store.open(store.url).window().captured_at
    expected = range(65 * 30) if other == "append" else range(32 * 30, 64 * 30)
    assert times.tolist() == [BEGAN + second * SECOND for second in expected]
    assert store.verify() == []


def test_a_full_disk_while_frames_are_sorted_leaves_no_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    backfilled_out_of_order(store)
    was, disk, left = contents(store), set(on_disk(store)), 3
    write = pq.write_table

    def full(rows: Any, file: Any, **options: Any) -> None:
        nonlocal left
        write(rows.slice(0, 1), file, **options)  # as much as there is room for
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        left -= 1

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(StoreFull, match="no space left"):
        compact(store.tables, target_bytes=64 * 1024)
    monkeypatch.undo()
    assert left == 0
    assert {path for path in set(on_disk(store)) - disk if path.endswith(".parquet") and "/frames/" in path} == set()
    assert contents(store) == was
    assert store.verify() == []
    done = by_table(store.compact())
    assert done["frames"].merged == 64
    assert contents(store) == was
