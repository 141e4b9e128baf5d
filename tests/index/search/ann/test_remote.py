"""The large index of a store in an object store: built, fetched, searched, damaged, and what that costs in requests."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from index.delta.objects import file_system
from index.errors import StoreBusy
from index.search.ann import remote
from index.search.ann.remote import RemoteCatalog
from index.store import Store
from pipeline.backfill.index_job import build_index
from tests.support.large_stores import DAY, PAIR, STREAMS, add, exact, fill, places, queries
from tests.support.records import BEGAN, SECOND
from tests.support.s3 import S3Server, connect, counted, s3_server

pytestmark = pytest.mark.system
SHARD = 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(scope="module")
def original(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store with 3,000 frames in three shards. Tests copy it."""
    with pytest.MonkeyPatch.context() as patch:
        connect(server, patch)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        store = Store.create("s3://footage/original", PAIR)
        fill(store)
        built = store.vectors.large.build(shard_rows=SHARD)
        assert (built.rows, built.shards) == (3000, 3)
        yield store.url


@pytest.fixture
def url(original: str, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the store, and a machine that has seen nothing of it."""
    connect(server, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = f"s3://footage/{tmp_path.name}"
    system, root = file_system(place)
    system.invalidate_cache()
    _, source = file_system(original)
    for path in system.find(source):
        system.cp_file(path, path.replace(source, root, 1))
    return place


def opened(url: str) -> Store:
    store = Store.open(url)
    store.vectors.flat_rows = 0
    return store


def catalog(store: Store) -> RemoteCatalog:
    found = store.vectors.large.catalog
    assert isinstance(found, RemoteCatalog)
    return found


def cached(store: Store) -> set[str]:
    """The shards in the cache of this machine."""
    return {path.name for path in catalog(store).folder.glob("*/")}


def same_as_exact(store: Store) -> None:
    for query in queries(3):
        assert places(store.search(query, top=40)) == places(exact(store).search(query, top=40))


def test_shards_are_fetched_once_and_candidates_by_range(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, query = opened(url), queries(1)[0]
    sizes = {shard.name: shard.nbytes for shard in catalog(store).shards()}
    assert len(sizes) == 3
    assert cached(store) == set(), "only manifests were read"
    with counted(monkeypatch) as first:
        found = store.search(query, top=40)
    assert cached(store) == set(sizes)
    with counted(monkeypatch) as second:
        assert store.search(query, top=40) == found
    assert places(found) == places(exact(store).search(query, top=40))
    files = first.calls["get_object"] - second.calls["get_object"]
    assert files == 3 * 6, "the files of the three shards, each in one request"
    assert first.bytes - second.bytes == sum(sizes.values())
    assert set(second.calls) == {"get_object"}
    assert second.calls["get_object"] <= 6 * 3, "candidates of six files of 500 frames, near ones together"
    assert second.bytes < 3000 * 64 * 4 + 6 * 64 * 1024, "vectors and what is between them, no row groups"


def test_a_search_of_few_frames_fetches_nothing(url: str) -> None:
    store = opened(url)
    store.vectors.flat_rows = 1000
    assert places(store.search(queries(1)[0], top=5, streams=["front"])) == places(
        exact(store).search(queries(1)[0], top=5, streams=["front"])
    )
    assert cached(store) == set()


def test_a_search_of_one_day_fetches_the_shards_of_that_day(url: str) -> None:
    store, query = opened(url), queries(1)[0]
    found = store.search(query, top=10, end=BEGAN + DAY // 2)
    want = exact(store).search(query, top=10, end=BEGAN + DAY // 2)
    assert places(found) == places(want)
    later = {shard.name for shard in catalog(store).shards() if shard.begin > BEGAN + DAY // 2}
    assert later
    assert not cached(store) & later


@pytest.mark.parametrize("harm", ["half-copied", "missing", "truncated", "changed"])
def test_a_damaged_shard_is_ignored_and_built_again(url: str, harm: str) -> None:
    system, root = file_system(url)
    name = sorted(shard.name for shard in catalog(opened(url)).shards())[1]
    lists = f"{root}/ann/{name}/lists.bin"
    data = system.cat_file(lists)
    if harm == "half-copied":
        system.rm_file(f"{root}/ann/{name}/manifest.json")
    elif harm == "missing":
        system.rm_file(lists)
    else:
        system.pipe_file(lists, data[:-8] if harm == "truncated" else bytes(len(data)))
    store = opened(url)
    assert (harm == "changed") != bool(catalog(store).damage()), "what was changed is noticed when it is fetched"
    same_as_exact(store)
    assert catalog(store).damage() == [
        f"the index shard {name} is damaged or half copied and not used; run `sightline index build`"
    ]
    assert name not in cached(store)
    built = store.vectors.large.build(shard_rows=SHARD)
    assert (built.rows, built.trained) == (1000, False)
    assert catalog(store).damage() == []
    assert system.cat_file(lists) == data, "the same name and content"
    same_as_exact(opened(url))


def test_deleted_footage_leaves_the_object_store_and_the_caches(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = opened(url)
    same_as_exact(reader)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other machine"))
    writer = opened(url)
    writer.forget("front")
    assert "front" not in {hit.stream_id for hit in reader.search(queries(1)[0], top=3000)}
    assert writer.vectors.large.build(shard_rows=SHARD).removed == 1000
    catalog(reader).refresh(now=True)
    reader.search(queries(1)[0], top=10)
    system, root = file_system(url)
    system.invalidate_cache()
    kept = [path for path in catalog(reader).folder.rglob("*") if path.is_file()]
    assert not any(b"front" in path.read_bytes() for path in kept)
    assert not any(b"front" in system.cat_file(path) for path in system.find(f"{root}/ann"))
    same_as_exact(reader)


def test_the_cache_is_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_USED_SECONDS", 0.0)
    store = opened(url)
    size = max(shard.nbytes for shard in catalog(store).shards())
    limited = RemoteCatalog(catalog(store).folder, catalog(store).identity, f"{url}/ann", limit=size * 3 // 2)
    store.vectors.large.catalog = limited
    for _ in range(2):
        same_as_exact(store)
        assert len(cached(store)) == 1


def test_new_frames_are_added_and_found_by_other_machines(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = opened(url)
    same_as_exact(reader)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other machine"))
    writer = opened(url)
    add(writer, "back", BEGAN + 3 * DAY, 40, 99)
    same_as_exact(reader)
    built = build_index(writer, shard_rows=SHARD)
    assert (built.rows, built.shards, built.trained) == (40, 1, False)
    catalog(reader).refresh(now=True)
    scope = reader.vectors.large.scope(STREAMS, None, None)
    assert scope is not None
    assert (scope.rows, scope.tails) == (3040, [])
    same_as_exact(reader)
    assert writer.verify() == []


def test_one_machine_builds_at_a_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(url)
    system, root = file_system(url)
    claim = f"{root}/ann/building.json"
    system.pipe_file(claim, json.dumps({"machine": "another", "until": time.time() + 60}).encode())
    with pytest.raises(StoreBusy, match="another machine builds this index"):
        store.vectors.large.build(shard_rows=SHARD)
    for machine, until in (("another", time.time() - 1), (remote._machine(), time.time() + 60)):
        system.pipe_file(claim, json.dumps({"machine": machine, "until": until}).encode())
        assert store.vectors.large.build(shard_rows=SHARD).rows == 0, "the claim expired, or is of a killed build here"
    system.invalidate_cache()
    assert not system.exists(claim)


def test_vectors_are_read_by_range_as_they_are_stored(url: str) -> None:
    store = opened(url)
    (shard, *_) = catalog(store).shards()
    assert shard.ready()
    assert (shard.offset >= 0).all()
    rows = np.flatnonzero(shard.file == shard.file[0])[::37]
    path = shard.files[int(shard.file[0])]
    reader = store.vectors.large._reader
    by_range = reader.read([path], np.zeros_like(shard.row[rows]), shard.row[rows], shard.offset[rows])
    np.testing.assert_array_equal(
        by_range, reader.read([path], np.zeros_like(shard.row[rows]), shard.row[rows], np.full(len(rows), -1))
    )
    window = store.window([shard.streams[0]], BEGAN, BEGAN + 600 * SECOND)
    assert any((vector == window.frame_vectors).all(axis=1).any() for vector in by_range)
