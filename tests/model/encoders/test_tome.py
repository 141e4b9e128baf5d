"""Merging of tokens, against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.errors import UsageError
from model.encoders.tome import merge_carrying, merge_steps, merge_tokens


def _similarity(one: NDArray[np.float64], two: NDArray[np.float64], head_width: int) -> float:
    """The cosine of the means over heads, rounded as the module says."""
    means = []
    for token in (one, two):
        mean = [
            sum(token[head + at] for head in range(0, len(token), head_width)) / (len(token) // head_width)
            for at in range(head_width)
        ]
        length = max(1e-12, math.sqrt(sum(value * value for value in mean)))
        means.append([value / length for value in mean])
    return float(round(sum(a * b for a, b in zip(*means, strict=True)) * 2**20) / 2**20)


def _naive(tokens: NDArray[np.float64], target: int, head_width: int) -> NDArray[np.float64]:
    """The merging of one clip's tokens [p, D] as the specification words it."""
    features, sizes = [token.copy() for token in tokens], [1] * len(tokens)
    while len(features) > target:
        count = min(len(features) // 2, len(features) - target)
        even, odd = range(0, len(features), 2), range(1, len(features), 2)
        proposals = []  # (similarity, place in A, place in B)
        for a in even:
            best = max(odd, key=lambda b: (_similarity(features[a], features[b], head_width), -b))
            proposals.append((_similarity(features[a], features[best], head_width), a, best))
        proposals.sort(key=lambda each: (-each[0], each[1]))
        for _, a, b in proposals[:count]:
            total = sizes[a] + sizes[b]
            features[b] = (features[a] * sizes[a] + features[b] * sizes[b]) / total
            sizes[b] = total
        # Several tokens may join one of B: the proposals were made before any was merged.
        order = [a for _, a, _ in proposals[count:]] + list(odd)
        features, sizes = [features[i] for i in order], [sizes[i] for i in order]
    return np.stack(features)


def _merged(tokens: NDArray[np.float64], target: int, head_width: int) -> NDArray[np.float64]:
    return merge_tokens(torch.from_numpy(tokens)[None], target, head_width=head_width)[0].numpy()


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), data=st.data(), heads=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_equals_the_loop(count: int, data: st.DataObject, heads: int, seed: int) -> None:
    target = data.draw(st.integers(1, count))
    tokens = np.random.default_rng(seed).normal(size=(count, 4 * heads))
    np.testing.assert_allclose(_merged(tokens, target, 4), _naive(tokens, target, 4), rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(1, 64), patches=st.integers(1, 6), data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_equal_frames_tie_as_the_loop_says(frames: int, patches: int, data: st.DataObject, seed: int) -> None:
    """Every similarity occurs many times, at odd and even numbers of tokens."""
    target = data.draw(st.integers(1, min(16, frames * patches)))
    frame = np.random.default_rng(seed).integers(-2, 3, size=(patches, 8)).astype(np.float64)
    tokens = np.tile(frame, (frames, 1))
    np.testing.assert_allclose(_merged(tokens, target, 4), _naive(tokens, target, 4), rtol=1e-9, atol=1e-9)


def test_ties_go_to_the_earlier_token() -> None:
    # Tokens 0 and 2 are equal, and so are 1 and 3: one merge is wanted, of 0 into 1, and 2 is left.
    one, two = [1.0, 0.0], [1.0, 1.0]
    tokens = np.array([[*one, 0.0], [*two, 3.0], [*one, 6.0], [*two, 9.0]])
    padded = np.concatenate([tokens[:, :2], np.zeros((4, 2)), tokens[:, 2:], np.zeros((4, 3))], axis=1)
    padded[:, 4:8] = 0.0  # the second head adds nothing, so the ties are exact
    marks = np.array([0.0, 0.3, 0.6, 0.9])
    tagged = padded + np.concatenate([np.zeros((4, 3)), marks[:, None], np.zeros((4, 3)), -marks[:, None]], axis=1)
    merged = _merged(tagged, 3, 4)  # marks cancel in the mean over heads and tell who was merged
    np.testing.assert_allclose(merged[:, 3], [0.6, (0.0 + 0.3) / 2, 0.9])


def test_sizes_weigh_the_mean() -> None:
    tokens = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0], [1.0, 0.05], [0.1, 1.0]])
    np.testing.assert_allclose(_merged(tokens, 1, 2)[0], tokens.mean(axis=0))  # whatever was merged when


@pytest.mark.parametrize(
    ("count", "target", "steps"),
    [
        (784, 64, [392, 196, 98, 64]),
        (3136, 64, [1568, 784, 392, 196, 98, 64]),
        (196, 64, [98, 64]),
        (64, 64, []),
        (7, 2, [4, 2]),
        (3, 1, [2, 1]),
    ],
)
def test_published_numbers_of_tokens(count: int, target: int, steps: list[int]) -> None:
    assert merge_steps(count, target) == steps


def test_clips_of_a_batch_do_not_affect_each_other() -> None:
    tokens = torch.from_numpy(np.random.default_rng(3).normal(size=(5, 37, 128))).float()
    together = merge_tokens(tokens, 9)
    assert together.dtype == torch.float32
    assert together.shape == (5, 9, 128)
    for row in range(5):
        torch.testing.assert_close(together[row], merge_tokens(tokens[row : row + 1], 9)[0], rtol=0, atol=0)


def test_rounding_of_features_does_not_decide_ties() -> None:
    """Features of equal frames differ in their last bits, as kernels compute them; the tokens keep their order."""
    generator = np.random.default_rng(5)
    tokens = np.tile(generator.normal(size=(9, 64)), (4, 1))
    noisy = tokens * (1 + generator.uniform(-1, 1, tokens.shape) * 1e-9)
    np.testing.assert_allclose(_merged(noisy, 8, 64), _merged(tokens, 8, 64), rtol=1e-7, atol=1e-7)


def test_gradients_reach_every_token() -> None:
    tokens = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 12, 8))).requires_grad_()
    merge_tokens(tokens, 3, head_width=4).sum().backward()  # type: ignore[no-untyped-call]
    assert tokens.grad is not None
    assert bool((tokens.grad != 0).all())


@pytest.mark.parametrize(("shape", "target"), [((4, 64), 2), ((1, 4, 60), 2), ((1, 4, 64), 5), ((1, 4, 64), 0)])
def test_invalid(shape: tuple[int, ...], target: int) -> None:
    with pytest.raises(UsageError):
        merge_tokens(torch.zeros(shape), target)


def test_carried_columns_are_merged_as_the_tokens_are() -> None:
    tokens = torch.randn(3, 20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sources = torch.eye(20, dtype=torch.float64).expand(3, -1, -1)
    merged, shares = merge_carrying(tokens, sources, 5, head_width=4)
    torch.testing.assert_close(merged, merge_tokens(tokens, 5, head_width=4))
    torch.testing.assert_close(shares @ tokens, merged)
    torch.testing.assert_close(shares.sum(-1), torch.ones(3, 5, dtype=torch.float64))
    assert ((shares > 0).sum(1) == 1).all()  # each token went into one
