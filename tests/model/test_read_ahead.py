"""Reading ahead: every row once and in order, the next chunk while the last is in hand, errors where they belong."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.errors import StoreCorrupt, UsageError
from model.read_ahead import ReadAhead, chunk_rows

CPU = torch.device("cpu")


def numbered(rows: slice, out: NDArray[np.float16]) -> None:
    out[:] = np.arange(rows.start, rows.stop, dtype=np.float16)[:, None, None]


@given(total=st.integers(0, 40), chunk=st.integers(1, 50))
def test_every_row_comes_once_and_in_order(total: int, chunk: int) -> None:
    seen: list[float] = []
    with ReadAhead(numbered, total=total, chunk=chunk, shape=(2, 3), device=CPU) as ahead:
        for first in range(0, total, chunk):
            block = ahead(slice(first, min(first + chunk, total)))
            assert block.shape[1:] == (2, 3)
            seen += block[:, 1, 2].tolist()
    assert seen == list(range(total))


def test_the_next_chunk_is_read_while_the_last_is_in_hand() -> None:
    begun = threading.Semaphore(0)

    def read(rows: slice, out: NDArray[np.float16]) -> None:
        begun.release()
        numbered(rows, out)

    with ReadAhead(read, total=6, chunk=2, shape=(1, 1), device=CPU) as ahead:
        first = ahead(slice(0, 2))
        assert begun.acquire(timeout=300)
        assert begun.acquire(timeout=300)  # the second, which nobody has asked for
        assert not begun.acquire(timeout=0.2)  # and no more than that: there are two buffers
        assert first[:, 0, 0].tolist() == [0, 1]
        assert ahead(slice(2, 4))[:, 0, 0].tolist() == [2, 3]


def test_an_error_is_raised_for_its_rows_and_the_rest_is_not_read() -> None:
    asked: list[int] = []

    def read(rows: slice, out: NDArray[np.float16]) -> None:
        asked.append(rows.start)
        if rows.start == 2:
            raise StoreCorrupt("gone")
        numbered(rows, out)

    with ReadAhead(read, total=10, chunk=2, shape=(1, 1), device=CPU) as ahead:
        assert ahead(slice(0, 2))[1, 0, 0] == 1
        with pytest.raises(StoreCorrupt, match="gone"):
            ahead(slice(2, 4))
    assert asked == [0, 2]


def test_rows_out_of_turn_are_refused() -> None:
    with (
        ReadAhead(numbered, total=4, chunk=2, shape=(1, 1), device=CPU) as ahead,
        pytest.raises(UsageError, match="do not come next"),
    ):
        ahead(slice(2, 4))


def test_a_chunk_holds_at_least_one_frame() -> None:
    assert chunk_rows(CPU, 36, 192) == 4854
    assert chunk_rows(torch.device("cuda"), 729, 1152) == 319
    assert chunk_rows(CPU, 10**6, 10**6) == 1
