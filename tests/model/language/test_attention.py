"""Attention aligned at the lower right against attention with a mask, in prefill by pieces and in scoring."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config

from model.language import transformers_engine
from model.language.attention import ALIGNED, aligned_attention, use_aligned_attention
from model.language.qwen2 import build_qwen2
from model.language.transformers_engine import TransformersLanguage

ANSWERS = [[3, 5, 7], [2], [3, 5, 8, 1]]


def language(device: str, dtype: torch.dtype, head_dim: int = 8) -> TransformersLanguage:
    """A Qwen2 of random weights, two heads for each head of keys; the same for the same arguments."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=4 * head_dim,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    model = build_qwen2(config, torch.device("cpu"), torch.float32).to(device, dtype)
    return TransformersLanguage(model, None, max_context=512)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 20), st.sampled_from([1, 2, 4]), st.integers(0, 2**31))
def test_each_position_attends_to_its_own_and_earlier_ones(count: int, past: int, groups: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 4, count, 6, dtype=torch.float64, generator=generator)
    keys, values = (
        torch.randn(1, 4 // groups, past + count, 6, dtype=torch.float64, generator=generator) for _ in "kv"
    )

    class Layer:
        num_key_value_groups = groups

    given, _ = aligned_attention(Layer(), query, keys, values, None, scaling=0.3)
    for head in range(4):
        for place in range(count):
            visible = slice(0, past + place + 1)
            logits = 0.3 * keys[0, head // groups, visible] @ query[0, head, place]
            expected = torch.softmax(logits, 0) @ values[0, head // groups, visible]
            torch.testing.assert_close(given[0, place, head], expected)


def test_pieces_and_answers_are_read_as_with_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_engine, "PREFILL_TOKENS", 16)
    embeddings = torch.randn(53, 32, generator=torch.Generator().manual_seed(1))
    masked, aligned = language("cpu", torch.float32), language("cpu", torch.float32)
    use_aligned_attention(aligned.model)
    assert aligned.model.config._attn_implementation == ALIGNED
    assert masked.model.config._attn_implementation == "sdpa"
    both = [each.prefill(embeddings) for each in (masked, aligned)]
    torch.testing.assert_close(both[1].logits, both[0].logits, rtol=1e-4, atol=1e-5)
    scores = [each.score(prompt, ANSWERS) for each, prompt in zip((masked, aligned), both, strict=True)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    texts = [list(each.decode(prompt, max_new_tokens=8)) for each, prompt in zip((masked, aligned), both, strict=True)]
    assert texts[0] == texts[1]


@pytest.mark.gpu
def test_a_gpu_attends_so_and_agrees_with_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_engine, "PREFILL_TOKENS", 64)
    embeddings = torch.randn(300, 256, generator=torch.Generator().manual_seed(1))
    masked, aligned = language("cpu", torch.float32, 64), language("cuda", torch.bfloat16, 64)
    assert aligned.model.config._attn_implementation == ALIGNED
    both = [each.prefill(embeddings.to(each.device)) for each in (masked, aligned)]
    torch.testing.assert_close(both[1].logits.float().cpu(), both[0].logits, rtol=0.05, atol=0.02)
    scores = [each.score(prompt, ANSWERS) for each, prompt in zip((masked, aligned), both, strict=True)]
    assert scores[1] == pytest.approx(scores[0], abs=0.1)
