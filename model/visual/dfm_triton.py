"""DFM on CUDA in one pass: each patch is read from the GPU's memory once (ViLAMP, section 3.2, equations 5–10).

The plain form in `model.visual.dfm` reads a frame's patches for their lengths, for their products with the direction and for
the weighted sum, and writes them widened in between. Here a program holds one place of a few frames in registers,
takes the length, the product and, by the running maximum of a softmax over parts, its share of the sum, and moves on.
The frames share the direction's row of that place, which comes from the second-level cache. Where there are too
few frames to keep the GPU busy, the patches of a frame are split among programs and the parts put together at the end.

Bytes moved, in half precision: 2·n·M·d of patches, 4·M·d of directions, and 4·n·d for each part, written and read
again; a part is of 16 patches or more, so parts come to a quarter of the patches at most, where frames are few.

Imported only where there is a GPU, and by the tests, which run it in Triton's interpreter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["FRAMES", "WARPS", "merge_fused", "partial_merge"]

FRAMES = 4  # of one program; a power of two
WARPS = 4
_LEAST_PLACES = 16  # of one split: its sum is written, [d] in float32, for so many patches read
_PROGRAMS = 4  # wanted for each of the GPU's processors


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
    places,  # of one split
    scale,
    frames_: tl.constexpr,
    width: tl.constexpr,
):
    """One split of a few frames: the largest score, Σ e^(score − largest) and Σ e^(score − largest) p."""
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
    coming = tl.load(at + first * d, mask=there, other=0.0)
    for place in tl.range(first, last):
        p = coming.to(tl.float32)
        # On its way while this place is worked on; behind the last one, that one again.
        coming = tl.load(at + tl.minimum(place + 1, last - 1) * d, mask=there, other=0.0)
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
    """Merge frames that share a direction.

    Args:
        patches: [n, M, d] in float16, bfloat16 or float32, n above 0.
        direction: float32[M, d], q/|q| − λ r/|r| for each place.
        alpha: softmax temperature.
        splits: parts of a frame's patches; as many as keep the GPU busy by default.

    Returns:
        float32[n, d]; arithmetic is float32.
    """
    n, m, d = patches.shape
    patches, direction = patches.contiguous(), direction.contiguous()
    groups = triton.cdiv(n, FRAMES)
    if splits is None:
        busy = torch.cuda.get_device_properties(patches.device).multi_processor_count * _PROGRAMS
        splits = max(1, min(triton.cdiv(busy, groups), triton.cdiv(m, _LEAST_PLACES)))
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
