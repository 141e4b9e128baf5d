"""Hits merged into moments."""

from __future__ import annotations

from index.search.moments import Hit, merge_moments
from tests.support.records import SECOND


def test_neighbouring_hits_are_one_moment() -> None:
    hits = [Hit("a", SECOND * t, s) for t, s in ((1, 0.2), (3, 0.9), (4, 0.1), (30, 0.5))] + [Hit("b", SECOND * 4, 0.3)]
    moments = merge_moments(hits, gap_seconds=5)
    assert [(m.stream_id, m.start // SECOND, m.end // SECOND, m.best // SECOND) for m in moments] == [
        ("a", 1, 4, 3),
        ("a", 30, 30, 30),
        ("b", 4, 4, 4),
    ]
