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

__all__ = ["FRAMES", "WARPS", "merge_fused", "partial_merge"]

FRAMES = 4
"""Frames of one program; a power of two."""
WARPS = 4
"""Warps of one program."""
_MIN_PLACES = 16  # of one split, which writes one sum, float32[d]
_PROGRAMS = 4  # for each multiprocessor of the GPU


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
    width: tl.constexpr,
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
        width: d, rounded up to a power of two.
    """
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    frame = (tl.program_id(0) * frames_ + tl.arange(0, frames_)).to(tl.int64)
    column = tl.arange(0, width)
    there = (frame < n)[:, None] & (column < d)[None, :]
    at = patches + frame[:, None] * m * d + column[None, :]
    first = split * places
    last = tl.minimum(first + places, m)
    top = tl.full([frames_], float("-inf"), tl.float32)
    total = tl.zeros([frames_], tl.float32)
    acc = tl.zeros([frames_, width], tl.float32)
    following = tl.load(at + first * d, mask=there, other=0.0)
    for place in tl.range(first, last):
        p = following.to(tl.float32)
        # Prefetch the next place; at the last place, load it again.
        following = tl.load(at + tl.minimum(place + 1, last - 1) * d, mask=there, other=0.0)
        toward = tl.load(direction + place * d + column, mask=column < d, other=0.0)
        square = tl.sum(p * p, axis=1)
        product = tl.sum(p * toward[None, :], axis=1)
        score = product / tl.sqrt(tl.where(square > 0, square, 1.0)) * scale
        higher = tl.maximum(top, score)
        shrink = tl.exp(top - higher)
        weight = tl.exp(score - higher)
        total = total * shrink + weight
        acc = acc * shrink[:, None] + weight[:, None] * p
        top = higher
    row = frame * splits + split
    tl.store(tops + row, top, mask=frame < n)
    tl.store(totals + row, total, mask=frame < n)
    tl.store(sums + row[:, None] * d + column[None, :], acc, mask=there)


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
    groups = triton.cdiv(n, FRAMES)
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
        frames_=FRAMES,
        width=triton.next_power_of_2(d),
        num_warps=WARPS,
        enable_fp_fusion=True,
    )
    share = torch.exp(tops - tops.amax(dim=1, keepdim=True))
    weights = share / (totals * share).sum(dim=1, keepdim=True)
    return torch.bmm(weights.unsqueeze(1), sums).squeeze(1)
