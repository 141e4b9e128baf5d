"""Clips by capture time, against a loop over frames."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.errors import UsageError
from model.encoders.clips import ClipBoundary, clip_batches, clip_numbers

SECOND = 1_000_000
NINE = 1_700_000_000 * SECOND  # a multiple of four seconds


def _naive(times: list[int], streams: list[int], clip_frames: int) -> list[int]:
    """The rule as it is written, one frame after another."""
    numbers: list[int] = []
    inside = 0
    for row, (time, stream) in enumerate(zip(times, streams, strict=True)):
        same_stream = row > 0 and stream == streams[row - 1]
        same_cell = row > 0 and time // (clip_frames * SECOND) == times[row - 1] // (clip_frames * SECOND)
        if row == 0:
            number, inside = 0, 0
        elif same_stream and same_cell and inside < clip_frames:
            number = numbers[-1]
        else:
            number, inside = numbers[-1] + 1, 0
        numbers.append(number)
        inside += 1
    return numbers


steps = st.lists(st.tuples(st.integers(0, 6_000_000), st.integers(0, 3)), max_size=40)


@given(steps=steps, first=st.integers(-5, 5), clip_frames=st.integers(1, 6))
def test_equals_the_rule_frame_by_frame(steps: list[tuple[int, int]], first: int, clip_frames: int) -> None:
    times = list(np.cumsum([NINE + first * SECOND, *(step for step, _ in steps)]))[1:]
    streams = list(np.cumsum([new == 3 for _, new in steps]))
    found = clip_numbers(times, streams, clip_frames)
    assert found.dtype == np.int64
    assert found.tolist() == _naive(times, streams, clip_frames)


def test_whole_cells_gaps_and_ends() -> None:
    seconds = [2, 3, 4, 5, 6, 7, 8, 12, 13]  # begins inside a cell; 9 to 11 are missing
    assert clip_numbers([NINE + s * SECOND for s in seconds]).tolist() == [0, 0, 1, 1, 1, 1, 2, 3, 3]


def test_five_frames_in_one_cell_are_two_clips() -> None:
    times = [NINE + s * 799_999 for s in range(6)]
    assert clip_numbers(times).tolist() == [0, 0, 0, 0, 1, 1]


def test_streams_do_not_share_a_clip() -> None:
    assert clip_numbers([NINE] * 3, [4, 4, 2]).tolist() == [0, 0, 1]


def test_no_frames() -> None:
    assert clip_numbers([]).tolist() == []


@pytest.mark.parametrize(("times", "streams", "frames"), [([1], [1, 2], 4), ([[1]], None, 4), ([1], None, 0)])
def test_invalid(times: list[int], streams: list[int] | None, frames: int) -> None:
    with pytest.raises(UsageError):
        clip_numbers(times, streams, frames)


def _runs(lengths: list[int]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(lengths)), lengths)


@given(lengths=st.lists(st.integers(1, 9), max_size=20), at_most=st.integers(0, 12))
def test_batches_hold_whole_clips(lengths: list[int], at_most: int) -> None:
    clips = _runs(lengths)
    slices = list(clip_batches(clips, at_most))
    assert [row for each in slices for row in range(each.start, each.stop)] == list(range(len(clips)))
    for each in slices:
        own = set(clips[each].tolist())
        assert sum(lengths[number] for number in own) == each.stop - each.start  # none is cut
        assert each.stop - each.start <= at_most or len(own) == 1
    for one, two in pairwise(slices):  # none is smaller than it must be
        assert one.stop - one.start + lengths[int(clips[two.start])] > at_most


@given(steps=steps, clip_frames=st.integers(1, 6))
def test_arriving_frames_begin_the_same_clips(steps: list[tuple[int, int]], clip_frames: int) -> None:
    times = list(np.cumsum([NINE, *(step for step, _ in steps)]))
    boundary = ClipBoundary(clip_frames)
    begins = [boundary.begins(time) for time in times]
    assert begins == [True, *(np.diff(clip_numbers(times, None, clip_frames)) == 1).tolist()]


def test_a_reset_begins_a_clip() -> None:
    boundary = ClipBoundary(4)
    assert [boundary.begins(NINE + s * SECOND) for s in range(2)] == [True, False]
    boundary.reset()
    assert [boundary.begins(NINE + s * SECOND) for s in range(2, 5)] == [True, False, True]
