from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from index.errors import BudgetExceeded, UsageError, WeightsInvalid, WeightsNotFound
from model.language import transformers_engine as language_module
from model.language.kv_cache import cache_bytes
from model.language.transformers_engine import TransformersLanguage, load_transformers
from model.profiles.profile import LanguageModelSpec, Source
from tests.support import tiny_checkpoints as tiny

CPU = torch.device("cpu")
PROMPT = [5, 9, 7, 20, 11, 30, 6, 12, 40, 8]


@pytest.fixture(scope="module")
def language(checkpoints: Path) -> TransformersLanguage:
    return load_transformers(_spec(checkpoints / "llm"), CPU)


def _spec(folder: Path, *, llava: bool = False) -> LanguageModelSpec:
    layout = "llava_onevision" if llava else "causal_lm"
    return LanguageModelSpec(source=Source(folder=folder), layout=layout, max_context=300)


def _logits(language: TransformersLanguage, ids: list[int]) -> torch.Tensor:
    """Of every position, in one plain pass without any cache."""
    with torch.inference_mode():
        logits: torch.Tensor = language.model(torch.tensor([ids]), use_cache=False).logits[0]
        return logits


def _greedy(language: TransformersLanguage, n: int) -> list[int]:
    ids = list(PROMPT)
    for _ in range(n):
        ids.append(int(_logits(language, ids)[-1].argmax()))
    return ids[len(PROMPT) :]


def test_the_tokenizer_is_the_one_in_the_folder(language: TransformersLanguage) -> None:
    ids = language.tokenizer("What colour was the zebra?<|im_end|>", add_special_tokens=False).input_ids
    words = ["what", "colour", "was", "the", "<unk>", "?", "<|im_end|>"]
    assert ids == [tiny.VOCABULARY.index(word) for word in words]


@pytest.mark.parametrize("piece", [1, 3, 4096])
def test_prefill_in_pieces_is_one_pass(
    language: TransformersLanguage, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_module, "PREFILL_TOKENS", piece)
    prompt = language.prefill(language.embed(PROMPT))
    assert prompt.length == len(PROMPT)
    torch.testing.assert_close(prompt.logits, _logits(language, PROMPT)[-1], rtol=1e-4, atol=1e-4)


def test_only_the_last_token_goes_through_the_head(language: TransformersLanguage) -> None:
    rows: list[int] = []
    handle = language.model.lm_head.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0][..., 0].numel()))
    try:
        language.prefill(language.embed(PROMPT))
    finally:
        handle.remove()
    assert rows == [1]


def test_the_cache_is_whole_before_prefill_and_never_grows(
    language: TransformersLanguage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_module, "PREFILL_TOKENS", 4)
    prompt = language.prefill(language.embed(PROMPT), room=3)
    config = language.model.config
    buffers = prompt.cache.buffers
    assert sum(b.numel() * b.itemsize for b in buffers) == cache_bytes(config, len(PROMPT) + 3, torch.float32)
    assert cache_bytes(config, 1, torch.bfloat16) == 2 * 2 * 2 * 8 * 2  # K and V, layers, heads, width, bytes
    assert prompt.cache.get_seq_length() == len(PROMPT)
    list(language.decode(prompt, max_new_tokens=4))  # feeds three
    assert [buffer.data_ptr() for buffer in prompt.cache.buffers] == [buffer.data_ptr() for buffer in buffers]
    with pytest.raises(BudgetExceeded, match="sized for 13 tokens and 14 are needed"):
        list(language.decode(language.prefill(language.embed(PROMPT), room=3), max_new_tokens=6))


def test_a_cache_over_its_budget_is_refused_with_the_numbers_before_any_work(
    language: TransformersLanguage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language.model.model, "forward", lambda **_: pytest.fail("prefill began"))
    monkeypatch.setattr(language, "cache_budget", 4 * 2**20)
    tokens = 40_000
    monkeypatch.setattr(language, "max_context", 10**6)
    # 2 · 2 layers · 2 heads · 8 · 4 bytes = 256 bytes a token
    with pytest.raises(BudgetExceeded, match=r"40000 prompt tokens and 16 more needs 9\.8 MiB, 4\.0 MiB are free"):
        language.prefill(torch.zeros(tokens, language.width), room=16)


def test_a_prompt_beyond_the_context_is_refused(language: TransformersLanguage) -> None:
    with pytest.raises(BudgetExceeded, match="301 tokens, the language model has room for 300"):
        language.prefill(torch.zeros(301, language.width))


def test_decoding_is_greedy_and_stops_at_the_limit(language: TransformersLanguage) -> None:
    got = list(language.decode(language.prefill(language.embed(PROMPT)), max_new_tokens=7))
    assert got == _greedy(language, 7)


def test_decoding_stops_at_the_end_of_the_turn(language: TransformersLanguage, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _greedy(language, 1)
    monkeypatch.setattr(language, "stop_ids", frozenset(expected))
    assert list(language.decode(language.prefill(language.embed(PROMPT)), max_new_tokens=7)) == []
    assert language.end_id == tiny.VOCABULARY.index("<|im_end|>")


def test_the_end_of_the_turn_stops(language: TransformersLanguage) -> None:
    assert tiny.VOCABULARY.index("<|im_end|>") in language.stop_ids


def test_answers_are_scored_as_if_each_stood_alone(language: TransformersLanguage) -> None:
    answers = [[5, 6, 7], [8], [9, 3], [5, 6], [5, 6, 7, 30, 31]]
    got = language.score(language.prefill(language.embed(PROMPT)), answers)
    for answer, total in zip(answers, got, strict=True):
        logs = torch.log_softmax(_logits(language, PROMPT + answer), dim=-1)
        expected = sum(float(logs[len(PROMPT) - 1 + i, token]) for i, token in enumerate(answer))
        assert total == pytest.approx(expected, abs=1e-4)


def test_answers_of_one_token_need_no_second_pass(language: TransformersLanguage) -> None:
    logs = torch.log_softmax(_logits(language, PROMPT)[-1], dim=-1)
    got = language.score(language.prefill(language.embed(PROMPT)), [[5], [6]])
    assert got == pytest.approx([float(logs[5]), float(logs[6])], abs=1e-4)


@pytest.mark.parametrize("answers", [[], [[5], []]])
def test_nothing_to_score_is_refused(language: TransformersLanguage, answers: list[list[int]]) -> None:
    with pytest.raises(UsageError, match="at least one token"):
        language.score(language.prefill(language.embed(PROMPT)), answers)


def test_nothing_to_read_is_refused(language: TransformersLanguage) -> None:
    with pytest.raises(UsageError, match="at least one token"):
        language.prefill(language.embed([]))


def test_the_budget_is_never_above_what_the_model_was_made_for(checkpoints: Path) -> None:
    spec = _spec(checkpoints / "llm").model_copy(update={"max_context": 10**6})
    assert load_transformers(spec, CPU).max_context == 2048


@pytest.mark.parametrize("newer", [False, True])
def test_the_qwen2_inside_llava_onevision(newer: bool, tmp_path: Path) -> None:
    model = tiny.save_llava_onevision(tmp_path / "llava")
    file = tmp_path / "llava" / "model.safetensors"
    if newer:
        state = load_file(file)
        assert any(k.startswith("language_model.model.") for k in state)
        save_file({k.replace("language_model.model.", "model.language_model."): v for k, v in state.items()}, file)
    language = load_transformers(_spec(tmp_path / "llava", llava=True), CPU)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    torch.testing.assert_close(language.prefill(language.embed(PROMPT)).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_larger_llava_onevision_has_shards_and_a_head_of_its_own(tmp_path: Path) -> None:
    model = tiny.save_llava_onevision(tmp_path / "llava", tied=False, shards=3)
    language = load_transformers(_spec(tmp_path / "llava", llava=True), CPU)
    assert not torch.equal(language.model.lm_head.weight, language.model.model.embed_tokens.weight)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    torch.testing.assert_close(language.prefill(language.embed(PROMPT)).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_head_that_is_there_although_it_is_said_to_be_tied_is_used(tmp_path: Path) -> None:
    tiny.save_llava_onevision(tmp_path / "llava")
    state = tiny.load_state(tmp_path / "llava")
    embedding = state["language_model.model.embed_tokens.weight"]
    for head in (embedding, embedding + 1):
        tiny.save_state(tmp_path / "llava", {**state, "language_model.lm_head.weight": head}, shards=1)
        language = load_transformers(_spec(tmp_path / "llava", llava=True), CPU)
        torch.testing.assert_close(language.model.lm_head.weight, head)
        torch.testing.assert_close(language.model.model.embed_tokens.weight, embedding)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("language_model.model.layers.1.mlp.up_proj.weight", None),
        ("language_model.model.layers.1.mlp.up_proj.weight", torch.zeros(3)),
        ("language_model.model.layers.8.mlp.up_proj.weight", torch.zeros(3)),
        ("something.else", torch.zeros(3)),
    ],
)
def test_a_tensor_of_llava_onevision_that_does_not_fit_names_itself(
    name: str, change: torch.Tensor | None, shards: int, tmp_path: Path
) -> None:
    tiny.save_llava_onevision(tmp_path / "llava")
    state = tiny.load_state(tmp_path / "llava")
    (tmp_path / "llava" / "model.safetensors").unlink()
    state.pop(name, None)
    tiny.save_state(tmp_path / "llava", state if change is None else {**state, name: change}, shards=shards)
    with pytest.raises(WeightsInvalid) as caught:
        load_transformers(_spec(tmp_path / "llava", llava=True), CPU)
    assert name.removeprefix("language_model.") in str(caught.value)


def test_a_tensor_too_many_is_named(checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoints / "llm", tmp_path / "llm")
    file = tmp_path / "llm" / "model.safetensors"
    save_file({**load_file(file), "model.extra.weight": torch.zeros(1)}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsInvalid, match=r"model\.extra\.weight"):
        load_transformers(_spec(tmp_path / "llm"), CPU)


def test_a_tensor_that_is_missing_is_named(checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoints / "llm", tmp_path / "llm")
    file = tmp_path / "llm" / "model.safetensors"
    state = load_file(file)
    state.pop("model.norm.weight")
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(WeightsInvalid, match=r"no tensor model\.norm\.weight"):
        load_transformers(_spec(tmp_path / "llm"), CPU)


def test_a_tokenizer_without_chatml_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoints / "llm", tmp_path / "llm")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = tmp_path / "llm" / name
        path.write_text(path.read_text().replace("<|im_end|>", "<|stop|>"))
    with pytest.raises(WeightsInvalid, match="ChatML"):
        load_transformers(_spec(tmp_path / "llm"), CPU)


def test_weights_that_are_not_there_or_broken(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match="does not exist"):
        load_transformers(_spec(tmp_path / "nowhere"), CPU)
    shutil.copytree(checkpoints / "llm", tmp_path / "llm")
    (tmp_path / "llm" / "model.safetensors").write_bytes(json.dumps({}).encode())
    with pytest.raises(WeightsInvalid, match="does not load"):
        load_transformers(_spec(tmp_path / "llm"), CPU)
