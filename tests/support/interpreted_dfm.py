"""The kernel of DFM on a CPU, compared with plain torch in float64: `TRITON_INTERPRET=1 python -m tests.support.interpreted_dfm`.

Runs in a process of its own, as Triton decides at import whether it interprets. Prints JSON: the largest error of each
case, relative to the largest value.
"""

from __future__ import annotations

import itertools
import json
import sys

import torch
from torch import Tensor

from model.visual.dfm import merge

SHAPES = [(1, 1, 8, 1), (3, 9, 12, 1), (5, 37, 48, 3), (9, 16, 130, 16), (4, 100, 20, 7)]  # n, M, d, splits
NUMBERS = [(0.01, 1.0), (0.3, 0.4)]  # α, λ


def random_frames(n: int, m: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Random patches [n, M, d], a reference [M, d] that half of them resemble, and a query [d]."""
    generator = torch.Generator().manual_seed(n * m + d)
    reference = torch.randn(m, d, generator=generator)
    patches = torch.randn(n, m, d, generator=generator)
    patches[:, ::2] = reference[::2] + 0.1 * patches[:, ::2]
    if m > 1:
        patches[0, 0] = 0  # its cosine is 0
    return patches.to(dtype), reference.to(dtype), torch.randn(d, generator=generator)


def direction(reference: Tensor | None, query: Tensor, m: int, lam: float) -> Tensor:
    """q/|q| − λ r/|r| for each place, float32[M, d]."""
    unit = torch.nn.functional.normalize(query, dim=0).expand(m, -1)
    return unit if reference is None else unit - lam * torch.nn.functional.normalize(reference.float(), dim=-1)


def main() -> None:
    """Run all cases and print their errors."""
    from model.visual.dfm_triton import merge_fused  # needs Triton

    errors = {}
    for (n, m, d, splits), (alpha, lam), dtype, referenced in itertools.product(
        SHAPES, NUMBERS, (torch.float16, torch.float32), (True, False)
    ):
        patches, reference, query = random_frames(n, m, d, dtype)
        against = reference if referenced else None
        wanted = merge(patches.double(), against, query, alpha=alpha, lam=lam)
        got = merge_fused(patches, direction(against, query, m, lam), alpha, splits=splits)
        assert got.shape == (n, d)
        assert got.dtype == torch.float32
        name = f"{n}x{m}x{d} in {splits}, {dtype}, alpha {alpha}, {'with' if referenced else 'without'} reference"
        errors[name] = float((got - wanted).abs().max() / wanted.abs().max())
    sys.stdout.write(json.dumps(errors))


if __name__ == "__main__":
    main()
