"""`verify` finds damaged shards and lost files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from index.errors import StoreCorrupt
from index.records import FrameRecords
from index.store import Store

Fill = Callable[..., list[FrameRecords]]


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
