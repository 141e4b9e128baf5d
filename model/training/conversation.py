"""Conversations about footage: their token ids, and which of them are supervised.

The text is the ChatML of `model.visual.prompt.build_prompt`: one system turn, then turns of `human` and `gpt`.
`<image>` or `<video>` in the first turn marks the place of the frames. Only the assistant's text and the `<|im_end|>`
that ends it are supervised; roles, line breaks after a turn and the user's text are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from index.errors import UsageError
from model.visual.prompt import SYSTEM, plain_ids, plain_text

__all__ = ["IGNORED", "PLACEHOLDERS", "Script", "Turn", "bare_question", "check_turns", "write_script"]

IGNORED = -100
"""Target of a token that is not supervised."""
PLACEHOLDERS = ("<image>", "<video>")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation."""

    human: bool
    """Whether the user or the assistant speaks."""
    text: str
    """The text."""


@dataclass(frozen=True, slots=True)
class Script:
    """A conversation as token ids."""

    head: list[int]
    """Token ids before the frames."""
    tail: list[int]
    """Token ids after the frames."""
    targets: list[int]
    """The ids of `tail` that are supervised, IGNORED for the others; as long as `tail`."""


def check_turns(turns: Sequence[Turn]) -> None:
    """Check that user and assistant alternate, and that the first turn has the only placeholder.

    Raises:
        UsageError: the turns are invalid; the message tells what to change.
    """
    for i, turn in enumerate(turns):
        if turn.human != (i % 2 == 0):
            raise UsageError(f"turn {i + 1} should be from {'human' if i % 2 == 0 else 'gpt'}; the two take turns")
        if not turn.human and not turn.text.strip():
            raise UsageError(f"turn {i + 1}: the answer is empty; leave the sample out or answer it")
    if not turns or turns[-1].human:
        raise UsageError("the last turn should be from gpt; without an answer there is nothing to learn")
    found = [i for i, turn in enumerate(turns) for name in PLACEHOLDERS for _ in range(turn.text.count(name))]
    if found != [0]:
        where = "none" if not found else f"{len(found)}, in turn {', '.join(str(i + 1) for i in found)}"
        raise UsageError(f"one {' or '.join(PLACEHOLDERS)} is required, in the first turn; there is {where}")


def bare_question(turns: Sequence[Turn]) -> str:
    """The first turn without its placeholder; selects keyframes for samples without a `query`."""
    text = turns[0].text
    for name in PLACEHOLDERS:
        text = text.replace(name, " ")
    return " ".join(text.split())


def write_script(tokenizer: Any, turns: Sequence[Turn]) -> Script:
    """Tokenise a conversation. Each answer is tokenised separately, as options are when they are scored.

    Args:
        tokenizer: a transformers tokenizer with ChatML.
        turns: the conversation.

    Raises:
        UsageError: see `check_turns`.
    """
    check_turns(turns)
    end = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    first = turns[0].text
    name = next(name for name in PLACEHOLDERS if name in first)
    before, after = first.split(name)
    head = _ids(tokenizer, f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{plain_text(tokenizer, before)}")
    tail: list[int] = []
    targets: list[int] = []
    after = plain_text(tokenizer, after)
    asked = after
    for i, turn in enumerate(turns):
        if turn.human:
            asked = after if i == 0 else f"\n<|im_start|>user\n{plain_text(tokenizer, turn.text)}"
            continue
        prompt = _ids(tokenizer, f"{asked}<|im_end|>\n<|im_start|>assistant\n")
        answer = [*plain_ids(tokenizer, turn.text.strip()), end]
        tail += [*prompt, *answer]
        targets += [*[IGNORED] * len(prompt), *answer]
    return Script(head, tail, targets)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=False).input_ids]
