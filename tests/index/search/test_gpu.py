"""FAISS on a GPU: the choice of the device, what falls back to the CPU, and equality with it.

The machine of most runs has no GPU. There, `tests.support.faiss_gpu` takes its place; the tests marked `gpu` need FAISS with CUDA and compare a real one.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from index.search.ann import codebook as codebook_module
from index.search.ann.codebook import SampleOfFrames, train
from index.search.faiss_shards import FaissShards
from index.search.gpu import Accelerator, FlatVectors
from tests.support.faiss_gpu import Library


def vectors(n: int, seed: int = 0) -> NDArray[np.float32]:
    found = np.random.default_rng(seed).normal(size=(n, 32)).astype(np.float32)
    unit: NDArray[np.float32] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit


def sampled(frames: NDArray[np.float32], lists: int) -> SampleOfFrames:
    sample = SampleOfFrames(lists, frames.shape[1])
    sample.add(frames)
    return sample


def shards_on(folder: Path, gpu: Accelerator, monkeypatch: pytest.MonkeyPatch) -> FaissShards:
    monkeypatch.setattr("index.search.faiss_shards.FlatVectors", lambda: FlatVectors(gpu))
    return FaissShards(folder)


def write(shards: FaissShards, n: int, seed: int = 0) -> None:
    shards.write("gate", "2024-03-01", np.arange(n) * 1_000_000, vectors(n, seed), frozenset({"s"}), "me")


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        (SimpleNamespace(), "no GPU support"),
        (Library(gpus=0), "no GPU is visible"),
        (SimpleNamespace(StandardGpuResources=None, get_num_gpus=lambda: 1 // 0), None),
    ],
)
def test_without_a_gpu_the_cpu_is_chosen(library: Any, reason: str | None) -> None:
    if reason is None:

        def broken() -> int:
            raise RuntimeError("CUDA driver version is insufficient\nmore")

        library.get_num_gpus, reason = broken, "driver version is insufficient)"
    found = Accelerator(library)
    with capture_logs() as lines:
        assert found.choice.device == "cpu"
        assert reason in found.choice.reason
        assert found.attempt(lambda resources: 1 // 0) is None
        assert found.copy(faiss.IndexFlatL2(4)) is None
    assert len(lines) == (0 if reason == "no GPU support" else 1), "one line where a GPU was to be expected"


def test_codebooks_are_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = vectors(6000)
    before = train(sampled(sample, 1100), 1100, identity="me", rows=6000)
    places = before.assign(before.rotated(sample))[0]
    library = Library()
    monkeypatch.setattr(codebook_module, "GPU", Accelerator(library))
    after = train(sampled(sample, 1100), 1100, identity="me", rows=6000)
    np.testing.assert_array_equal(after.centroids, before.centroids)
    np.testing.assert_array_equal(after.assign(after.rotated(sample))[0], places)
    assert library.made.count("kmeans") > 2, "two levels"
    assert library.made[-1] == "IndexIVFFlat", "frames are assigned through the same cells"


def test_a_gpu_without_room_leaves_the_work_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = vectors(500)
    gpu = Accelerator(Library(memory=1000))
    monkeypatch.setattr(codebook_module, "GPU", gpu)
    made = train(sampled(sample, 16), 16, identity="me", rows=500)
    with capture_logs() as lines:
        first = made.assign(made.rotated(sample))[0]
        np.testing.assert_array_equal(made.assign(made.rotated(sample))[0], first)
    assert [(line["device"], line["reason"]) for line in lines] == [
        ("cpu", "StandardGpuResources: alloc fail type FlatData")
    ]


@pytest.mark.parametrize(("start", "end"), [(None, None), (0, 900_000_000), (700_000_000, 800_000_000)])
def test_flat_search_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int | None, end: int | None
) -> None:
    library = Library()
    shards = shards_on(tmp_path, Accelerator(library), monkeypatch)
    write(shards, 1000)
    shard = shards.open("gate", "2024-03-01")
    assert shard is not None
    query = vectors(1, 5)[0]
    times, scores = shard.search(query, 20, start, end)
    (low, high), held = (0 if start is None else start // 1_000_000, (end or 10**9) // 1_000_000), vectors(1000)
    exact = held[low:high] @ query
    best = low + np.argsort(-exact)[:20]
    np.testing.assert_array_equal(times, best * 1_000_000)
    np.testing.assert_allclose(scores, held[best] @ query, atol=1e-6)
    shard.search(query, 20, start, end)
    assert library.made.count("IndexFlatIP") == 1, "copied once"


def test_a_narrow_stretch_of_a_large_shard_is_searched_by_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = shards_on(tmp_path, Accelerator(Library()), monkeypatch)
    write(shards, 5000)
    shard = shards.open("gate", "2024-03-01")
    assert shard is not None
    held, query = vectors(5000), vectors(1, 5)[0]
    worst = int(np.argmin(held @ query))  # not among the 2,048 best of the shard
    times, scores = shard.search(query, 1, worst * 1_000_000, (worst + 1) * 1_000_000)
    assert times.tolist() == [worst * 1_000_000]
    assert scores[0] == pytest.approx(float(held[worst] @ query), abs=1e-6)


def test_a_shard_that_is_written_again_or_deleted_leaves_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = shards_on(tmp_path, Accelerator(Library()), monkeypatch)
    query = vectors(1, 5)[0]
    for seed in (0, 1):
        write(shards, 300, seed)
        shard = shards.open("gate", "2024-03-01")
        assert shard is not None
        assert shard.search(query, 1, None, None)[0][0] == int(np.argmax(vectors(300, seed) @ query)) * 1_000_000
    assert shards.flat.nbytes == 300 * 32 * 4
    shards.drop("gate", until="2024-03-01")
    assert shards.flat.nbytes == 0


def test_vectors_beyond_the_limit_push_the_oldest_out() -> None:
    flat = FlatVectors(Accelerator(Library()), limit=2 * 100 * 32 * 4)
    read = list[int]()

    def search(key: int) -> NDArray[np.int64] | None:
        def load() -> faiss.Index:
            read.append(key)
            index = faiss.IndexFlatIP(32)
            index.add(vectors(100, key))
            return index

        return flat.nearest(key, load, vectors(1, 9)[0], (0, 100), 5)

    for key in (0, 1, 0, 2, 0, 1):
        found = search(key)
        assert found is not None
        np.testing.assert_array_equal(found, np.argsort(-(vectors(100, key) @ vectors(1, 9)[0]))[:5])
    assert read == [0, 1, 2, 1]


def test_a_forked_process_uses_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Accelerator(Library())
    devices = [gpu.choice.device]
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert [*devices, gpu.choice.device] == ["gpu", "cpu"]
    assert gpu.copy(faiss.IndexFlatL2(4)) is None


@pytest.mark.gpu
def test_a_real_gpu_agrees_with_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Accelerator()
    if not hasattr(faiss, "StandardGpuResources") and os.environ.get("SIGHTLINE_GPU") != "1":
        pytest.skip("FAISS was built without CUDA")
    assert gpu.choice.device == "gpu", gpu.choice.reason
    sample = vectors(50_000)
    monkeypatch.setattr(codebook_module, "GPU", Accelerator(SimpleNamespace()))
    book = train(sampled(sample, 2048), 2048, identity="me", rows=50_000)
    places = book.assign(book.rotated(sample))[0]
    monkeypatch.setattr(codebook_module, "GPU", gpu)
    assert float((book.assign(book.rotated(sample))[0] == places).mean()) > 0.999
    fast = train(sampled(sample, 2048), 2048, identity="me", rows=50_000)
    rotated = book.rotated(sample)

    def spread(centroids: NDArray[np.float32]) -> float:
        near = faiss.IndexFlatL2(32)
        near.add(np.ascontiguousarray(centroids))
        return float(near.search(rotated, 1)[0].mean())

    assert spread(fast.centroids) == pytest.approx(spread(book.centroids), rel=0.01)
    shards = shards_on(tmp_path, gpu, monkeypatch)
    write(shards, 50_000)
    shard = shards.open("gate", "2024-03-01")
    assert shard is not None
    for seed in range(20):
        query = vectors(1, seed + 100)[0]
        times, _ = shard.search(query, 50, None, None)
        exact = np.argsort(-(sample @ query), kind="stable")[:50]
        np.testing.assert_array_equal(np.sort(times), np.sort(exact) * 1_000_000)
