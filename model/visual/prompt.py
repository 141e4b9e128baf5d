"""The prompt: text and vision tokens in the order in which the language model reads them.

The text around the vision tokens is ChatML; `build_prompt` alone defines it, so that training and answers use the same
prompt. Vision tokens are in temporal order, stream after stream: a keyframe is its capture time, if the profile has
`timestamps`, and M tokens; any other frame is one token.

Text of users never becomes a control token: `plain_text` separates the letters of `<|im_end|>`, `<image>` and every
other added token of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from index.errors import UsageError
from index.records import from_micros
from model.visual.connector import Connector
from model.visual.dfm import FrameTokens, pool_grid
from model.visual.interface import PromptPart

__all__ = [
    "SYSTEM",
    "QuestionTokens",
    "build_prompt",
    "clock_ids",
    "plain_ids",
    "plain_text",
    "question_text",
    "question_tokens",
    "visual_embeddings",
]

SYSTEM = "You are a helpful assistant."
"""Text of the system turn."""

_TURN_END = "<|im_end|>\n<|im_start|>assistant\n"
_CONTROLS = frozenset({"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<image>", "<video>"})


def question_text(question: str, options: Sequence[str] = ()) -> str:
    """The text of the user's turn.

    An open question is unchanged. With options the text is `{question}. Please choose the right answer from the
    following options: {options}.`, with the options printed as a Python list. The question's own last sign stays, as in
    the published prompt, so there may be two (`…?. Please`, `….. Please`).
    """
    question = question.strip()
    if not options:
        return question
    listed = list(options)
    return f"{question}. Please choose the right answer from the following options: {listed}."


def build_prompt(
    tokenizer: Any, question: str, options: Sequence[str] = (), *, preface: str = ""
) -> tuple[list[int], list[int]]:
    """Token ids before and after the vision tokens.

    Args:
        tokenizer: a transformers tokenizer that knows `<|im_start|>` and `<|im_end|>`.
        question: the question alone.
        options: the answers to choose from; empty for an open question.
        preface: a sentence before the question, see `model.visual.interface.Visual.preface`.

    Returns:
        `prefix` (system turn and the start of the user's turn) and `suffix` (a line break, the preface and a blank if
        there is one, the question, and the start of the assistant's turn). The vision tokens go between them, the
        answer and `<|im_end|>` after them.

    Raises:
        UsageError: see `plain_text`.
    """
    prefix = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
    head, asked = _asked(tokenizer, question, options, preface)
    return _ids(tokenizer, prefix), _ids(tokenizer, f"{head}{asked}{_TURN_END}")


@dataclass(frozen=True, slots=True)
class QuestionTokens:
    """Which tokens of a prompt's suffix are the question's."""

    question: tuple[int, ...]
    """Places of the question's own tokens in the suffix, ascending, without options and template."""
    asked: tuple[int, ...]
    """Places of all tokens that the question, its options and the sentence between them have."""


def question_tokens(tokenizer: Any, question: str, options: Sequence[str] = (), *, preface: str = "") -> QuestionTokens:
    """Places of the question's tokens in the suffix that `build_prompt` returns for the same arguments.

    A token that begins before the end of the question and reaches beyond it, such as `?.`, belongs to the question.

    Raises:
        UsageError: see `plain_text`, or the tokenizer does not say which characters a token has.
    """
    head, asked = _asked(tokenizer, question, options, preface)
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError("the places of a question's tokens need a fast tokenizer (a tokenizer.json)")
    text = f"{head}{asked}{_TURN_END}"
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    first = len(head)

    def inside(stop: int) -> tuple[int, ...]:
        """Tokens that have a character from the question's first to `stop`."""
        return tuple(place for place, (begin, end) in enumerate(spans) if begin < stop and end > first)

    return QuestionTokens(inside(first + len(plain_text(tokenizer, question.strip()))), inside(first + len(asked)))


def _asked(tokenizer: Any, question: str, options: Sequence[str], preface: str) -> tuple[str, str]:
    """The suffix up to the question, and the question with its options."""
    return f"\n{preface} " if preface else "\n", plain_text(tokenizer, question_text(question, options))


def plain_text(tokenizer: Any, text: str) -> str:
    """`text` of a user, with a blank after the first character of each control token, so that it is ordinary text.

    Control tokens are the added tokens of the tokenizer, and those of ChatML and LLaVA whether it has them or not.

    Raises:
        UsageError: the tokenizer's normalizer makes a control token of another text.
    """
    added = {str(token): int(number) for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    controls = {token for token in {*added, *_CONTROLS} if len(token.strip()) > 1 and not token.isalnum()}
    for token in sorted(controls, key=len, reverse=True):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    numbers = {added[token] for token in controls & added.keys() if added[token] != tokenizer.unk_token_id}
    if numbers and not numbers.isdisjoint(_ids(tokenizer, text)):
        raise UsageError("the question or an option contains a control token of the language model; leave it out")
    return text


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a user's text, without control tokens. Raises as `plain_text`."""
    return _ids(tokenizer, plain_text(tokenizer, text))


def clock_ids(tokenizer: Any, captured_at: int) -> list[int]:
    """Token ids of a capture time (UTC microseconds), written ` HH:MM` in UTC."""
    return _ids(tokenizer, f" {from_micros(captured_at):%H:%M}")


def visual_embeddings(
    pieces: Iterable[FrameTokens],
    connector: Connector,
    captured_at: NDArray[np.int64],
    embed_time: Callable[[int], Tensor] | None,
    query: Tensor,
    keyframe_tokens: int | None = None,
    stage: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Iterator[PromptPart]:
    """The language model's input between prefix and suffix, piece by piece in row order.

    Args:
        pieces: see `model.visual.dfm.merge_frames`.
        connector: MLP_k and MLP_n; the result has its dtype and device.
        captured_at: capture times, int64[N], UTC microseconds.
        embed_time: returns the embeddings of a capture time, [n, width]; None for a profile without timestamps.
        query: the question in the space of the patches, [patch_dim].
        keyframe_tokens: tokens of a keyframe after pooling; None for all M.
        stage: a context manager that measures `projector`, the work of the connector.
    """
    weights = next(connector.frame.parameters())
    for piece in pieces:
        features = piece.features.to(weights.device, weights.dtype)
        if piece.is_keyframe and embed_time is not None:
            yield PromptPart(embed_time(int(captured_at[piece.start])).to(weights.device, weights.dtype), visual=False)
        with stage("projector"):
            tokens = connector.tokens(features, query, keyframe=piece.is_keyframe)
            if piece.is_keyframe and keyframe_tokens is not None:
                tokens = pool_grid(tokens.float(), keyframe_tokens).to(tokens.dtype)
        yield PromptPart(tokens)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=False).input_ids]
