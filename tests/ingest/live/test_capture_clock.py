"""Capture times of simulated cameras: clocks that drift, counters that wrap, late packets, discontinuities."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.decoding.timeline import Timeline
from ingest.live.capture_clock import CaptureClock, Span

BASE = 1 / 90_000
START = 1_700_000_000.0


@dataclass
class Stream:
    """A reader without a source: follows packets, cuts every `seconds`, and assigns times to the segments."""

    clock: CaptureClock
    bits: int = 33
    seconds: float = 10.0
    times: list[int] = field(default_factory=list)
    truth: list[float] = field(default_factory=list)
    breaks: int = 0
    strays: int = 0

    def play(self, frames: list[tuple[int, float, float]]) -> None:
        """Packets as (ticks before the counter wraps, wall clock at arrival, true capture time) of one connection."""
        self.clock.discontinuity()
        timeline, span = Timeline(BASE, gap=5.0), None
        held: list[tuple[float, float]] = []
        for ticks, arrival, truth in frames:
            dts = ticks % 2**self.bits
            step = timeline.follow(dts, arrival)
            if step == "stray":
                self.strays += 1
                continue
            pts = (dts + timeline.offset) * BASE
            if step == "break" or (span is not None and pts - span.first >= self.seconds):
                if span is not None:
                    self._close(span, held)
                span, held = None, []
                if step == "break":
                    self.breaks += 1
                    self.clock.discontinuity()
            if span is None:
                span = Span(pts)
            span.add(pts, arrival)
            held.append((pts, truth))
        if span is not None:
            self._close(span, held)

    def _close(self, span: Span, held: list[tuple[float, float]]) -> None:
        start = self.clock.assign(span)
        for pts, truth in held:
            self.times.append(start + round((pts - span.first) * 1e6))
            self.truth.append(truth)

    @property
    def errors(self) -> list[float]:
        """Seconds by which each time is late of the truth."""
        return [at / 1e6 - truth for at, truth in zip(self.times, self.truth, strict=True)]


def camera(
    seconds: float,
    *,
    rng: random.Random,
    first: int,
    skew: float = 0.0,
    jitter: float = 0.0,
    fps: float = 10.0,
    at: float = START,
) -> list[tuple[int, float, float]]:
    """Frames at `fps` by a clock that runs `skew` too fast, each up to `jitter` seconds on its way, in order."""
    frames, before = [], 0.0
    for i in range(round(seconds * fps)):
        truth = at + i / fps
        before = max(before, truth + rng.random() * jitter)
        frames.append((first + round(i / fps * (1 + skew) * 90_000), before, truth))
    return frames


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    bits=st.sampled_from([32, 33]),
    before=st.floats(0, 50),
    jitter=st.floats(0, 0.5),
)
def test_a_wrap_is_no_discontinuity(seed: int, bits: int, before: float, jitter: float) -> None:
    """The counter wraps somewhere in a minute: no break, no frame lost, times as even as the camera's."""
    stream = Stream(CaptureClock(), bits=bits)
    frames = camera(60, rng=random.Random(seed), first=2**bits - round(before * 90_000), jitter=jitter)
    stream.play(frames)
    assert (stream.breaks, stream.strays, len(stream.times)) == (0, 0, 600)
    assert stream.clock.anchors == 1
    steps = [b - a for a, b in zip(stream.times, stream.times[1:], strict=False)]
    assert all(abs(step - 100_000) <= 20 for step in steps)
    assert max(map(abs, stream.errors)) <= jitter + 1e-3


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    parts=st.lists(st.tuples(st.integers(2, 15), st.integers(80, 47_000), st.integers(0, 60)), min_size=2, max_size=4),
    jitter=st.floats(0, 0.4),
)
def test_discontinuities_are_anchored_again_and_times_ascend(
    seed: int, parts: list[tuple[int, int, int]], jitter: float
) -> None:
    """The counter jumps by minutes or hours, after pauses: no time twice, and errors within the jitter."""
    rng, at, first, frames = random.Random(seed), START, 2**33 - 10**7, []
    for seconds, leap, pause in parts:
        frames += camera(seconds, rng=rng, first=first, jitter=jitter, at=at)
        first, at = frames[-1][0] + leap * 90_000, at + seconds + jitter + pause
    stream = Stream(CaptureClock())
    stream.play(frames)
    assert all(b > a for a, b in zip(stream.times, stream.times[1:], strict=False))
    assert (stream.breaks, stream.strays) == (len(parts) - 1, 0)
    assert max(map(abs, stream.errors)) <= jitter + 1e-3


def test_a_camera_that_paused_is_anchored_again_within_three_segments() -> None:
    """Its counter paused too, so that at first it looks like a network that delayed packets."""
    rng = random.Random(2)
    stream = Stream(CaptureClock())
    stream.play([*camera(30, rng=rng, first=0), *camera(60, rng=rng, first=30 * 90_000, at=START + 50)])
    assert stream.breaks == 0
    assert max(map(abs, stream.errors)) == pytest.approx(20, abs=0.1)
    assert max(map(abs, stream.errors[-250:])) < 1e-3
    assert stream.clock.anchors == 2


def test_a_large_step_back_is_a_discontinuity_and_a_small_one_is_skipped() -> None:
    rng = random.Random(1)
    frames = camera(30, rng=rng, first=10**6)
    back = camera(30, rng=rng, first=10**5, at=START + 30)
    stray = (frames[100][0], frames[103][1], frames[103][2])
    stream = Stream(CaptureClock())
    stream.play([*frames[:104], stray, *frames[104:], *back])
    assert (stream.strays, stream.breaks) == (1, 1)
    assert len(stream.times) == 600
    assert all(b > a for a, b in zip(stream.times, stream.times[1:], strict=False))
    assert max(map(abs, stream.errors)) < 1e-3
    assert stream.clock.anchors == 2


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), skew=st.floats(-1e-3, 1e-3), jitter=st.floats(0, 0.2))
def test_drift_is_recorded_and_never_adds_up(seed: int, skew: float, jitter: float) -> None:
    """An hour of a camera up to 3.6 s off: its times stay by the wall clock, and ascend."""
    stream = Stream(CaptureClock(step=0.5))
    stream.play(camera(3600, rng=random.Random(seed), first=0, skew=skew, jitter=jitter, fps=2.0))
    assert all(b > a for a, b in zip(stream.times, stream.times[1:], strict=False))
    assert (
        max(map(abs, stream.errors)) <= 0.5 + jitter + 40 * abs(skew) + 0.55
    )  # a step, late by a window, a frame back
    if abs(skew) * 3600 < 0.4:
        assert stream.clock.anchors == 1
        assert abs(stream.clock.drift + skew * 3600) < jitter + 40 * abs(skew) + 0.01
    elif abs(skew) * 3600 > 1.5 + jitter:
        assert stream.clock.anchors > 1


def test_a_burst_at_the_start_gets_no_future_times() -> None:
    """A server sends the two seconds it had buffered at once; the packet with the shortest delay is the anchor."""
    frames = [(round(i * 9000), START + max(0.0, i / 10 - 2.0), START - 2.0 + i / 10) for i in range(300)]
    stream = Stream(CaptureClock())
    stream.play(frames)
    assert max(map(abs, stream.errors)) < 1e-3


def test_one_late_segment_is_no_drift() -> None:
    """TCP holds twelve seconds back and delivers them at once: the times do not move."""
    frames = camera(120, rng=random.Random(3), first=0)
    held = [(ticks, START + 52.0 if 40 <= at - START < 52 else at, at) for ticks, at, _ in frames]
    stream = Stream(CaptureClock())
    stream.play(held)
    assert stream.clock.anchors == 1
    assert max(map(abs, stream.errors)) < 1e-3


@given(st.floats(0, 20))
def test_a_reconnect_never_gives_a_time_twice(ahead: float) -> None:
    """Even when the clock was set back meanwhile."""
    stream = Stream(CaptureClock())
    stream.play(camera(20, rng=random.Random(0), first=0))
    stream.play(camera(20, rng=random.Random(0), first=0, at=START + 20 - ahead))
    assert all(b > a for a, b in zip(stream.times, stream.times[1:], strict=False))


def test_no_time_is_before_the_newest_stored_frame() -> None:
    clock = CaptureClock(newest=round((START + 5) * 1e6))
    stream = Stream(clock)
    stream.play(camera(12, rng=random.Random(0), first=0))
    assert stream.times[0] > round((START + 5) * 1e6)


def test_a_clock_without_an_anchor_raises() -> None:
    with pytest.raises(ValueError, match="not anchored"):
        CaptureClock().time_at(1.0)
