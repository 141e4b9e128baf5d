"""Order of merged files: runs of overlapping files against a naive reference, and when sorting pays."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from index.delta.time_order import is_scattered, runs

SPANS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 30)), max_size=30)


@given(SPANS)
def test_runs_are_the_connected_parts_of_overlapping_files(spans: list[tuple[int, int]]) -> None:
    first = np.array([low for low, _ in spans], np.int64)
    last = np.array([low + length for low, length in spans], np.int64)
    naive: list[set[int]] = []
    for number in range(len(spans)):  # joins all parts that the next file overlaps
        joined = {number}
        for part in [
            part for part in naive if any(first[number] <= last[i] and first[i] <= last[number] for i in part)
        ]:
            joined |= part
            naive.remove(part)
        naive.append(joined)
    found = runs(first, last)
    assert sorted(map(sorted, naive)) == sorted(sorted(run.tolist()) for run in found)
    for run, following in pairwise(found):
        assert last[run].max() < first[following].min()


def test_files_in_the_order_of_time_are_not_scattered_and_shuffled_ones_are() -> None:
    ordered = np.arange(200, dtype=np.int64) * 60_000_000
    assert not is_scattered(ordered)
    assert not is_scattered(ordered[::-1])  # as Delta lists commits, the newest first
    assert not is_scattered(np.r_[ordered[100:], ordered[:100]])  # a half that came late
    assert not is_scattered(ordered[:1])
    assert not is_scattered(ordered[:0])
    assert is_scattered(np.random.default_rng(0).permutation(ordered))
    eight_workers = np.concatenate([ordered[worker::8] for worker in range(8)])
    assert is_scattered(eight_workers)
