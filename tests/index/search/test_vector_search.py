"""Search over FAISS shards and Parquet, and shards as a cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index.errors import EmptyWindow
from index.records import FrameRecords
from index.search.scores import percentile
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


@pytest.mark.parametrize("sealed", [False, True])
def test_every_frame_is_scored_alike_in_every_window(store: Store, fill: Fill, sealed: bool) -> None:
    fill("front", "back")
    if sealed:
        assert store.seal() == 2
        late = make_records("front", BEGAN + 100 * SECOND, seed=77)
        store.append(make_segment(late, 5), late)
    window = store.window()
    query = window.frame_vectors[33]
    scored = store.score(query, ["back", "front"])
    assert [part.stream_id for part in scored] == ["back", "front"]
    assert np.concatenate([part.captured_at for part in scored]).tolist() == window.captured_at.tolist()
    np.testing.assert_allclose(np.concatenate([p.scores for p in scored]), window.frame_vectors @ query, atol=1e-6)
    for low, high in ((3, 17), (11, 12), (19, 41), (35, 120)):
        (part,) = store.score(query, ["front"], start=BEGAN + low * SECOND, end=BEGAN + high * SECOND)
        inside = np.isin(scored[1].captured_at, BEGAN + np.arange(low, high) * SECOND)
        assert part.captured_at.tolist() == scored[1].captured_at[inside].tolist()
        assert part.scores.tobytes() == scored[1].scores[inside].tobytes()  # bit by bit


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("most", [1, 3, 7, 40, 1000])
def test_a_sample_is_spread_over_the_days_of_a_stream(store: Store, sealed: bool, most: int) -> None:
    day = 86_400 * SECOND
    for chunk, start in enumerate((BEGAN, BEGAN + day, BEGAN + 3 * day)):
        records = make_records("front", start, 11, seed=chunk)
        store.append(make_segment(records, chunk), records)
    if sealed:
        assert store.seal() == 3
    vectors = store.window(["front"]).frame_vectors
    step = -(-33 // most)
    assert store.vectors.sample("front", most).tolist() == vectors[::step].tolist()
    assert store.vectors.sample("nothing", most).shape == (0, 16)


def test_other_streams_are_not_named(store: Store, fill: Fill) -> None:
    fill("front", "secret")
    query = store.window().frame_vectors[0]
    with pytest.raises(EmptyWindow, match="the store has front") as caught:
        store.score(query, ["front"], end=BEGAN)
    assert "secret" not in str(caught.value)
    with pytest.raises(EmptyWindow, match="nothing yet"):
        store.score(query, [])
    assert {part.stream_id for part in store.score(query, ["front"])} == {"front"}


def test_percentiles_count_lower_scores() -> None:
    background = np.array([0.1, 0.2, 0.2, 0.4], np.float32)
    assert [percentile(s, background) for s in (0.0, 0.1, 0.2, 0.3, 0.5)] == [0, 0, 25, 75, 100]
