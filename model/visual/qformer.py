"""A Q-former that merges the M patches of a frame into one vector: the baseline of ViLAMP's table 2.

    query (learned, [d]) ─ cross-attention to the patches ─ feed-forward ─▶ [d]

One block, each half with a residual connection, as in BLIP-2 (arXiv 2301.12597) with a single query; the paper says no
more than "Q-former". It does not read the question, nor the keyframe. It is a `model.visual.dfm.Merge`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["QFormer"]

_HEADS, _WIDER = 4, 2


class QFormer(nn.Module):
    """Merges patches [n, M, d] into [n, d].

    Args:
        width: d, a multiple of four.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)
        self.patch_norm, self.query_norm, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, _HEADS, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(width, _WIDER * width), nn.GELU(), nn.Linear(_WIDER * width, width))

    def forward(
        self, patches: Tensor, reference: Tensor | None, query: Tensor, *, alpha: float = 0.01, lam: float = 1.0
    ) -> Tensor:
        """Merge n frames; see `model.visual.dfm.Merge`. All arguments but `patches` are ignored.

        Returns:
            [n, d] in the dtype of `patches`; arithmetic is that of the weights.
        """
        rows = self.patch_norm(patches.to(self.query.device, self.query.dtype))
        start = self.query.expand(len(rows), 1, -1)
        read = start + self.attention(self.query_norm(start), rows, rows, need_weights=False)[0]
        merged: Tensor = (read + self.feed_forward(self.norm(read))).squeeze(1)
        return merged.to(patches.dtype)

    @staticmethod
    def products(width: int, patches: int) -> int:
        """Multiplications of one frame: keys and values of M patches, one query, the feed-forward layers."""
        return 2 * patches * width * width + 2 * patches * width + (2 + 2 * _WIDER) * width * width
