"""Hits merged into moments."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from index.search.moments import Hit, find_moments, merge_moments
from tests.support.records import SECOND


def test_neighbouring_hits_are_one_moment() -> None:
    hits = [Hit("a", SECOND * t, s) for t, s in ((1, 0.2), (3, 0.9), (4, 0.1), (30, 0.5))] + [Hit("b", SECOND * 4, 0.3)]
    moments = merge_moments(hits, gap_seconds=5)
    assert [(m.stream_id, m.start // SECOND, m.end // SECOND, m.best // SECOND) for m in moments] == [
        ("a", 1, 4, 3),
        ("a", 30, 30, 30),
        ("b", 4, 4, 4),
    ]


def find(scores: Sequence[float], top: int, *, stream: str = "a") -> list[tuple[int, int, int]]:
    """Start, end and best second of the moments of a stream with one frame a second of these scores."""
    frames = [Hit(stream, SECOND * t, score) for t, score in enumerate(scores)]
    best = sorted(frames, key=lambda hit: (-hit.score, hit.captured_at))
    moments = find_moments(
        lambda size: best[:size], lambda _, low, high: [hit for hit in frames if low <= hit.captured_at <= high], top
    )
    return [(m.start // SECOND, m.end // SECOND, m.best // SECOND) for m in moments]


def test_a_moment_is_the_neighbours_that_match_too() -> None:
    scores = [0.1] * 100
    scores[40:50] = [0.3, 0.7, 0.8, 0.9, 0.8, 0.2, 0.7, 0.6, 0.3, 0.1]
    scores[70:73] = [0.5, 0.55, 0.5]
    assert find(scores, 2) == [(41, 47, 43), (70, 72, 71)]


@pytest.mark.parametrize("seed", range(20))
def test_bounds_do_not_depend_on_the_number_of_moments(seed: int) -> None:
    noise = np.random.default_rng(seed)
    scores = np.convolve(noise.normal(size=900), np.ones(7) / 7, "same").tolist()
    many = find(scores, 40)
    for top in (1, 2, 3, 5, 10, 20):
        assert find(scores, top) == many[:top]
    ordered = sorted(many)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ordered))
    assert all(start <= best <= end for start, end, best in many)


def test_a_moment_has_no_frame_of_another_stream_and_ends_at_the_surroundings() -> None:
    assert find([0.9] * 2000, 1)[0][0] == 0
    start, end, _ = find([0.1] * 700 + [0.9] * 2000 + [0.1] * 700, 1)[0]
    assert (start, end) == (700, 1000)


def test_few_frames_and_none() -> None:
    assert find([0.4], 3) == [(0, 0, 0)]
    assert find([], 3) == []
