"""The language model by transformers: a Qwen2 module with a preallocated key-value cache.

The default engine and the reference; see `model.language.engine` for the interface. Knows prefill in pieces,
decoding and the scoring of given answers in one pass. Does not know frames, the text of prompts, or questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from index.errors import BudgetExceeded
from model.answers import GREEDY, Sampling
from model.language.engine import PrefilledPrompt, check_answers, check_prompt
from model.language.kv_cache import PreallocatedCache, cache_bytes
from model.language.qwen2 import load_qwen2
from model.language.sampling import TokenPicker, stop_ids
from model.profiles.profile import LanguageModelSpec

__all__ = ["PREFILL_TOKENS", "TransformersLanguage", "load_transformers"]

PREFILL_TOKENS = 2048
"""Tokens of one piece of a prefill; pieces keep activations small, however long the prompt is."""


class TransformersLanguage:
    """A `model.language.engine.LanguageModel` over a Qwen2ForCausalLM.

    Args:
        model: the Qwen2ForCausalLM.
        tokenizer: its tokenizer; None for random weights.
        max_context: most tokens of prompt and answer together; never more than the model has positions for.
        cache_budget: most bytes of one prompt's key-value cache; None for what the device has free.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_context: int, cache_budget: int | None = None) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.cache_budget = cache_budget
        self.max_context = min(max_context, int(model.config.max_position_embeddings))
        self.width = int(model.config.hidden_size)
        self.end_id = -1 if tokenizer is None else int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        self.stop_ids = frozenset(stop_ids(model.generation_config, tokenizer))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.model.dtype  # type: ignore[no-any-return]

    def register_forward_pre_hook(self, hook: Callable[[], object]) -> None:
        """Call `hook` before every pass through the layers; an error that it raises ends the pass."""

        def call(*_: Any) -> None:
            hook()

        self.model.model.register_forward_pre_hook(call)

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Embeddings of token ids, [n, width]."""
        table = self.model.get_input_embeddings()
        rows: Tensor = table(torch.tensor(ids, dtype=torch.long, device=self.device))
        return rows

    @torch.inference_mode()
    def prefill(self, embeddings: Tensor, *, room: int = 256, visual: Tensor | None = None) -> PrefilledPrompt:
        """Read a prompt, [T, width]: fill the key-value cache and compute the logits after the last token.

        The cache is allocated first, for T + `room` tokens. The prompt then passes through the layers in pieces of
        PREFILL_TOKENS, and only its last token through the head.

        Raises:
            UsageError: the prompt is empty.
            BudgetExceeded: the prompt has more tokens than `max_context`, or its cache does not fit into memory. Raised
                before any work is done.
        """
        check_prompt(embeddings, self.max_context)
        self._check_memory(len(embeddings), room)
        cache = PreallocatedCache(self.model.config, len(embeddings) + room, dtype=self.dtype, device=self.device)
        hidden: Any = None
        for piece in torch.split(embeddings.to(self.device, self.dtype), PREFILL_TOKENS):
            hidden = self.model.model(
                inputs_embeds=piece.unsqueeze(0), past_key_values=cache, use_cache=True
            ).last_hidden_state
        return PrefilledPrompt(cache, len(embeddings), self._logits(hidden[:, -1])[0])

    def _check_memory(self, tokens: int, room: int) -> None:
        """Raise BudgetExceeded if the cache of `tokens` + `room` tokens does not fit into its budget or the GPU."""
        need = cache_bytes(self.model.config, tokens + room, self.dtype)
        free = [self.cache_budget] if self.cache_budget is not None else []
        if self.device.type == "cuda":
            # Memory that torch has reserved and does not use is free too.
            spare = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            free.append(torch.cuda.mem_get_info(self.device)[0] + spare)
        if free and need > min(free):
            raise BudgetExceeded(
                f"the key-value cache of {tokens} prompt tokens and {room} more needs {need / 2**20:,.1f} MiB, "
                f"{min(free) / 2**20:,.1f} MiB are free; ask about a shorter time, or for fewer keyframes"
            )

    @torch.inference_mode()
    def decode(self, prompt: PrefilledPrompt, *, max_new_tokens: int, sampling: Sampling = GREEDY) -> Iterator[int]:
        """Token ids one by one until the end of the turn, whose own token is not yielded; see `LanguageModel`."""
        logits, picker = prompt.logits, TokenPicker(sampling, self.model.generation_config)
        for step in range(max_new_tokens):
            token = picker.pick(logits)
            if token in self.stop_ids:
                return
            yield token
            if step + 1 == max_new_tokens:
                return
            hidden = self.model.model(
                inputs_embeds=self.embed([token]).unsqueeze(0), past_key_values=prompt.cache, use_cache=True
            ).last_hidden_state
            logits = self._logits(hidden[:, -1])[0]

    @torch.inference_mode()
    def score(self, prompt: PrefilledPrompt, answers: Sequence[Sequence[int]]) -> list[float]:
        """log P(answer | prompt) of each answer, the sum over its tokens (natural logarithm).

        All answers pass through the model together, behind one copy of the prompt's cache: they are concatenated, each
        takes the positions right after the prompt, and an attention mask hides them from one another.

        Raises:
            UsageError: there are no answers, or one has no tokens.
        """
        check_answers(answers)
        first = torch.log_softmax(prompt.logits.float(), dim=-1)
        totals = [float(first[answer[0]]) for answer in answers]
        fed = [list(answer[:-1]) for answer in answers]  # these predict tokens 2 to the last
        if not any(fed):
            return totals
        owner = torch.tensor([i for i, tokens in enumerate(fed) for _ in tokens], device=self.device)
        offset = torch.tensor([j for tokens in fed for j in range(len(tokens))], device=self.device)
        visible = (owner[:, None] == owner[None, :]) & (offset[:, None] >= offset[None, :])
        past = visible.new_ones(len(owner), prompt.length)
        # 0 where a token may attend, the most negative number elsewhere: the form that every attention kernel takes.
        mask = torch.zeros(1, 1, len(owner), prompt.length + len(owner), dtype=self.dtype, device=self.device)
        mask.masked_fill_(~torch.cat([past, visible], dim=1), torch.finfo(self.dtype).min)
        hidden = self.model.model(
            inputs_embeds=self.embed([t for tokens in fed for t in tokens]).unsqueeze(0),
            attention_mask=mask,
            position_ids=(prompt.length + offset).unsqueeze(0),
            past_key_values=prompt.cache,
            use_cache=True,
        ).last_hidden_state
        logs = torch.log_softmax(self._logits(hidden[0]).float(), dim=-1)
        wanted = torch.tensor([t for answer in answers for t in answer[1:]], device=self.device)
        gained = logs.gather(1, wanted[:, None])[:, 0]
        for i, value in zip(owner.tolist(), gained.tolist(), strict=True):
            totals[i] += value
        return totals

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.lm_head(hidden)
        return logits


def load_transformers(spec: LanguageModelSpec, device: torch.device) -> TransformersLanguage:
    """Load the language model of a profile: float32 on a CPU, `spec.dtype` on CUDA.

    Raises:
        WeightsNotFound, WeightsInvalid: see `model.language.qwen2.load_qwen2`.
    """
    model, tokenizer = load_qwen2(spec, device)
    return TransformersLanguage(model, tokenizer, max_context=spec.max_context, cache_budget=spec.cache_bytes)
