"""Moments from hits."""

from __future__ import annotations

from index.search.moments import Hit
from pipeline.questions.search import best_moments

SECOND = 1_000_000


def hits(*seconds: int, stream: str = "a") -> list[Hit]:
    """Hits in falling score."""
    return [Hit(stream, second * SECOND, 1 - i / 1000) for i, second in enumerate(seconds)]


def test_neighbours_are_one_moment_and_more_hits_are_taken_until_there_are_enough() -> None:
    found = best_moments(hits(10, 11, 12, 13, 50, 14, 90, 200), 3)
    assert [(m.start // SECOND, m.end // SECOND, m.best // SECOND) for m in found] == [
        (10, 14, 10),
        (50, 50, 50),
        (90, 90, 90),
    ]


def test_no_more_hits_than_needed() -> None:
    assert [(m.start, m.end) for m in best_moments(hits(10, 50, 11, 51), 2)] == [
        (10 * SECOND, 10 * SECOND),
        (50 * SECOND, 50 * SECOND),
    ]


def test_moments_do_not_stretch_over_everything() -> None:
    every = hits(30, 90, *[s for s in range(200) if s not in (30, 90)])
    found = best_moments(every, 4)
    assert len(found) >= 2
    assert all(m.end - m.start < 100 * SECOND for m in found)


def test_nothing_found_is_nothing() -> None:
    assert best_moments([], 3) == []
