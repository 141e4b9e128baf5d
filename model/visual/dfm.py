"""Differential Feature Merging: every frame that is not a keyframe becomes one token (ViLAMP, section 3.2).

For the patches p_n^m of frame n, the patches p_k^m of the nearest preceding keyframe and the query q:

    R_p = cos(p_n^m, q)                          equation 5
    T_p = cos(p_n^m, p_k^m), 0 where there is no keyframe before    equation 6
    D   = R_p − λ T_p                            equation 7
    w   = softmax_m(D / α)                       equation 9
    t_n = Σ_m w p_n^m / Σ_m w                    equation 10

A patch that fits the question and differs from the keyframe weighs most. On CUDA that is one pass over the patches
(`model.visual.dfm_triton`), else plain torch, and the two are tested equal. This module knows tensors only: no frames, files or
language model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.errors import UsageError

__all__ = ["Merge", "Merged", "Run", "merge", "merge_frames", "merge_mean", "pool_grid", "walk"]

# Half-precision patches are widened in slices of at most this many elements (64 MB of float32).
_WIDENED_ELEMENTS = 16 * 2**20
_WIDEST = 2048  # dimensions that the kernel keeps in registers
_log = structlog.get_logger(__name__)


class Merge(Protocol):
    """What `merge` and `merge_mean` share: patches [n, M, d] → one token a frame, [n, d]."""

    def __call__(
        self, patches: Tensor, reference: Tensor | None, query: Tensor, *, alpha: float = 0.01, lam: float = 1.0
    ) -> Tensor: ...


def merge(patches: Tensor, reference: Tensor | None, query: Tensor, *, alpha: float = 0.01, lam: float = 1.0) -> Tensor:
    """Equations 5–7, 9 and 10 for `n` frames that share one reference keyframe.

    Args:
        patches: [n, M, d], any float dtype; n may be 0.
        reference: [M, d], the patches of the preceding keyframe, or None before the first one (T_p = 0).
        query: [d], the question in the same space.
        alpha: softmax temperature, above 0.
        lam: λ, the weight of T_p.

    Returns:
        [n, d] in the dtype of `patches`; arithmetic is float32, or float64 where an argument is. The cosine with a
        zero vector is 0.

    Raises:
        UsageError: a shape, dtype or number that cannot be right.
    """
    _check(patches, reference, query, alpha, lam)
    dtype = torch.promote_types(patches.dtype, torch.promote_types(query.dtype, torch.float32))
    if reference is not None:
        dtype = torch.promote_types(dtype, reference.dtype)
    # cos(p, q) − λ cos(p, r) = p · (q/|q| − λ r/|r|) / |p|: one dot product a patch, nothing normalised is stored.
    direction = _unit(query.to(dtype)).expand(patches.shape[1:])
    if reference is not None:
        direction = direction - lam * _unit(reference.to(dtype))
    fused = _fused(patches, dtype)
    if fused is not None:
        return fused(patches, direction, alpha).to(patches.dtype)
    step = max(1, _WIDENED_ELEMENTS // max(1, patches[0].numel())) if len(patches) else 1
    parts = torch.split(patches, step)
    tokens = [_merge_wide(part.to(dtype), direction, alpha).to(patches.dtype) for part in parts]
    return torch.cat(tokens) if len(tokens) > 1 else tokens[0]


def merge_mean(
    patches: Tensor, reference: Tensor | None, query: Tensor, *, alpha: float = 0.01, lam: float = 1.0
) -> Tensor:
    """The plain mean of a frame's patches, [n, M, d] → [n, d]: the baseline DFM is compared with (table 2)."""
    _check(patches, reference, query, alpha, lam)
    return patches.mean(dim=1, dtype=torch.promote_types(patches.dtype, torch.float32)).to(patches.dtype)


@dataclass(frozen=True, slots=True)
class Merged:
    """What rows `start` to `stop` became: the M patches [M, d] of one keyframe, or one token a frame, [n, d]."""

    start: int
    stop: int
    is_keyframe: bool
    features: Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """Rows `start` to `stop` of one stream: one keyframe, or frames that follow the same one.

    `patches` is [stop − start, M, d], a view of the chunk that was read. `opens` marks the first run of a stream,
    `offset` counts the rows of the stream before `start`, and `segment` its keyframes before `stop`, from 0: 0 for the
    first keyframe and the frames after it, −1 before it.
    """

    start: int
    stop: int
    is_keyframe: bool
    opens: bool
    offset: int
    segment: int
    patches: Tensor


def walk(
    read: Callable[[slice], Tensor], keyframe: NDArray[np.bool_], stream_index: NDArray[np.integer], *, chunk: int
) -> Iterator[Run]:
    """The runs of a window in row order, one chunk of patches in memory at a time.

    Args:
        read: patches [stop − start, M, d] of a slice of rows; called with ascending slices of at most `chunk` rows.
        keyframe: bool[N].
        stream_index: int[N]; the rows of a stream stand together, ascending in time.
        chunk: most rows read at once.

    Raises:
        UsageError: arrays of different length, a stream in two places, or a reader that gives too few rows.
    """
    total = len(keyframe)
    if len(stream_index) != total:
        raise UsageError(f"keyframe has {total} rows and stream_index {len(stream_index)}; they must agree")
    begins = np.concatenate([[True], stream_index[1:] != stream_index[:-1]]) if total else np.zeros(0, bool)
    if int(begins.sum()) != len(np.unique(stream_index)):
        raise UsageError("the rows of one stream are not together; sort the window by stream and time")
    opened, segment = 0, -1
    for first in range(0, total, chunk):
        last = min(first + chunk, total)
        block = read(slice(first, last))
        if len(block) != last - first:
            raise UsageError(f"rows {first} to {last}: expected patches of {last - first} frames, got {len(block)}")
        start = first
        while start < last:
            opens = bool(begins[start])
            if opens:
                opened, segment = start, -1
            stop = start + 1
            if keyframe[start]:
                segment += 1
            else:
                cuts = np.flatnonzero(keyframe[start + 1 : last] | begins[start + 1 : last])
                stop = start + 1 + int(cuts[0]) if len(cuts) else last
            patches = block[start - first : stop - first]
            yield Run(start, stop, bool(keyframe[start]), opens, start - opened, segment, patches)
            start = stop


def merge_frames(
    read: Callable[[slice], Tensor],
    keyframe: NDArray[np.bool_],
    stream_index: NDArray[np.integer],
    query: Tensor,
    *,
    alpha: float = 0.01,
    lam: float = 1.0,
    merge: Merge = merge,
    chunk: int = 64,
) -> Iterator[Merged]:
    """Walk a window in row order and merge every frame against the nearest preceding keyframe of its own stream.

    At most one chunk of patches and one keyframe are in memory.

    Args:
        read, keyframe, stream_index, chunk: see `walk`.
        query: [d].
        alpha, lam: see `merge`.
        merge: how a frame becomes a token.

    Yields:
        `Merged` pieces that cover all rows in order.

    Raises:
        UsageError: what `walk` and `merge` refuse.
    """
    reference: Tensor | None = None
    for run in walk(read, keyframe, stream_index, chunk=chunk):
        if run.opens:
            reference = None
        if run.is_keyframe:
            # A view would keep the whole chunk alive.
            reference = run.patches[0].clone()
            yield Merged(run.start, run.stop, True, reference)
        else:
            tokens = merge(run.patches, reference, query, alpha=alpha, lam=lam)
            yield Merged(run.start, run.stop, False, tokens)


def pool_grid(features: Tensor, tokens: int) -> Tensor:
    """The square grid of M features [M, d], resized bilinearly to `tokens` [tokens, d] (27 × 27 to 14 × 14, say).

    The corners of the two grids are not aligned and nothing is blurred first, as the released code does. Every output
    is a mean with weights that sum to one, so pooling may stand before or after a linear layer.

    Raises:
        UsageError: M or `tokens` is not a square, or there are fewer patches than tokens.
    """
    if tokens == len(features):
        return features
    side, wanted = math.isqrt(len(features)), math.isqrt(tokens)
    if side * side != len(features) or wanted * wanted != tokens or not 0 < wanted <= side:
        raise UsageError(f"keyframe_tokens {tokens}: cannot pool {len(features)} patches so; both must be squares")
    grid = features.T.reshape(1, -1, side, side)
    pooled = torch.nn.functional.interpolate(grid, (wanted, wanted), mode="bilinear", align_corners=False)
    return pooled.reshape(-1, tokens).T


_Fused = Callable[[Tensor, Tensor, float], Tensor]


def _fused(patches: Tensor, dtype: torch.dtype) -> _Fused | None:
    """The kernel of `model.visual.dfm_triton` where it can do the work, which is in float32 on a GPU that Triton knows."""
    if not patches.is_cuda or dtype != torch.float32 or not len(patches) or patches.shape[2] > _WIDEST:
        return None
    return _tried(patches.device)


@cache
def _tried(device: torch.device) -> _Fused | None:
    """The kernel, once it has given on this device what plain torch gives; else None, and a warning says why.

    Triton compiles when it is first called: that takes a driver it knows and a C compiler, which not every machine has.
    """
    try:
        from model.visual.dfm_triton import merge_fused

        generator = torch.Generator(device).manual_seed(0)
        patches = torch.randn(5, 37, 48, device=device, generator=generator)
        direction = torch.randn(37, 48, device=device, generator=generator)
        torch.testing.assert_close(
            merge_fused(patches, direction, 0.3), _merge_wide(patches, direction, 0.3), rtol=1e-2, atol=1e-3
        )
    except torch.OutOfMemoryError:
        raise  # one request's trouble; the next may try again
    except Exception as error:  # whatever a compiler, a driver or a missing package brings
        _log.warning("DFM runs in plain torch here", device=str(device), problem=str(error).strip()[:500])
        return None
    return merge_fused


def _merge_wide(patches: Tensor, direction: Tensor, alpha: float) -> Tensor:
    """patches [n, M, d] and direction [M, d] in the dtype of the arithmetic → [n, d]."""
    length: Tensor = torch.linalg.vector_norm(patches, dim=-1)
    differential = torch.einsum("nmd,md->nm", patches, direction) / length.masked_fill(length == 0, 1.0)
    # softmax already sums to one, which is the division by Σ w of equation 10.
    weights = torch.softmax(differential / alpha, dim=-1)
    return torch.bmm(weights.unsqueeze(1), patches).squeeze(1)


def _unit(vectors: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / length.masked_fill(length == 0, 1.0)


def _check(patches: Tensor, reference: Tensor | None, query: Tensor, alpha: float, lam: float) -> None:
    if patches.ndim != 3 or patches.shape[1] == 0 or patches.shape[2] == 0:
        raise UsageError(f"patches: expected shape [n, M, d] with M and d above 0, got {list(patches.shape)}")
    _, m, d = patches.shape
    given = {"patches": patches, "query": query}
    if query.shape != (d,):
        raise UsageError(f"query: expected shape [{d}] as the patches have {d} dimensions, got {list(query.shape)}")
    if reference is not None:
        given["reference"] = reference
        if reference.shape != (m, d):
            raise UsageError(f"reference: expected shape [{m}, {d}] like one frame, got {list(reference.shape)}")
    for name, tensor in given.items():
        if not tensor.is_floating_point():
            raise UsageError(f"{name}: expected a float dtype, got {tensor.dtype}")
        if tensor.device != patches.device:
            raise UsageError(f"{name} is on {tensor.device}, the patches are on {patches.device}; move one of them")
    if not (math.isfinite(alpha) and alpha > 0):
        raise UsageError(f"alpha must be a finite number above 0, got {alpha}")
    if not math.isfinite(lam):
        raise UsageError(f"lam must be finite, got {lam}")
