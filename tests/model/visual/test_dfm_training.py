"""Gradients of DFM: the paper's form by finite differences, the folded learned form against the unfolded one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from model.visual.dfm import merge, pool_grid
from model.visual.dfm_learned import Composer, LearnedMerger, ReferenceFrame, projector_mlp

PATCH, WIDTH, QUERY, PATCHES = 5, 6, 4, 9
KEYFRAMES = [False, True, False, False, True, True, False]


@pytest.mark.parametrize("alone", [False, True], ids=["reference", "no reference"])
def test_gradients_of_the_papers_form(alone: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    patches, reference, query = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 4, PATCH), (4, PATCH), (PATCH,))
    )
    torch.autograd.gradcheck(lambda p, r, q: merge(p, None if alone else r, q, alpha=0.5), (patches, reference, query))


@contextmanager
def _double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _naive(
    projector: nn.Sequential, composer: Composer, patches: Tensor, query: Tensor, reference_frame: ReferenceFrame
) -> Tensor:
    """The tokens of one video frame by frame, by the equations, after the projector and without any folding."""
    x = projector(patches)
    asked = composer.linear_q(query)
    tokens, segment = [], -1
    order = [n for n, keyframe in enumerate(KEYFRAMES) if keyframe]
    for n, keyframe in enumerate(KEYFRAMES):
        if keyframe:
            segment += 1
            tokens.append(pool_grid(x[n], 4))
            continue
        other = n if segment < 0 else segment if reference_frame == "segment_index" else order[segment]
        relevance = functional.cosine_similarity(composer.linear_iq(x[n]), asked.unsqueeze(0), dim=-1)
        similarity = functional.cosine_similarity(composer.linear_ik(x[n]), composer.linear_k(x[other]), dim=-1)
        weights = torch.softmax((relevance - similarity) / composer.tau, dim=0)
        tokens.append((weights.unsqueeze(1) * x[n]).sum(0, keepdim=True))
    return torch.cat(tokens)


@pytest.mark.parametrize("reference_frame", ["keyframe", "segment_index"])
@pytest.mark.parametrize("slices", [None, 2 * PATCHES * WIDTH])
def test_gradients_of_the_folded_form_are_those_of_the_unfolded(
    reference_frame: ReferenceFrame, slices: int | None
) -> None:
    torch.manual_seed(7)
    with _double():
        projector, composer = projector_mlp(PATCH, WIDTH), Composer(QUERY, WIDTH)
        composer.tau.data.fill_(0.3)
        patches = torch.randn(len(KEYFRAMES), PATCHES, PATCH, requires_grad=True)
        query, weight = torch.randn(QUERY), torch.randn(WIDTH)
    learned = {**dict(projector.named_parameters()), **dict(composer.named_parameters()), "patches": patches}
    expected = _naive(projector, composer, patches, query, reference_frame)
    torch.autograd.backward((expected @ weight).sin().sum())
    wanted = {name: p.grad.clone() for name, p in learned.items() if p.grad is not None}
    assert wanted.keys() == learned.keys()
    for parameter in learned.values():
        parameter.grad = None
    merger = LearnedMerger(
        projector,
        composer,
        reference_frame=reference_frame,
        keyframe_tokens=4,
        slice_elements=slices,
        trainable=True,
    )
    rows = merger.tokens(
        lambda rows: patches[rows], np.array(KEYFRAMES), np.zeros(len(KEYFRAMES), np.int64), query, chunk=3
    )
    got = torch.cat([piece.features for piece in rows])
    torch.testing.assert_close(got, expected)
    torch.autograd.backward((got @ weight).sin().sum())
    for name, parameter in learned.items():
        assert float(wanted[name].abs().max()) > 0, name
        torch.testing.assert_close(parameter.grad, wanted[name], msg=name)


def test_without_being_asked_no_gradient_is_kept() -> None:
    merger = LearnedMerger(projector_mlp(PATCH, WIDTH), Composer(QUERY, WIDTH))
    patches = torch.randn(2, PATCHES, PATCH)
    pieces = merger.tokens(lambda rows: patches[rows], np.array([True, False]), np.zeros(2, np.int64), torch.randn(4))
    assert not any(piece.features.requires_grad for piece in pieces)


def test_recomputing_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    projector, composer = projector_mlp(PATCH, WIDTH), Composer(QUERY, WIDTH)
    patches, query = torch.randn(3, PATCHES, PATCH), torch.randn(QUERY)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return checkpoint(*args, **kwargs)

    monkeypatch.setattr("model.visual.dfm_learned.checkpoint", counted)
    both = []
    for trainable in (False, True):
        merger = LearnedMerger(projector, composer, trainable=trainable)
        pieces = merger.tokens(lambda rows: patches[rows], np.array([True, False, False]), np.zeros(3, np.int64), query)
        both.append(torch.cat([piece.features for piece in pieces]).detach())
        assert calls == int(trainable)
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=0)
