"""Synthetic stores: valid, complete after a stop, and of the same vectors in whatever files they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index.errors import UsageError
from index.store import Store
from pipeline.bench.scale.synthetic import StorePlan, concepts, make_synthetic_store, synthetic_vectors

PLAN = StorePlan(streams=3, days=2, frames=50, every=60, files=5, segments=10, dimension=32, seed=4)


class Stopped(Exception):
    """Ends the making of a store, as a killed process does."""


def test_a_store_that_was_stopped_is_completed(tmp_path: Path) -> None:
    seen = list[int]()

    def stop(done: int, total: int) -> None:
        """Stop after two commits."""
        assert total == 300
        seen.append(done)
        if len(seen) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        make_synthetic_store(tmp_path / "store", PLAN, on_progress=stop)
    store = make_synthetic_store(tmp_path / "store", PLAN)
    assert seen == [30, 60]  # 10 frames of each of three streams a commit
    assert [(each.stream_id, each.frames) for each in store.streams()] == [
        ("camera-0000", 100),
        ("camera-0001", 100),
        ("camera-0002", 100),
    ]
    assert len(store.segments()) == 60
    assert store.verify() == []


def test_vectors_are_those_of_the_plan_in_whatever_files(tmp_path: Path) -> None:
    one, shuffled = replace(PLAN, files=1), replace(PLAN, shuffled=True)
    stores = [make_synthetic_store(tmp_path / str(i), plan) for i, plan in enumerate((PLAN, one, shuffled))]
    things = concepts(PLAN)
    for store in stores:
        window = store.window(["camera-0001"])
        expected = np.concatenate([synthetic_vectors(PLAN, 1, day, things) for day in range(2)])
        np.testing.assert_array_equal(window.frame_vectors, expected)
        np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)
        assert store.patches(window).shape == (100, 1, 4)
    assert [len(store.tables.frames.files().streams) for store in stores] == [30, 6, 30]
    assert sorted(shuffled.order()) == PLAN.order() == list(range(5))
    assert shuffled.order() != PLAN.order()


def test_a_thing_is_found_where_it_is_seen(tmp_path: Path) -> None:
    store = make_synthetic_store(tmp_path / "store", PLAN)
    things = concepts(PLAN)
    best = Store.open(tmp_path / "store").search(things[7], top=1)[0]
    window = store.window()
    scores = window.frame_vectors @ things[7]
    assert best.score == pytest.approx(float(scores.max()), abs=1e-6)


@pytest.mark.parametrize("wrong", [{"files": 3}, {"frames": 86_400, "every": 2}, {"segments": 60}, {"days": 0}])
def test_a_plan_that_does_not_fit_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        StorePlan(**{name: getattr(PLAN, name) for name in PLAN.__slots__} | wrong)
