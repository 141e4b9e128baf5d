"""The sketch of centroids and the choice of lists with it, against comparisons with all centroids."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.search.ann.codebook import Codebook
from index.search.ann.sketch import CentroidSketch, sketch_of
from index.search.scores import cosines
from tests.index.search.ann.test_codebook import trained, units

COUNT, DIMENSION = 6000, 64


@cache
def large() -> Codebook:
    """A codebook of 6,000 lists of 40 cameras with events, and 10 far lists."""
    rng = np.random.default_rng(1)
    scenes, events = units(rng, 40, DIMENSION), units(rng, 100, DIMENSION)
    centroids = scenes[rng.integers(0, 40, COUNT)] + 0.4 * events[rng.integers(0, 100, COUNT)]
    centroids = np.asarray(centroids + 0.3 * units(rng, COUNT, DIMENSION), np.float32)
    both = np.concatenate([centroids, units(rng, 10, DIMENSION)])
    return replace(trained(DIMENSION), centroids=both, sketch=sketch_of(centroids), far=10)


def naive(codebook: Codebook, query: NDArray[np.float32], sizes: NDArray[np.int64], rows: int) -> list[int]:
    found: list[int] = []
    for number in np.argsort(-cosines(codebook.centroids[: len(sizes)], query)).tolist():
        found.append(number)
        if sizes[found].sum() >= rows:
            break
    return found


def test_few_centroids_and_an_odd_dimension_have_no_sketch() -> None:
    rng = np.random.default_rng(2)
    assert sketch_of(units(rng, 4095, 8)) is None
    assert sketch_of(units(rng, 4096, 9)) is None
    made = sketch_of(units(rng, 4096, 10))
    assert made is not None
    assert (len(made), made.dimension, made.table.shape) == (4096, 10, (5, 16, 2))


def test_the_sketch_finds_the_best_centroids() -> None:
    codebook = large()
    assert codebook.sketch is not None
    shares = []
    for query in units(np.random.default_rng(3), 20, DIMENSION):
        best = np.argsort(-(codebook.centroids[:COUNT] @ query))[:60]
        shares.append(np.isin(best, codebook.sketch.best(query, 240)).mean())
    assert np.mean(shares) > 0.9  # 64 dimensions have little to tell; of 400 it is 0.98


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 100_000), largest=st.integers(0, 20), seed=st.integers(0, 999))
def test_the_best_lists(rows: int, largest: int, seed: int) -> None:
    """Without a sketch those of a loop; with one lists of nearly the same scores, and as many rows."""
    rng = np.random.default_rng(seed)
    codebook, query = large(), units(rng, 1, DIMENSION)[0]
    sizes = rng.integers(0, largest + 1, COUNT)
    want = naive(codebook, query, sizes, rows)
    exact, exact_scores = replace(codebook, sketch=None).best_lists(query, sizes, rows)
    assert exact.tolist() == want
    np.testing.assert_allclose(exact_scores, codebook.centroids[exact] @ query, atol=1e-5)
    found, scores = codebook.best_lists(query, sizes, rows)
    assert len(set(found.tolist())) == len(found)
    assert (found < COUNT).all()
    np.testing.assert_allclose(scores, codebook.centroids[found] @ query, atol=1e-5)
    assert (np.diff(scores) <= 0).all()
    assert sizes[found].sum() >= min(rows, sizes.sum())
    assert sizes[found[:-1]].sum() < max(1, rows)
    assert scores.mean() > exact_scores.mean() - 0.01


def test_a_sketch_is_kept_in_the_file_and_a_changed_one_is_damage(tmp_path: Path) -> None:
    codebook, path = large(), tmp_path / "codebook.npz"
    codebook.save(path)
    read = Codebook.load(path)
    assert read is not None
    assert read.sketch is not None
    assert codebook.sketch is not None
    query = units(np.random.default_rng(4), 1, DIMENSION)[0]
    np.testing.assert_array_equal(read.sketch.best(query, 100), codebook.sketch.best(query, 100))
    with np.load(path) as held:
        arrays = dict(held)
    arrays["sketch_codes"] = arrays["sketch_codes"] ^ 1
    np.savez(path, **arrays)
    assert Codebook.load(path) is None


def test_a_file_of_an_older_version_has_no_sketch_and_the_same_key(tmp_path: Path) -> None:
    """Its shards remain usable: what a code means does not depend on the sketch."""
    codebook, path = large(), tmp_path / "codebook.npz"
    older = replace(codebook, sketch=None)
    older.save(path)
    read = Codebook.load(path)
    assert read is not None
    assert read.sketch is None
    assert read.key == older.key == codebook.key


@pytest.mark.parametrize(
    ("table", "codes"),
    [
        (np.zeros((5, 16, 2), np.float32), np.zeros((9, 2), np.uint8)),
        (np.zeros((5, 8, 2), np.float32), np.zeros((9, 3), np.uint8)),
        (np.zeros((5, 16, 2), np.float64), np.zeros((9, 3), np.uint8)),
        (np.zeros((5, 16, 2), np.float32), np.zeros((9, 3), np.int8)),
        (np.zeros((0, 16, 2), np.float32), np.zeros((9, 0), np.uint8)),
        (np.zeros((5, 16, 2), np.float32), np.zeros(9, np.uint8)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(table: NDArray[np.float32], codes: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        CentroidSketch(table, codes)
