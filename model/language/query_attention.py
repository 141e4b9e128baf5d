"""Attention of some tokens of a prompt to all tokens before them, read while the prompt is prefilled.

    prefill, piece by piece ─▶ layer l: queries of the chosen rows, keys in the cache ─▶ softmax in chunks ─▶ [T]

The kernels that compute a prefill never make an attention matrix. For a few rows, such as those of a question, it is
computed once more from the same queries and keys: first the maximum and the sum of the exponentials over chunks of keys
(Milakov and Gimelshein 2018), then the shares, which are added up over rows and heads at once. The softmax is exact,
over all keys that a row may see, and memory depends on the size of a chunk and not on rows times tokens. Does not know
what the rows are, nor frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from index.errors import UsageError
from model.language.engine import LanguageModel, PrefilledPrompt
from model.language.transformers_engine import TransformersLanguage

__all__ = ["attention_shares", "read_attention"]

_CHUNK_ELEMENTS = 4 * 2**20  # logits at once: 16 MiB of float32


def read_attention(
    language: LanguageModel, embeddings: Tensor, groups: Sequence[Sequence[int]], *, room: int = 256
) -> tuple[Tensor, PrefilledPrompt]:
    """Prefill a prompt, and return what groups of its tokens attend to.

    Args:
        language: a language model of the engine `transformers`. No visual token is dropped, whatever its profile says.
        embeddings: the prompt, [T, width].
        groups: positions of each group's tokens in the prompt, each group with at least one; groups may overlap.
        room: see `LanguageModel.prefill`.

    Returns:
        Attention [groups, layers, T], the mean over the group's tokens and over all heads; each row of it sums to one.
        And the prompt, ready for `score` or `decode`.

    Raises:
        UsageError: the engine is another one, layers attend to a window only, or a group is empty or not in the prompt.
        BudgetExceeded: see `LanguageModel.prefill`.
    """
    if not isinstance(language, TransformersLanguage):
        raise UsageError("attention is read from the engine transformers only; set language_model.engine to it")
    model, total = language.model.model, len(embeddings)
    if model.has_sliding_layers:
        raise UsageError("attention is read from layers that attend to the whole prompt; this model has windows")
    if not groups or not all(len(group) and min(group) >= 0 and max(group) < total for group in groups):
        raise UsageError(f"every group needs positions from 0 to {total - 1}")
    rows = torch.tensor(sorted({row for group in groups for row in group}), device=language.device)
    weights = torch.stack(
        [torch.isin(rows, torch.tensor(list(group), device=rows.device)).double() for group in groups]
    )
    weights = weights / weights.sum(dim=1, keepdim=True)
    dtype = torch.promote_types(language.dtype, torch.float32)
    result = torch.zeros(len(groups), len(model.layers), total, dtype=dtype, device=language.device)

    def recorder(number: int) -> Any:
        """A hook of the attention of layer `number` that adds what the rows of a piece attend to."""

        def record(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            """Called after a piece has passed the attention, whose keys are then in the cache."""
            hidden = kwargs["hidden_states"]
            keys = kwargs["past_key_values"].layers[number].keys[0]
            past = keys.shape[1] - hidden.shape[1]
            inside = (rows >= past) & (rows < keys.shape[1])
            if not bool(inside.any()):
                return
            mine = rows[inside] - past
            cos, sin = (part[:, mine] for part in kwargs["position_embeddings"])
            query = module.q_proj(hidden[:, mine]).view(1, len(mine), -1, module.head_dim).transpose(1, 2)
            turned = apply_rotary_pos_emb(query, query, cos, sin)[0][0]
            shares = attention_shares(turned, keys, rows[inside], weights[:, inside], scale=module.scaling)
            result[:, number, : keys.shape[1]] += shares

        return record

    with ExitStack() as stack:
        for number, layer in enumerate(model.layers):
            handle = layer.self_attn.register_forward_hook(recorder(number), with_kwargs=True)
            stack.callback(handle.remove)
        prompt = language.prefill(embeddings, room=room)
    return result, prompt


@torch.inference_mode()
def attention_shares(
    queries: Tensor, keys: Tensor, positions: Tensor, weights: Tensor, *, scale: float, chunk: int | None = None
) -> Tensor:
    """Weighted sums of softmax rows, without the matrix.

    Args:
        queries: [H, R, d], after the rotary embedding.
        keys: [H_kv, T, d] likewise; H is a multiple of H_kv, and successive heads share keys.
        positions: positions of the rows among the keys, int64[R]; a row sees keys up to its own position.
        weights: weight of each row in each group, [G, R].
        scale: factor of the products before the softmax.
        chunk: keys at once; None for as many as 16 MiB of float32 hold.

    Returns:
        Σ_r weights · softmax, mean over heads, [G, T], at least float32.
    """
    heads, rows, width = queries.shape
    kv_heads, total, _ = keys.shape
    dtype = torch.promote_types(queries.dtype, torch.float32)
    grouped = (queries.to(dtype) * scale).reshape(kv_heads, -1, width)  # [H_kv, H / H_kv · R, d]
    at = positions.repeat(heads // kv_heads)
    step = chunk or max(1, _CHUNK_ELEMENTS // max(1, heads * rows))

    def logits(first: int) -> Tensor:
        """Products with the keys from `first`, [H_kv, H / H_kv · R, n]; −inf where a row does not see the key."""
        part = keys[:, first : first + step].to(dtype)
        hidden = torch.arange(first, first + part.shape[1], device=keys.device) > at[:, None]
        return (grouped @ part.transpose(1, 2)).masked_fill_(hidden, -torch.inf)

    highest = torch.full(grouped.shape[:2], -torch.inf, dtype=dtype, device=keys.device)
    total_exp = torch.zeros_like(highest)
    for first in range(0, total, step):
        part = logits(first)
        most = torch.maximum(highest, part.amax(dim=-1))
        total_exp = total_exp * torch.exp(highest - most) + torch.exp(part - most[..., None]).sum(dim=-1)
        highest = most
    shift = highest + torch.log(total_exp)
    wanted = weights.to(dtype).repeat(1, heads // kv_heads)  # [G, H / H_kv · R]
    parts = []
    for first in range(0, total, step):
        shares = torch.exp(logits(first) - shift[..., None]).sum(dim=0)
        parts.append(wanted @ shares / heads)
    return torch.cat(parts, dim=1)
