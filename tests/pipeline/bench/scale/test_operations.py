"""The benchmark of operations runs each of them once on a store, and counts what they read."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.store import Store
from pipeline.bench.scale.operations import measure, measure_appends
from pipeline.bench.scale.synthetic import StorePlan, concepts, make_synthetic_store

PLAN = StorePlan(streams=2, days=2, frames=96, every=900, files=6, segments=6, dimension=32)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A small store of many files."""
    return make_synthetic_store(tmp_path / "store", PLAN)


def test_operations_are_measured_on_the_store_as_it_is_sealed_and_compacted(store: Store) -> None:
    found = measure(store.url, concepts(PLAN)[7])
    assert next(iter(found)) == "streams"
    assert {"search_live", "seal", "search_sealed", "compact", "search_compacted", "verify"} <= found.keys()
    assert all(each["seconds"] > 0 and each["reads"] >= 0 for each in found.values())
    assert len(list(Path(store.url).glob("faiss/*/*.npz"))) == 4
    assert len(store.tables.frames.snapshot()) == 4
    assert store.verify() == []


def test_appends_are_measured_at_their_marks(store: Store) -> None:
    found = measure_appends(store.url, [5, 8], each=5)
    assert list(found) == ["5", "8"]
    assert all(each["median_ms"] <= each["largest_ms"] for each in found.values())
    assert store.streams()[0].frames == 80  # `appended`
    assert store.verify() == []
