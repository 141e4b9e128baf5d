"""The language model by vllm, through its prompt-embeddings input: an optional engine (`pip install 'sightline[vllm]'`).

NOT RUN ON A GPU YET. What is sent to vllm is tested against a stand-in with vllm's documented signatures; that vllm
itself answers so, and how fast, has not been seen. The engine of transformers (`model.language.transformers_engine`) is the default and the
reference.

    prompt        {"prompt_embeds": [T, width]}, on the CPU in the model's dtype
    open answer   greedy, token ids; vllm is asked once, so the pieces of an answer come together at its end
    options       vllm gives no log-probabilities of an embedded prompt, so for the j-th token of an answer it is asked
                  for log P of that one token (`logprob_token_ids`) after the prompt and the j − 1 tokens before it, all
                  in one batch; its prefix cache reads the prompt once

vllm reads Qwen2 in transformers' own layout. Where a profile's weights have another (`vilamp`, `llava_onevision`), the
language model is written so once, into the user's cache folder. Does not know frames, prompts or questions.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from index.errors import BudgetExceeded, EngineMissing, ModelError, UsageError, WeightsInvalid
from model.checkpoints.files import resolve, stream_tensors, tensor_files
from model.language.transformers_engine import LanguageModel, Reading, load_transformers
from model.profiles.profile import LanguageModelSpec

__all__ = ["VllmLanguage", "load_vllm", "open_engine"]

_NEEDS = ("config.json", "tokenizer.json", "*.safetensors")
_EMBEDDING = "model.embed_tokens.weight"


class VllmLanguage(LanguageModel):
    """What `LanguageModel` does, by a vllm `LLM` and its `SamplingParams`. `table` is the embedding, [vocabulary, width]."""

    def __init__(self, llm: Any, sampling: Any, tokenizer: Any, table: Tensor, *, max_context: int) -> None:
        # Not the base's: there is no module here, and vllm keeps the cache.
        self.model, self.tokenizer, self._sampling, self._table = llm, tokenizer, sampling, table
        self.max_context, self.width, self.cache_budget = max_context, int(table.shape[1]), None
        self.end_id = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        self.stop_ids = frozenset(int(i) for i in (self.end_id, tokenizer.eos_token_id) if i is not None)

    @property
    def device(self) -> torch.device:
        return self._table.device

    @property
    def dtype(self) -> torch.dtype:
        return self._table.dtype

    def embed(self, ids: Sequence[int]) -> Tensor:
        return self._table[torch.tensor(ids, dtype=torch.long, device=self.device)]

    def read(self, embeddings: Tensor, *, room: int = 256) -> Reading:
        """Only checks: vllm prefills when it is first asked. `logits` of the result is empty.

        Raises:
            UsageError: an empty prompt. BudgetExceeded: more tokens than `max_context`.
        """
        if len(embeddings) == 0:
            raise UsageError("a language model needs at least one token to read")
        if len(embeddings) > self.max_context:
            raise BudgetExceeded(
                f"the prompt has {len(embeddings)} tokens, the language model has room for {self.max_context}"
            )
        return Reading(embeddings.to("cpu", self.dtype), len(embeddings), torch.zeros(0))

    def decode(self, reading: Reading, *, max_new_tokens: int) -> Iterator[int]:
        """Greedy decoding; the token ids up to the end of the turn, which is not among them."""
        most = min(max_new_tokens, self.max_context - reading.length)
        if most < 1:
            return
        params = self._sampling(
            temperature=0.0, max_tokens=most, stop_token_ids=sorted(self.stop_ids), detokenize=False
        )
        (output,) = self._ask([reading.cache], [params])
        for token in output.token_ids:
            if int(token) in self.stop_ids:
                return
            yield int(token)

    def score(self, reading: Reading, answers: Sequence[Sequence[int]]) -> list[float]:
        """log P(answer | prompt) of each answer, summed over its tokens (natural logarithm).

        Raises:
            UsageError: no answers, or one without tokens. ModelError: vllm left out what it was asked for.
        """
        if not answers or not all(answers):
            raise UsageError("every answer to score needs at least one token")
        # Answers that begin alike ask the same.
        asked = {(*answer[:j],): set[int]() for answer in answers for j in range(len(answer))}
        for answer in answers:
            for j, token in enumerate(answer):
                asked[(*answer[:j],)].add(int(token))
        prompts = [torch.cat([reading.cache, self.embed(said).cpu()]) if said else reading.cache for said in asked]
        params = [
            self._sampling(temperature=0.0, max_tokens=1, logprob_token_ids=sorted(tokens), detokenize=False)
            for tokens in asked.values()
        ]
        found = dict(zip(asked, self._ask(prompts, params), strict=True))
        totals = []
        for answer in answers:
            logs = [self._log(found[(*answer[:j],)], int(token)) for j, token in enumerate(answer)]
            totals.append(sum(logs))
        return totals

    def _ask(self, prompts: Sequence[Tensor], params: Sequence[Any]) -> list[Any]:
        """The one completion of each prompt."""
        sent = [{"prompt_embeds": prompt} for prompt in prompts]
        return [answered.outputs[0] for answered in self.model.generate(sent, list(params), use_tqdm=False)]

    @staticmethod
    def _log(output: Any, token: int) -> float:
        first = output.logprobs[0] if output.logprobs else {}
        if token not in first:
            raise ModelError(f"vllm gave no log-probability of token {token}; this release of it may be too old")
        return float(first[token].logprob)


def load_vllm(spec: LanguageModelSpec, device: torch.device) -> VllmLanguage:
    """The language model of a profile in a vllm engine, which takes `spec.gpu_share` of the GPU's memory.

    Raises:
        EngineMissing: vllm is not installed.
        ModelError: there is no GPU.
        WeightsNotFound, WeightsInvalid: as `model.language.transformers_engine.load_language`.
    """
    if device.type != "cuda":
        raise ModelError(f"engine vllm needs a GPU, this is {device.type}; set engine to transformers in the profile")
    _library()
    folder = resolve(spec.source, needs=_NEEDS, what="language model")
    return open_engine(folder if spec.layout == "causal_lm" else _exported(spec, folder), spec, device)


def open_engine(folder: Path, spec: LanguageModelSpec, device: torch.device) -> VllmLanguage:
    """A vllm engine over a Qwen2 in transformers' layout.

    Raises:
        EngineMissing: vllm is not installed, or too old. WeightsInvalid: there is no embedding in the folder.
    """
    from transformers import PreTrainedTokenizerFast

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
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    table = table.to(device, getattr(torch, spec.dtype))
    return VllmLanguage(llm, library.SamplingParams, tokenizer, table, max_context=spec.max_context)


def _library() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise EngineMissing(
            f"engine vllm is not installed ({error}); run pip install 'sightline[vllm]', or set engine to transformers"
        ) from None
    return vllm


def _exported(spec: LanguageModelSpec, folder: Path) -> Path:
    """The language model of a checkpoint by itself, written once for each state of its files."""
    stats = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(set(tensor_files(folder).values()))
    ]
    digest = hashlib.sha256(repr((str(folder.resolve()), spec.layout, spec.dtype, stats)).encode()).hexdigest()[:32]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sightline" / "vllm"
    written = cache / digest
    if not written.is_dir():
        part = cache / f"{digest}.{os.getpid()}.part"
        language = load_transformers(spec, torch.device("cpu"))
        try:
            language.model.to(getattr(torch, spec.dtype)).save_pretrained(part)
            language.tokenizer.save_pretrained(part)
            part.rename(written)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            if not written.is_dir():
                raise ModelError(f"{cache}: the language model cannot be written there for vllm ({error})") from None
    return written
