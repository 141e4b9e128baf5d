"""The language model by vllm, through its prompt-embeddings input: an optional engine (`pip install
'sightline[vllm]'`).

NOT RUN ON A GPU YET. The requests to vllm are tested against a stand-in with vllm's documented signatures; the answers
and the speed of vllm itself have not been measured. The default engine and the reference is
`model.language.transformers_engine`.

    prompt        {"prompt_embeds": [T, width]}, on the CPU in the model's dtype
    open answer   token ids; one request, so all pieces of an answer arrive together at its end
    options       vllm returns no log-probabilities of an embedded prompt. For the j-th token of an answer, a request
                  asks for log P of that one token (`logprob_token_ids`) after the prompt and the j − 1 tokens before
                  it. All requests form one batch; vllm's prefix cache reads the prompt once

vllm reads Qwen2 in transformers' own layout. If a profile's weights have another layout (`vilamp`, `llava_onevision`),
the language model is exported once into the user's cache folder. Does not know frames, the text of prompts, or
questions.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from index.errors import EngineMissing, ModelError, WeightsInvalid
from index.files import cache_folder
from model.answers import GREEDY, Sampling
from model.checkpoints.files import stream_tensors, tensor_files
from model.language.engine import PrefilledPrompt, check_answers, check_prompt
from model.language.qwen2 import load_generation, load_qwen2, load_tokenizer, resolve_qwen2
from model.language.sampling import TokenPicker, stop_ids
from model.profiles.profile import LanguageModelSpec

__all__ = ["VllmLanguage", "export_language", "load_vllm", "open_engine"]

_EMBEDDING = "model.embed_tokens.weight"


class VllmLanguage:
    """A `model.language.engine.LanguageModel` over a vllm engine.

    Args:
        llm: a vllm `LLM` with prompt embeddings enabled.
        sampling: the class `vllm.SamplingParams`.
        tokenizer: the model's tokenizer.
        table: the model's embedding, [vocabulary, width].
        max_context: most tokens of prompt and answer together.
        generation: the checkpoint's `GenerationConfig`; None if it has none.
    """

    def __init__(
        self, llm: Any, sampling: Any, tokenizer: Any, table: Tensor, *, max_context: int, generation: Any = None
    ) -> None:
        self.llm, self.tokenizer, self._params, self._table = llm, tokenizer, sampling, table
        self.max_context, self.width, self._generation = max_context, int(table.shape[1]), generation
        self.end_id = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        self.stop_ids = frozenset(stop_ids(generation, tokenizer))

    @property
    def device(self) -> torch.device:
        """Device of the embedding table."""
        return self._table.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the embedding table."""
        return self._table.dtype

    def register_forward_pre_hook(self, hook: Callable[[], object]) -> None:
        """Does nothing: the layers are in vllm's own process."""

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Embeddings of token ids, [n, width]."""
        return self._table[torch.tensor(ids, dtype=torch.long, device=self.device)]

    def prefill(self, embeddings: Tensor, *, room: int = 256, visual: Tensor | None = None) -> PrefilledPrompt:
        """Check the prompt, [T, width]. vllm itself prefills at the first request; `visual` has no effect.

        Raises:
            UsageError: the prompt is empty, or `visual` does not fit it.
            BudgetExceeded: it has more tokens than `max_context`.
        """
        check_prompt(embeddings, self.max_context, visual)
        return PrefilledPrompt(embeddings.to("cpu", self.dtype), len(embeddings), torch.zeros(0))

    def decode(self, prompt: PrefilledPrompt, *, max_new_tokens: int, sampling: Sampling = GREEDY) -> Iterator[int]:
        """Token ids up to the end of the turn, whose own token is not yielded; see `LanguageModel.decode`."""
        limit = min(max_new_tokens, self.max_context - prompt.length)
        if limit < 1:
            return
        picker = TokenPicker(sampling, self._generation)
        draws = (
            {} if sampling.temperature == 0 else {"top_k": picker.top_k, "top_p": picker.top_p, "seed": sampling.seed}
        )
        params = self._params(
            temperature=sampling.temperature,
            repetition_penalty=picker.penalty,
            max_tokens=limit,
            stop_token_ids=sorted(self.stop_ids),
            detokenize=False,
            **draws,
        )
        (output,) = self._generate([prompt.cache], [params])
        for token in output.token_ids:
            if int(token) in self.stop_ids:
                return
            yield int(token)

    def score(self, prompt: PrefilledPrompt, answers: Sequence[Sequence[int]]) -> list[float]:
        """log P(answer | prompt) of each answer, the sum over its tokens (natural logarithm).

        Raises:
            UsageError: there are no answers, or one has no tokens.
            ModelError: vllm did not return a log-probability that was requested.
        """
        check_answers(answers)
        # Answers with the same beginning share its requests: beginning → tokens that may follow it.
        following = {(*answer[:j],): set[int]() for answer in answers for j in range(len(answer))}
        for answer in answers:
            for j, token in enumerate(answer):
                following[(*answer[:j],)].add(int(token))
        prompts = [torch.cat([prompt.cache, self.embed(begun).cpu()]) if begun else prompt.cache for begun in following]
        params = [
            self._params(temperature=0.0, max_tokens=1, logprob_token_ids=sorted(tokens), detokenize=False)
            for tokens in following.values()
        ]
        outputs = dict(zip(following, self._generate(prompts, params), strict=True))
        return [
            sum(_log_probability(outputs[(*answer[:j],)], int(token)) for j, token in enumerate(answer))
            for answer in answers
        ]

    def _generate(self, prompts: Sequence[Tensor], params: Sequence[Any]) -> list[Any]:
        """The one completion of each prompt."""
        requests = [{"prompt_embeds": prompt} for prompt in prompts]
        return [result.outputs[0] for result in self.llm.generate(requests, list(params), use_tqdm=False)]


def _log_probability(output: Any, token: int) -> float:
    """log P of `token` as the first token of a vllm completion."""
    first = output.logprobs[0] if output.logprobs else {}
    if token not in first:
        raise ModelError(f"vllm gave no log-probability of token {token}; this release of it may be too old")
    return float(first[token].logprob)


def load_vllm(spec: LanguageModelSpec, device: torch.device) -> VllmLanguage:
    """Load the language model of a profile in a vllm engine, which takes `spec.gpu_share` of the GPU's memory.

    Raises:
        EngineMissing: vllm is not installed, or too old.
        ModelError: `device` is not a GPU, the profile drops visual tokens, or the export into the cache folder cannot
            be written.
        WeightsNotFound, WeightsInvalid: see `model.language.qwen2.load_qwen2`.
    """
    if device.type != "cuda":
        raise ModelError(f"engine vllm needs a GPU, this is {device.type}; set engine to transformers in the profile")
    if spec.dropping is not None:
        raise ModelError("engine vllm does not drop visual tokens; remove dropping, or set engine to transformers")
    _library()
    folder = resolve_qwen2(spec)
    return open_engine(folder if spec.layout == "causal_lm" else export_language(spec, folder), spec, device)


def open_engine(folder: Path, spec: LanguageModelSpec, device: torch.device) -> VllmLanguage:
    """Open a vllm engine over a Qwen2 in transformers' layout.

    Raises:
        EngineMissing: vllm is not installed, or too old.
        WeightsInvalid: the folder has no embedding tensor.
    """
    library = _library()
    if not hasattr(library.SamplingParams, "logprob_token_ids"):
        raise EngineMissing("engine vllm: this release lacks SamplingParams.logprob_token_ids; install a newer one")
    files = tensor_files(folder)
    if _EMBEDDING not in files:
        raise WeightsInvalid(f"language model: {folder} has no tensor {_EMBEDDING}")
    _, table = next(stream_tensors(files, [_EMBEDDING]))
    llm = library.LLM(
        model=str(folder),
        dtype=spec.dtype,
        max_model_len=spec.max_context,
        gpu_memory_utilization=spec.gpu_share,
        enable_prompt_embeds=True,
        enable_prefix_caching=True,
    )
    tokenizer = load_tokenizer(folder)
    table = table.to(device, getattr(torch, spec.dtype))
    generation = load_generation(folder)
    return VllmLanguage(
        llm, library.SamplingParams, tokenizer, table, max_context=spec.max_context, generation=generation
    )


def _library() -> Any:
    """The module `vllm`."""
    try:
        import vllm
    except ImportError as error:
        raise EngineMissing(
            f"engine vllm is not installed ({error}); run pip install 'sightline[vllm]', or set engine to transformers"
        ) from None
    return vllm


def export_language(spec: LanguageModelSpec, folder: Path) -> Path:
    """The language model of checkpoint `folder` in transformers' layout; written once for each state of its files.

    Returns:
        A folder in the user's cache.

    Raises:
        WeightsInvalid: see `model.language.qwen2.load_qwen2`.
        ModelError: the cache folder cannot be written.
    """
    stats = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(set(tensor_files(folder).values()))
    ]
    digest = hashlib.sha256(repr((str(folder.resolve()), spec.layout, spec.dtype, stats)).encode()).hexdigest()[:32]
    cache = cache_folder() / "vllm"
    exported = cache / digest
    if not exported.is_dir():
        part = cache / f"{digest}.{os.getpid()}.part"
        model, tokenizer = load_qwen2(spec, torch.device("cpu"))
        try:
            model.to(getattr(torch, spec.dtype)).save_pretrained(part)
            tokenizer.save_pretrained(part)
            part.rename(exported)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            if not exported.is_dir():  # another process may have written it meanwhile
                raise ModelError(f"{cache}: the language model cannot be written there for vllm ({error})") from None
    return exported
