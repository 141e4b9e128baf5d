"""Relevance over time: which streams and frames are in it, against a naive choice."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.window import Window
from pipeline.questions.asked import Selection
from pipeline.questions.curves import MOST_CURVES, MOST_POINTS, RelevanceCurve, relevance_curves


def selection(frames: list[int], keyframes: int, seed: int = 0, absent: int = 0) -> Selection:
    """A selection of random scores: `frames[i]` of stream i, and `absent` streams without a frame among them."""
    rng = np.random.default_rng(seed)
    total = sum(frames)
    names = [f"cam-{i:03d}" for i in range(len(frames) + absent)]
    present = np.sort(rng.permutation(len(names))[: len(frames)])
    index = np.repeat(present, frames).astype(np.int32)
    window = Window(
        names,
        index,
        np.concatenate([np.arange(n, dtype=np.int64) * 1_000_000 + 7 for n in frames]),
        np.zeros(total),
        np.zeros((total, 0), np.float32),
    )
    chosen = rng.permutation(total)[:keyframes].astype(np.int64)
    return Selection(window, chosen, rng.random(total, np.float32), {})


def rows_of(found: Selection, curve: RelevanceCurve) -> list[int]:
    """The rows of the window that a curve has."""
    window = found.window
    own = np.flatnonzero(window.stream_index == window.stream_ids.index(curve.stream_id))
    return [int(row) for row in own[np.searchsorted(window.captured_at[own], curve.captured_at)]]


@settings(max_examples=60, deadline=None)
@given(
    frames=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    keyframes=st.integers(0, 32),
    seed=st.integers(0, 9),
    absent=st.integers(0, 3),
)
def test_the_streams_are_those_with_the_most_keyframes(
    frames: list[int], keyframes: int, seed: int, absent: int
) -> None:
    found = selection(frames, keyframes, seed, absent)
    window = found.window
    held = [window.stream_ids[i] for i in window.stream_index]

    def rank(name: str) -> tuple[int, float]:
        best = max(float(score) for score, own in zip(found.scores, held, strict=True) if own == name)
        return -sum(held[row] == name for row in found.keyframes), -best

    expected = sorted(sorted(set(held), key=rank)[:MOST_CURVES])
    curves = relevance_curves(found)
    assert [curve.stream_id for curve in curves] == expected
    for curve in curves:  # few frames: all of them
        rows = rows_of(found, curve)
        assert rows == [row for row, name in enumerate(held) if name == curve.stream_id]
        assert curve.scores.tolist() == found.scores[rows].tolist()


def test_of_many_frames_the_best_of_each_stretch_and_the_keyframes() -> None:
    found = selection([50_000, 30_000, 10], keyframes=20, seed=3)
    curves = relevance_curves(found)
    room = MOST_POINTS // 3
    for number, (low, high) in enumerate(((0, 50_000), (50_000, 80_000))):
        rows = rows_of(found, curves[number])
        keyframes = {int(row) for row in found.keyframes if low <= row < high}
        assert keyframes
        assert keyframes <= set(rows)
        best = [int(part[np.argmax(found.scores[part])]) for part in stretches(low, high, room)]
        assert set(rows) == set(best) | keyframes
        assert rows == sorted(rows)
    assert len(curves[2].scores) == 10


def stretches(low: int, high: int, count: int) -> list[NDArray[np.int64]]:
    """The rows from `low` to `high` in stretches of equal length, rounded down."""
    edges = [low + int((high - low) * i / count) for i in range(count + 1)]
    return [np.arange(a, b) for a, b in pairwise(edges)]


def test_the_size_does_not_depend_on_the_window() -> None:
    for streams, frames in ((1, 100_000), (100, 20_000), (300, 100)):
        curves = relevance_curves(selection([frames] * streams, keyframes=32))
        assert len(curves) == min(streams, MOST_CURVES)
        assert sum(len(curve.scores) for curve in curves) <= MOST_POINTS + 32


def test_nothing_selected_from_nothing() -> None:
    empty = Window(["gate"], np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 0), np.float32))
    assert relevance_curves(Selection(empty, np.zeros(0, np.int64), np.zeros(0, np.float32), {})) == []
