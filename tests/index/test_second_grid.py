"""The grid of UTC seconds: which second a frame belongs to, and where in its second a segment begins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.second_grid import EARLY_MICROS, phase_of, seconds_of

SECOND = 1_000_000


@pytest.mark.parametrize(
    ("captured_at", "second"),
    [
        (0, 0),
        (SECOND - 1, 1),
        (SECOND - EARLY_MICROS, 1),
        (SECOND - EARLY_MICROS - 1, 0),
        (5 * SECOND + 999_000 - 1, 5),
    ],
)
def test_a_frame_a_millisecond_early_belongs_to_the_next_second(captured_at: int, second: int) -> None:
    assert seconds_of(np.array([captured_at])).tolist() == [second]


@given(st.integers(0, 2**52))
def test_phase_and_second_of_a_start_agree(start: int) -> None:
    second = int(seconds_of(np.array([start]))[0])
    assert 0 <= phase_of(start) < 1
    assert second * SECOND + round(phase_of(start) * SECOND) == start + EARLY_MICROS
