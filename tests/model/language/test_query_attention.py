"""Attention of some rows, against whole attention matrices in float64, and its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from index.errors import UsageError
from model.language import transformers_engine
from model.language.query_attention import attention_shares, read_attention
from model.language.qwen2 import build_qwen2
from model.language.transformers_engine import TransformersLanguage

CPU = torch.device("cpu")
LAYERS, WIDTH = 3, 32


@pytest.fixture(scope="module")
def language() -> TransformersLanguage:
    """A random Qwen2 in float64, whose attention is far from even; two heads share keys."""
    torch.manual_seed(5)
    config = Qwen2Config(
        vocab_size=40,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
    )
    return TransformersLanguage(build_qwen2(config, CPU, torch.float64), None, max_context=4096)


def prompt(length: int, seed: int = 0) -> Tensor:
    """A prompt of random embeddings, [T, width]."""
    return torch.randn(length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain(language: TransformersLanguage, embeddings: Tensor) -> Tensor:
    """Whole attention matrices in float64, [layers, heads, T, T], from the hidden states before each layer."""
    inner, t = language.model.model, len(embeddings)
    with torch.inference_mode():
        states = inner(inputs_embeds=embeddings[None], output_hidden_states=True).hidden_states
        cos, sin = inner.rotary_emb(embeddings[None], torch.arange(t)[None])
        matrices = []
        for layer, entering in zip(inner.layers, states[:-1], strict=True):
            attention, normed = layer.self_attn, layer.input_layernorm(entering)
            query, key = (
                project(normed).view(1, t, -1, attention.head_dim).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj)
            )
            query, key = apply_rotary_pos_emb(query, key, cos, sin)
            logits = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) / attention.head_dim**0.5
            matrices.append(torch.softmax(logits + torch.full((t, t), -torch.inf).triu(1), dim=-1))
    return torch.cat(matrices)


@pytest.mark.parametrize("piece", [7, 16, 2048])
def test_equals_whole_matrices(language: TransformersLanguage, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """Groups whose rows are in several pieces of the prefill, and one that overlaps another."""
    monkeypatch.setattr(transformers_engine, "PREFILL_TOKENS", piece)
    embeddings = prompt(45)
    groups = [[40, 41, 44], [3, 20, 40], [0]]
    got, prefilled = read_attention(language, embeddings, groups)
    whole = plain(language, embeddings)
    wanted = torch.stack([whole[:, :, group].mean(dim=(1, 2)) for group in groups])
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    assert got.shape == (3, LAYERS, 45)
    torch.testing.assert_close(prefilled.logits, language.prefill(embeddings).logits, rtol=0, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 9),
    st.floats(0.1, 60),
    st.integers(0, 2**31),
)
def test_shares_do_not_depend_on_the_chunk(
    total: int, kv_heads: int, share: int, chunk: int, scale: float, seed: int
) -> None:
    """Against a softmax of the whole matrix, with logits of any size."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, total + 1, (1,), generator=generator))
    positions = torch.randperm(total, generator=generator)[:count].sort().values
    queries = torch.randn(kv_heads * share, count, 4, generator=generator, dtype=torch.float64)
    keys = torch.randn(kv_heads, total, 4, generator=generator, dtype=torch.float64)
    weights = torch.rand(2, count, generator=generator, dtype=torch.float64)
    logits = scale * queries @ keys.repeat_interleave(share, dim=0).transpose(1, 2)
    logits = logits.masked_fill(torch.arange(total) > positions[:, None], -torch.inf)
    wanted = (weights @ torch.softmax(logits, dim=-1)).mean(dim=0)
    got = attention_shares(queries, keys, positions, weights, scale=scale, chunk=chunk)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and measure its results."""
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return out


def test_no_tensor_has_rows_times_tokens() -> None:
    """With 50 rows of 8 heads and 200,000 keys no result is larger than a chunk, or than the keys of a chunk."""
    queries, keys = torch.randn(8, 50, 2), torch.randn(1, 200_000, 2)
    with Largest() as largest:  # type: ignore[no-untyped-call]
        attention_shares(queries, keys, torch.arange(199_950, 200_000), torch.ones(1, 50) / 50, scale=1.0)
    assert largest.elements <= 4 * 2**20 < 8 * 50 * 200_000


def test_hooks_are_removed(language: TransformersLanguage) -> None:
    """A prefill afterwards records nothing, after an error too."""
    before = [len(layer.self_attn._forward_hooks) for layer in language.model.model.layers]
    with pytest.raises(UsageError):
        read_attention(language, prompt(5), [[]])
    with pytest.raises(Exception, match="room for"):
        read_attention(language, prompt(5000), [[1]])
    read_attention(language, prompt(5), [[1]])
    assert before == [len(layer.self_attn._forward_hooks) for layer in language.model.model.layers]


@pytest.mark.parametrize("groups", [[], [[]], [[5]], [[-1]]])
def test_positions_outside_the_prompt_are_errors(language: TransformersLanguage, groups: list[list[int]]) -> None:
    """Each group needs positions of the prompt."""
    with pytest.raises(UsageError, match="from 0 to 4"):
        read_attention(language, prompt(5), groups)


def test_another_engine_is_an_error() -> None:
    """Only the engine in this process has layers to read."""
    engine: Any = object()
    with pytest.raises(UsageError, match="engine"):
        read_attention(engine, prompt(5), [[0]])
