"""Differential Feature Merging (DFM): every frame that is not a keyframe becomes one token (ViLAMP, section 3.2).

For the patches p_n^m of frame n, the patches p_k^m of the nearest preceding keyframe, and the question q:

    D   = R_p − λ T_p                            equation 5, differential saliency
    R_p = cos(p_n^m, q)                          equation 6, relevance to the question
    T_p = cos(p_n^m, p_k^m)                      equation 7, similarity to the keyframe; 0 before the first keyframe
    t_n = Σ_m w p_n^m / Σ_m w                    equation 9, the token of the frame
    w   = softmax_m(D / α)                       equation 10, weights of the patches

A patch that is relevant to the question and differs from the keyframe has the largest weight. On CUDA one kernel reads
the patches once (`model.visual.dfm_triton`), otherwise plain torch computes the same. Knows tensors only: no frames,
files or language models.
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

__all__ = [
    "FrameRun",
    "FrameTokens",
    "Merge",
    "checked_kernel",
    "iterate_runs",
    "merge",
    "merge_frames",
    "merge_mean",
    "merge_plain",
    "merge_weights",
    "pool_grid",
]

# Half-precision patches are converted in slices of at most this many elements (64 MB of float32).
_WIDENED_ELEMENTS = 16 * 2**20
_MAX_KERNEL_DIMENSION = 2048  # the kernel keeps a patch in registers
_log = structlog.get_logger(__name__)


class Merge(Protocol):
    """A way to merge frames: patches [n, M, d] to one token for each frame, [n, d]. `merge` and `merge_mean` are
    two."""

    def __call__(
        self, patches: Tensor, reference: Tensor | None, query: Tensor, *, alpha: float = 0.01, lam: float = 1.0
    ) -> Tensor:
        """Merge n frames; the arguments are those of `merge`."""


def merge(patches: Tensor, reference: Tensor | None, query: Tensor, *, alpha: float = 0.01, lam: float = 1.0) -> Tensor:
    """Merge `n` frames that share one reference keyframe (equations 5-10).

    Args:
        patches: [n, M, d], any float dtype; n may be 0.
        reference: [M, d], the patches of the preceding keyframe; None before the first keyframe (T_p = 0).
        query: [d], the question in the space of the patches.
        alpha: softmax temperature, above 0.
        lam: λ, the weight of T_p.

    Returns:
        [n, d] in the dtype of `patches`. Arithmetic is float32, or float64 if an argument is. The cosine with a zero
        vector is 0.

    Raises:
        UsageError: a shape, a dtype, a device or a number is invalid.
    """
    _check(patches, reference, query, alpha, lam)
    direction = _direction(patches, reference, query, lam)
    fused = _kernel_for(patches, direction.dtype)
    if fused is not None:
        return fused(patches, direction, alpha).to(patches.dtype)
    return _merge_plain(patches, direction, alpha)


def merge_plain(
    patches: Tensor, reference: Tensor | None, query: Tensor, *, alpha: float = 0.01, lam: float = 1.0
) -> Tensor:
    """`merge` in plain torch, on a GPU too: what its kernel is compared with.

    Raises:
        UsageError: see `merge`.
    """
    _check(patches, reference, query, alpha, lam)
    return _merge_plain(patches, _direction(patches, reference, query, lam), alpha)


def merge_weights(
    patches: Tensor, reference: Tensor | None, query: Tensor, *, alpha: float = 0.01, lam: float = 1.0
) -> Tensor:
    """The weights w of the patches in `merge` (equation 10), [n, M]; those of a frame sum to 1. Arguments as `merge`.

    Raises:
        UsageError: see `merge`.
    """
    _check(patches, reference, query, alpha, lam)
    direction = _direction(patches, reference, query, lam)
    return _weights(patches.to(direction.dtype), direction, alpha)


def merge_mean(
    patches: Tensor, reference: Tensor | None, query: Tensor, *, alpha: float = 0.01, lam: float = 1.0
) -> Tensor:
    """Mean of each frame's patches, [n, M, d] to [n, d]: the baseline of DFM (ViLAMP, table 2). Ignores the other
    arguments.

    Raises:
        UsageError: see `merge`.
    """
    _check(patches, reference, query, alpha, lam)
    return patches.mean(dim=1, dtype=torch.promote_types(patches.dtype, torch.float32)).to(patches.dtype)


@dataclass(frozen=True, slots=True)
class FrameTokens:
    """The tokens of rows `start` to `stop` - 1: of one keyframe, or of frames that follow the same keyframe."""

    start: int
    """First row."""
    stop: int
    """Row after the last."""
    is_keyframe: bool
    """Whether it is one keyframe."""
    features: Tensor
    """The M patches of a keyframe, [M, d], or one token for each frame, [n, d]."""


@dataclass(frozen=True, slots=True)
class FrameRun:
    """Successive rows `start` to `stop` - 1 of one stream: one keyframe, or frames that follow the same keyframe."""

    start: int
    """First row."""
    stop: int
    """Row after the last."""
    is_keyframe: bool
    """Whether it is one keyframe."""
    starts_stream: bool
    """Whether it is the first run of its stream."""
    offset: int
    """Rows of the stream before `start`."""
    keyframe_index: int
    """Index of the keyframe, or of the one that the frames follow, in its stream; -1 before the first keyframe."""
    patches: Tensor
    """[stop - start, M, d], a view of the chunk that was read."""


def iterate_runs(
    read: Callable[[slice], Tensor], keyframe: NDArray[np.bool_], stream_index: NDArray[np.integer], *, chunk: int
) -> Iterator[FrameRun]:
    """Yield the runs of a window in row order, with one chunk of patches in memory at a time.

    Args:
        read: patches [stop − start, M, d] of a slice of rows; called with ascending slices of at most `chunk` rows.
        keyframe: bool[N], True for keyframes.
        stream_index: int[N]; the rows of a stream are contiguous and ascend in time.
        chunk: most rows read at once.

    Raises:
        UsageError: the arrays differ in length, the rows of a stream are not contiguous, or `read` returns too few
            rows.
    """
    total = len(keyframe)
    if len(stream_index) != total:
        raise UsageError(f"keyframe has {total} rows and stream_index {len(stream_index)}; they must agree")
    begins = np.concatenate([[True], stream_index[1:] != stream_index[:-1]]) if total else np.zeros(0, bool)
    if int(begins.sum()) != len(np.unique(stream_index)):
        raise UsageError("the rows of one stream are not together; sort the window by stream and time")
    first_of_stream, keyframe_index = 0, -1
    for first in range(0, total, chunk):
        last = min(first + chunk, total)
        block = read(slice(first, last))
        if len(block) != last - first:
            raise UsageError(f"rows {first} to {last}: expected patches of {last - first} frames, got {len(block)}")
        start = first
        while start < last:
            starts_stream = bool(begins[start])
            if starts_stream:
                first_of_stream, keyframe_index = start, -1
            stop = start + 1
            if keyframe[start]:
                keyframe_index += 1
            else:
                cuts = np.flatnonzero(keyframe[start + 1 : last] | begins[start + 1 : last])
                stop = start + 1 + int(cuts[0]) if len(cuts) else last
            patches = block[start - first : stop - first]
            offset = start - first_of_stream
            yield FrameRun(start, stop, bool(keyframe[start]), starts_stream, offset, keyframe_index, patches)
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
) -> Iterator[FrameTokens]:
    """Merge the frames of a window in row order, each with the nearest preceding keyframe of its stream as reference.

    At most one chunk of patches and one keyframe are in memory.

    Args:
        read, keyframe, stream_index, chunk: see `iterate_runs`.
        query: [d], the question.
        alpha, lam: see `merge`.
        merge: how a frame becomes a token.

    Yields:
        `FrameTokens` that cover all rows in order.

    Raises:
        UsageError: see `iterate_runs` and `merge`.
    """
    reference: Tensor | None = None
    for run in iterate_runs(read, keyframe, stream_index, chunk=chunk):
        if run.starts_stream:
            reference = None
        if run.is_keyframe:
            # A view would keep the whole chunk in memory.
            reference = run.patches[0].clone()
            yield FrameTokens(run.start, run.stop, True, reference)
        else:
            tokens = merge(run.patches, reference, query, alpha=alpha, lam=lam)
            yield FrameTokens(run.start, run.stop, False, tokens)


def pool_grid(features: Tensor, tokens: int) -> Tensor:
    """Resize a square grid of M features [M, d] bilinearly to [tokens, d], such as 27 × 27 to 14 × 14.

    As in the released code, corners are not aligned and there is no antialiasing. Every output is a weighted mean with
    weights that sum to one, so pooling commutes with a linear layer.

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


Kernel = Callable[[Tensor, Tensor, float], Tensor]


def _kernel_for(patches: Tensor, dtype: torch.dtype) -> Kernel | None:
    """The kernel of `model.visual.dfm_triton` if it applies: float32 arithmetic on a GPU that Triton supports."""
    if not patches.is_cuda or dtype != torch.float32 or not len(patches) or patches.shape[2] > _MAX_KERNEL_DIMENSION:
        return None
    return checked_kernel(patches.device)


@cache
def checked_kernel(device: torch.device) -> Kernel | None:
    """The kernel for `device`, after a check that it computes what plain torch computes; None if the check fails.

    A failure is logged as a warning. Triton compiles at the first call, which needs a driver that it supports and a C
    compiler.
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
        raise  # fails this request alone; the next one tries again
    except Exception as error:  # compilers, drivers and missing packages raise many types
        _log.warning("DFM runs in plain torch here", device=str(device), problem=str(error).strip()[:500])
        return None
    return merge_fused


def _direction(patches: Tensor, reference: Tensor | None, query: Tensor, lam: float) -> Tensor:
    """q/|q| − λ r/|r| for each place, [M, d], in the dtype of the arithmetic.

    cos(p, q) − λ cos(p, r) = p · (q/|q| − λ r/|r|) / |p|: one dot product for each patch; nothing normalised is stored.
    """
    dtype = torch.promote_types(patches.dtype, torch.promote_types(query.dtype, torch.float32))
    if reference is not None:
        dtype = torch.promote_types(dtype, reference.dtype)
    direction = _unit(query.to(dtype)).expand(patches.shape[1:])
    return direction if reference is None else direction - lam * _unit(reference.to(dtype))


def _merge_plain(patches: Tensor, direction: Tensor, alpha: float) -> Tensor:
    """Tokens [n, d] of patches [n, M, d] in their dtype; n may be 0."""
    step = max(1, _WIDENED_ELEMENTS // max(1, patches[0].numel())) if len(patches) else 1
    parts = torch.split(patches, step)
    tokens = [_merge_wide(part.to(direction.dtype), direction, alpha).to(patches.dtype) for part in parts]
    return torch.cat(tokens) if len(tokens) > 1 else tokens[0]


def _merge_wide(patches: Tensor, direction: Tensor, alpha: float) -> Tensor:
    """Tokens [n, d] of patches [n, M, d] and directions [M, d], both in the dtype of the arithmetic."""
    # softmax already sums to one, which is the division by Σ w in equation 9.
    return torch.bmm(_weights(patches, direction, alpha).unsqueeze(1), patches).squeeze(1)


def _weights(patches: Tensor, direction: Tensor, alpha: float) -> Tensor:
    """Weights [n, M] of patches [n, M, d] and directions [M, d], both in the dtype of the arithmetic."""
    length: Tensor = torch.linalg.vector_norm(patches, dim=-1)
    differential = torch.einsum("nmd,md->nm", patches, direction) / length.masked_fill(length == 0, 1.0)
    return torch.softmax(differential / alpha, dim=-1)


def _unit(vectors: Tensor) -> Tensor:
    """Vectors [..., d] scaled to unit norm; zero vectors stay zero."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / length.masked_fill(length == 0, 1.0)


def _check(patches: Tensor, reference: Tensor | None, query: Tensor, alpha: float, lam: float) -> None:
    """Raise UsageError for arguments of `merge` that are invalid."""
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
