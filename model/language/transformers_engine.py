"""The language model by transformers: a Qwen2 module with a preallocated key-value cache.

The default engine and the reference; see `model.language.engine` for the interface. Knows prefill in pieces,
decoding and the scoring of given answers in one pass; with a `DroppingSpec` the layers run in groups
(`model.language.staged_layers`). Does not know frames, the text of prompts, or questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from index.errors import BudgetExceeded
from model.answers import GREEDY, Sampling
from model.language.attention import use_aligned_attention
from model.language.engine import PrefilledPrompt, check_answers, check_prompt
from model.language.kv_cache import PreallocatedCache, cache_bytes
from model.language.qwen2 import load_qwen2
from model.language.sampling import TokenPicker, stop_ids
from model.language.staged_layers import StagedLayers
from model.profiles.profile import DroppingSpec, LanguageModelSpec

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
        dropping: which visual tokens deep layers leave out; None for none.

    Raises:
        WeightsInvalid: `dropping` does not fit the layers of `model`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_context: int,
        cache_budget: int | None = None,
        dropping: DroppingSpec | None = None,
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self._staged = None if dropping is None else StagedLayers(model, dropping)
        if self.device.type == "cuda" and self.dtype.itemsize == 2:
            use_aligned_attention(model)  # torch's fast kernels take 16-bit numbers only
        self._hooks: list[Callable[[], object]] = []
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
        self._hooks.append(hook)

    def _before_pass(self) -> None:
        """Call the hooks."""
        for hook in self._hooks:
            hook()

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Embeddings of token ids, [n, width]."""
        table = self.model.get_input_embeddings()
        rows: Tensor = table(torch.tensor(ids, dtype=torch.long, device=self.device))
        return rows

    @torch.inference_mode()
    def prefill(self, embeddings: Tensor, *, room: int = 256, visual: Tensor | None = None) -> PrefilledPrompt:
        """Read a prompt, [T, width]: fill the key-value cache and compute the logits after the last token.

        The cache is allocated first, for T + `room` tokens, or for those that each layer keeps. The prompt then passes
        through the layers in pieces of PREFILL_TOKENS, and only its last token through the head. With `dropping`,
        deep layers read fewer of the tokens that `visual` marks.

        Raises:
            UsageError: the prompt is empty, or `visual` is not bool[T], or its last token is to be dropped.
            BudgetExceeded: the prompt has more tokens than `max_context`, or its cache does not fit into memory. Raised
                before any work is done.
        """
        check_prompt(embeddings, self.max_context, visual)
        embeddings = embeddings.to(self.device, self.dtype)
        if self._staged is not None and visual is not None:
            visual = visual.to(self.device)
            lengths = self._staged.lengths(len(embeddings), int(visual.sum()))
            cache = self._allocate(lengths, room, beside=2 * embeddings.nbytes)
            last = self._staged.prefill(embeddings, visual, cache, piece=PREFILL_TOKENS, before_pass=self._before_pass)
            return PrefilledPrompt(cache, len(embeddings), self._logits(last)[0])
        cache = self._allocate([len(embeddings)] * len(self.model.model.layers), room)
        hidden: Any = None
        for piece in torch.split(embeddings, PREFILL_TOKENS):
            hidden = self._forward(inputs_embeds=piece.unsqueeze(0), past_key_values=cache)
        return PrefilledPrompt(cache, len(embeddings), self._logits(hidden[:, -1])[0])

    def _forward(self, **inputs: Any) -> Any:
        """One pass through all layers and the norm, [1, n, width]."""
        self._before_pass()
        return self.model.model(**inputs, use_cache=True).last_hidden_state

    def _allocate(self, lengths: Sequence[int], room: int, *, beside: int = 0) -> PreallocatedCache:
        """An empty cache for prompts of `lengths` tokens by layer and `room` more.

        Raises:
            BudgetExceeded: it does not fit into its budget, or the GPU has no room for it and `beside` bytes.
        """
        config, sizes = self.model.config, [length + room for length in lengths]
        need = cache_bytes(config, sizes, self.dtype)
        free = [self.cache_budget] if self.cache_budget is not None else []
        if self.device.type == "cuda":
            # Memory that torch has reserved and does not use is free too.
            spare = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            free.append(max(0, torch.cuda.mem_get_info(self.device)[0] + spare - beside))
        if free and need > min(free):
            raise BudgetExceeded(
                f"the key-value cache of {lengths[0]} prompt tokens and {room} more needs {need / 2**20:,.1f} MiB, "
                f"{min(free) / 2**20:,.1f} MiB are free; ask about a shorter time, or for fewer keyframes"
            )
        return PreallocatedCache(config, sizes, dtype=self.dtype, device=self.device)

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
            embedding = self.embed([token])
            if self._staged is not None:
                self._before_pass()
                offset = torch.zeros(1, dtype=torch.int64, device=self.device)
                logits = self._logits(self._staged.extend(embedding, prompt.cache, offset=offset))[0]
                continue
            hidden = self._forward(inputs_embeds=embedding.unsqueeze(0), past_key_values=prompt.cache)
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
        embeddings = self.embed([t for tokens in fed for t in tokens])
        if self._staged is not None:
            self._before_pass()
            hidden = self._staged.extend(embeddings, prompt.cache, offset=offset, visible=visible)
        else:
            hidden = self._behind(prompt, embeddings, offset, visible)
        logs = torch.log_softmax(self._logits(hidden).float(), dim=-1)
        wanted = torch.tensor([t for answer in answers for t in answer[1:]], device=self.device)
        gained = logs.gather(1, wanted[:, None])[:, 0]
        for i, value in zip(owner.tolist(), gained.tolist(), strict=True):
            totals[i] += value
        return totals

    def _behind(self, prompt: PrefilledPrompt, embeddings: Tensor, offset: Tensor, visible: Tensor) -> Tensor:
        """Pass tokens [n, width] at positions `offset` behind a prompt; `visible` is bool[n, n] among them."""
        past = visible.new_ones(len(visible), prompt.length)
        # 0 where a token may attend, the most negative number elsewhere: the form that every attention kernel takes.
        mask = torch.zeros(1, 1, len(visible), prompt.length + len(visible), dtype=self.dtype, device=self.device)
        mask.masked_fill_(~torch.cat([past, visible], dim=1), torch.finfo(self.dtype).min)
        hidden = self._forward(
            inputs_embeds=embeddings.unsqueeze(0),
            attention_mask=mask,
            position_ids=(prompt.length + offset).unsqueeze(0),
            past_key_values=prompt.cache,
        )
        return hidden[0]  # type: ignore[no-any-return]

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.lm_head(hidden)
        return logits


def load_transformers(spec: LanguageModelSpec, device: torch.device) -> TransformersLanguage:
    """Load the language model of a profile: float32 on a CPU, `spec.dtype` on CUDA.

    Raises:
        WeightsNotFound, WeightsInvalid: see `model.language.qwen2.load_qwen2`, and `spec.dropping` must fit the layers.
    """
    model, tokenizer = load_qwen2(spec, device)
    return TransformersLanguage(
        model, tokenizer, max_context=spec.max_context, cache_budget=spec.cache_bytes, dropping=spec.dropping
    )
