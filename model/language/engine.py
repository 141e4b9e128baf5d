"""The interface of a language model: embeddings in, tokens out.

    prefill(embeddings [T, width]) ─▶ PrefilledPrompt ─ decode ─▶ token ids of an open answer, one by one
                                                      └ score ──▶ log P of each given answer

Two engines implement it: `model.language.transformers_engine` (the default and the reference) and
`model.language.vllm_engine` (optional). `model.language.loader` picks the one that a profile names. Does not know
frames, the text of prompts, or questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from index.errors import BudgetExceeded, UsageError
from model.answers import GREEDY, Sampling

__all__ = ["LanguageModel", "PrefilledPrompt", "check_answers", "check_prompt"]


@dataclass(slots=True)
class PrefilledPrompt:
    """A prompt after prefill. `decode` and `score` use it up: each prompt serves one of them, once."""

    cache: Any
    """What the engine keeps of the prompt: its key-value cache, or the embeddings if the engine prefills later."""
    length: int
    """Tokens of the prompt, T; deep layers hold fewer if visual tokens were dropped."""
    logits: Tensor
    """Logits after the last token, [vocabulary]; empty if the engine prefills later."""


class LanguageModel(Protocol):
    """A causal language model with its tokenizer, as one engine runs it."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, a transformers `PreTrainedTokenizerFast` that knows ChatML; None for random weights."""

    @property
    def max_context(self) -> int:
        """Most tokens of prompt and answer together."""

    @property
    def width(self) -> int:
        """Width of an embedding."""

    @property
    def end_id(self) -> int:
        """Token id of `<|im_end|>`, the end of a turn; -1 without a tokenizer."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""

    @property
    def device(self) -> torch.device:
        """Device of the embeddings that `embed` returns."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the embeddings that `embed` returns."""

    def register_forward_pre_hook(self, hook: Callable[[], object]) -> None:
        """Call `hook` before every pass through the layers; an error that it raises ends the pass.

        An engine whose layers are not in this process never calls it.
        """

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Embeddings of token ids, [n, width]."""

    def prefill(self, embeddings: Tensor, *, room: int = 256, visual: Tensor | None = None) -> PrefilledPrompt:
        """Read a prompt, [T, width].

        Args:
            embeddings: the prompt.
            room: most tokens that `decode` or `score` will add.
            visual: bool[T], True for the tokens of frames; None if there are none. Only an engine that drops visual
                tokens reads it (`DroppingSpec`).

        Raises:
            UsageError: the prompt is empty, or `visual` does not fit it.
            BudgetExceeded: the prompt has more tokens than `max_context`, or its cache does not fit into memory. Raised
                before any work is done.
        """

    def decode(self, prompt: PrefilledPrompt, *, max_new_tokens: int, sampling: Sampling = GREEDY) -> Iterator[int]:
        """Token ids up to the end of the turn, whose own token is not yielded; greedy unless `sampling` has a
        temperature. The repetition penalty of the checkpoint's generation_config.json applies."""

    def score(self, prompt: PrefilledPrompt, answers: Sequence[Sequence[int]]) -> list[float]:
        """log P(answer | prompt) of each answer, the sum over its tokens (natural logarithm).

        Raises:
            UsageError: there are no answers, or one has no tokens.
        """


def check_prompt(embeddings: Tensor, max_context: int, visual: Tensor | None = None) -> None:
    """Check the length of a prompt [T, width] and the mask of its visual tokens.

    Raises:
        UsageError: the prompt is empty, or `visual` is not bool[T].
        BudgetExceeded: it has more tokens than `max_context`.
    """
    if len(embeddings) == 0:
        raise UsageError("a language model needs at least one token to read")
    if len(embeddings) > max_context:
        raise BudgetExceeded(f"the prompt has {len(embeddings)} tokens, the language model has room for {max_context}")
    if visual is not None and (visual.dtype != torch.bool or visual.shape != embeddings.shape[:1]):
        raise UsageError(
            f"visual must be bool[{len(embeddings)}], got {visual.dtype} of shape {tuple(visual.shape)}: one value for"
            " each token of the prompt"
        )


def check_answers(answers: Sequence[Sequence[int]]) -> None:
    """Check the answers that `LanguageModel.score` receives.

    Raises:
        UsageError: there are no answers, or one has no tokens.
    """
    if not answers or not all(answers):
        raise UsageError("every answer to score needs at least one token")
