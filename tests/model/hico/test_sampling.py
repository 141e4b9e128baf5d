from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import UsageError
from model.encoders.clips import clip_numbers
from model.hico.sampling import adaptive_count, clips_to_read, covered_seconds, sample_frames
from model.profiles.profile import HicoSpec

SECOND = 1_000_000
BEGAN = 1_709_280_420 * SECOND  # a multiple of 4 s


def _naive_count(seconds: float, frames: int, clip: int, least: int, most: int) -> int:
    """T by a loop: the largest multiple of the clip that is allowed."""
    t = 0
    while (t + 1) * clip <= seconds:
        t += 1
    t = clip * max(t, 1)
    if t > most:
        t = most
    if frames < least:
        least = 0
        while least + clip <= frames:
            least += clip
    return least if t < least else t


@given(
    seconds=st.floats(0, 3_000) | st.integers(0, 3_000).map(float),
    frames=st.integers(1, 4_000),
    clip=st.sampled_from([1, 4, 8]),
)
def test_the_count_is_that_of_a_loop(seconds: float, frames: int, clip: int) -> None:
    spec = HicoSpec(clip_frames=clip, min_frames=64, max_frames=512)
    count = adaptive_count(seconds, frames, spec)
    assert count == _naive_count(seconds, frames, clip, 64, 512)
    assert count % clip == 0
    assert clip <= count <= 512


@pytest.mark.parametrize(
    ("seconds", "frames", "count"),
    [
        (0.5, 15, 12),  # 15 frames: T_min falls to 12
        (0.1, 3, 4),  # too few for one clip; the last frame is repeated
        (10, 300, 64),  # shorter than T_min: more than one frame a second
        (10, 50, 48),
        (63.9, 1_917, 64),
        (64, 1_920, 64),
        (67.9, 2_037, 64),
        (68, 2_040, 68),
        (511.9, 15_357, 508),
        (512, 15_360, 512),
        (3_600, 108_000, 512),
    ],
)
def test_counts_of_known_videos(seconds: float, frames: int, count: int) -> None:
    assert adaptive_count(seconds, frames, HicoSpec()) == count


@given(frames=st.integers(1, 3_000), count=st.integers(1, 600))
def test_frames_are_the_middles_of_equal_intervals(frames: int, count: int) -> None:
    got = sample_frames(frames, count)
    parts = min(frames, count)
    step = frames / parts
    # As the published code: a bound that should be whole may come out just below, and is then rounded down.
    bounds = [math.floor(i * step) for i in range(parts)] + [frames]
    expected = [(bounds[i] + bounds[i + 1] - 1) // 2 for i in range(parts)]
    assert got.tolist() == expected + [expected[-1]] * (count - parts)


def test_sampled_frames_of_known_videos() -> None:
    assert sample_frames(8, 4).tolist() == [0, 2, 4, 6]  # the middle of two frames is the first
    assert sample_frames(9, 3).tolist() == [1, 4, 7]
    assert sample_frames(10, 4).tolist() == [0, 3, 5, 8]  # bounds 0, 2, 5, 7, 10
    assert sample_frames(3, 4).tolist() == [0, 1, 2, 2]
    with pytest.raises(UsageError, match="without frames"):
        sample_frames(0, 4)


@given(
    gaps=st.lists(st.integers(1, 9), min_size=1, max_size=200),
    limit=st.integers(4, 220),
    first=st.integers(0, 3),
)
def test_whole_clips_are_read_and_as_many_as_fit(gaps: list[int], limit: int, first: int) -> None:
    times = BEGAN + first * SECOND + np.cumsum(gaps) * SECOND
    clips = clip_numbers(times)
    rows = clips_to_read(clips, limit)
    assert len(rows) <= limit
    assert (np.diff(rows) > 0).all()
    chosen = np.unique(clips[rows])
    assert np.isin(clips, chosen).sum() == len(rows)  # no clip is cut
    np.testing.assert_array_equal(
        np.unique(clip_numbers(times[rows]), return_counts=True)[1], np.bincount(clips)[chosen]
    )
    if len(clips) <= limit:
        assert len(rows) == len(clips)
    else:
        assert len(chosen) >= limit // 4  # as many as if all were whole


def test_clips_are_spread_evenly() -> None:
    clips = clip_numbers(BEGAN + np.arange(40) * SECOND)
    assert clips_to_read(clips, 40).tolist() == list(range(40))
    assert np.unique(clips[clips_to_read(clips, 23)]).tolist() == [1, 3, 5, 7, 9]
    assert clips_to_read(clips, 4).tolist() == [20, 21, 22, 23]
    with pytest.raises(UsageError, match="--max-frames 3 is less than one clip of 4 frames"):
        clips_to_read(clips, 3)
    assert clips_to_read(clips[:0], 4).tolist() == []


def test_ten_thousand_frames_are_chosen_at_once() -> None:
    clips = clip_numbers(BEGAN + np.arange(10_000) * SECOND)
    rows = clips_to_read(clips, 512)
    assert len(rows) == 512
    gaps = np.diff(clips[rows][::4])
    assert set(gaps.tolist()) <= {19, 20}


def test_footage_is_as_long_as_its_frames_cover() -> None:
    index = np.zeros(12, np.int32)
    times = BEGAN + np.arange(12) * SECOND
    assert covered_seconds(times, index) == 12.0
    assert covered_seconds(times[::2], index[::2]) == 11.0  # every other second: five steps of two, and the last frame
    times[6:] += 3_600 * SECOND
    assert covered_seconds(times, index) == 11 + 4  # a night without footage counts as one clip
    index[6:] = 1
    assert covered_seconds(times, index) == 12.0
    assert covered_seconds(times[:0], index[:0]) == 0.0
