"""Redundancy on fixed cameras: the adaptive threshold, and vectors without the background."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.keyframes import select_adaptive, select_keyframes
from index.selectors.background import ALIKE, MEAN_COSINE, reduce_background, stretches
from index.selectors.dks import dks
from index.selectors.selector import Candidates, Redundancy, SelectionRule
from tests.index.selectors.test_selectors import footage


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 12), st.sampled_from([0.0, 1.0, 4.0]))
def test_the_adaptive_threshold_is_the_smallest_that_gives_k(seed: int, k: int, scene: float) -> None:
    candidates = footage(seed, 60, scene=scene)
    rows, tau = select_adaptive(candidates.frames, candidates.query, k=k, tau=0.5)
    plain = select_keyframes(candidates.frames, candidates.query, k=k, tau=0.5)
    if len(plain) == k:
        assert (rows.tolist(), tau) == (plain.tolist(), 0.5)
        return
    assert tau > 0.5
    at_tau = select_keyframes(candidates.frames, candidates.query, k=k, tau=min(1.0, tau))
    assert rows.tolist() == at_tau.tolist()
    if tau < 1.0:
        assert len(rows) == k
        below = select_keyframes(candidates.frames, candidates.query, k=k, tau=tau - 0.5 / 256 - 1e-9)
        assert len(below) < k


@given(st.integers(0, 300), st.integers(1, 8))
def test_given_scores_take_the_place_of_the_query(seed: int, k: int) -> None:
    candidates = footage(seed, 40)
    scores = np.random.default_rng(seed).permutation(40).astype(np.float32)
    rows, _ = select_adaptive(candidates.frames, candidates.query, k=k, tau=0.3, scores=scores)
    units = candidates.frames.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    naive: list[int] = []
    for row in np.argsort(-scores).tolist():
        if len(naive) < k and all(units[row] @ units[other] < 0.3 for other in naive):
            naive.append(row)
    if len(naive) == k:
        assert rows.tolist() == naive


def test_varied_footage_is_selected_as_the_paper_does() -> None:
    candidates = footage(5, 700)
    assert reduce_background(candidates.frames, candidates.query)[0] is candidates.frames
    reduced = dks(candidates, SelectionRule(16, redundancy="background"))
    assert reduced.rows.tolist() == dks(candidates, SelectionRule(16)).rows.tolist()


@pytest.mark.parametrize("scene", [1.5, 4.0, 8.0])
def test_the_mean_cosine_is_brought_down(scene: float) -> None:
    candidates = footage(6, 500, scene=scene)
    vectors, scores = reduce_background(candidates.frames, candidates.query)
    cosines = candidates.frames @ candidates.frames.T
    assert cosines.mean() > ALIKE
    products = vectors @ vectors.T
    squares = np.einsum("nd,nd->n", vectors, vectors)
    assert float(products.mean() / squares.mean()) == pytest.approx(MEAN_COSINE, abs=1e-3)
    direction = candidates.query / np.linalg.norm(candidates.query)
    np.testing.assert_allclose(scores, vectors @ direction / squares.mean() ** 0.5, atol=1e-4)  # one stretch: μ̄ = μ


@pytest.mark.parametrize("scene", [2.0, 4.0, 8.0])
def test_a_fixed_camera_keeps_the_keyframes_that_it_has_without_its_scene(scene: float) -> None:
    plain, fixed = footage(7, 600), footage(7, 600, scene=scene)
    wanted = set(dks(plain, SelectionRule(16)).rows.tolist())
    # Neighbours show the same run of frames, so a run counts, not a row.
    runs = {row // 3 for row in wanted}

    def kept(redundancy: Redundancy) -> int:
        """How many of the runs that are wanted have a keyframe."""
        chosen = dks(fixed, SelectionRule(16, redundancy=redundancy))
        return len({row // 3 for row in chosen.rows.tolist()} & runs)

    assert len(wanted) == 16
    assert kept("background") >= 8
    assert kept("adaptive") <= 3
    if scene > 2:
        assert len(dks(fixed, SelectionRule(16)).rows) == 1


def test_day_and_night_have_backgrounds_of_their_own() -> None:
    rng = np.random.default_rng(2)
    day, night = (each / np.linalg.norm(each) for each in rng.standard_normal((2, 16)))
    frames = footage(8, 1200).frames + 5 * np.where(np.arange(1200)[:, None] < 600, day, night).astype(np.float32)
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    candidates = Candidates(frames.astype(np.float32), footage(8, 3).query)
    rows = dks(candidates, SelectionRule(32, redundancy="background")).rows
    assert 6 <= int((rows < 600).sum()) <= 26
    assert len(dks(candidates, SelectionRule(32)).rows) == 2


@pytest.mark.parametrize("scene", [2.0, 8.0])
def test_one_background_all_day_leaves_the_order_of_relevance(scene: float) -> None:
    candidates = footage(9, 1800, scene=scene)
    cosines = candidates.frames @ (candidates.query / np.linalg.norm(candidates.query))
    scores = reduce_background(candidates.frames, candidates.query)[1]
    assert np.corrcoef(cosines, scores)[0, 1] > 0.999
    best = set(np.argsort(-cosines)[:60].tolist())
    assert len(best & set(np.argsort(-scores)[:60].tolist())) >= 57


@given(st.integers(0, 200), st.sampled_from([2.0, 6.0]), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_the_equations_of_the_module(seed: int, scene: float, streams: int) -> None:
    rng = np.random.default_rng(seed)
    parts, index = [], []
    for stream in range(streams):
        n = int(rng.integers(400, 1500))
        backgrounds = rng.standard_normal((n // 500 + 1, 16)).repeat(500, axis=0)[:n] * 0.2 + rng.standard_normal(16)
        wide = footage(seed + stream, n).frames + scene * backgrounds
        parts.append(wide / np.linalg.norm(wide, axis=1, keepdims=True))
        index += [stream] * n
    frames, query = np.concatenate(parts), rng.standard_normal(16)
    vectors, scores = reduce_background(frames.astype(np.float32), query.astype(np.float32), np.asarray(index))
    direction, edges = query / np.linalg.norm(query), stretches(len(frames), np.asarray(index)).tolist()
    spans = [(index[a], slice(a, b)) for a, b in pairwise(edges)]

    def stays(v: float) -> float:
        return min(1.0, float(np.sqrt(MEAN_COSINE * v / ((1 - v) * (1 - MEAN_COSINE)))))

    for stream, rows in spans:
        means = [frames[other].mean(axis=0) for name, other in spans if name == stream]
        mean, scene_mean = frames[rows].mean(axis=0), np.mean(means, axis=0)
        w, usual = 1 - mean @ mean, 1 - np.mean([each @ each for each in means])
        if 1 - usual <= ALIKE:
            expected, relevance = frames[rows], frames[rows] @ direction
        else:
            kappa = (w / (w + np.square(mean - scene_mean).sum())) ** 2
            v = kappa * usual + (1 - kappa) * w
            expected = frames[rows] - (1 - stays(w)) * mean
            own = (frames[rows] - mean) @ direction + kappa * ((mean - scene_mean) @ direction)
            relevance = (own + stays(v) * (scene_mean @ direction)) / np.sqrt(v + stays(v) ** 2 * (1 - v))
        np.testing.assert_allclose(vectors[rows], expected, atol=2e-5)
        np.testing.assert_allclose(scores[rows], relevance, atol=2e-3)


def test_stretches_end_with_their_stream() -> None:
    index = np.repeat([0, 1, 2], [900, 10, 1500])
    edges = stretches(len(index), index)
    assert {0, 900, 910, 2410} <= set(edges.tolist())
    assert (np.diff(edges) > 0).all()
    assert np.diff(edges).max() <= 900
    assert stretches(0).tolist() == [0, 0]


def test_gaps_are_filled_and_counted_apart() -> None:
    frames = np.tile(np.array([[0.6, 0.8]], np.float32), (20, 1))
    chosen = dks(Candidates(frames, np.ones(2, np.float32)), SelectionRule(5, fill=True))
    assert (len(chosen.rows), chosen.distinct) == (5, 1)
