"""The CUDA kernel of DFM: each patch is read from the GPU's memory once (ViLAMP, section 3.2, equations 5-10).

The plain form in `model.visual.dfm` reads a frame's patches three times (norms, products with the direction, weighted
sum) and writes them in float32 in between. Here a program holds one place of a few frames in registers, computes norm,
product and, as in an online softmax, its term of the sum, and continues with the next place. The frames share the
direction's row of that place, which comes from the L2 cache. With too few frames to occupy the GPU, the patches of a
frame are split among programs, and the partial sums are combined at the end.

Bytes moved, in half precision: 2·n·M·d of patches, 4·M·d of directions, and 4·n·d for each split, written and read
again. A split has 16 patches or more, so the splits add at most a quarter of the patches' bytes, and only for few
frames.

Imported only on machines with a GPU, and by the tests, which run it in Triton's interpreter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["WARPS", "blocks_of", "frames_of", "merge_fused", "partial_merge"]

WARPS = 4
"""Warps of one program."""
_FRAMES = 8  # of one program at most; a power of two
_VALUES = 9216  # of one place of all frames of a program: what fits into the registers of its warps, twice
_MIN_PLACES = 16  # of one split, which writes one sum, float32[d]
_PROGRAMS = 8  # for each multiprocessor of the GPU


def blocks_of(d: int) -> tuple[int, int]:
    """Two powers of two that cover d columns, the second as small as possible: 1152 is 1024 and 128.

    A block of Triton has a power of two of columns. One block of 2048 would compute 896 columns that do not exist.
    """
    main = 1 << max(0, (d - 1).bit_length() - 1)
    return main, triton.next_power_of_2(max(1, d - main))


def frames_of(d: int) -> int:
    """Frames of one program, a power of two: as many as the registers hold at d columns."""
    frames = _FRAMES
    while frames > 1 and frames * sum(blocks_of(d)) > _VALUES:
        frames //= 2
    return frames


@triton.jit  # type: ignore[untyped-decorator]
def partial_merge(  # type: ignore[no-untyped-def]
    patches,
    direction,
    tops,
    totals,
    sums,
    n,
    m,
    d,
    places,
    scale,
    frames_: tl.constexpr,
    main: tl.constexpr,
    rest: tl.constexpr,
):
    """Merge one split of a few frames; program (i, s) takes frames i·frames_ and following, and split s of their
    patches.

    Args:
        patches: pointer to [n, M, d].
        direction: pointer to float32[M, d].
        tops: pointer to float32[n, splits]; receives the largest score of the split.
        totals: pointer to float32[n, splits]; receives Σ e^(score − top).
        sums: pointer to float32[n, splits, d]; receives Σ e^(score − top) p.
        n, m, d: sizes of `patches`.
        places: patches of one split.
        scale: 1 / α.
        frames_: frames of one program.
        main, rest: columns of the two blocks, see `blocks_of`.
    """
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    frame = (tl.program_id(0) * frames_ + tl.arange(0, frames_)).to(tl.int64)
    left, right = tl.arange(0, main), main + tl.arange(0, rest)
    row_there = (frame < n)[:, None]
    left_there, right_there = row_there & (left < d)[None, :], row_there & (right < d)[None, :]
    left_at = patches + frame[:, None] * m * d + left[None, :]
    right_at = patches + frame[:, None] * m * d + right[None, :]
    first = split * places
    last = tl.minimum(first + places, m)
    top = tl.full([frames_], float("-inf"), tl.float32)
    total = tl.zeros([frames_], tl.float32)
    left_sum = tl.zeros([frames_, main], tl.float32)
    right_sum = tl.zeros([frames_, rest], tl.float32)
    left_next = tl.load(left_at + first * d, mask=left_there, other=0.0)
    right_next = tl.load(right_at + first * d, mask=right_there, other=0.0)
    for place in tl.range(first, last):
        p, q = left_next.to(tl.float32), right_next.to(tl.float32)
        # Prefetch the next place; at the last place, load it again.
        following = tl.minimum(place + 1, last - 1) * d
        left_next = tl.load(left_at + following, mask=left_there, other=0.0)
        right_next = tl.load(right_at + following, mask=right_there, other=0.0)
        toward_left = tl.load(direction + place * d + left, mask=left < d, other=0.0)
        toward_right = tl.load(direction + place * d + right, mask=right < d, other=0.0)
        square = tl.sum(p * p, axis=1) + tl.sum(q * q, axis=1)
        product = tl.sum(p * toward_left[None, :], axis=1) + tl.sum(q * toward_right[None, :], axis=1)
        score = product / tl.sqrt(tl.where(square > 0, square, 1.0)) * scale
        higher = tl.maximum(top, score)
        shrink = tl.exp(top - higher)
        weight = tl.exp(score - higher)
        total = total * shrink + weight
        left_sum = left_sum * shrink[:, None] + weight[:, None] * p
        right_sum = right_sum * shrink[:, None] + weight[:, None] * q
        top = higher
    row = frame * splits + split
    tl.store(tops + row, top, mask=frame < n)
    tl.store(totals + row, total, mask=frame < n)
    tl.store(sums + row[:, None] * d + left[None, :], left_sum, mask=left_there)
    tl.store(sums + row[:, None] * d + right[None, :], right_sum, mask=right_there)


def merge_fused(patches: Tensor, direction: Tensor, alpha: float, *, splits: int | None = None) -> Tensor:
    """Merge frames that share a reference keyframe.

    Args:
        patches: [n, M, d] in float16, bfloat16 or float32, n above 0.
        direction: float32[M, d], q/|q| − λ r/|r| for each place.
        alpha: softmax temperature.
        splits: parts of a frame's patches; None for as many as occupy the GPU.

    Returns:
        float32[n, d]; arithmetic is float32.
    """
    n, m, d = patches.shape
    patches, direction = patches.contiguous(), direction.contiguous()
    frames, (main, rest) = frames_of(d), blocks_of(d)
    groups = triton.cdiv(n, frames)
    if splits is None:
        busy = torch.cuda.get_device_properties(patches.device).multi_processor_count * _PROGRAMS
        splits = max(1, min(triton.cdiv(busy, groups), triton.cdiv(m, _MIN_PLACES)))
    places = triton.cdiv(m, splits)
    splits = triton.cdiv(m, places)  # none is empty
    tops, totals = (torch.empty(n, splits, device=patches.device) for _ in range(2))
    sums = torch.empty(n, splits, d, device=patches.device)
    partial_merge[(groups, splits)](
        patches,
        direction,
        tops,
        totals,
        sums,
        n,
        m,
        d,
        places,
        1.0 / alpha,
        frames_=frames,
        main=main,
        rest=rest,
        num_warps=WARPS,
        enable_fp_fusion=True,
    )
    share = torch.exp(tops - tops.amax(dim=1, keepdim=True))
    weights = share / (totals * share).sum(dim=1, keepdim=True)
    return torch.bmm(weights.unsqueeze(1), sums).squeeze(1)
