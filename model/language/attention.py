"""Causal attention of a piece of a prompt to everything before it and to itself, without a mask in memory.

    keys     0 … past … past + n
    query i  attends to keys 0 … past + i        aligned at the lower right

transformers makes a mask bool[n, past + n] for such a piece, and torch's fast kernels do not take a mask. The alignment
itself is enough for them: torch chooses the FlashAttention kernel for it on CUDA. Given masks, such as those of answers
that are scored together, are obeyed by transformers' own function. Does not know layers or caches.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

__all__ = ["ALIGNED", "aligned_attention", "use_aligned_attention"]

ALIGNED = "sightline_aligned"
"""Name of the attention among those of transformers."""


def aligned_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of the last n positions to all, each to its own and earlier ones.

    Args:
        module: the attention layer.
        query: [1, heads, n, head_dim].
        key, value: [1, key heads, past + n, head_dim]; `heads` is a multiple of `key heads`.
        attention_mask: None, or a mask, with which transformers' function computes instead.
        dropout: as transformers gives it; 0 in inference.
        scaling: factor of the products; None for 1 / √head_dim.
        **kwargs: of transformers' function.

    Returns:
        [1, n, heads, head_dim], and None for the attention, which is not kept.
    """
    count, total = query.shape[2], key.shape[2]
    if attention_mask is not None or count == 1:
        done = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return done[0], None
    mask: Any = None if count == total else causal_lower_right(count, total)
    given = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return given.transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    """transformers asks how to make the mask of this attention: it needs none."""


def use_aligned_attention(model: Any) -> None:
    """Have a Qwen2 of transformers attend by `aligned_attention`."""
    AttentionInterface.register(ALIGNED, aligned_attention)
    AttentionMaskInterface.register(ALIGNED, _no_mask)
    model.set_attn_implementation(ALIGNED)
