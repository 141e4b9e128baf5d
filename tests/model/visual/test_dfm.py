"""DFM against equations 5–7, 9 and 10 written out loop by loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from index.errors import UsageError
from model.visual import dfm
from model.visual.dfm import merge, merge_frames, merge_mean

Vector = list[float]


def _cos(a: Vector, b: Vector) -> float:
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def naive(patches: list[Vector], reference: list[Vector] | None, query: Vector, alpha: float, lam: float) -> Vector:
    """t_n of one frame in Python floats."""
    differential = []
    for m, p in enumerate(patches):
        r_p = _cos(p, query)  # equation 5
        t_p = _cos(p, reference[m]) if reference is not None else 0.0  # equation 6
        differential.append(r_p - lam * t_p)  # equation 7
    top = max(differential)
    weights = [math.exp((d - top) / alpha) for d in differential]  # equation 9, up to a factor
    return [
        sum(w * p[i] for w, p in zip(weights, patches, strict=True)) / sum(weights)  # equation 10
        for i in range(len(query))
    ]


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor | None, Tensor, float, float]:
    n, m, d = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 8))
    seed = draw(st.integers(0, 2**31))
    patches = _random(seed, n, m, d) * draw(st.sampled_from([1e-6, 1.0, 1e4]))
    reference = _random(seed + 1, m, d) if draw(st.booleans()) else None
    query = _random(seed + 2, d)
    if draw(st.booleans()):
        patches[0, 0] = 0
        if reference is not None:
            reference[-1] = 0
    if draw(st.booleans()) and reference is not None:
        patches[-1] = reference  # a frame that is its own keyframe
    if draw(st.integers(0, 9)) == 0:
        query = torch.zeros_like(query)
    return (
        patches,
        reference,
        query,
        draw(st.sampled_from([0.01, 0.1, 1.0])),
        draw(st.sampled_from([0.0, 1.0, -0.5, 2.0])),
    )


@settings(max_examples=300, deadline=None)
@given(cases())
def test_merge_is_the_equations(case: tuple[Tensor, Tensor | None, Tensor, float, float]) -> None:
    patches, reference, query, alpha, lam = case
    got = merge(patches, reference, query, alpha=alpha, lam=lam)
    assert got.dtype == torch.float64
    for row, frame in zip(got, patches, strict=True):
        expected = naive(frame.tolist(), None if reference is None else reference.tolist(), query.tolist(), alpha, lam)
        torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_merge_accumulates_narrow_dtypes_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    patches, reference, query = (t.to(dtype) for t in (_random(0, 3, 50, 96), _random(1, 50, 96), _random(2, 96)))
    got = merge(patches, reference, query)
    assert got.dtype == dtype
    torch.testing.assert_close(
        got.double(), merge(patches.double(), reference.double(), query.double()), rtol=tolerance, atol=tolerance
    )


def test_merge_survives_values_whose_square_overflows_half_precision() -> None:
    patches = torch.full((1, 2, 4), 3e4, dtype=torch.float16)
    assert torch.isfinite(merge(patches, patches[0], torch.ones(4, dtype=torch.float16))).all()


def test_merge_picks_the_patch_that_changed_and_fits_the_question() -> None:
    query = torch.tensor([1.0, 0.0, 0.0])
    reference = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    frame = torch.tensor([[[1.0, 0, 0], [1, 0, 0], [0, 1, 0]]])  # 0: fits, seen before; 1: fits, new; 2: new only
    assert torch.allclose(merge(frame, reference, query)[0], frame[0, 1], atol=1e-6)


def test_slices_of_half_precision_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, reference, query = _random(3, 7, 5, 4).float(), _random(4, 5, 4).float(), _random(5, 4).float()
    whole = merge(patches, reference, query)
    monkeypatch.setattr(dfm, "_WIDENED_ELEMENTS", 41)
    torch.testing.assert_close(merge(patches, reference, query), whole)


def test_no_frames_make_no_tokens() -> None:
    assert merge(torch.empty(0, 3, 4), torch.ones(3, 4), torch.ones(4)).shape == (0, 4)


def test_gradients_reach_the_patches() -> None:
    patches = torch.randn(2, 3, 4, requires_grad=True)
    torch.autograd.backward(merge(patches, None, torch.ones(4)).sum())
    assert patches.grad is not None
    assert torch.isfinite(patches.grad).all()


def test_mean_is_the_mean() -> None:
    patches = _random(6, 3, 4, 5)
    torch.testing.assert_close(merge_mean(patches, None, torch.ones(5, dtype=torch.float64)), patches.mean(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patches": torch.ones(2, 3)}, r"\[n, M, d\]"),
        ({"patches": torch.ones(2, 0, 4)}, r"\[n, M, d\]"),
        ({"patches": torch.ones(2, 3, 4, dtype=torch.int32)}, "float dtype"),
        ({"reference": torch.ones(2, 4)}, "reference"),
        ({"query": torch.ones(3)}, "query"),
        ({"query": torch.ones(1, 4)}, "query"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"lam": float("inf")}, "lam"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "patches": torch.ones(2, 3, 4),
        "reference": torch.ones(3, 4),
        "query": torch.ones(4),
        "alpha": 0.01,
        "lam": 1.0,
    }
    given_: dict[str, object] = {**good, **change}
    with pytest.raises(UsageError, match=message):
        merge(**given_)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(
    streams=st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=0, max_size=4),
    chunk=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
def test_a_window_is_merged_against_the_preceding_keyframe_of_the_same_stream(
    streams: list[list[bool]], chunk: int, seed: int
) -> None:
    keyframe = np.array([flag for stream in streams for flag in stream], bool)
    stream_index = np.array([s for s, stream in enumerate(streams) for _ in stream], np.int32)
    patches, query = _random(seed, len(keyframe), 3, 4), _random(seed + 1, 4)
    read: list[slice] = []

    def reader(rows: slice) -> Tensor:
        read.append(rows)
        return patches[rows]

    pieces = list(merge_frames(reader, keyframe, stream_index, query, alpha=0.1, lam=0.7, chunk=chunk))
    assert [i for rows in read for i in range(rows.start, rows.stop)] == list(range(len(keyframe)))
    assert all(rows.stop - rows.start <= chunk for rows in read)
    assert [i for piece in pieces for i in range(piece.start, piece.stop)] == list(range(len(keyframe)))
    for piece in pieces:
        if piece.is_keyframe:
            assert keyframe[piece.start]
            torch.testing.assert_close(piece.features, patches[piece.start])
            continue
        for row, token in zip(range(piece.start, piece.stop), piece.features, strict=True):
            assert not keyframe[row]
            before = [i for i in range(row) if keyframe[i] and stream_index[i] == stream_index[row]]
            reference = patches[before[-1]].tolist() if before else None
            expected = naive(patches[row].tolist(), reference, query.tolist(), 0.1, 0.7)
            torch.testing.assert_close(token, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_a_keyframe_does_not_keep_its_chunk_alive() -> None:
    patches = torch.ones(8, 3, 4)
    first = next(merge_frames(lambda rows: patches[rows], np.arange(8) == 0, np.zeros(8, int), torch.ones(4)))
    assert first.features.untyped_storage().nbytes() == 3 * 4 * 4


def test_a_window_that_is_not_sorted_is_refused() -> None:
    with pytest.raises(UsageError, match="not together"):
        list(merge_frames(lambda _: torch.ones(3, 1, 2), np.zeros(3, bool), np.array([0, 1, 0]), torch.ones(2)))


def test_a_reader_that_gives_too_few_frames_is_refused() -> None:
    with pytest.raises(UsageError, match="expected patches of 3 frames, got 2"):
        list(merge_frames(lambda _: torch.ones(2, 1, 2), np.zeros(3, bool), np.zeros(3, int), torch.ones(2)))
