"""One frame a second, against a reference that looks at all frames at once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.decoding.sampler import Sampler
from tests.support.naive_sampler import naive

steps = st.lists(st.integers(1, 4000), min_size=0, max_size=120)


@settings(max_examples=500, deadline=None)
@given(steps, st.integers(-100_000, 100_000), st.sampled_from([0.5, 1.0, 2.0]))
def test_any_spacing_and_any_start(gaps: list[int], start: int, fps: float) -> None:
    times = [start / 1000]
    for gap in gaps:
        times.append(times[-1] + gap / 1000)
    sampler = Sampler(fps)
    assert [t for t in times if sampler.take(t)] == naive(times, fps)


def test_no_drift_in_three_hours_at_a_fractional_rate() -> None:
    for rate in (24_000 / 1001, 30_000 / 1001, 60_000 / 1001):
        sampler = Sampler()
        taken = [i / rate for i in range(int(rate * 10_800)) if sampler.take(i / rate)]
        assert len(taken) == 10_800
        assert all(-1e-6 <= t - k < 1 / rate + 1e-6 for k, t in enumerate(taken))


def test_time_that_runs_backwards_takes_nothing_twice() -> None:
    sampler = Sampler()
    assert [sampler.take(t) for t in (0.0, 1.0, 0.2, 1.5, 2.1, 2.0)] == [True, True, False, False, True, False]


def test_what_is_skipped_is_not_sampled() -> None:
    sampler = Sampler(first=5.0, after=3.0)
    assert [t for t in (7.0, 7.9, 8.0, 8.5, 9.2) if sampler.take(t)] == [8.0, 9.2]
