"""`verify` finds damaged shards and lost files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from index.errors import StoreCorrupt
from index.records import FrameRecords
from index.store import Store

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
