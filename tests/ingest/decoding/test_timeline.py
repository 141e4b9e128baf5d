"""Timestamps that do not ascend gently: wraps, steps, gaps, and that nothing is lost or reordered behind them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.decoding.timeline import Timeline

BASE = 1 / 90_000
FRAME = 18_000  # 5 frames a second


def placed(ticks: list[int]) -> tuple[list[float], Timeline]:
    timeline = Timeline(BASE, frame=0.2)
    times = []
    for tick in ticks:
        timeline.follow(tick)
        times.append(round((tick + timeline.offset) * BASE, 6))
    return times, timeline


def run(start: float, seconds: float) -> list[int]:
    return [round(start / BASE) + i * FRAME for i in range(round(seconds * 5))]


def test_gentle_time_is_left_alone() -> None:
    times, timeline = placed(run(100, 20))
    assert times == [round(100 + i / 5, 6) for i in range(100)]
    assert (timeline.offset, timeline.found) == (0, [])


def test_joined_recordings_follow_on() -> None:
    times, timeline = placed(run(1.4, 20) + run(1.4, 20))
    assert times == [round(1.4 + i / 5, 6) for i in range(200)]
    assert [(round(d.at, 3), round(d.by, 3), d.bridged) for d in timeline.found] == [(21.4, -20.0, True)]
    assert "steps back by 20.0 s at 21.4 s" in str(timeline.found[0])


def test_a_clock_that_is_set_back_by_six_seconds() -> None:
    times, timeline = placed(run(0, 10) + run(4, 10))
    assert times == [round(i / 5, 6) for i in range(100)]
    assert timeline.count == 1


def test_a_day_without_footage_is_one_gap() -> None:
    times, timeline = placed([*run(0, 0.2), *run(86_400.2, 4)])
    assert times[1] == 86_400.2
    assert [str(d) for d in timeline.found] == ["no footage for 86400.0 s after 0.2 s"]


def test_a_clock_that_leaps_into_another_age_is_bridged() -> None:
    times, timeline = placed(run(0, 2) + run(10**9, 2))
    assert times == [round(i / 5, 6) for i in range(20)]
    assert timeline.found[0].bridged
    assert timeline.found[0].by > 0


@pytest.mark.parametrize("bits", [32, 33])
def test_a_counter_that_wraps_goes_on(bits: int) -> None:
    start = 2**bits - 5 * FRAME
    ticks = [(start + i * FRAME) % 2**bits for i in range(20)]
    times, timeline = placed(ticks)
    assert times == [round((start + i * FRAME) * BASE, 6) for i in range(20)]
    assert timeline.found == []


def test_a_wrap_and_back_again_by_late_packets() -> None:
    top = 2**33
    ticks = [top - FRAME, 0, top - FRAME // 2, FRAME, 2 * FRAME]
    times, timeline = placed(ticks)
    assert times[-1] == round((top + 2 * FRAME) * BASE, 6)
    assert timeline.found == []


def test_packets_out_of_order_by_a_little_are_strays() -> None:
    timeline = Timeline(BASE)
    assert [timeline.follow(t) for t in (0, 9000, 4500, 9000, 18_000)] == ["next", "next", "stray", "stray", "next"]


def test_a_live_source_may_not_outrun_the_wall_clock() -> None:
    timeline = Timeline(BASE, gap=5.0)
    assert timeline.follow(0, 1000.0) == "next"
    assert timeline.follow(90_000 * 60, 1060.0) == "next"
    assert timeline.follow(90_000 * 120, 1061.0) == "break"


def test_hostile_clocks_leave_a_bounded_record() -> None:
    ticks = [round(i % 2 * 1e9) for i in range(100_000)]
    times, timeline = placed(ticks)
    assert timeline.count == 99_999
    assert len(timeline.found) == 100
    assert all(b > a for a, b in pairwise(times))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-(2**40), 2**40), st.integers(1, 30)), min_size=1, max_size=12),
    st.integers(1_000, 90_000),
)
def test_any_joined_runs_keep_every_frame_in_order(runs: list[tuple[int, int]], frame: int) -> None:
    """Whatever the starts, mapped times ascend, and frames within a run keep their distances."""
    timeline = Timeline(BASE, frame=frame * BASE, back=0.0)
    mapped: list[list[int]] = []
    for start, length in runs:
        times = []
        for i in range(length):
            timeline.follow(start + i * frame)
            times.append(start + i * frame + timeline.offset)
        mapped.append(times)
    for times in mapped:
        assert all(b - a == frame for a, b in pairwise(times))
    whole = [t for times in mapped for t in times]
    assert all(b >= a for a, b in pairwise(whole))
    assert (whole[-1] - whole[0]) * BASE <= len(runs) * (timeline.max_gap + 1) + len(whole) * frame * BASE
