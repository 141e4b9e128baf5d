"""Statistics of the studies, against loops over definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.studies.curves import (
    bootstrap,
    by_rank,
    cumulative,
    in_rank,
    neighbour_similarity,
    neighbours,
    on_grid,
    random_similarity,
    rank_correlation,
    share_needed,
    slope,
)

MASS = st.lists(st.floats(0, 1e3), min_size=1, max_size=60)


@settings(deadline=None)
@given(MASS)
def test_cumulative_is_the_share_of_the_largest(values: list[float]) -> None:
    curve = cumulative(np.array(values))
    ranked = sorted(values, reverse=True)
    total = math.fsum(values)
    for i in range(len(values)):
        wanted = math.fsum(ranked[: i + 1]) / total if total > 0 else (i + 1) / len(values)
        assert curve[i] == pytest.approx(wanted, abs=1e-9)
    assert curve[-1] == 1


@settings(deadline=None)
@given(MASS, st.floats(0.01, 1))
def test_share_needed_is_the_fewest_items(values: list[float], share: float) -> None:
    curve = cumulative(np.array(values))
    needed = round(share_needed(curve, share) * len(values))
    assert curve[needed - 1] >= share - 1e-9
    assert needed == 1 or curve[needed - 2] < share


def test_one_item_that_holds_all_and_even_attention() -> None:
    """The two extremes: a sink, and attention without any choice."""
    sink = cumulative(np.array([0.0, 0.0, 5.0, 0.0]))
    assert (share_needed(sink, 0.9), on_grid(sink)[25], on_grid(sink)[0]) == (0.25, 1.0, 0.0)
    even = on_grid(cumulative(np.ones(40)))
    np.testing.assert_allclose(even, np.linspace(0, 1, 101))


def test_equal_attention_keeps_the_order_of_items() -> None:
    assert in_rank(np.array([1.0, 3.0, 1.0, 3.0])).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 9])
def test_neighbours_are_the_nearest_and_the_lower_on_a_tie(count: int) -> None:
    found = neighbours(count)
    assert found.shape == (count, min(3, count - 1))
    for place, row in enumerate(found.tolist()):
        others = [other for other in range(count) if other != place]
        assert row == sorted(others, key=lambda other: (abs(other - place), other))[: min(3, count - 1)]


@settings(deadline=None)
@given(st.integers(2, 25), st.integers(0, 2**31))
def test_similarity_of_neighbours_in_rank(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = rng.permutation(count)
    got = neighbour_similarity(vectors, order)
    for place in range(count):
        near = [order[other] for other in neighbours(count)[place]]
        wanted = np.mean([vectors[order[place]] @ vectors[other] for other in near])
        assert got[place] == pytest.approx(wanted)


def test_random_pairs_are_of_different_items() -> None:
    assert random_similarity(np.eye(3), 500, np.random.default_rng(0)) == 0
    assert random_similarity(np.ones((2, 1)), 500, np.random.default_rng(0)) == 1


def test_bins_slope_and_rank_correlation() -> None:
    values = np.arange(20.0)
    assert by_rank(values, 4).tolist() == [2, 7, 12, 17]
    assert slope(values) == pytest.approx(19)
    assert slope(np.ones(5)) == slope(np.ones(1)) == 0
    assert rank_correlation(values, np.exp(-values)) == pytest.approx(-1)
    assert rank_correlation(values, values**3) == pytest.approx(1)


def test_bootstrap_contains_the_mean_and_shrinks() -> None:
    rng = np.random.default_rng(1)
    few, many = rng.normal(3, 1, 10), rng.normal(3, 1, 400)
    low, high = bootstrap(many.tolist())
    assert low < many.mean() < high
    assert high - low < 0.5 * (bootstrap(few.tolist())[1] - bootstrap(few.tolist())[0])
    assert bootstrap([2.0]) == (2.0, 2.0)
