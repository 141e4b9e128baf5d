"""Prefill, decoding and scoring with dropped tokens, against plain forward passes over the tokens that remain."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from index.errors import BudgetExceeded, UsageError, WeightsInvalid
from model.answers import Sampling
from model.language import transformers_engine as language_module
from model.language.kv_cache import cache_bytes
from model.language.qwen2 import build_qwen2
from model.language.transformers_engine import TransformersLanguage
from model.profiles.profile import DroppingSpec

CPU = torch.device("cpu")
LAYERS, WIDTH, WORDS = 6, 32, 50
KINDS = ("uniform", "attention", "uniform0_attention", "uniform1_attention")
THREE = {"layers": [1, 3, 5], "ratios": [1, 0.7, 0.5, 0.2]}
ANSWERS = [[5, 6, 7], [8], [9, 3], [5, 6], [5, 6, 7, 30, 31]]


@pytest.fixture(scope="module")
def model() -> Any:
    """A random Qwen2 in float64, whose attention is far from even."""
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
    )
    built = build_qwen2(config, CPU, torch.float64).requires_grad_(False)
    for name, weight in built.named_parameters():
        if name.endswith(".bias"):  # zero in a new module, not in a checkpoint
            weight.normal_(0, 0.3)
    return built


def _language(model: Any, **dropping: Any) -> TransformersLanguage:
    spec = DroppingSpec.model_validate(dropping) if dropping else None
    return TransformersLanguage(model, None, max_context=4096, dropping=spec)


def _prompt(visual: list[bool], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(visual), WIDTH, generator=generator, dtype=torch.float64), torch.tensor(visual)


class Naive:
    """Groups of layers one after the other, over whole sequences, without a cache, pieces, or our own functions."""

    def __init__(self, model: Any, embeddings: Tensor, visual: Tensor, spec: DroppingSpec) -> None:
        self.model, self.inner = model, model.model
        self.groups = list(pairwise([0, *spec.layers, LAYERS]))
        self.reads: list[Tensor] = []  # what each group reads: [t, width]
        rows, mask, n = embeddings, visual.tolist(), sum(visual.tolist())
        for stage, (begin, end) in enumerate(self.groups):
            self.reads.append(rows)
            if end == LAYERS:
                break
            rows = self.run(begin, end, rows)
            seen = [row for row, flag in enumerate(mask) if flag]
            count, kept = int(n * spec.ratios[stage]), int(n * spec.ratios[stage + 1])
            assert count == len(seen)
            uniform = {"uniform": 9, "attention": 0, "uniform0_attention": 1, "uniform1_attention": 2}[spec.kind]
            if stage < uniform:
                chosen = [int(x) for x in torch.linspace(0, count - 1, kept, dtype=torch.float64) + 1e-9]
            else:
                row = self.attention(end, rows)
                chosen = sorted(sorted(range(count), key=lambda i: (-float(row[seen[i]]), i))[:kept])
            left = {seen[i] for i in chosen}
            keep = [row for row, flag in enumerate(mask) if not flag or row in left]
            rows, mask = rows[keep], [mask[row] for row in keep]

    def run(self, begin: int, end: int, rows: Tensor) -> Tensor:
        """Layers `begin` to `end` over a whole sequence at positions 0, 1, …"""
        hidden, positions = rows[None], torch.arange(len(rows))[None]
        for layer in self.inner.layers[begin:end]:
            rotary = self.inner.rotary_emb(hidden, positions)
            hidden = layer(hidden, position_embeddings=rotary, position_ids=positions)
        return hidden[0]

    def attention(self, index: int, rows: Tensor) -> Tensor:
        """The last row of the softmax of layer `index`, the whole matrix computed head by head, mean over heads."""
        layer, t = self.inner.layers[index], len(rows)
        normed = layer.input_layernorm(rows[None])
        query = layer.self_attn.q_proj(normed).view(1, t, 4, 8).transpose(1, 2)
        key = layer.self_attn.k_proj(normed).view(1, t, 2, 8).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *self.inner.rotary_emb(rows[None], torch.arange(t)[None]))
        total = torch.zeros(t, dtype=torch.float64)
        for head in range(4):
            scores = query[0, head] @ key[0, head // 2].T / 8**0.5
            scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), float("-inf"))
            total += torch.softmax(scores, dim=-1)[-1]
        return total / 4

    def keys(self, layer: int) -> Tensor:
        """Keys of a layer over what it reads, [heads, t, head_dim]."""
        stage = next(i for i, (begin, end) in enumerate(self.groups) if begin <= layer < end)
        rows = self.run(self.groups[stage][0], layer, self.reads[stage])
        module = self.inner.layers[layer]
        key = module.self_attn.k_proj(module.input_layernorm(rows[None])).view(1, len(rows), 2, 8).transpose(1, 2)
        rotary = self.inner.rotary_emb(rows[None], torch.arange(len(rows))[None])
        return apply_rotary_pos_emb(key, key, *rotary)[0][0]  # type: ignore[no-any-return]

    def logits(self, ids: list[int]) -> Tensor:
        """Of the last token of the prompt and of `ids` behind it, everything computed again; [1 + ids, words]."""
        behind = self.inner.embed_tokens(torch.tensor(ids, dtype=torch.int64))
        for (begin, end), rows in zip(self.groups, self.reads, strict=True):
            behind = self.run(begin, end, torch.cat([rows, behind]))
            last, behind = behind[len(rows) - 1 :], behind[len(rows) :]
        return self.model.lm_head(self.inner.norm(last))  # type: ignore[no-any-return]


def _check(model: Any, embeddings: Tensor, visual: Tensor, dropping: dict[str, Any]) -> None:
    language = _language(model, **dropping)
    naive = Naive(model, embeddings, visual, DroppingSpec.model_validate(dropping))
    prompt = language.prefill(embeddings, room=40, visual=visual)
    torch.testing.assert_close(prompt.logits, naive.logits([])[-1], rtol=1e-9, atol=1e-9)
    for layer in range(LAYERS):
        torch.testing.assert_close(prompt.cache.layers[layer].keys[0], naive.keys(layer), rtol=1e-9, atol=1e-9)
    got = language.score(prompt, ANSWERS)
    for answer, total in zip(ANSWERS, got, strict=True):
        logs = torch.log_softmax(naive.logits(answer[:-1]), dim=-1)
        assert total == pytest.approx(sum(float(logs[i, token]) for i, token in enumerate(answer)), abs=1e-4)
    expected = list[int]()
    for _ in range(5):
        expected.append(int(naive.logits(expected)[-1].argmax()))
    assert list(language.decode(language.prefill(embeddings, visual=visual), max_new_tokens=5)) == expected


@pytest.mark.parametrize("piece", [1, 5, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_read_as_plain_passes_over_the_kept_tokens_read_it(
    model: Any, kind: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_module, "PREFILL_TOKENS", piece)
    embeddings, visual = _prompt([False] * 3 + [True] * 23 + [False] * 4)
    _check(model, embeddings, visual, {**THREE, "kind": kind})


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.booleans(), max_size=40),
    st.sampled_from(KINDS),
    st.sampled_from([((2, 4), (1, 0.75, 0.25)), ((1,), (1, 0.01)), ((1, 2, 3, 4, 5), (1, 0.9, 0.9, 0.5, 0.3, 0.1))]),
    st.integers(1, 50),
)
def test_any_layout_of_frames_and_text(
    model: Any, mask: list[bool], kind: str, stages: tuple[tuple[int, ...], tuple[float, ...]], piece: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_module, "PREFILL_TOKENS", piece)
        embeddings, visual = _prompt([*mask, False], seed=len(mask))
        _check(model, embeddings, visual, {"layers": stages[0], "ratios": stages[1], "kind": kind})


def test_of_equal_attention_the_earlier_remain(model: Any) -> None:
    even = copy.deepcopy(model)
    project = even.model.layers[1].self_attn.k_proj
    project.weight.zero_()
    project.bias.zero_()
    embeddings, visual = _prompt([True] * 8 + [False] * 2)
    got = _language(even, layers=[1], ratios=[1, 0.5], kind="attention").prefill(embeddings, visual=visual)
    naive = Naive(even, embeddings, visual, DroppingSpec(layers=(1,), ratios=(1, 0.5), kind="attention"))
    naive.reads[1] = naive.run(0, 1, embeddings)[[0, 1, 2, 3, 8, 9]]
    torch.testing.assert_close(got.logits, naive.logits([])[-1])


def test_without_dropping_the_mask_changes_nothing(model: Any) -> None:
    embeddings, visual = _prompt([True] * 20 + [False] * 3)
    language = _language(model)
    assert torch.equal(language.prefill(embeddings, visual=visual).logits, language.prefill(embeddings).logits)


@pytest.mark.parametrize("mask", [None, [False] * 12])
def test_a_prompt_without_frames_is_read_as_ever(model: Any, mask: list[bool] | None) -> None:
    embeddings, _ = _prompt([False] * 12)
    visual = None if mask is None else torch.tensor(mask)
    plain, dropping = _language(model), _language(model, **THREE)
    torch.testing.assert_close(dropping.prefill(embeddings, visual=visual).logits, plain.prefill(embeddings).logits)
    got = dropping.score(dropping.prefill(embeddings, visual=visual), ANSWERS)
    assert got == pytest.approx(plain.score(plain.prefill(embeddings), ANSWERS), abs=1e-9)
    first = list(dropping.decode(dropping.prefill(embeddings, visual=visual), max_new_tokens=6))
    assert first == list(plain.decode(plain.prefill(embeddings), max_new_tokens=6))


def test_ratios_of_one_drop_nothing(model: Any) -> None:
    embeddings, visual = _prompt([True] * 20 + [False] * 3)
    kept = _language(model, layers=[2, 4], ratios=[1, 1, 1], kind="uniform1_attention")
    expected = _language(model).prefill(embeddings)
    got = kept.prefill(embeddings, visual=visual)
    torch.testing.assert_close(got.logits, expected.logits)
    assert [got.cache.get_seq_length(layer) for layer in range(LAYERS)] == [23] * LAYERS


def test_the_cache_has_room_for_what_each_layer_keeps_and_no_more(model: Any) -> None:
    embeddings, visual = _prompt([True] * 20 + [False] * 3)
    language = _language(model, **THREE)
    prompt = language.prefill(embeddings, room=7, visual=visual)
    lengths = [23, 17, 17, 13, 13, 7]
    assert [prompt.cache.get_seq_length(layer) for layer in range(LAYERS)] == lengths
    assert prompt.length == 23
    held = sum(buffer.nbytes for buffer in prompt.cache.buffers)
    assert held == cache_bytes(model.config, [length + 7 for length in lengths], torch.float64)
    assert held == 2 * 16 * 8 * (sum(lengths) + 6 * 7)  # K and V, width, bytes, tokens
    list(language.decode(prompt, max_new_tokens=8, sampling=Sampling(temperature=1.0, seed=1)))
    assert [prompt.cache.get_seq_length(layer) for layer in range(LAYERS)] == [length + 7 for length in lengths]


def test_a_budget_that_dropping_meets_is_enough(model: Any) -> None:
    embeddings, visual = _prompt([True] * 200 + [False] * 3)
    language, plain = _language(model, **THREE), _language(model)
    language.cache_budget = plain.cache_budget = cache_bytes(model.config, 150, torch.float64)
    with pytest.raises(BudgetExceeded, match="203 prompt tokens and 16 more needs"):
        plain.prefill(embeddings, room=16, visual=visual)
    assert language.prefill(embeddings, room=16, visual=visual).length == 203


def test_every_piece_of_every_group_can_be_cancelled(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_module, "PREFILL_TOKENS", 10)
    embeddings, visual = _prompt([True] * 40 + [False] * 3)
    language, passes = _language(model, layers=[2, 4], ratios=[1, 0.5, 0.25]), list[int]()
    language.register_forward_pre_hook(lambda: passes.append(1))
    prompt = language.prefill(embeddings, visual=visual)
    assert len(passes) == 5 + 3 + 2  # of 43, 23 and 13 tokens
    language.score(prompt, ANSWERS)
    assert len(passes) == 11

    def cancel() -> None:
        if len(passes) >= 17:
            raise InterruptedError

    language.register_forward_pre_hook(cancel)
    with pytest.raises(InterruptedError):
        language.prefill(embeddings, visual=visual)
    assert len(passes) == 17


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most elements of any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_matrix_of_attention_is_made(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_module, "PREFILL_TOKENS", 64)
    embeddings, visual = _prompt([True] * 1500 + [False] * 20)
    language = _language(model, layers=[2, 4], ratios=[1, 0.75, 0.25], kind="attention")
    with _Largest() as largest:  # type: ignore[no-untyped-call]
        language.prefill(embeddings, visual=visual)
    assert 1520 * WIDTH <= largest.elements < 1520 * 1520 / 20  # the hidden states; the mask of a piece


@pytest.mark.parametrize(
    ("visual", "message"),
    [
        (torch.ones(5, dtype=torch.bool), "last token of a prompt must be text"),
        (torch.ones(4, dtype=torch.bool), r"visual must be bool\[5\], got torch.bool of shape \(4,\)"),
        (torch.ones(5), r"visual must be bool\[5\], got torch.float32 of shape \(5,\)"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(model: Any, visual: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _language(model, **THREE).prefill(torch.zeros(5, WIDTH), visual=visual)


def test_stages_behind_the_last_layer_are_refused(model: Any) -> None:
    with pytest.raises(WeightsInvalid, match="dropping after layer 6 needs a layer behind it, the model has 6"):
        _language(model, layers=[4, 6], ratios=[1, 0.5, 0.25])


def test_layers_with_a_window_are_refused() -> None:
    config = Qwen2Config(
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        max_window_layers=2,
    )
    with pytest.raises(WeightsInvalid, match="sliding window"):
        _language(build_qwen2(config, torch.device("meta"), torch.float32), layers=[2], ratios=[1, 0.5])
