"""The learned merger against its equations written out loop by loop in Python floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from index.errors import UsageError
from model.visual.dfm import FrameTokens, merge_frames, pool_grid
from model.visual.dfm_learned import Composer, LearnedMerger, ReferenceFrame, projector_mlp
from tests.support.live_bytes import LiveBytes

Vector = list[float]
PATCH, QUERY, WIDTH = 3, 4, 5


def _dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _cos(a: Vector, b: Vector) -> float:
    norms = math.sqrt(_dot(a, a)) * math.sqrt(_dot(b, b))
    return _dot(a, b) / norms if norms else 0.0


def _linear(layer: nn.Linear, x: Vector) -> Vector:
    return [_dot(row, x) + bias for row, bias in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)]


def _project(projector: nn.Sequential, p: Vector) -> Vector:
    first, last = projector[0], projector[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    return _linear(last, [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in _linear(first, p)])


def _pool(grid: list[Vector], tokens: int) -> list[Vector]:
    """Bilinear resize of a square grid, corners not aligned."""
    side, wanted = math.isqrt(len(grid)), math.isqrt(tokens)

    def weights(i: int) -> list[tuple[int, float]]:
        place = max((i + 0.5) * side / wanted - 0.5, 0.0)
        low = int(place)
        high = min(low + 1, side - 1)
        return [(low, 1 - (place - low)), (high, place - low)]

    result = []
    for y in range(wanted):
        for x in range(wanted):
            cells = [(grid[a * side + b], u * v) for a, u in weights(y) for b, v in weights(x)]
            result.append([sum(w * cell[i] for cell, w in cells) for i in range(len(grid[0]))])
    return result


@dataclass(frozen=True)
class Case:
    patches: Tensor  # float64 [N, M, PATCH]
    keyframe: NDArray[np.bool_]
    stream_index: NDArray[np.int32]
    query: Tensor
    projector: nn.Sequential
    composer: Composer
    lam: float
    reference_frame: ReferenceFrame
    keyframe_tokens: int | None
    chunk: int


def naive(case: Case) -> list[list[Vector]]:
    """What every row becomes, from the equations; nothing is shared between rows."""
    composer = case.composer
    asked = _linear(composer.linear_q, case.query.tolist())
    tau = float(composer.tau)
    result = []
    for row in range(len(case.keyframe)):
        x = [_project(case.projector, p) for p in case.patches[row].tolist()]
        if case.keyframe[row]:
            result.append(x if case.keyframe_tokens is None else _pool(x, case.keyframe_tokens))
            continue
        video = [i for i in range(len(case.keyframe)) if case.stream_index[i] == case.stream_index[row]]
        before = [i for i in video if case.keyframe[i] and i < row]
        earlier = before[-1] if before and case.reference_frame == "keyframe" else video[max(len(before) - 1, 0)]
        other = earlier if before else row
        reference = [_project(case.projector, p) for p in case.patches[other].tolist()]
        scores = []
        for own, theirs in zip(x, reference, strict=True):
            r_p = _cos(asked, _linear(composer.linear_iq, own))
            t_p = _cos(_linear(composer.linear_k, theirs), _linear(composer.linear_ik, own))
            scores.append((r_p - case.lam * t_p) / tau)
        weights = [math.exp(s - max(scores)) for s in scores]
        result.append([[sum(w * v[i] for w, v in zip(weights, x, strict=True)) / sum(weights) for i in range(WIDTH)]])
    return result


@st.composite
def cases(draw: st.DrawFn) -> Case:
    streams = draw(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=3))
    seed = draw(st.integers(0, 2**31))
    side = draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(seed)
    keyframe = np.array([flag for stream in streams for flag in stream], bool)
    patches = torch.randn(len(keyframe), side * side, PATCH, dtype=torch.float64, generator=generator)
    torch.manual_seed(seed)
    composer = Composer(QUERY, WIDTH).double().requires_grad_(False)
    composer.tau.fill_(draw(st.sampled_from([0.01, 0.1, 1.0])))
    query = torch.randn(QUERY, dtype=torch.float64, generator=generator)
    if draw(st.booleans()):
        patches[-1] = patches[0]
    if draw(st.integers(0, 5)) == 0:
        query.zero_()
        composer.linear_q.bias.zero_()  # a zero vector, whose cosine is 0
    wanted = draw(st.integers(1, side))
    return Case(
        patches=patches * draw(st.sampled_from([1e-3, 1.0, 20.0])),
        keyframe=keyframe,
        stream_index=np.array([s for s, stream in enumerate(streams) for _ in stream], np.int32),
        query=query,
        projector=projector_mlp(PATCH, WIDTH).double().requires_grad_(False),
        composer=composer,
        lam=draw(st.sampled_from([0.0, 1.0, -0.5])),
        reference_frame=draw(st.sampled_from(["segment_index", "keyframe"])),
        keyframe_tokens=draw(st.sampled_from([None, wanted * wanted])),
        chunk=draw(st.integers(1, 7)),
    )


def _merger(case: Case, **changes: object) -> LearnedMerger:
    values: dict[str, object] = {
        "lam": case.lam,
        "reference_frame": case.reference_frame,
        "keyframe_tokens": case.keyframe_tokens,
    }
    return LearnedMerger(case.projector, case.composer, **{**values, **changes})  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(cases(), st.booleans(), st.integers(1, 60))
def test_the_fold_is_the_equations(case: Case, stored: bool, elements: int) -> None:
    merger = _merger(case, slice_elements=elements)
    norms = merger.norms(case.patches)
    read: list[slice] = []

    def reader(rows: slice) -> Tensor:
        read.append(rows)
        return case.patches[rows]

    pieces = list(
        merger.tokens(
            reader,
            case.keyframe,
            case.stream_index,
            case.query,
            read_norms=(lambda rows: norms[rows]) if stored else None,
            chunk=case.chunk,
        )
    )
    assert [i for rows in read for i in range(rows.start, rows.stop)] == list(range(len(case.keyframe)))
    expected = naive(case)
    got = [r for p in pieces for r in ([p.features] if p.is_keyframe else p.features.unsqueeze(1))]
    assert [row for p in pieces for row in range(p.start, p.stop)] == list(range(len(expected)))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(cases())
def test_the_baseline_is_the_mean_of_the_projected_patches(case: Case) -> None:
    pieces = _merger(case, mean=True).tokens(
        lambda rows: case.patches[rows], case.keyframe, case.stream_index, case.query
    )
    for piece in pieces:
        if not piece.is_keyframe:
            torch.testing.assert_close(piece.features, case.projector(case.patches[piece.start : piece.stop]).mean(1))


def test_the_two_reference_frames_differ() -> None:
    torch.manual_seed(0)
    case = Case(
        torch.randn(6, 4, PATCH, dtype=torch.float64),
        np.array([False, False, True, False, True, False]),
        np.zeros(6, np.int32),
        torch.randn(QUERY, dtype=torch.float64),
        projector_mlp(PATCH, WIDTH).double(),
        Composer(QUERY, WIDTH).double(),
        1.0,
        "keyframe",
        None,
        64,
    )
    kept, index = (
        [
            p.features
            for p in _merger(case, reference_frame=r).tokens(
                lambda rows: case.patches[rows], case.keyframe, case.stream_index, case.query
            )
        ]
        for r in ("keyframe", "segment_index")
    )
    same = [torch.equal(a, b) for a, b in zip(kept, index, strict=True)]
    assert same == [True, True, False, True, False]  # before, keyframe 0, after it, keyframe 1, after it


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 0.15)])
def test_narrow_weights_come_near(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(1)
    projector, composer = projector_mlp(24, 64), Composer(16, 64)
    composer.tau.data.fill_(0.1)
    patches, query = torch.randn(12, 16, 24), torch.randn(16)
    keyframe, stream = np.arange(12) % 5 == 2, np.zeros(12, np.int32)

    def tokens(kind: torch.dtype) -> Tensor:
        merger = LearnedMerger(projector.to(kind), composer.to(kind), keyframe_tokens=4)
        pieces = merger.tokens(lambda rows: patches.half()[rows], keyframe, stream, query)
        return torch.cat([p.features for p in pieces]).double()

    exact = tokens(torch.float64)
    got = tokens(dtype)
    assert float((got - exact).norm() / exact.norm()) < tolerance


def _peak(n: int, walk: Callable[[NDArray[np.bool_]], Iterator[FrameTokens]]) -> tuple[int, int]:
    """Most live bytes while `n` frames become tokens that nobody keeps, and the bytes of all those tokens."""
    keyframe = np.zeros(n, bool)
    keyframe[np.linspace(20, n - 1, 6).astype(int)] = True
    output = 0
    with LiveBytes() as counted:
        for piece in walk(keyframe):
            output += piece.features.untyped_storage().nbytes()
        del piece
    assert counted.live == 0
    return counted.peak, output


def _random_patches(rows: slice) -> Tensor:
    return torch.rand(rows.stop - rows.start, 16, 24).half()


@pytest.mark.parametrize("reference_frame", ["keyframe", "segment_index"])
def test_memory_does_not_grow_with_the_frames(reference_frame: ReferenceFrame) -> None:
    torch.manual_seed(2)
    merger = LearnedMerger(projector_mlp(24, 32), Composer(16, 32), reference_frame=reference_frame, keyframe_tokens=4)
    query = torch.ones(16)

    def walk(keyframe: NDArray[np.bool_]) -> Iterator[FrameTokens]:
        return merger.tokens(_random_patches, keyframe, np.zeros(len(keyframe), np.int32), query, chunk=16)

    small, large = _peak(400, walk), _peak(3200, walk)
    assert (small[1], large[1]) == (4 * 32 * (6 * 4 + 394), 4 * 32 * (6 * 4 + 3194))
    assert 16 * 16 * 24 * 2 < large[0] <= small[0]  # more than the chunk that was read


def test_memory_of_the_papers_form_does_not_grow_with_the_frames() -> None:
    query = torch.ones(24)

    def walk(keyframe: NDArray[np.bool_]) -> Iterator[FrameTokens]:
        return merge_frames(_random_patches, keyframe, np.zeros(len(keyframe), np.int32), query, chunk=16)

    small, large = _peak(400, walk), _peak(3200, walk)
    assert large[1] > 7 * small[1] / 2
    assert 16 * 16 * 24 * 2 < large[0] <= small[0]


@pytest.mark.parametrize("tokens", [5, 25, 0])
def test_a_grid_that_cannot_be_pooled_so(tokens: int) -> None:
    with pytest.raises(UsageError, match=f"keyframe_tokens {tokens}"):
        pool_grid(torch.ones(16, 2), tokens)


def test_729_patches_become_196_tokens() -> None:
    grid = torch.randn(729, 2, dtype=torch.float64)
    expected = torch.tensor(_pool(grid.tolist(), 196), dtype=torch.float64)
    torch.testing.assert_close(pool_grid(grid, 196), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 2)])
def test_patches_of_another_width_are_refused(shape: tuple[int, ...]) -> None:
    merger = LearnedMerger(projector_mlp(PATCH, WIDTH), Composer(QUERY, WIDTH))
    with pytest.raises(UsageError, match=r"\[n, M, 3\]"):
        list(merger.tokens(lambda _: torch.ones(shape), np.zeros(2, bool), np.zeros(2, int), torch.ones(QUERY)))


def test_a_query_of_another_width_is_refused() -> None:
    merger = LearnedMerger(projector_mlp(PATCH, WIDTH), Composer(QUERY, WIDTH))
    with pytest.raises(UsageError, match="query"):
        list(merger.tokens(lambda _: torch.ones(2, 4, 3), np.zeros(2, bool), np.zeros(2, int), torch.ones(3)))
