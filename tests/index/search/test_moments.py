"""Hits merged into moments."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.search.moments import Hit, Moment, merge_moments, merged_moments, moments_of
from index.search.scores import ScoredFrames
from tests.support.records import SECOND


def test_neighbouring_hits_are_one_moment() -> None:
    hits = [Hit("a", SECOND * t, s) for t, s in ((1, 0.2), (3, 0.9), (4, 0.1), (30, 0.5))] + [Hit("b", SECOND * 4, 0.3)]
    moments = merge_moments(hits, gap_seconds=5)
    assert [(m.stream_id, m.start // SECOND, m.end // SECOND, m.best // SECOND) for m in moments] == [
        ("a", 1, 4, 3),
        ("a", 30, 30, 30),
        ("b", 4, 4, 4),
    ]


def naive_moment(peak: Hit, surroundings: Sequence[Hit], gap_seconds: float = 5.0) -> Moment:
    """The moment of a frame, as its definition says."""
    usual = float(np.quantile([hit.score for hit in surroundings], 0.25))
    least = usual + (peak.score - usual) / 2
    times = sorted(hit.captured_at for hit in surroundings if hit.score >= least)
    start = end = peak.captured_at
    for at in times:
        if end < at <= end + gap_seconds * 1e6:
            end = at
    for at in reversed(times):
        if start - gap_seconds * 1e6 <= at < start:
            start = at
    return Moment(peak.stream_id, start, end, peak.captured_at, peak.score)


def naive_moments(frames: Sequence[Hit]) -> list[Moment]:
    """All moments of frames of any streams: from the best frame on, one frame after the other."""
    moments: list[Moment] = []
    for hit in sorted(frames, key=lambda hit: (-hit.score, hit.stream_id, hit.captured_at)):
        at, of_stream = hit.captured_at, [moment for moment in moments if moment.stream_id == hit.stream_id]
        if any(moment.start - 5 * SECOND <= at <= moment.end + 5 * SECOND for moment in of_stream):
            continue
        low = max([at - 300 * SECOND, *(moment.end + 1 for moment in of_stream if moment.end < at)])
        high = min([at + 300 * SECOND, *(moment.start - 1 for moment in of_stream if moment.start > at)])
        around = [f for f in frames if f.stream_id == hit.stream_id and low <= f.captured_at <= high]
        moments.append(naive_moment(hit, around))
    return moments


def scored(stream: str, frames: dict[int, float]) -> ScoredFrames:
    """Frames of these scores, by time in microseconds."""
    times = np.array(sorted(frames), np.int64)
    return ScoredFrames(stream, times, np.array([frames[at] for at in times.tolist()], np.float32))


FRAMES = st.dictionaries(
    st.integers(0, 2_500).map(lambda tenths: tenths * SECOND // 2), st.integers(-8, 8).map(lambda n: n / 8), max_size=60
)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), FRAMES, max_size=3))
def test_moments_are_those_of_the_definition(streams: dict[str, dict[int, float]]) -> None:
    frames = [Hit(name, at, score) for name, times in streams.items() for at, score in times.items()]
    found = list(merged_moments(moments_of(scored(name, times)) for name, times in streams.items()))
    assert found == naive_moments(frames)


def test_moments_of_a_day_are_those_of_the_definition() -> None:
    """More frames than one block of the sort, with equal scores on both sides of its border."""
    noise = np.round(np.convolve(np.random.default_rng(3).normal(size=9_000), np.ones(9) / 9, "same"), 2)
    times = {SECOND * t: float(np.float32(score)) for t, score in enumerate(noise)}
    found = list(moments_of(scored("a", times)))
    assert len(found) > 300
    assert found == naive_moments([Hit("a", at, score) for at, score in times.items()])


def find(scores: Sequence[float], top: int, *, stream: str = "a") -> list[tuple[int, int, int]]:
    """Start, end and best second of the moments of a stream with one frame a second of these scores."""
    moments = itertools.islice(moments_of(scored(stream, {SECOND * t: score for t, score in enumerate(scores)})), top)
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
