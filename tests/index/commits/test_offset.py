"""Offset commits: exactly once with fenced workers, kills between two tables, and segments cut anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import deltalake
import numpy as np
import pytest
from deltalake import CommitProperties, Transaction, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from index.commits.offset import OffsetAdvance, OffsetCommitter, OffsetSegment
from index.errors import CommitFenced
from index.patches.codec import PatchEncoding
from index.records import FrameRecords
from index.schemas import SEGMENTS
from index.second_grid import phase_of, seconds_of
from index.store import Store
from ingest.decoding.sampler import Sampler
from tests.support.records import APP, BEGAN, PAIR, SECOND, make_records, make_segment, offset_segment

ROOT = Path(__file__).parents[3]


def times(store: Store, stream: str = "front") -> list[int]:
    return [int(t - BEGAN) // SECOND for t in store.window([stream]).captured_at.tolist()]


def test_a_batch_of_two_partitions_moves_both(store: Store) -> None:
    writer = OffsetCommitter(store.tables)
    assert writer.offsets(["footage/0", "footage/1"]) == {"footage/0": None, "footage/1": None}
    batch = [offset_segment(0), offset_segment(1), offset_segment(0, stream="back", app="footage/1")]
    stored = writer.commit(
        batch, {"footage/0": OffsetAdvance(None, 2, "footage/0@a"), "footage/1": OffsetAdvance(None, 7)}
    )
    assert [(s.stream_id, s.chunk, s.frames) for s in stored] == [("front", 0, 5), ("front", 1, 5), ("back", 0, 5)]
    assert writer.offsets(["footage/0", "footage/0@a", "footage/1"]) == {
        "footage/0": 2,
        "footage/0@a": 2,
        "footage/1": 7,
    }
    assert times(store) == list(range(10))
    assert times(store, "back") == list(range(5))
    log = Path(store.url, "segments", "_delta_log")
    assert len(list(log.glob("*.json"))) == 2  # made, and one commit for all
    assert store.verify() == []


def test_a_batch_without_footage_moves_the_offset_too(store: Store) -> None:
    writer = OffsetCommitter(store.tables)
    assert writer.commit([], {APP: OffsetAdvance(None, 3)}) == []
    assert (
        writer.commit([OffsetSegment(APP, offset_segment(3).segment, None, rejected=True)], {APP: OffsetAdvance(3, 4)})
        == []
    )
    assert writer.offsets([APP]) == {APP: 4}
    assert store.segments() == []


def test_delta_accepts_a_lower_version_and_the_committer_does_not(store: Store) -> None:
    writer = OffsetCommitter(store.tables)
    writer.commit([offset_segment(0), offset_segment(1)], {APP: OffsetAdvance(None, 2)})
    with pytest.raises(CommitFenced, match="footage/0 is at 2, this worker expected None"):
        writer.commit([offset_segment(0)], {APP: OffsetAdvance(None, 1)})
    with pytest.raises(CommitFenced):
        writer.commit([offset_segment(4)], {APP: OffsetAdvance(4, 5)})  # ahead: two and three would be lost
    assert writer.offsets([APP]) == {APP: 2}
    assert times(store) == list(range(10))
    assert store.verify() == []
    # The fact that makes the check necessary: without it the lower version is committed.
    back = CommitProperties(app_transactions=[Transaction(APP, 1)])
    write_deltalake(store.tables.segments.open(), SEGMENTS.empty_table(), mode="append", commit_properties=back)
    assert writer.offsets([APP]) == {APP: 1}


def test_a_worker_whose_last_look_is_old_looks_again_before_it_is_fenced(store: Store) -> None:
    one, other = OffsetCommitter(store.tables), OffsetCommitter(Store.open(store.url).tables)
    assert one.offsets([APP]) == {APP: None}
    for offset, writer in enumerate([one, other, one]):
        before = offset or None
        assert len(writer.commit([offset_segment(offset)], {APP: OffsetAdvance(before, offset + 1)})) == 1
    with pytest.raises(CommitFenced, match="footage/0 is at 3, this worker expected 2"):
        other.commit([offset_segment(2)], {APP: OffsetAdvance(2, 3)})
    assert times(store) == list(range(15))
    assert store.verify() == []


def test_one_of_two_concurrent_commits_is_fenced(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one commits after this one has read the tables and before it writes the last."""
    one, other = OffsetCommitter(store.tables), OffsetCommitter(Store.open(store.url).tables)
    table = store.tables.segments
    append = type(table).append_and_advance

    def late(rows: object, steps: object, remove: str = "", **kwargs: Any) -> None:
        monkeypatch.undo()
        other.commit([offset_segment(0), offset_segment(1), offset_segment(2)], {APP: OffsetAdvance(None, 3)})
        append(table, rows, steps, remove, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(table, "append_and_advance", late)
    with pytest.raises(CommitFenced):
        one.commit([offset_segment(0), offset_segment(1)], {APP: OffsetAdvance(None, 2)})
    assert times(store) == list(range(15))
    assert store.verify() == []


def test_a_worker_that_is_fenced_while_it_replaces_rows_deletes_none(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two have one batch: one waits after its patches, and goes on while the other puts its own in their place."""
    other = Store.open(store.url)
    frames, waits, goes_on = other.tables.frames, threading.Event(), threading.Event()
    append = frames.append_and_advance

    def waiting(*args: Any, **kwargs: Any) -> None:
        waits.set()
        assert goes_on.wait(300)
        append(*args, **kwargs)

    monkeypatch.setattr(frames, "append_and_advance", waiting)

    def two_batches() -> None:
        writer = OffsetCommitter(other.tables)
        writer.commit([offset_segment(0), offset_segment(1)], {APP: OffsetAdvance(None, 2)})
        writer.commit([offset_segment(2)], {APP: OffsetAdvance(2, 3)})

    thread = threading.Thread(target=two_batches)
    thread.start()
    assert waits.wait(300)
    write = deltalake.write_deltalake

    def late(*args: Any, **kwargs: Any) -> None:
        if not goes_on.is_set():
            goes_on.set()
            thread.join(300)
        write(*args, **kwargs)

    monkeypatch.setattr("index.delta.table.write_deltalake", late)
    with pytest.raises(CommitFenced):
        OffsetCommitter(store.tables).commit([offset_segment(0), offset_segment(1)], {APP: OffsetAdvance(None, 2)})
    assert not thread.is_alive()
    assert times(store) == list(range(15))
    assert store.verify() == []


KILLED = """
import sys, time
from index.commits.offset import OffsetCommitter, OffsetAdvance
from index.delta.table import StoreTable
from index.store import Store
from ingest.decoding.sampler import Sampler
from tests.support.records import PAIR
from tests.support.records import APP, offset_segment
url, stop = sys.argv[1:]
append = StoreTable.append_and_advance
def halting(self, *args, **kwargs):
    if self.name == stop:
        print("in the middle", flush=True)
        time.sleep(600)
    return append(self, *args, **kwargs)
StoreTable.append_and_advance = halting
OffsetCommitter(Store.open(url, encoders=PAIR).tables).commit([offset_segment(i) for i in range(2, 6)], {APP: OffsetAdvance(2, 6)})
"""


@pytest.mark.system
@pytest.mark.parametrize("stop", ["patches", "frames", "segments"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_killed_between_two_tables_and_continued_in_other_batches(store: Store, stop: str, size: int) -> None:
    OffsetCommitter(store.tables).commit([offset_segment(0), offset_segment(1)], {APP: OffsetAdvance(None, 2)})
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, store.url, stop], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "in the middle\n"
    assert child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    again = Store.open(store.url)
    writer = OffsetCommitter(again.tables)
    assert writer.offsets([APP]) == {APP: 2}
    for first in range(2, 8, size):
        offsets = list(range(first, min(8, first + size)))
        batch = [offset_segment(i) for i in offsets]
        if 3 in offsets:  # could be stored by the one that was killed, and by this one it cannot
            batch[offsets.index(3)] = OffsetSegment(APP, offset_segment(3).segment, None, rejected=True)
        writer.commit(batch, {APP: OffsetAdvance(first, offsets[-1] + 1)})
    assert times(again) == [t for t in range(40) if t // 5 != 3]
    assert again.verify() == []
    expected = np.concatenate([offset_segment(i).frames.patches for i in range(8) if i != 3])  # type: ignore[union-attr]
    assert (again.patches(again.window()) == expected).all()


def test_a_recreated_source_starts_over_only_after_a_reset(store: Store) -> None:
    writer = OffsetCommitter(store.tables)
    writer.commit([offset_segment(0), offset_segment(1)], {APP: OffsetAdvance(None, 2)})
    with pytest.raises(CommitFenced):
        writer.commit([offset_segment(0, start=BEGAN + 90 * SECOND)], {APP: OffsetAdvance(None, 1)})
    writer.reset([APP])
    assert writer.offsets([APP]) == {APP: 0}
    later = make_records("front", BEGAN + 90 * SECOND, 5, seed=9)
    writer.commit([OffsetSegment(APP, make_segment(later, 0, "footage/0/second"), later)], {APP: OffsetAdvance(0, 1)})
    assert times(store) == [*range(10), *range(90, 95)]
    assert store.verify() == []


def test_seconds_that_are_held_are_left_out(store: Store) -> None:
    writer = OffsetCommitter(store.tables)
    writer.commit([offset_segment(0)], {APP: OffsetAdvance(None, 1)})
    late = offset_segment(1, start=BEGAN + 3 * SECOND + 500_000)  # begins in second 3, which the segment before has
    early = offset_segment(2, start=BEGAN - 3 * SECOND)
    stored = writer.commit([late, early, offset_segment(3, start=BEGAN + 4 * SECOND)], {APP: OffsetAdvance(1, 4)})
    assert [s.frames for s in stored] == [3, 3, 1]
    assert times(store) == [-3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert store.verify() == []
    fresh = OffsetCommitter(Store.open(store.url).tables)  # one that remembers nothing decides alike
    assert fresh.commit([offset_segment(4, start=BEGAN)], {APP: OffsetAdvance(4, 5)})[0].frames == 0
    assert fresh.commit([offset_segment(5, n=2, start=BEGAN + 8 * SECOND)], {APP: OffsetAdvance(5, 6)})[0].frames == 1
    assert store.verify() == []


def _sampled(stream: str, start: int, at: list[int]) -> FrameRecords:
    """Frames at these microseconds after `start`, of each second the first, as the decoder's sampler takes them."""
    sampler = Sampler(first=-phase_of(start))
    taken = [t for t in at if sampler.take(t / SECOND)]
    return replace(make_records(stream, start, len(taken)), captured_at=np.array(taken, np.int64) + start)


@settings(max_examples=30, deadline=None)
@given(
    start=st.integers(0, SECOND - 1),
    rate=st.sampled_from([1, 5, 7, 10, 12.5, 29.97]),
    cuts=st.lists(st.integers(1, 400), max_size=8),
    jitter=st.integers(0, 6),
)
def test_each_second_is_stored_once_wherever_the_stream_is_cut(
    tmp_path_factory: pytest.TempPathFactory, start: int, rate: float, cuts: list[int], jitter: int
) -> None:
    store = Store.create(tmp_path_factory.mktemp("store"), PAIR)
    writer = OffsetCommitter(store.tables)
    rng = np.random.default_rng(0)
    at = [BEGAN + start + round(i / rate * SECOND) for i in range(400)]
    edges = sorted({0, 400, *[c for c in cuts if c < 400]})
    batch = []
    for offset, (low, high) in enumerate(pairwise(edges)):
        began = at[low] + int(rng.integers(-jitter, jitter + 1))  # what a container's time base does to times
        records = _sampled("front", began, [t - at[low] for t in at[low:high]])
        batch.append(OffsetSegment(APP, make_segment(records, offset, APP), records))
    half = len(batch) // 2
    if half:
        writer.commit(batch[:half], {APP: OffsetAdvance(None, half)})
    writer.commit(batch[half:], {APP: OffsetAdvance(half or None, len(batch))})
    found = seconds_of(store.window().captured_at)
    assert found.tolist() == sorted(set(seconds_of(np.array(at)).tolist()))
    assert store.verify() == []


@pytest.mark.parametrize("kind", ["int8", "differential"])
def test_offset_commits_use_the_patch_encoding_of_the_store(
    tmp_path: Path, kind: Literal["int8", "differential"]
) -> None:
    encoding = PatchEncoding(kind=kind)
    batched, appended = (Store.create(tmp_path / name, PAIR, encoding) for name in ("batched", "appended"))
    batch = [offset_segment(0), offset_segment(1)]
    OffsetCommitter(batched.tables).commit(batch, {APP: OffsetAdvance(None, 2)})
    for one in batch:
        appended.append(one.segment, one.frames)
    assert batched.verify() == []
    np.testing.assert_array_equal(batched.patches(batched.window()), appended.patches(appended.window()))
    OffsetCommitter(batched.tables).reset([APP])
    assert OffsetCommitter(batched.tables).offsets([APP]) == {APP: 0}
    assert batched.verify() == []


def test_an_unfinished_scan_does_not_abort_the_process_at_exit(store: Store) -> None:
    """Threads of Arrow that call into Python while the interpreter ends abort it, or it hangs."""
    for offset in range(12):
        one = offset_segment(offset)
        store.append(one.segment, one.frames)
    code = (
        "import sys\nfrom index.store import Store\n"
        "rows = Store.open(sys.argv[1]).tables.frames.read_batches(['picture'], None, 1)\nnext(rows)\n"
    )
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", code, store.url], cwd=ROOT, capture_output=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
