"""The large index: the same results as the exact search, what exists, filters, and damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.search.ann.builder import build
from index.search.ann.catalog import Catalog
from index.search.ann.vectors import VectorReader
from index.store import Store
from pipeline.questions.search import find_page
from tests.support.large_stores import DAY, PAIR, STREAMS, add, exact, fill, places, queries, scenes
from tests.support.records import BEGAN, SECOND, make_segment


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with 3,000 frames in an index, and 40 that came later. Tests do not change it."""
    store = Store.create(tmp_path_factory.mktemp("large") / "store", PAIR)
    fill(store)
    assert store.vectors.large.build().rows == 3000
    add(store, "front", BEGAN + DAY + 600 * SECOND, 40, 77)
    store.vectors.flat_rows = 0
    return store


@pytest.fixture
def store(tmp_path: Path, built: Store) -> Store:
    """A copy of it that tests change."""
    shutil.copytree(built.url, tmp_path / "store")
    opened = Store.open(tmp_path / "store")
    opened.vectors.flat_rows = 0
    return opened


def uses_index(store: Store, streams: tuple[str, ...] = STREAMS) -> bool:
    return store.vectors.moments(queries(1)[0], streams, None, None) is not None


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 50),
    streams=st.sets(st.sampled_from(STREAMS), min_size=1),
    start=st.none() | st.integers(-100, 700),
    length=st.none() | st.integers(60, 90_000),
    top=st.integers(1, 60),
)
def test_hits_are_those_of_the_exact_search(
    built: Store, seed: int, streams: set[str], start: int | None, length: int | None, top: int
) -> None:
    query = queries(51)[seed]
    begin = None if start is None else BEGAN + start * SECOND
    end = None if length is None else (begin or BEGAN) + length * SECOND
    names = sorted(streams)
    want = exact(built).vectors.search(query, names, begin, end, top)
    got = built.vectors.search(query, names, begin, end, top)
    assert [(h.stream_id, h.captured_at) for h in got] == [(h.stream_id, h.captured_at) for h in want]
    np.testing.assert_allclose([h.score for h in got], [h.score for h in want], atol=1e-6)
    assert {h.stream_id for h in got} <= streams


@pytest.mark.parametrize("number", range(4))
def test_moments_and_percentiles_are_those_of_the_exact_search(built: Store, number: int) -> None:
    query = queries(4)[number]
    assert uses_index(built)
    for streams in (STREAMS, ("front",)):
        want = find_page(exact(built), query, streams=streams, limit=40)
        got = find_page(built, query, streams=streams, limit=40)
        assert (got.moments, got.next, got.frames, got.streams) == (want.moments, want.next, want.frames, want.streams)
    first = find_page(built, query, streams=STREAMS, limit=5)
    second = find_page(built, query, streams=STREAMS, limit=5, cursor=first.next)
    assert first.moments + second.moments == find_page(exact(built), query, streams=STREAMS, limit=10).moments


def test_frames_are_found_at_once_after_their_commit(store: Store) -> None:
    records = scenes("front", BEGAN + 3 * DAY, 30, 91)
    store.append(make_segment(records, 91), records)
    hit = store.search(records.frame_vectors[7], top=1)[0]
    assert (hit.stream_id, hit.captured_at) == ("front", int(records.captured_at[7]))


def test_deleted_footage_is_gone_at_once_and_from_the_shards_with_the_next_build(store: Store) -> None:
    query = store.window(["front"], BEGAN, BEGAN + 10 * SECOND).frame_vectors[3]
    assert store.search(query, top=1)[0].stream_id == "front"
    store.forget("front", BEGAN + 250 * SECOND)
    times = [h.captured_at for h in store.search(query, top=3000) if h.stream_id == "front"]
    assert times
    assert min(times) >= BEGAN + 250 * SECOND
    store.forget("front")
    assert {h.stream_id for h in store.search(query, top=3000)} == {"back", "gate-1"}
    assert store.vectors.large.build().removed > 0
    assert all("front" not in shard.streams for shard in store.vectors.large.catalog.shards())
    assert not any(b"front" in path.read_bytes() for path in Path(store.url, "ann").rglob("*") if path.is_file())
    assert store.verify() == []


def test_compaction_moves_rows_and_brings_the_index_up_to_date(store: Store) -> None:
    for number in range(4):
        add(store, "back", BEGAN + 2 * DAY + number * 100 * SECOND, 50, 200 + number)
    query = queries(1)[0]
    before = [(h.stream_id, h.captured_at) for h in store.search(query, top=200)]
    store.compact()
    assert [(h.stream_id, h.captured_at) for h in store.search(query, top=200)] == before
    assert sum(map(len, store.vectors.large.catalog.shards())) == 3240
    assert store.vectors.large.build().rows == 0


@pytest.mark.parametrize("harm", ["truncated", "changed", "missing", "manifest"])
def test_a_damaged_shard_is_ignored_and_built_again(store: Store, harm: str) -> None:
    (shard,) = store.vectors.large.catalog.shards()
    folder = Path(store.url, "ann", shard.name)
    lists = folder / "lists.bin"
    if harm == "truncated":
        lists.write_bytes(lists.read_bytes()[:-100])
    elif harm == "changed":
        lists.write_bytes(bytes(lists.stat().st_size))
    elif harm == "missing":
        (folder / "captured_at.npy").unlink()
    else:
        (folder / "manifest.json").write_text("{")
    opened = Store.open(store.url)
    opened.vectors.flat_rows = 0
    assert not uses_index(opened)
    assert any("run `sightline index build`" in problem for problem in opened.verify())
    query = queries(1)[0]
    want = exact(store).vectors.search(query, STREAMS, None, None, 20)
    assert opened.search(query, top=20) == want
    assert opened.vectors.large.build().rows == 3040
    assert uses_index(opened)
    assert opened.verify() == []


def test_an_index_of_another_encoder_is_refused(store: Store) -> None:
    other = Catalog(Path(store.url, "ann"), "another encoder")
    assert other.codebook is None
    assert other.shards() == []


def test_small_shards_are_merged_without_losing_rows(store: Store) -> None:
    large = store.vectors.large
    for number in range(5):
        add(store, "gate-1", BEGAN + 4 * DAY + number * 1000 * SECOND, 20, 300 + number)
        large.build(shard_rows=20_000)
    shards = large.catalog.shards()
    assert len(shards) < 5
    assert sum(map(len, shards)) == 3140
    query = queries(1)[0]
    want = exact(store).vectors.search(query, STREAMS, None, None, 50)
    assert [h.captured_at for h in store.search(query, top=50)] == [h.captured_at for h in want]


def test_a_build_that_was_stopped_goes_on(store: Store) -> None:
    large = store.vectors.large
    large.catalog.drop()

    class Stop(Exception):
        pass

    def stop(done: int, of: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        large.build(shard_rows=1000, on_progress=stop)
    kept = sum(map(len, large.catalog.shards()))
    assert 0 < kept < 3040
    rest = large.build(shard_rows=1000)
    assert (rest.rows, rest.trained) == (3040 - kept, False)


def test_rows_of_two_shards_count_once(store: Store) -> None:
    large, query = store.vectors.large, queries(1)[0]
    want = exact(store).vectors.search(query, STREAMS, None, None, 50)
    (merged,) = Path(store.url, "ann").glob("*/")
    merged.rename(Path(store.url, "merged"))
    large.build(shard_rows=1000)
    Path(store.url, "merged").rename(merged)  # as after a merge that was killed before it removed the parts
    opened = Store.open(store.url)
    opened.vectors.flat_rows = 0
    assert len(opened.vectors.large.catalog.shards()) > 3
    assert places(opened.search(query, top=50)) == places(want)
    assert opened.vectors.large.build().removed > 0
    assert sum(map(len, opened.vectors.large.catalog.shards())) == 3040
    assert places(opened.search(query, top=50)) == places(want)


def test_vectors_are_found_in_the_bytes_of_the_files(built: Store) -> None:
    large = built.vectors.large
    (shard,) = large.catalog.shards()
    assert (shard.offset >= 0).all()
    reader = VectorReader(built.tables.frames.uri, 64)
    none = np.zeros(0, np.int32)
    assert reader.read(shard.files, none, none, none.astype(np.int64)).shape == (0, 64)
    parts = [(number, rows) for number, path in enumerate(shard.files) for rows in reader.file(path)]
    assert len(shard.files) > 1
    file = np.concatenate([np.full(len(rows.row), number, np.int32) for number, rows in parts])
    row, offset, vectors = (
        np.concatenate([getattr(rows, name) for _, rows in parts]) for name in ("row", "offset", "vectors")
    )
    rng = np.random.default_rng(1)
    some = rng.permutation(len(row))[:200]
    for lost in (0.0, 0.5, 1.0):  # rows without a place are read by row groups
        at = np.where(rng.random(len(row)) < lost, -1, offset)
        np.testing.assert_array_equal(reader.read(shard.files, file, row, at), vectors)
        np.testing.assert_array_equal(reader.read(shard.files, file[some], row[some], at[some]), vectors[some])


def test_an_empty_store_has_no_index(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    assert store.vectors.large.build().rows == 0
    add(store, "front", BEGAN, 30, 1)
    assert store.vectors.large.build().rows == 30
    assert build(store.vectors.large.catalog, VectorReader(store.tables.frames.uri, 64), {}).removed == 30


def test_a_store_that_became_different_gets_another_codebook(store: Store) -> None:
    large = store.vectors.large
    before = large.catalog.codebook
    for day in range(6, 10):  # another scene each time: frames that no centroid is near to
        add(store, "front", BEGAN + day * DAY, 500, 900 + day)
    assert large.build().trained is False
    add(store, "front", BEGAN + 10 * DAY, 10, 999)
    assert large.build().trained is True
    assert large.catalog.codebook is not before
    assert sum(map(len, large.catalog.shards())) == 5050
    add(store, "front", BEGAN + 10 * DAY + 100 * SECOND, 10, 1000)
    assert large.build().trained is False
