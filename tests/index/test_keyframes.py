"""DKS against the naive Algorithm 1, which compares every pair in float64."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.errors import UsageError
from index.keyframes import fill_gaps, relevance, select_keyframes, select_top_k, select_uniform


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """All pairs in float64, to the 12 decimals that selection promises; 0 for zero vectors."""
    wide, other = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)[:, None] * np.linalg.norm(other, axis=1)[None]
    return np.round((wide @ other.T) / np.where(lengths == 0, 1, lengths), 12)


def naive(
    frames: NDArray[np.float32],
    query: NDArray[np.float32],
    k: int,
    tau: float,
    floor: float = -1.0,
    inclusive: bool = False,
) -> list[int]:
    """Algorithm 1 as printed: sort by relevance, accept while the largest cosine to the set stays below τ.

    The released code stops at a floor of the relevance, and calls similar only what is above τ.
    """
    scores = cosines(frames, query[None])[:, 0]
    pairs = cosines(frames, frames)
    order = sorted(range(len(frames)), key=lambda i: (-scores[i], i))
    chosen: list[int] = []
    for i in order:
        near = max((pairs[i, j] for j in chosen), default=-2.0)
        if len(chosen) < k and scores[i] >= floor and (near < tau or (inclusive and near == tau)):
            chosen.append(i)
    return chosen


def rational(frames: list[list[int]], query: list[int], k: int, tau: str) -> list[int]:
    """Algorithm 1 over integer vectors without any rounding: cosines are compared by their signed squares."""

    def squared(a: list[int], b: list[int]) -> Fraction:
        dot, size = sum(x * y for x, y in zip(a, b, strict=True)), sum(x * x for x in a) * sum(y * y for y in b)
        return Fraction(dot * abs(dot), size) if size else Fraction(0)

    bound = Fraction(tau) * abs(Fraction(tau))
    order = sorted(range(len(frames)), key=lambda i: (-squared(frames[i], query), i))
    chosen: list[int] = []
    for i in order:
        if len(chosen) < k and all(squared(frames[i], frames[j]) < bound for j in chosen):
            chosen.append(i)
    return chosen


grids = st.integers(1, 40).flatmap(
    lambda n: st.integers(1, 5).flatmap(
        lambda d: st.tuples(
            st.lists(st.lists(st.integers(-4, 4), min_size=d, max_size=d), min_size=n, max_size=n),
            st.lists(st.integers(-4, 4), min_size=d, max_size=d),
        )
    )
)


@settings(max_examples=2000, deadline=None)
@given(grids, st.integers(1, 45), st.sampled_from(["-0.6", "0", "0.28", "0.5", "0.6", "0.8", "0.85", "0.96", "1"]))
def test_equals_algorithm_1_with_ties_and_duplicates(grid: tuple[list[list[int]], list[int]], k: int, tau: str) -> None:
    # Integer vectors are full of equal relevance, duplicates, multiples, zero vectors and cosines of exactly τ.
    frames, query = np.array(grid[0], np.float32), np.array(grid[1], np.float32)
    assert select_keyframes(frames, query, k=k, tau=float(tau)).tolist() == rational(*grid, k, tau)


@settings(max_examples=2000, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 24), st.integers(1, 40), st.floats(-0.9, 1.0))
def test_equals_algorithm_1_on_clustered_footage(seed: int, n: int, d: int, k: int, tau: float) -> None:
    frames, query = clustered(np.random.default_rng(seed), n, d)
    assert select_keyframes(frames, query, k=k, tau=tau).tolist() == naive(frames, query, k, tau)


@settings(max_examples=1000, deadline=None)
@given(
    grids,
    st.integers(1, 45),
    st.sampled_from([-0.6, 0.0, 0.28, 0.6, 0.8, 1.0]),
    st.sampled_from([-1, -0.6, 0, 0.2, 0.6, 1]),
)
def test_the_released_selection_stops_at_the_floor_and_keeps_what_equals_tau(
    grid: tuple[list[list[int]], list[int]], k: int, tau: float, floor: float
) -> None:
    frames, query = np.array(grid[0], np.float32), np.array(grid[1], np.float32)
    got = select_keyframes(frames, query, k=k, tau=tau, floor=floor, inclusive=True).tolist()
    assert got == naive(frames, query, k, tau, floor, inclusive=True)


def test_nothing_above_the_floor_leaves_all_to_the_gap_fill() -> None:
    frames, query = np.tile(np.array([[0, 1]], np.float32), (7, 1)), np.array([1, 0], np.float32)
    assert select_keyframes(frames, query, k=3, floor=0.2).tolist() == []
    assert len(select_keyframes(frames, query, k=3, floor=0.2, fill=True)) == 3


def clustered(rng: np.random.Generator, n: int, d: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scenes with more or less noise inside, a tenth of the frames equal to the first, and a query."""
    scenes = rng.normal(size=(max(1, n // 8), d))
    noise = rng.choice([0, 1e-7, 0.05, 0.5]) * rng.normal(size=(n, d))
    frames = (scenes[rng.integers(len(scenes), size=n)] + noise).astype(np.float32)
    frames[rng.random(n) < 0.1] = frames[0]
    return frames, rng.normal(size=d).astype(np.float32)


@pytest.mark.parametrize("scenes", [1, 3, 40, 5000])
def test_equals_algorithm_1_where_the_walk_is_long(scenes: int) -> None:
    rng = np.random.default_rng(scenes)
    middles = rng.normal(size=(scenes, 32))
    frames = (middles[rng.integers(scenes, size=9000)] + 0.1 * rng.normal(size=(9000, 32))).astype(np.float32)
    query = rng.normal(size=32).astype(np.float32)
    assert select_keyframes(frames, query).tolist() == naive(frames, query, 32, 0.85)


def test_more_equal_frames_than_a_block_holds() -> None:
    frames = np.zeros((700, 8), np.float32)
    frames[:, 0] = 1
    frames[650:, 1] = 1
    assert select_keyframes(frames, np.eye(8, dtype=np.float32)[2], k=4).tolist() == [0, 650]


@pytest.mark.parametrize("scale", [1e-44, 1e-25, 1e25, 3e38])
def test_lengths_that_float32_cannot_square(scale: float) -> None:
    frames = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]], np.float32)
    query = np.array([1, 0.5, 0], np.float32)
    expected = select_keyframes(frames, query, tau=0.9).tolist()
    huge = frames.copy()
    huge[1] *= np.float32(scale)
    huge[3] *= np.float32(scale)
    assert select_keyframes(huge, query * np.float32(scale), tau=0.9).tolist() == expected
    assert relevance(huge, query).tolist() == pytest.approx(relevance(frames, query).tolist())
    assert select_top_k(huge, query, k=2).tolist() == select_top_k(frames, query, k=2).tolist()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 24), st.integers(1, 400))
def test_top_k_is_the_head_of_the_sorted_list(seed: int, n: int, d: int, k: int) -> None:
    frames, query = clustered(np.random.default_rng(seed), n, d)
    scores = cosines(frames, query[None])[:, 0]
    assert select_top_k(frames, query, k=k).tolist() == sorted(range(n), key=lambda i: (-scores[i], i))[:k]


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


def test_zero_rows_have_no_relevance_and_change_nothing_else() -> None:
    frames = np.zeros((5, 3), np.float32)
    frames[3] = [1, 0, 0]
    assert select_keyframes(frames, np.array([1, 0, 0], np.float32), k=5).tolist() == [3, 0, 1, 2, 4]


def test_no_frames_no_keyframes() -> None:
    assert select_keyframes(np.zeros((0, 8), np.float32), np.ones(8, np.float32)).tolist() == []


@pytest.mark.parametrize("floor", [-1.1, 1.1, float("nan")])
def test_an_impossible_floor_is_refused(floor: float) -> None:
    with pytest.raises(UsageError, match="floor"):
        select_keyframes(np.ones((3, 2), np.float32), np.ones(2, np.float32), floor=floor)


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
