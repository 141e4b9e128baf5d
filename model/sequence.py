"""From frames and a question to what the language model reads.

The text around the visual tokens is ChatML; `build_prompt` is the one place that knows it, so that training and
answering read the same prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["SYSTEM", "build_prompt", "question_text"]

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


def _ids(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=False).input_ids]
