"""Selectors against naive references, and what every selector promises."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.errors import UsageError
from index.keyframes import relevance, select_keyframes
from index.selectors.registry import SELECTORS, SelectorName
from index.selectors.segments import smooth
from index.selectors.selector import REDUNDANCIES, Candidates, Redundancy, SelectionRule


def footage(seed: int, rows: int, *, scene: float = 0.0, dimension: int = 16) -> Candidates:
    """Unit vectors in runs, as footage has them, with a constant component of length `scene`."""
    rng = np.random.default_rng(seed)
    runs = np.repeat(rng.standard_normal((rows // 3 + 1, dimension)), 3, axis=0)[:rows]
    frames = runs + 0.1 * rng.standard_normal((rows, dimension))
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    constant = rng.standard_normal(dimension)
    frames += scene * constant / np.linalg.norm(constant)
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    return Candidates(frames.astype(np.float32), rng.standard_normal(dimension).astype(np.float32))


@given(
    st.sampled_from(get_args(SelectorName)),
    st.sampled_from(REDUNDANCIES),
    st.integers(0, 50),
    st.integers(0, 40),
    st.integers(1, 12),
    st.sampled_from([0.0, 3.0]),
)
def test_rows_are_distinct_and_at_most_k(
    name: SelectorName, redundancy: Redundancy, seed: int, rows: int, k: int, scene: float
) -> None:
    candidates = footage(seed, rows, scene=scene)
    chosen = SELECTORS[name](candidates, SelectionRule(k, redundancy=redundancy)).rows
    assert chosen.dtype == np.int64
    assert len(set(chosen.tolist())) == len(chosen) <= min(k, rows)
    assert all(0 <= row < rows for row in chosen.tolist())
    if name in ("inverse", "segments", "top-k", "uniform"):
        assert len(chosen) == min(k, rows)
    again = SELECTORS[name](candidates, SelectionRule(k, redundancy=redundancy)).rows
    assert again.tolist() == chosen.tolist()


@pytest.mark.parametrize("name", get_args(SelectorName))
def test_equal_frames_are_no_error(name: SelectorName) -> None:
    frames = np.tile(np.array([[0.6, 0.8]], np.float32), (7, 1))
    for redundancy in REDUNDANCIES:
        chosen = SELECTORS[name](Candidates(frames, np.ones(2, np.float32)), SelectionRule(4, redundancy=redundancy))
        assert 1 <= len(chosen.rows) <= 4


@given(st.integers(0, 500), st.integers(1, 10), st.floats(-0.5, 0.99))
def test_fixed_redundancy_is_algorithm_1(seed: int, k: int, tau: float) -> None:
    candidates = footage(seed, 60)
    chosen = SELECTORS["dks"](candidates, SelectionRule(k, tau))
    expected = select_keyframes(candidates.frames, candidates.query, k=k, tau=tau)
    assert (chosen.rows.tolist(), chosen.tau, chosen.distinct) == (expected.tolist(), tau, None)


def naive_dpp(candidates: Candidates, k: int) -> list[int]:
    """Greedy maximization of log det of the submatrix, each determinant computed anew."""
    units = candidates.frames.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    scores = relevance(candidates.frames, candidates.query).astype(np.float64)
    quality = np.maximum((scores - scores.min()) / np.ptp(scores), 1e-3)
    kernel = quality[:, None] * (units @ units.T) * quality[None, :]
    chosen: list[int] = []
    while len(chosen) < min(k, len(units)):
        values = [
            -np.inf if row in chosen else float(np.linalg.det(kernel[np.ix_([*chosen, row], [*chosen, row])]))
            for row in range(len(units))
        ]
        chosen.append(int(np.argmax(values)))
    return chosen


@settings(max_examples=40)
@given(st.integers(0, 500), st.integers(2, 7))
def test_lazy_dpp_is_the_greedy_one(seed: int, k: int) -> None:
    candidates = footage(seed, 30)
    assert SELECTORS["dpp"](candidates, SelectionRule(k)).rows.tolist() == naive_dpp(candidates, k)


def test_lazy_dpp_is_the_greedy_one_beyond_one_block() -> None:
    candidates = footage(3, 700)
    assert SELECTORS["dpp"](candidates, SelectionRule(4)).rows.tolist() == naive_dpp(candidates, 4)


def test_inverse_gathers_where_the_relevance_is() -> None:
    frames = np.zeros((100, 2), np.float32)
    frames[:, 0], frames[:, 1] = 0.1, 1.0
    frames[40:60] = (1.0, 0.1)
    candidates = Candidates(frames, np.array([1, 0], np.float32))
    rows = SELECTORS["inverse"](candidates, SelectionRule(5)).rows
    assert rows.tolist() == [42, 46, 50, 54, 58] or all(40 <= row < 60 for row in rows.tolist())
    flat = Candidates(np.tile(np.array([[1, 0]], np.float32), (100, 1)), np.array([1, 0], np.float32))
    assert SELECTORS["inverse"](flat, SelectionRule(4)).rows.tolist() == [12, 37, 62, 87]


def test_segments_share_k_by_relevance_and_length() -> None:
    rng = np.random.default_rng(0)
    frames = np.zeros((128, 8), np.float32)
    frames[:, 0] = 0.05
    frames[64:96, 0] = 1.0
    frames[:, 1:] = 0.3 * rng.standard_normal((128, 7))
    rows = SELECTORS["segments"](Candidates(frames, np.eye(8, dtype=np.float32)[0]), SelectionRule(8)).rows
    inside = [row for row in rows.tolist() if 64 <= row < 96]
    assert len(inside) == 8
    many = SELECTORS["segments"](Candidates(frames, np.eye(8, dtype=np.float32)[0]), SelectionRule(48)).rows
    assert 24 <= sum(64 <= row < 96 for row in many.tolist()) <= 32


@given(st.integers(1, 300), st.integers(0, 6))
def test_a_constant_curve_stays_and_its_length_too(count: int, levels: int) -> None:
    np.testing.assert_allclose(smooth(np.full(count, 0.25), levels), np.full(count, 0.25), atol=1e-12)


def test_smoothing_removes_noise_and_keeps_a_step() -> None:
    rng = np.random.default_rng(1)
    step: NDArray[np.float64] = np.where(np.arange(256) < 128, 0.0, 1.0)
    noisy = step + 0.05 * rng.standard_normal(256)
    assert np.abs(smooth(noisy) - step).mean() < 0.5 * np.abs(noisy - step).mean()


def test_wrong_input_is_refused() -> None:
    with pytest.raises(UsageError, match="k must be at least 1"):
        SelectionRule(0)
    with pytest.raises(UsageError, match="expected frames"):
        Candidates(np.zeros((3, 2), np.float32), np.zeros(3, np.float32))
    with pytest.raises(UsageError, match="stream_index"):
        Candidates(np.zeros((3, 2), np.float32), np.zeros(2, np.float32), np.zeros(2, np.int32))
    bad = Candidates(np.full((3, 2), np.nan, np.float32), np.ones(2, np.float32))
    for name in ("dks", "inverse", "segments", "dpp", "top-k"):
        with pytest.raises(UsageError, match="finite"):
            SELECTORS[name](bad, SelectionRule(2))
