"""Search over FAISS shards and Parquet, and shards as a cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index.records import FrameRecords
from index.store import Store
from tests.support.records import BEGAN, SECOND, make_records, make_segment

Fill = Callable[..., list[FrameRecords]]


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
