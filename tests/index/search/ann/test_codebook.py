"""The codebook: far lists, the dimensions that are coded, and what a file of it may contain."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.search.ann.codebook import Codebook, SampleOfFrames, ShardLists, bits_for, coded_for, lists_for, train

LISTS = 64


def units(rng: np.random.Generator, count: int, dimension: int) -> NDArray[np.float32]:
    found = rng.normal(size=(count, dimension)).astype(np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def scenes(rng: np.random.Generator, dimension: int, count: int) -> NDArray[np.float32]:
    """Frames of eight cameras whose scenes change little."""
    base = units(np.random.default_rng(1), 8, dimension)
    found = base[np.arange(count) % 8] + 0.15 * units(rng, count, dimension)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def is_far(codebook: Codebook, frames: NDArray[np.float32]) -> NDArray[np.bool_]:
    chosen = ShardLists(codebook, len(frames))
    result = chosen.assign(codebook.rotated(frames)) >= codebook.lists - codebook.far
    result[chosen.rest()[0]] = True
    return result


@cache
def trained(dimension: int = 64) -> Codebook:
    sample = SampleOfFrames(LISTS, dimension)
    rng = np.random.default_rng(2)
    for _ in range(10):
        sample.add(scenes(rng, dimension, 400))
    sample.hold_out(scenes(rng, dimension, 400))
    return train(sample, LISTS, identity="{}", rows=4000)


@pytest.mark.parametrize("dimension", [64, 512])
def test_an_event_that_the_training_did_not_contain_is_far(dimension: int) -> None:
    codebook, rng = trained(dimension), np.random.default_rng(3)
    event = scenes(rng, dimension, 40) + 0.6 * units(rng, 1, dimension)
    event /= np.linalg.norm(event, axis=1, keepdims=True)
    known = scenes(rng, dimension, 4000)
    assert is_far(codebook, np.concatenate([known[:2000], event, known[2000:]]))[2000:2040].all()
    assert 0.039 < is_far(codebook, known).mean() < 0.1


def test_frames_are_in_the_list_of_the_nearest_centroid() -> None:
    codebook = trained()
    rotated = codebook.rotated(scenes(np.random.default_rng(4), 64, 500))
    first = codebook.lists - codebook.far
    apart = ((rotated[:, None] - codebook.centroids[None]) ** 2).sum(axis=2)
    lists, distances = codebook.assign(rotated)
    np.testing.assert_array_equal(lists, apart[:, :first].argmin(axis=1))
    np.testing.assert_allclose(distances, apart[:, :first].min(axis=1), atol=1e-4)
    np.testing.assert_array_equal(codebook.assign_far(rotated), first + apart[:, first:].argmin(axis=1))


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 2000), min_size=1, max_size=5), seed=st.integers(0, 99), apart=st.integers(0, 400))
def test_far_are_all_outliers_and_the_farthest_of_the_rest(sizes: list[int], seed: int, apart: int) -> None:
    """Against a selection of all frames at once; `apart` frames of other scenes are outliers."""
    codebook, rng = trained(), np.random.default_rng(seed)
    total, first = sum(sizes), codebook.lists - codebook.far
    frames = scenes(rng, 64, total)
    other = rng.permutation(total)[:apart]
    frames[other] = units(rng, len(other), 64)
    rotated = codebook.rotated(frames)
    chosen, at, parts = ShardLists(codebook, total), 0, list[NDArray[np.int64]]()
    found = list[tuple[NDArray[np.int64], NDArray[np.float32]]]()  # of the same parts: sums differ in their last bits
    for size in sizes:
        parts.append(chosen.assign(rotated[at : at + size]))
        found.append(codebook.assign(rotated[at : at + size]))
        at += size
    lists = np.concatenate(parts)
    nearest, distances = (np.concatenate(each) for each in zip(*found, strict=True))
    outliers = distances > codebook.reach
    np.testing.assert_array_equal(lists >= first, outliers)
    np.testing.assert_array_equal(lists[~outliers], nearest[~outliers])
    numbers, kept = chosen.rest()
    np.testing.assert_array_equal(kept, rotated[numbers])
    assert not outliers[numbers].any()
    want = max(0, math.ceil(0.04 * total) - int(outliers.sum()))
    np.testing.assert_array_equal(
        np.sort(distances[numbers]), np.sort(distances[~outliers])[len(distances[~outliers]) - want :]
    )


def test_a_shard_of_nothing_but_outliers_keeps_none_of_them() -> None:
    """All frames of new cameras, for example: they would not fit into memory."""
    codebook, rng = trained(), np.random.default_rng(11)
    chosen = ShardLists(codebook, 20_000)
    for _ in range(20):
        lists = chosen.assign(codebook.rotated(units(rng, 1000, 64)))
        assert (lists >= codebook.lists - codebook.far).all()
    assert len(chosen.rest()[0]) == 0


def test_estimates_order_frames_as_the_exact_cosines_do_although_fewer_dimensions_are_coded() -> None:
    dimension, rng = 512, np.random.default_rng(5)
    frames = scenes(rng, dimension, 4000)
    events = units(rng, 20, dimension)
    frames[::10] += 0.5 * events[np.arange(400) % 20]
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    sample = SampleOfFrames(LISTS, dimension)
    sample.add(frames)
    codebook = train(sample, LISTS, identity="{}", rows=4000)
    assert codebook.centroids.shape[1] == 400
    np.testing.assert_allclose(codebook.rotation @ codebook.rotation.T, np.eye(400), atol=1e-4)
    rotated = codebook.rotated(frames)
    lists, _ = codebook.assign(rotated)
    codes = codebook.encode(rotated, lists)
    held = faiss.ArrayInvertedLists(codebook.lists, codebook.code_size)
    for number in np.unique(lists).tolist():
        rows = np.flatnonzero(lists == number)
        part = np.ascontiguousarray(codes[rows])
        held.add_entries(number, len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(part))
    index = codebook.searcher(held)
    index.nprobe = codebook.lists
    for event in events:
        best = np.argsort(-(frames @ event))[:20]
        assert np.isin(best, index.search(codebook.rotated(event[None]), 100)[1][0]).mean() >= 0.95


def test_the_sample_that_is_held_out_is_uniform_and_bounded() -> None:
    sample = SampleOfFrames(LISTS, 4)
    for part in range(100):
        vectors = np.full((2000, 4), part, np.float32)
        vectors[:10] += 1000  # rare
        sample.add(vectors)
        sample.hold_out(vectors)
    uniform, rare = sample.held_out(), sample.rare()
    assert len(uniform) == 65_536
    assert len(rare) == 25 * LISTS
    assert abs((uniform[:, 0] >= 1000).mean() - 0.005) < 0.002
    assert (rare[:, 0] >= 1000).mean() > 0.5


def test_the_reach_is_measured_where_nothing_was_trained() -> None:
    """In the stretches of the sample each frame is near a centroid, elsewhere scenes have moved."""
    rng, sample = np.random.default_rng(7), SampleOfFrames(2000, 64)
    moved = units(rng, 40, 64)

    def stretch(number: int) -> NDArray[np.float32]:
        found = scenes(rng, 64, 100) + 0.4 * moved[number]
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)

    for number in range(20):
        sample.add(stretch(number))
    for number in range(20, 30):
        sample.hold_out(stretch(number))
    codebook = train(sample, 2000, identity="{}", rows=10_000)
    others = np.concatenate([stretch(number) for number in range(30, 40)])
    outliers = codebook.assign(codebook.rotated(others))[1] > codebook.reach
    assert 0.005 < outliers.mean() < 0.2


def test_a_codebook_comes_back_from_its_file_and_a_changed_one_does_not(tmp_path: Path) -> None:
    codebook, path = trained(), tmp_path / "codebook.npz"
    codebook.save(path)
    read = Codebook.load(path)
    assert read is not None
    assert (read.key, read.far, read.reach) == (codebook.key, codebook.far, codebook.reach)
    frames = codebook.rotated(scenes(np.random.default_rng(6), 64, 100))
    np.testing.assert_array_equal(read.assign(frames)[0], codebook.assign(frames)[0])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert Codebook.load(path) is None
    path.write_bytes(b"")
    assert Codebook.load(path) is None


def test_sizes() -> None:
    assert [lists_for(n) for n in (0, 1_000, 1_000_000, 10_000_000, 10**10)] == [16, 16, 8192, 65_536, 131_072]
    assert [bits_for(d) for d in (16, 128, 200, 256, 512, 768, 1152)] == [4, 4, 2, 2, 1, 1, 1]
    assert [coded_for(d) for d in (16, 255, 256, 512, 768, 1152)] == [16, 255, 200, 400, 600, 896]
