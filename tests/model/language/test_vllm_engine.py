"""The vllm engine against a stand-in with vllm's documented signatures, behind which transformers does the work."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from index.errors import BudgetExceeded, EngineMissing, ModelError, UsageError
from model.answers import Sampling
from model.language.engine import LanguageModel
from model.language.loader import load_language
from model.language.sampling import TokenPicker
from model.language.vllm_engine import VllmLanguage, export_language, load_vllm, open_engine
from model.profiles.profile import DroppingSpec, LanguageModelSpec, Source
from tests.support import tiny_checkpoints as tiny

CPU = torch.device("cpu")
PROMPT = [5, 9, 7, 20, 11, 30, 6]
ANSWERS = ([4], [5, 6, 3], [5, 7, 3], [5, 6, 8, 3])


@dataclass(kw_only=True)
class SamplingParams:
    """The fields that are used, with the defaults they have there."""

    temperature: float = 1.0
    repetition_penalty: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    stop_token_ids: list[int] | None = None
    logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    detokenize: bool = True


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None


@dataclass
class RequestOutput:
    request_id: str
    outputs: list[CompletionOutput]


class LLM:
    """Greedy decoding of embedded prompts; an end token that stopped it is the last token, as in vllm."""

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        enable_prompt_embeds: bool = False,
        enable_prefix_caching: bool | None = None,
    ) -> None:
        assert enable_prompt_embeds
        assert enable_prefix_caching
        self.language = load_language(LanguageModelSpec(source=Source(folder=Path(model)), max_context=400), CPU)
        self.asked: list[tuple[int, SamplingParams]] = []
        self.settings = (dtype, max_model_len, gpu_memory_utilization)

    def generate(
        self,
        prompts: Sequence[dict[str, torch.Tensor]],
        sampling_params: Sequence[SamplingParams],
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        assert not use_tqdm
        return [self._one(i, *both) for i, both in enumerate(zip(prompts, sampling_params, strict=True))]

    def _one(self, number: int, prompt: dict[str, torch.Tensor], params: SamplingParams) -> RequestOutput:
        assert set(prompt) == {"prompt_embeds"}
        embeddings = prompt["prompt_embeds"]
        assert (embeddings.ndim, embeddings.device.type, embeddings.dtype) == (2, "cpu", torch.float32)
        assert params.max_tokens is not None
        self.asked.append((len(embeddings), params))
        prefilled = self.language.prefill(embeddings)
        logs = torch.log_softmax(prefilled.logits, -1)
        given = None
        if params.logprob_token_ids is not None:
            wanted = {*params.logprob_token_ids, int(logs.argmax())}
            given = [{token: Logprob(float(logs[token])) for token in wanted}]
        config = SimpleNamespace(
            repetition_penalty=params.repetition_penalty, top_k=params.top_k or None, top_p=params.top_p
        )
        picker = TokenPicker(Sampling(params.temperature, params.seed), config)
        tokens = [picker.pick(prefilled.logits)]
        stops = set(params.stop_token_ids or ())
        while tokens[-1] not in stops and len(tokens) < params.max_tokens:
            longer = torch.cat([embeddings, self.language.embed(tokens)])
            tokens.append(picker.pick(self.language.prefill(longer).logits))
        return RequestOutput(str(number), [CompletionOutput(0, "", tokens, None, given)])


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def _spec(folder: Path, **values: Any) -> LanguageModelSpec:
    given = {"source": Source(folder=folder), "max_context": 400, "dtype": "float32", "engine": "vllm", **values}
    return LanguageModelSpec.model_validate(given)


@pytest.fixture
def both(library: ModuleType, checkpoints: Path) -> tuple[LanguageModel, VllmLanguage]:
    folder = checkpoints / "llm"
    plain = load_language(_spec(folder, engine="transformers"), CPU)
    return plain, open_engine(folder, _spec(folder, gpu_share=0.4), CPU)


def test_it_reads_decodes_and_scores_as_the_default_does(both: tuple[LanguageModel, VllmLanguage]) -> None:
    plain, engine = both
    assert torch.equal(plain.embed(PROMPT), engine.embed(PROMPT))
    assert (plain.width, plain.max_context, plain.end_id) == (engine.width, engine.max_context, engine.end_id)
    embeddings = plain.embed(PROMPT)
    assert list(engine.decode(engine.prefill(embeddings), max_new_tokens=9)) == list(
        plain.decode(plain.prefill(embeddings), max_new_tokens=9)
    )
    got = engine.score(engine.prefill(embeddings), ANSWERS)
    assert got == pytest.approx(plain.score(plain.prefill(embeddings), ANSWERS), abs=1e-4)


def test_what_is_sent(both: tuple[LanguageModel, VllmLanguage]) -> None:
    engine = both[1]
    llm: LLM = engine.llm
    assert llm.settings == ("float32", 400, 0.4)
    prompt = engine.prefill(engine.embed(PROMPT))
    engine.score(prompt, ANSWERS)
    # Five beginnings: nothing, "5", "5 6", "5 7", "5 6 8"; each is asked for what follows it in any answer.
    sent = {length - len(PROMPT): params.logprob_token_ids for length, params in llm.asked if length < len(PROMPT) + 2}
    assert sent == {0: [4, 5], 1: [6, 7]}
    assert sorted(length - len(PROMPT) for length, _ in llm.asked) == [0, 1, 2, 2, 3]
    assert {params.max_tokens for _, params in llm.asked} == {1}
    llm.asked.clear()
    list(engine.decode(prompt, max_new_tokens=1000))
    ((length, params),) = llm.asked
    assert (length, params.max_tokens) == (len(PROMPT), 400 - len(PROMPT))
    assert params.stop_token_ids == sorted(engine.stop_ids)


def test_the_end_of_the_turn_is_not_part_of_the_answer(
    both: tuple[LanguageModel, VllmLanguage], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = both[1]
    ends = [CompletionOutput(0, "", [7, 8, engine.end_id, 9], None, None)]
    monkeypatch.setattr(engine.llm, "generate", lambda *_, **__: [RequestOutput("0", ends)])
    assert list(engine.decode(engine.prefill(engine.embed(PROMPT)), max_new_tokens=9)) == [7, 8]
    with pytest.raises(ModelError, match="no log-probability of token 4"):
        engine.score(engine.prefill(engine.embed(PROMPT)), [[4]])


def test_what_cannot_be_asked(both: tuple[LanguageModel, VllmLanguage]) -> None:
    engine = both[1]
    with pytest.raises(UsageError, match="at least one token"):
        engine.prefill(torch.zeros(0, engine.width))
    with pytest.raises(BudgetExceeded, match="401 tokens, the language model has room for 400"):
        engine.prefill(torch.zeros(401, engine.width))
    for answers in ([], [[4], []]):
        with pytest.raises(UsageError, match="every answer"):
            engine.score(engine.prefill(engine.embed(PROMPT)), answers)


def test_another_layout_is_written_once_as_vllm_reads_it(library: ModuleType, tmp_path: Path) -> None:
    tiny.save_vilamp(tmp_path / "vilamp")
    spec = _spec(tmp_path / "vilamp", layout="vilamp")
    folder = export_language(spec, tmp_path / "vilamp")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert export_language(spec, tmp_path / "vilamp") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    plain = load_language(spec.model_copy(update={"engine": "transformers"}), CPU)
    engine = open_engine(folder, spec, CPU)
    embeddings = plain.embed(PROMPT)
    got = engine.score(engine.prefill(embeddings), ANSWERS)
    assert got == pytest.approx(plain.score(plain.prefill(embeddings), ANSWERS), abs=1e-4)


def test_a_release_that_cannot_score_is_refused(
    library: ModuleType, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "SamplingParams", object)
    with pytest.raises(EngineMissing, match=r"lacks SamplingParams.logprob_token_ids; install a newer one"):
        open_engine(checkpoints / "llm", _spec(checkpoints / "llm"), CPU)


def test_without_vllm_or_a_gpu_it_says_what_to_do(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    spec = _spec(checkpoints / "llm")
    with pytest.raises(EngineMissing, match=r"pip install 'sightline\[vllm\]', or set engine to transformers"):
        open_engine(checkpoints / "llm", spec, CPU)
    with pytest.raises(EngineMissing, match="not installed"):
        load_vllm(spec, torch.device("cuda"))
    with pytest.raises(ModelError, match="engine vllm needs a GPU, this is cpu; set engine to transformers"):
        load_language(spec, CPU)


def test_dropping_needs_the_engine_transformers(checkpoints: Path) -> None:
    spec = LanguageModelSpec(
        source=Source(folder=checkpoints / "llm"), max_context=300, engine="vllm", dropping=DroppingSpec()
    )
    with pytest.raises(ModelError, match="does not drop visual tokens; remove dropping, or set engine to transformers"):
        load_vllm(spec, torch.device("cuda"))
