"""Ranked moments are those of the plain search, whatever page is read first."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from index.search.moments import Hit, Moment, find_moments
from pipeline.desk.ranking import RankedMoments, ScoredStream

SECOND = 1_000_000
streams = st.lists(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 12)), min_size=1, max_size=60), min_size=1, max_size=3
)


def scored(name: str, steps: list[tuple[int, int]]) -> ScoredStream:
    times = np.cumsum([step for step, _ in steps]).astype(np.int64) * SECOND
    return ScoredStream(name, times, np.array([score / 10 for _, score in steps], np.float32))


def plain(streams: list[ScoredStream], top: int) -> list[object]:
    hits = sorted(
        (
            Hit(each.stream_id, int(at), float(score))
            for each in streams
            for at, score in zip(each.captured_at, each.scores, strict=True)
        ),
        key=lambda hit: (-hit.score, hit.stream_id, hit.captured_at),
    )

    def near(hit: Hit, low: int, high: int) -> list[Hit]:
        return [each for each in hits if each.stream_id == hit.stream_id and low <= each.captured_at <= high]

    return list(find_moments(lambda size: hits[:size], near, top))


@settings(max_examples=60, deadline=None)
@given(streams, st.integers(1, 30))
def test_moments_are_those_of_the_plain_search(steps: list[list[tuple[int, int]]], top: int) -> None:
    made = [scored(f"gate-{i}", each) for i, each in enumerate(steps)]
    assert RankedMoments(made, 10_000).slice(0, top) == plain(made, top)


@settings(max_examples=30, deadline=None)
@given(streams, st.integers(1, 5))
def test_pages_repeat_nothing_and_leave_nothing_out(steps: list[list[tuple[int, int]]], size: int) -> None:
    made = [scored(f"gate-{i}", each) for i, each in enumerate(steps)]
    whole = RankedMoments(made, 10_000).slice(0, 10_000)
    paged = RankedMoments(made, 10_000)
    found: list[Moment] = []
    while page := paged.slice(len(found), size):
        found += page
    assert found == whole
    for place, moment in enumerate(whole):
        fresh = RankedMoments(made, 10_000)
        assert fresh.after(moment.score, moment.stream_id, moment.best) == place + 1


def test_a_moment_below_the_least_score_is_left_out() -> None:
    stream = ScoredStream(
        "gate", np.arange(100, dtype=np.int64) * 20 * SECOND, np.linspace(0, 1, 100, dtype=np.float32), 0.9
    )
    found = RankedMoments([stream], 10_000).slice(0, 100)
    assert len(found) == 10
    assert all(moment.score >= 0.9 for moment in found)
