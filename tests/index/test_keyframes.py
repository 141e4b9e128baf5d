"""DKS against the naive Algorithm 1, which compares every pair in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.errors import UsageError
from index.keyframes import fill_gaps, relevance, select_keyframes, select_top_k, select_uniform


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64 cosines of all pairs, summed the plain way, 0 for zero vectors."""
    wide, other = a.astype(np.float64), b.astype(np.float64)
    result = np.zeros((len(a), len(b)))
    for i, x in enumerate(wide):
        for j, y in enumerate(other):
            length = np.sqrt(np.einsum("d,d->", x, x)) * np.sqrt(np.einsum("d,d->", y, y))
            result[i, j] = np.einsum("d,d->", x, y) / length if length else 0.0
    return result


def naive(frames: NDArray[np.float32], query: NDArray[np.float32], k: int, tau: float) -> list[int]:
    """Algorithm 1 as printed: sort by relevance, accept while the largest cosine to the set stays below τ."""
    scores = cosines(frames, query[None])[:, 0]
    pairs = cosines(frames, frames)
    order = sorted(range(len(frames)), key=lambda i: (-scores[i], i))
    chosen: list[int] = []
    for i in order:
        if len(chosen) < k and all(pairs[i, j] < tau for j in chosen):
            chosen.append(i)
    return chosen


grids = st.integers(1, 40).flatmap(
    lambda n: st.integers(1, 5).flatmap(
        lambda d: st.tuples(
            st.lists(st.lists(st.integers(-2, 2), min_size=d, max_size=d), min_size=n, max_size=n),
            st.lists(st.integers(-2, 2), min_size=d, max_size=d),
        )
    )
)


@settings(max_examples=1500, deadline=None)
@given(grids, st.integers(1, 45), st.sampled_from([-0.5, 0.0, 0.3, 0.5, 0.85, 0.99]))
def test_equals_algorithm_1_with_ties_and_duplicates(grid: tuple[list[list[int]], list[int]], k: int, tau: float) -> None:
    frames, query = np.array(grid[0], np.float32), np.array(grid[1], np.float32)
    # Cosines of small integer vectors that should be equal may differ in the last bit of a division by another
    # length; such near-ties are not what is tested here.
    scores = cosines(frames, query[None])[:, 0]
    gaps = np.diff(np.unique(scores))
    pairs = cosines(frames, frames)
    if (gaps < 1e-9).any() or (np.abs(pairs - tau) < 1e-9).any():
        return
    assert select_keyframes(frames, query, k=k, tau=tau).tolist() == naive(frames, query, k, tau)


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 120), st.integers(1, 24), st.integers(1, 40), st.floats(-0.9, 1.0))
def test_equals_algorithm_1_on_clustered_footage(seed: int, n: int, d: int, k: int, tau: float) -> None:
    rng = np.random.default_rng(seed)
    scenes = rng.normal(size=(max(1, n // 8), d))
    frames = (scenes[rng.integers(len(scenes), size=n)] + rng.choice([0, 0.05, 0.5]) * rng.normal(size=(n, d))).astype(np.float32)
    frames[rng.random(n) < 0.1] = frames[0]
    query = rng.normal(size=d).astype(np.float32)
    if (np.abs(cosines(frames, frames) - tau) < 1e-12).any():
        return
    assert select_keyframes(frames, query, k=k, tau=tau).tolist() == naive(frames, query, k, tau)


def test_a_tie_goes_to_the_earlier_frame_in_a_long_window() -> None:
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(20_000, 64)).astype(np.float32)
    query = rng.normal(size=64).astype(np.float32)
    best = int(np.argmax(relevance(frames, query)))
    for copy in (19_999, 12_345, 7):
        frames[copy] = frames[best]
    assert select_keyframes(frames, query, k=4)[0] == min(best, 7)
    assert select_top_k(frames, query, k=4).tolist() == sorted({7, 12_345, 19_999, best})[:4]


def test_a_cosine_of_exactly_tau_is_refused() -> None:
    frames = np.array([[1, 0], [3, 4], [0, 1]], np.float32)
    assert select_keyframes(frames, np.array([1, 0], np.float32), k=3, tau=0.6).tolist() == [0, 2]


def test_rows_need_not_be_normalised() -> None:
    rng = np.random.default_rng(1)
    frames = rng.normal(size=(300, 16)).astype(np.float32)
    query = rng.normal(size=16).astype(np.float32)
    scaled = frames * rng.uniform(0.1, 50, (300, 1)).astype(np.float32)
    assert select_keyframes(scaled, 7 * query).tolist() == select_keyframes(frames, query).tolist()


def test_zero_rows_are_relevant_to_nothing_and_harm_nobody() -> None:
    frames = np.zeros((5, 3), np.float32)
    frames[3] = [1, 0, 0]
    assert select_keyframes(frames, np.array([1, 0, 0], np.float32), k=5).tolist() == [3, 0, 1, 2, 4]


def test_no_frames_no_keyframes() -> None:
    assert select_keyframes(np.zeros((0, 8), np.float32), np.ones(8, np.float32)).tolist() == []


@pytest.mark.parametrize(("k", "tau"), [(0, 0.85), (-3, 0.85), (4, 1.01), (4, -1.0), (4, float("nan"))])
def test_impossible_settings_are_refused(k: int, tau: float) -> None:
    with pytest.raises(UsageError):
        select_keyframes(np.ones((3, 2), np.float32), np.ones(2, np.float32), k=k, tau=tau)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    frames = np.ones((3, 2), np.float32)
    frames[1, 1] = bad
    with pytest.raises(UsageError, match="finite"):
        select_keyframes(frames, np.ones(2, np.float32))


def naive_fill(selected: list[int], n: int, k: int) -> list[int]:
    """The gap fill by trying every D from 1 upwards."""
    wanted = min(k, n) - len(selected)
    taken = set(selected)
    gaps: list[tuple[int, int]] = []
    for i in range(n):
        if i not in taken:
            if gaps and gaps[-1][0] + gaps[-1][1] == i:
                gaps[-1] = (gaps[-1][0], gaps[-1][1] + 1)
            else:
                gaps.append((i, 1))
    if wanted <= 0:
        return selected
    d = next(d for d in range(1, n + 1) if sum(-(-length // d) - 1 for _, length in gaps) <= wanted)
    added: set[int] = set()
    for start, length in gaps:
        count = -(-length // d) - 1
        step = -(-length // (count + 1))
        for i in range(count):
            added.add(min(start + step * (i + 1), start + length - 1))
    for i in range(n - 1, -1, -1):
        if len(added) == wanted:
            break
        if i not in taken and i not in added:
            added.add(i)
    return selected + sorted(added)


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 200), st.integers(1, 64), st.data())
def test_gap_fill_equals_trying_every_distance(n: int, k: int, data: Any) -> None:
    selected = data.draw(st.lists(st.integers(0, n - 1), max_size=min(k, n), unique=True))
    filled = fill_gaps(np.array(selected, np.int64), n, k).tolist()
    assert filled == naive_fill(selected, n, k)
    assert len(set(filled)) == max(len(selected), min(k, n))


def test_uniform_takes_midpoints() -> None:
    assert select_uniform(100, k=4).tolist() == [12, 37, 62, 87]
    assert select_uniform(3, k=10).tolist() == [0, 1, 2]
