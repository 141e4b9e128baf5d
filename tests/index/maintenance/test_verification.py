"""`verify` finds damaged shards and lost files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.delta.row_filter import RowFilter
from index.delta.snapshot import TableSnapshot
from index.errors import StoreCorrupt
from index.records import FrameRecords
from index.store import Store
from tests.support.records import BEGAN, SECOND, make_records, make_segment

Fill = Callable[..., list[FrameRecords]]


def test_damaged_text_is_an_error_that_names_the_table(store: Store, fill: Fill) -> None:
    """A file whose text is no UTF-8 can be read by Arrow; only Python notices, if nothing looks before."""
    fill(chunks=1)
    (file,) = (Path(store.url) / "frames").rglob("*.parquet")
    (segment,) = set(pq.read_table(file, columns=["segment"])["segment"].to_pylist())
    right = file.read_bytes()
    file.write_bytes(right.replace(segment.encode(), b"\xff" * len(segment)))
    assert file.read_bytes() != right
    problems = Store.open(store.url).verify()
    assert any("frames: cannot be read or written (" in problem and "UTF" in problem for problem in problems), problems


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


def _rewrite(store: Store, table: str, old: str, new: str) -> None:
    """Change what a table's first log entry says about the encoders, which is JSON inside JSON."""
    log = Path(store.url) / table / "_delta_log" / f"{0:020}.json"
    text = log.read_text()
    assert old in text
    log.write_text(text.replace(old, new))


def test_a_store_from_before_clips_is_one_of_single_frames(store: Store, fill: Fill) -> None:
    fill()
    for table in ("frames", "patches", "segments"):
        _rewrite(store, table, r",\"clip_frames\":1", "")
    opened = Store.open(store.url, encoders=store.encoders)
    assert opened.encoders.clip_frames == 1
    assert opened.verify() == []


def test_verify_names_a_table_of_other_encoders(store: Store, fill: Fill) -> None:
    fill()
    _rewrite(store, "patches", r"\"clip_frames\":1", r"\"clip_frames\":4")
    assert any("table patches: its vectors are of other encoders" in p for p in Store.open(store.url).verify())


def _problems_of_one(store: Store, *, quick: bool) -> str:
    (problem,) = Store.open(store.url).verify(quick=quick)
    return problem


def test_a_quick_look_finds_what_the_logs_show(store: Store, fill: Fill) -> None:
    fill()
    store.seal()
    assert store.verify(quick=True) == []
    file = next(Path(store.url).glob("patches/stream_id=front/*/*.parquet"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert f"{file.name}: has {len(whole) - 1} bytes instead of {len(whole)}" in _problems_of_one(store, quick=True)
    file.unlink()
    assert f"{file.name}: is gone" in _problems_of_one(store, quick=True)
    file.write_bytes(whole)
    for shard in Path(store.url).glob("faiss/*/*.faiss"):
        shard.write_bytes(shard.read_bytes()[:-1])
        assert "cannot be read; run `sightline reindex`" in _problems_of_one(store, quick=True)
        break


def test_a_quick_look_compares_the_counts_of_the_tables(store: Store, fill: Fill) -> None:
    fill(chunks=2)
    held = store.streams()[0]
    store.tables.patches.delete(f"captured_at = arrow_cast({held.last}, 'Timestamp(Microsecond, Some(\"UTC\"))')")
    n = held.frames
    expected = f"{held.stream_id}: the segments have {n} frames, the tables {n}, with {n - 1} rows of patches"
    assert _problems_of_one(store, quick=True).startswith(expected)
    assert "the store has" in _problems_of_one(store, quick=False)


def test_a_stopped_run_is_continued(store: Store, fill: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days that were read before the stop are not read again; a day that changed since is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number, name in enumerate(("front", "gate", "yard")):
        records = make_records(name, BEGAN, 20, seed=number)
        store.append(make_segment(records), records)
    read: list[str] = []
    original = TableSnapshot.read

    def noted(files: TableSnapshot, columns: Sequence[str], where: RowFilter | None = None) -> pa.Table:
        """Read, and note the stream whose vectors are read."""
        if "frame_vector" in columns and where is not None:
            read.extend(where.streams)
        return original(files, columns, where)

    monkeypatch.setattr(TableSnapshot, "read", noted)

    def stop(done: int, total: int) -> None:
        """Stop after two of three days."""
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.verify(on_progress=stop)
    more = make_records("front", BEGAN + 100 * SECOND, 5)
    store.append(make_segment(more, 1), more)
    read.clear()
    assert store.verify(resume=True) == []
    assert "front" in read  # it changed
    assert "gate" not in read
    read.clear()
    assert store.verify(resume=True) == []  # the run before came to its end: everything is read
    assert sorted(read) == ["front", "gate", "yard"]
