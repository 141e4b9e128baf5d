"""Rows of a window, found by stream and time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from index.window import Window


@pytest.fixture
def window() -> Window:
    """Streams "a" (times 10, 20, 30), "b" (no rows) and "c" (times 20, 40)."""
    return Window(
        ["a", "b", "c"],
        np.array([0, 0, 0, 2, 2], np.int32),
        np.array([10, 20, 30, 20, 40], np.int64),
        np.zeros(5),
        np.zeros((5, 2), np.float32),
    )


def test_each_frame_is_found_in_its_own_stream(window: Window) -> None:
    names, times = ["a", "c", "b", "c", "a", "x", "a", "c"], [20, 20, 20, 40, 30, 10, 25, 99]
    assert window.locate(pa.array(names), np.array(times)).tolist() == [1, 3, -1, 4, 2, -1, -1, -1]
    assert window.locate(pa.array([], pa.string()), np.zeros(0, np.int64)).tolist() == []


def test_streams_are_those_with_rows(window: Window) -> None:
    assert window.streams == ["a", "c"]
    assert window.take(slice(3, None)).streams == ["c"]
    assert window.take(np.array([0, 4])).captured_at.tolist() == [10, 40]
