"""The choice of the next token: greedy, or drawn by temperature, after the repetition penalty of the checkpoint.

    logits ─ repetition penalty ─▶ ─ temperature 0: the largest ──────────────▶ token
                                   └ temperature > 0: top-k, top-p, one draw ─┘

The order and the formulas are those of transformers' `generate`. The penalty counts generated tokens alone: a prompt
of embeddings has no token ids, for the authors' code as for ours. Does not know models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.answers import GREEDY, Sampling

__all__ = ["TokenPicker", "stop_ids"]


def stop_ids(config: Any, tokenizer: Any) -> set[int]:
    """Token ids that end an answer: those of the checkpoint's `GenerationConfig`, `<|im_end|>`, and the tokenizer's end
    of text. Each argument may be None."""
    stop = getattr(config, "eos_token_id", None)
    ends = list(stop) if isinstance(stop, list | tuple) else [stop]
    if tokenizer is not None:
        ends += [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    return {int(each) for each in ends if each is not None}


class TokenPicker:
    """Picks the tokens of one answer, one after another.

    Args:
        sampling: temperature and seed.
        config: the checkpoint's `GenerationConfig`; `repetition_penalty`, and with a temperature `top_k` and `top_p`,
            are obeyed. None for no penalty and no limits.
    """

    def __init__(self, sampling: Sampling = GREEDY, config: Any = None) -> None:
        self.sampling = sampling
        self.penalty = float(getattr(config, "repetition_penalty", None) or 1.0)
        self.top_k = int(getattr(config, "top_k", None) or 0)
        top_p = getattr(config, "top_p", None)
        self.top_p = 1.0 if top_p is None else float(top_p)
        self._picked: list[int] = []
        self._generator: torch.Generator | None = None

    def pick(self, logits: Tensor) -> int:
        """The next token, from the logits [vocabulary] after the last one."""
        scores = logits.float()
        if self.penalty != 1.0 and self._picked:
            before = torch.tensor(sorted(set(self._picked)), device=scores.device)
            values = scores[before]
            scores = scores.clone()
            scores[before] = torch.where(values < 0, values * self.penalty, values / self.penalty)
        token = int(scores.argmax()) if self.sampling.temperature == 0 else self._draw(scores)
        self._picked.append(token)
        return token

    def _draw(self, scores: Tensor) -> int:
        scores = scores / self.sampling.temperature
        if 0 < self.top_k < len(scores):
            scores = scores.masked_fill(scores < scores.topk(self.top_k).values[-1], -torch.inf)
        if self.top_p < 1.0:
            ascending, order = scores.sort()
            unlikely = ascending.softmax(-1).cumsum(-1) <= 1.0 - self.top_p
            unlikely[-1] = False
            scores = scores.masked_fill(unlikely.new_empty(unlikely.shape).scatter(0, order, unlikely), -torch.inf)
        if self._generator is None:
            self._generator = torch.Generator(device=scores.device)
            if self.sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self.sampling.seed)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))
