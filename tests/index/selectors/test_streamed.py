"""Selection over blocks: the keyframes of Algorithm 1 on all frames, for any size of block and pool."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import UsageError
from index.keyframes import relevance, select_keyframes
from index.selectors.dks import dks
from index.selectors.selector import Candidates, Redundancy, SelectionRule
from index.selectors.streamed import dks_streamed, select_streamed


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


class Frames:
    """Vectors of several streams in memory, which are read in parts of one stream."""

    def __init__(self, vectors: np.ndarray, stream_index: np.ndarray) -> None:
        self.vectors, self.stream_index, self.read_frames = vectors, stream_index, 0

    def read(self, first: int, last: int) -> np.ndarray:
        assert len(set(self.stream_index[first:last].tolist())) == 1
        self.read_frames += last - first
        return self.vectors[first:last].copy()


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    counts=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    scenes=st.integers(1, 12),
    noise=st.sampled_from([0.0, 0.01, 0.3]),
    alike=st.sampled_from([0.0, 3.0, 30.0]),
    redundancy=st.sampled_from(["fixed", "adaptive", "background"]),
    k=st.integers(1, 20),
    tau=st.sampled_from([0.5, 0.85, 0.99, 1.0]),
    floor=st.sampled_from([-1.0, 0.0, 0.3]),
    fill=st.booleans(),
    inclusive=st.booleans(),
    block=st.integers(1, 70),
    whole=st.integers(1, 100),
    kept=st.integers(1, 50),
)
def test_every_redundancy_chooses_as_with_all_frames_in_memory(
    seed: int,
    counts: list[int],
    scenes: int,
    noise: float,
    alike: float,
    redundancy: Redundancy,
    k: int,
    tau: float,
    floor: float,
    fill: bool,
    inclusive: bool,
    block: int,
    whole: int,
    kept: int,
) -> None:
    rng = np.random.default_rng(seed)
    n = sum(counts)
    stream_index = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    frames = rng.integers(-2, 3, (scenes, 6)).astype(np.float32)[rng.integers(scenes, size=n)]  # many ties
    frames += (noise * rng.normal(size=frames.shape)).astype(np.float32)
    frames += (alike * rng.normal(size=(len(counts), 6)))[stream_index].astype(np.float32)  # the scene of each camera
    norms = np.linalg.norm(frames, axis=1, keepdims=True)
    frames = np.where(rng.random((n, 1)) < 0.9, frames / np.where(norms == 0, 1, norms), frames).astype(np.float32)
    query = rng.integers(-2, 3, 6).astype(np.float32)
    rule = SelectionRule(k=k, tau=tau, redundancy=redundancy, fill=fill, floor=floor, inclusive=inclusive)
    want = dks(Candidates(frames, query, stream_index), rule)
    source = Frames(frames, stream_index)
    got, cosines = dks_streamed(source, query, rule, kept=kept, block=block, whole=whole)
    assert got.rows.tolist() == want.rows.tolist()
    assert (got.tau, got.distinct) == (want.tau, want.distinct)
    np.testing.assert_allclose(cosines, relevance(frames, query), atol=1e-6)


@pytest.mark.parametrize(("whole", "times"), [(2_000, 1), (1_000, 2)])
def test_the_background_of_a_stream_that_fits_is_computed_from_one_reading(whole: int, times: int) -> None:
    rng = np.random.default_rng(1)
    frames = (5 * rng.normal(size=512) + rng.normal(size=(4_000, 512))).astype(np.float32)
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    stream_index, query = np.repeat([0, 1], 2_000), rng.normal(size=512).astype(np.float32)
    rule = SelectionRule(k=16, redundancy="background")
    source = Frames(frames, stream_index)
    got, _ = dks_streamed(source, query, rule, kept=500, block=700, whole=whole)
    assert got.rows.tolist() == dks(Candidates(frames, query, stream_index), rule).rows.tolist()
    assert len(got.rows) == 16
    assert source.read_frames == times * len(frames)


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
    assert len(dks_streamed(Frames(np.zeros((0, 3)), np.zeros(0)), np.ones(3, np.float32), SelectionRule(k=3))[1]) == 0
    with pytest.raises(UsageError, match="at least 1 frame"):
        select_streamed([np.ones((2, 3), np.float32)], np.ones(3, np.float32), kept=0)
    assert select_streamed([], np.ones(3, np.float32)).tolist() == []
