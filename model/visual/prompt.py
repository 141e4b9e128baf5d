"""From frames and a question to what the language model reads.

The text around the visual tokens is ChatML; `build_prompt` is the one place that knows it, so that training and
answering read the same prompt. Visual tokens stand in temporal order: a keyframe is its capture time, where the
profile asks for it, and M tokens; any other frame is one token. Streams follow one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from index.records import from_micros
from model.visual.connector import Connector
from model.visual.dfm import Merged, pool_grid

__all__ = ["SYSTEM", "build_prompt", "clock_ids", "count_visual", "question_text", "visual_embeddings"]

SYSTEM = "You are a helpful assistant."


def question_text(question: str, options: Sequence[str] = ()) -> str:
    """The user's words as the model reads them.

    An open question stays as it was typed. With options it is `{question}. Please choose the right answer from the
    following options: {options}.`, the options printed as a Python list; the question's own final full stop is
    dropped so that the template's does not double it, while a question mark stays (`…?. Please`), which is what the
    published prompt gives for questions that end in one.
    """
    question = question.strip()
    if not options:
        return question
    listed = list(options)
    return f"{question.rstrip('. ')}. Please choose the right answer from the following options: {listed}."


def build_prompt(tokenizer: Any, question: str, options: Sequence[str] = ()) -> tuple[list[int], list[int]]:
    """Token ids before and after the visual tokens.

    Args:
        tokenizer: a transformers tokenizer that knows `<|im_start|>` and `<|im_end|>`.
        question: the bare question.
        options: the answers to choose from; empty for an open question.

    Returns:
        `prefix` (system turn and the head of the user's turn) and `suffix` (a line break, the question, and the head
        of the assistant's turn); the visual tokens go between them, the answer and `<|im_end|>` after.
    """
    prefix = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
    suffix = f"\n{question_text(question, options)}<|im_end|>\n<|im_start|>assistant\n"
    return _ids(tokenizer, prefix), _ids(tokenizer, suffix)


def clock_ids(tokenizer: Any, captured_at: int) -> list[int]:
    """Token ids of a capture time (UTC microseconds), written ` HH:MM` in UTC."""
    return _ids(tokenizer, f" {from_micros(captured_at):%H:%M}")


def count_visual(keyframes: int, frames: int, patches: int) -> int:
    """M·K + (N − K): the visual tokens of `frames` frames of which `keyframes` keep their `patches` tokens."""
    return patches * keyframes + (frames - keyframes)


def visual_embeddings(
    pieces: Iterable[Merged],
    connector: Connector,
    captured_at: NDArray[np.int64],
    clock: Callable[[int], Tensor] | None,
    query: Tensor,
    keyframe_tokens: int | None = None,
    stage: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Iterator[Tensor]:
    """The language model's input between prefix and suffix, piece by piece in row order.

    Args:
        pieces: what `model.visual.dfm.merge_frames` yields.
        connector: MLP_k and MLP_n; its dtype and device are those of the result.
        captured_at: int64[N] UTC microseconds.
        clock: the embeddings [n, width] of a capture time, or None for a profile without timestamps.
        query: the question in the patches' space, [patch_dim].
        keyframe_tokens: pool a keyframe's M tokens to so many; None for all.
        stage: told `projector` around the connector's work.

    Yields:
        [n, width] tensors.
    """
    weights = next(connector.frame.parameters())
    for piece in pieces:
        features = piece.features.to(weights.device, weights.dtype)
        if piece.is_keyframe and clock is not None:
            yield clock(int(captured_at[piece.start])).to(weights.device, weights.dtype)
        with stage("projector"):
            tokens = connector.tokens(features, query, keyframe=piece.is_keyframe)
            if piece.is_keyframe and keyframe_tokens is not None:
                tokens = pool_grid(tokens.float(), keyframe_tokens).to(tokens.dtype)
        yield tokens


def _ids(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=False).input_ids]
