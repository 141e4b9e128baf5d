"""Selection over blocks: the keyframes of Algorithm 1 on all frames, for any size of block and pool."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import UsageError
from index.keyframes import select_keyframes
from index.selectors.streamed import select_streamed


def blocks_of(frames: np.ndarray, size: int) -> list[np.ndarray]:
    return [frames[first : first + size] for first in range(0, len(frames), size)]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 120),
    scenes=st.integers(1, 12),
    noise=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    k=st.integers(1, 20),
    tau=st.sampled_from([0.0, 0.5, 0.85, 0.99, 1.0]),
    floor=st.sampled_from([-1.0, 0.0, 0.3]),
    inclusive=st.booleans(),
    size=st.integers(10, 70),
    kept=st.integers(5, 50),
)
def test_equals_algorithm_1(
    seed: int,
    n: int,
    scenes: int,
    noise: float,
    k: int,
    tau: float,
    floor: float,
    inclusive: bool,
    size: int,
    kept: int,
) -> None:
    rng = np.random.default_rng(seed)
    frames = rng.integers(-2, 3, (scenes, 6)).astype(np.float32)[rng.integers(scenes, size=n)]  # many ties
    frames += (noise * rng.normal(size=frames.shape)).astype(np.float32)
    query = rng.integers(-2, 3, 6).astype(np.float32)
    want = select_keyframes(frames, query, k=k, tau=tau, floor=floor, inclusive=inclusive)
    got = select_streamed(blocks_of(frames, size), query, k=k, tau=tau, floor=floor, inclusive=inclusive, kept=kept)
    assert got.tolist() == want.tolist()


def test_redundant_frames_need_further_passes_and_no_more_memory() -> None:
    rng = np.random.default_rng(0)
    scenes = rng.normal(size=(40, 32)).astype(np.float32)
    frames = np.repeat(scenes, 500, axis=0) + 0.001 * rng.normal(size=(20_000, 32)).astype(np.float32)
    query = rng.normal(size=32).astype(np.float32)
    passes = 0

    class Blocks:
        def __iter__(self):  # type: ignore[no-untyped-def]
            nonlocal passes
            passes += 1
            yield from blocks_of(frames, 1000)

    got = select_streamed(Blocks(), query, k=20, tau=0.9, kept=600)
    assert got.tolist() == select_keyframes(frames, query, k=20, tau=0.9).tolist()
    assert 1 < passes <= 21


def test_arguments_are_checked() -> None:
    with pytest.raises(UsageError, match="at least 1 frame"):
        select_streamed([np.ones((2, 3), np.float32)], np.ones(3, np.float32), kept=0)
    assert select_streamed([], np.ones(3, np.float32)).tolist() == []
