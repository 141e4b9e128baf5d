"""The choice of the next token against transformers' own logits processors."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from index.errors import UsageError, WeightsInvalid
from model.answers import Sampling
from model.language.loader import load_language
from model.language.qwen2 import load_generation
from model.language.sampling import TokenPicker, stop_ids
from model.language.transformers_engine import TransformersLanguage
from model.profiles.profile import LanguageModelSpec, Source
from tests.support import tiny_checkpoints as tiny

PROMPT = [5, 9, 7, 20, 11, 30, 6]


@given(st.integers(0, 1000), st.sampled_from([1.0, 1.05, 1.3, 0.8]), st.integers(1, 12))
def test_greedy_tokens_are_those_of_transformers_penalty(seed: int, penalty: float, length: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    picker, reference = TokenPicker(config=SimpleNamespace(repetition_penalty=penalty)), list[int]()
    for _ in range(length):
        logits = torch.randn(9, generator=generator)
        # Without tokens before it, transformers is given an empty row, as `generate` does for a prompt of embeddings.
        before = torch.tensor([reference], dtype=torch.long)
        scores = (
            RepetitionPenaltyLogitsProcessor(penalty)(before, logits[None].clone()) if penalty != 1 else logits[None]
        )
        reference.append(int(scores[0].argmax()))
        assert picker.pick(logits) == reference[-1]


@given(
    st.integers(0, 1000),
    st.floats(0.1, 3.0),
    st.integers(0, 9),
    st.sampled_from([1.0, 0.95, 0.8, 0.3]),
)
def test_draws_come_from_transformers_distribution(seed: int, temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(9, generator=torch.Generator().manual_seed(seed))
    ids = torch.zeros(1, 0, dtype=torch.long)
    scores = TemperatureLogitsWarper(temperature)(ids, logits[None])
    if 0 < top_k < 9:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    expected = torch.multinomial(scores[0].softmax(-1), 1, generator=torch.Generator().manual_seed(seed))
    picker = TokenPicker(Sampling(temperature, seed), SimpleNamespace(top_k=top_k, top_p=top_p))
    assert picker.pick(logits) == int(expected)


@pytest.mark.parametrize("values", [(-0.1, None), (5.1, None), (float("nan"), None), (1.0, -1), (1.0, 2**63)])
def test_settings_out_of_range_are_refused(values: tuple[float, int | None]) -> None:
    with pytest.raises(UsageError):
        Sampling(*values)


def test_the_generation_config_of_a_checkpoint_is_obeyed(checkpoints: Path, tmp_path: Path) -> None:
    folder = tmp_path / "llm"
    folder.mkdir()
    for file in (checkpoints / "llm").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "generation_config.json").write_text(
        json.dumps({"repetition_penalty": 9.0, "eos_token_id": [3, 44], "do_sample": True, "temperature": 0.7})
    )
    language = load_language(LanguageModelSpec(source=Source(folder=folder), max_context=400), torch.device("cpu"))
    assert isinstance(language, TransformersLanguage)
    assert {3, 44} <= language.stop_ids
    language.stop_ids = frozenset()
    got = list(language.decode(language.prefill(language.embed(PROMPT)), max_new_tokens=8))
    generated = language.model.generate(  # greedy: the flag of the file is for those who ask for sampling
        inputs_embeds=language.embed(PROMPT)[None], max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    assert got == generated[0].tolist()
    language.model.generation_config.repetition_penalty = 1.0
    assert got != list(language.decode(language.prefill(language.embed(PROMPT)), max_new_tokens=8))


def test_a_seed_repeats_an_answer(checkpoints: Path) -> None:
    spec = LanguageModelSpec(source=Source(folder=checkpoints / "llm"), max_context=400)
    language = load_language(spec, torch.device("cpu"))

    def answer(seed: int) -> list[int]:
        prompt = language.prefill(language.embed(PROMPT))
        return list(language.decode(prompt, max_new_tokens=12, sampling=Sampling(2.0, seed)))

    assert answer(1) == answer(1)
    assert len({tuple(answer(seed)) for seed in range(8)}) > 1


def test_a_penalty_that_is_not_positive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"repetition_penalty": 0.0}))
    with pytest.raises(WeightsInvalid, match="repetition_penalty"):
        load_generation(tmp_path)
    assert load_generation(tmp_path / "none") is None


def test_the_ends_of_an_answer() -> None:
    assert stop_ids(SimpleNamespace(eos_token_id=7), None) == {7}
    assert stop_ids(None, None) == set()
    tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda _: 2, eos_token_id=tiny.VOCABULARY.index("<|im_end|>"))
    assert stop_ids(SimpleNamespace(eos_token_id=[7, 8]), tokenizer) >= {2, 7, 8}
