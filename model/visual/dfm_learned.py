"""The learned merger of the published `_sig` weights: DFM after the projector, with learned directions.

For the patches p of a frame, those of its reference frame p_r, and the CLIP embedding t of the question (not of unit
length):

    x = W2 g + b2,  g = GELU(W1 p + b1)               the projector, into the language model's space
    R = cos(linear_q(t), linear_iq(x))                relevance
    T = cos(linear_k(x_r), linear_ik(x))              similarity to the same place of the reference
    w = softmax((R − λ T) / tau)                      over the patches of the frame; tau is learned
    token = Σ w x                                     without a second MLP

A frame before the first keyframe is its own reference. The reference of the frames after the i-th keyframe (i from 0)
is that keyframe, or, as in the released code, the i-th frame of the video.

This module computes the same in exact arithmetic, with products of weights folded. linear_iq, linear_ik and linear_k
are linear in g, so each is one matrix: linear_iq(x) = A g + a with A = W_iq W2. Then

    numerator of R = g · (Aᵀ linear_q(t)) + …         one vector a question
    numerator of T = g · (A_ikᵀ linear_k(x_r)) + …    one vector a place of the reference
    token          = W2 (Σ w g) + b2                  because Σ w = 1

and the norms of linear_iq(x) and linear_ik(x) do not depend on the question: two numbers for each patch, which the
caller may pass if they are stored (`norms`). So x is computed for tokens alone, and memory holds one reference, a slice
of g, and, for `segment_index`, at most as many early frames as there are keyframes.

Knows tensors only: no stores, profiles or language models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from index.errors import UsageError
from model.visual.dfm import FrameTokens, iterate_runs, pool_grid

__all__ = ["Composer", "LearnedMerger", "ReferenceFrame", "projector_mlp"]

ReferenceFrame = Literal["segment_index", "keyframe"]
# Hidden features g of one slice: 64 MB of float32 on a CPU, 512 MB on CUDA, where small slices cost kernel launches.
_SLICE_ELEMENTS = {"cpu": 16 * 2**20, "cuda": 128 * 2**20}


def projector_mlp(patch_dim: int, width: int) -> nn.Sequential:
    """A projector `mlp2x_gelu`: Linear, GELU, Linear, from `patch_dim` to the language model's `width`."""
    return nn.Sequential(nn.Linear(patch_dim, width), nn.GELU(), nn.Linear(width, width))


class Composer(nn.Module):
    """The tensors of the learned merger under their names in the checkpoint: four linear layers and `tau`."""

    def __init__(self, query_dim: int, width: int) -> None:
        super().__init__()
        self.linear_q = nn.Linear(query_dim, width)
        self.linear_iq = nn.Linear(width, width)
        self.linear_ik = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.tau = nn.Parameter(torch.tensor(0.01))


@dataclass(frozen=True, slots=True)
class _Direction:
    """A unit direction in the space of g: cosine = (g · vector + offset) / norm."""

    vector: Tensor
    """[h], or [M, h] for a direction for each place."""
    offset: Tensor
    """Scalar, or [M]."""


class LearnedMerger:
    """The folded merger of one checkpoint, on the device and in the dtype of its `projector`.

    Products with single vectors, norms, softmax and sums are float32 (float64 if the weights are).

    Args:
        projector: see `projector_mlp`.
        composer: see `Composer`; not needed afterwards.
        lam: λ.
        reference_frame: the reference of the frames after the i-th keyframe.
        keyframe_tokens: tokens of a keyframe, a square number no larger than M; None for all M patches.
        mean: give all patches equal weights, the baseline of DFM.
        slice_elements: most elements of g in memory; None for a default by device.
        trainable: let gradients reach projector and composer. The weights are folded once, so every step needs a new
            instance. Activations are recomputed in the backward pass, one slice at a time.
    """

    def __init__(
        self,
        projector: nn.Sequential,
        composer: Composer,
        *,
        lam: float = 1.0,
        reference_frame: ReferenceFrame = "keyframe",
        keyframe_tokens: int | None = None,
        mean: bool = False,
        slice_elements: int | None = None,
        trainable: bool = False,
    ) -> None:
        self.trainable = trainable
        first, last = projector[0], projector[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        self.first, self.last = first, last
        self.dtype, self.device = first.weight.dtype, first.weight.device
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.width, self.patch_dim = first.weight.shape
        self.query_dim = composer.linear_q.in_features
        self.lam, self.reference_frame, self.mean = lam, reference_frame, mean
        self.keyframe_tokens = keyframe_tokens
        self.linear_q = composer.linear_q
        with torch.set_grad_enabled(trainable and torch.is_grad_enabled()):
            self.alpha = (composer.tau if trainable else composer.tau.detach()).to(self.wide)
            self.iq = self._folded(composer.linear_iq)
            self.ik = self._folded(composer.linear_ik)
            self.k = self._folded(composer.linear_k)
        self._elements = slice_elements or _SLICE_ELEMENTS.get(self.device.type, _SLICE_ELEMENTS["cpu"])

    def _folded(self, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight and bias of the composition of `layer` and W2, a function of g."""
        weight, bias = layer.weight.to(self.wide), layer.bias.to(self.wide)
        second, offset = self.last.weight.to(self.wide), self.last.bias.to(self.wide)
        return (weight @ second).to(self.dtype), (weight @ offset + bias).to(self.dtype)

    @torch.no_grad()
    def norms(self, patches: Tensor) -> Tensor:
        """‖linear_iq(x)‖ and ‖linear_ik(x)‖ of patches [n, M, patch_dim], [n, M, 2]; may be stored beside them."""
        parts = [self._norms(self._hidden(part)) for part in self._slices(patches)]
        return torch.cat(parts) if parts else torch.zeros(0, patches.shape[1], 2, dtype=self.wide, device=self.device)

    def tokens(
        self,
        read: Callable[[slice], Tensor],
        keyframe: NDArray[np.bool_],
        stream_index: NDArray[np.integer],
        query: Tensor,
        *,
        read_norms: Callable[[slice], Tensor] | None = None,
        chunk: int = 64,
        stage: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> Iterator[FrameTokens]:
        """Turn every frame of a window, in row order, into tokens of the language model.

        Args:
            read, keyframe, stream_index, chunk: see `model.visual.dfm.iterate_runs`; every stream counts as one video.
            query: [query_dim], the CLIP embedding of the question as the text tower gives it, not normalised.
            read_norms: returns the `norms` of a slice of rows, [n, M, 2]; None to compute them.
            stage: a context manager that measures `projector` (tokens of keyframes) and `dfm` (all other work, the
                first layer of the projector included).

        Yields:
            `FrameTokens` in the language model's space: [keyframe_tokens, width] or [n, width].

        Raises:
            UsageError: a shape is invalid; see also `iterate_runs`.
        """
        if query.shape != (self.query_dim,):
            raise UsageError(f"query: expected shape [{self.query_dim}], got {list(query.shape)}")
        tokens = LearnedMerger._tokens if self.trainable else torch.no_grad()(LearnedMerger._tokens)
        yield from tokens(self, read, keyframe, stream_index, query, read_norms, chunk, stage)

    def _tokens(
        self,
        read: Callable[[slice], Tensor],
        keyframe: NDArray[np.bool_],
        stream_index: NDArray[np.integer],
        query: Tensor,
        read_norms: Callable[[slice], Tensor] | None,
        chunk: int,
        stage: Callable[[str], AbstractContextManager[None]],
    ) -> Iterator[FrameTokens]:
        weight, bias = self.linear_q.weight.to(self.wide), self.linear_q.bias.to(self.wide)
        question = self._toward(functional.linear(query.to(self.device, self.wide), weight, bias), self.iq)
        early: dict[int, Tensor] = {}  # by offset in the stream: frames that serve later as references
        wanted = 0
        reference: _Direction | None = None
        for run in iterate_runs(read, keyframe, stream_index, chunk=chunk):
            if run.patches.ndim != 3 or run.patches.shape[2] != self.patch_dim:
                raise UsageError(f"patches: expected [n, M, {self.patch_dim}], got {list(run.patches.shape)}")
            if run.starts_stream:
                early.clear()
                wanted = int(keyframe[stream_index == stream_index[run.start]].sum())
            if self.reference_frame == "segment_index":
                for offset in range(run.offset, min(run.offset + run.stop - run.start, wanted)):
                    early[offset] = run.patches[offset - run.offset].clone()
            if run.is_keyframe:
                reference = None
                if self.reference_frame == "keyframe":
                    early[run.keyframe_index] = run.patches[0].clone()
                early.pop(run.keyframe_index - 1, None)
                with stage("projector"):
                    features = self._keyframe(run.patches[0])
                yield FrameTokens(run.start, run.stop, True, features)
                continue
            norms = read_norms(slice(run.start, run.stop)) if read_norms is not None else None
            with stage("dfm"):
                if run.keyframe_index < 0:
                    reference = None
                elif reference is None:
                    reference = self._reference(early[run.keyframe_index])
                features = self._merge(run.patches, reference, question, norms)
            yield FrameTokens(run.start, run.stop, False, features)

    def _hidden(self, patches: Tensor) -> Tensor:
        """g of patches [..., patch_dim], [..., h]."""
        return functional.gelu(self.first(patches.to(self.device, self.dtype)))

    def _linear(self, hidden: Tensor, folded: tuple[Tensor, Tensor]) -> Tensor:
        return functional.linear(hidden, *folded).to(self.wide)

    def _norms(self, hidden: Tensor) -> Tensor:
        return torch.stack([self._computed(hidden, folded) for folded in (self.iq, self.ik)], dim=-1)

    def _computed(self, hidden: Tensor, folded: tuple[Tensor, Tensor]) -> Tensor:
        """‖folded(g)‖ of g [..., h], [...]; accumulated in float32 without a float32 copy."""
        length: Tensor = torch.linalg.vector_norm(functional.linear(hidden, *folded), dim=-1, dtype=self.wide)
        return length

    def _length(self, hidden: Tensor, folded: tuple[Tensor, Tensor], norms: Tensor | None, which: int) -> Tensor:
        """Norms [n, M], given or computed; 1 for zero vectors, whose cosine is then 0."""
        length = self._computed(hidden, folded) if norms is None else norms[..., which].to(self.device, self.wide)
        return length.masked_fill(length == 0, 1.0)

    def _slices(self, patches: Tensor) -> tuple[Tensor, ...]:
        step = max(1, self._elements // max(1, patches.shape[1] * self.width))
        return torch.split(patches, step) if len(patches) else ()

    def _toward(self, vectors: Tensor, folded: tuple[Tensor, Tensor]) -> _Direction:
        """The directions of `vectors` [..., width], outputs of the folded layer, in the space of g."""
        unit = functional.normalize(vectors.to(self.wide), dim=-1, eps=torch.finfo(self.wide).tiny)
        weight, bias = (tensor.to(self.wide) for tensor in folded)
        return _Direction(unit @ weight, unit @ bias)

    def _reference(self, patches: Tensor) -> _Direction:
        """linear_k of one frame's patches [M, patch_dim] as directions for linear_ik."""
        return self._toward(self._linear(self._hidden(patches), self.k), self.ik)

    def _keyframe(self, patches: Tensor) -> Tensor:
        """Tokens [keyframe_tokens, width] of a keyframe's patches [M, patch_dim]; pooled before the last layer, which
        is linear."""
        hidden = self._hidden(patches)
        if self.keyframe_tokens is not None:
            hidden = pool_grid(hidden.to(self.wide), self.keyframe_tokens).to(self.dtype)
        tokens: Tensor = self.last(hidden)
        return tokens

    def _merge(
        self, patches: Tensor, reference: _Direction | None, question: _Direction, norms: Tensor | None
    ) -> Tensor:
        """Tokens [n, width] of frames [n, M, patch_dim] that share a reference; None if each frame is its own."""
        pooled, start = [], 0
        for part in self._slices(patches):
            given = norms[start : start + len(part)] if norms is not None else None
            start += len(part)
            if self.trainable:
                pooled.append(checkpoint(self._pooled, part, reference, question, given, use_reentrant=False))
            else:
                pooled.append(self._pooled(part, reference, question, given))
        tokens: Tensor = self.last(torch.cat(pooled).to(self.dtype))
        return tokens

    def _pooled(
        self, patches: Tensor, reference: _Direction | None, question: _Direction, norms: Tensor | None
    ) -> Tensor:
        """Σ w g of patches [n, M, patch_dim], [n, h]."""
        hidden = self._hidden(patches)
        if self.mean:
            return hidden.to(self.wide).mean(dim=1)
        near = self._length(hidden, self.iq, norms, 0)
        if reference is None:
            own, seen = self._linear(hidden, self.k), self._linear(hidden, self.ik)
            similarity = functional.cosine_similarity(own, seen, dim=-1, eps=torch.finfo(self.wide).tiny)
            del own, seen
            g = hidden.to(self.wide)
        else:
            far = self._length(hidden, self.ik, norms, 1)
            g = hidden.to(self.wide)
            similarity = (torch.einsum("nmh,mh->nm", g, reference.vector) + reference.offset) / far
        relevance = (g @ question.vector + question.offset) / near
        weights = torch.softmax((relevance - self.lam * similarity) / self.alpha, dim=-1)
        return torch.bmm(weights.unsqueeze(1), g).squeeze(1)
