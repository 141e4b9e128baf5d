"""Conversations about footage, as token ids and the ids that are supervised.

The text is ChatML with the very pieces that `model.visual.prompt.build_prompt` answers from: one system turn, then turns of
`human` and `gpt`. `<image>` or `<video>` in the first turn marks where the frames stand. Only what the assistant says is
supervised, with the `<|im_end|>` that ends it; never roles, line breaks after a turn, or the user's words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from index.errors import UsageError
from model.visual.prompt import SYSTEM

__all__ = ["IGNORED", "PLACEHOLDERS", "Script", "Turn", "bare_question", "check_turns", "write_script"]

IGNORED = -100
PLACEHOLDERS = ("<image>", "<video>")


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says; `human` tells it from the assistant."""

    human: bool
    text: str


@dataclass(frozen=True, slots=True)
class Script:
    """Token ids before (`head`) and after (`tail`) the frames; `targets` are the ids of `tail` that are supervised, else
    IGNORED."""

    head: list[int]
    tail: list[int]
    targets: list[int]


def check_turns(turns: Sequence[Turn]) -> None:
    """Turns of a human and the assistant by turns, with one placeholder in the first.

    Raises:
        UsageError: what is wrong and what to do.
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
        raise UsageError(f"one {' or '.join(PLACEHOLDERS)} is wanted, in the first turn; there is {where}")


def bare_question(turns: Sequence[Turn]) -> str:
    """The first turn without its placeholder: what keyframes are chosen for where the sample has no `query`."""
    text = turns[0].text
    for name in PLACEHOLDERS:
        text = text.replace(name, " ")
    return " ".join(text.split())


def write_script(tokenizer: Any, turns: Sequence[Turn]) -> Script:
    """Token ids of a checked conversation. An answer is tokenised by itself, as options are when they are scored.

    Raises:
        UsageError: see `check_turns`.
    """
    check_turns(turns)
    end = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    first = turns[0].text
    name = next(name for name in PLACEHOLDERS if name in first)
    before, after = first.split(name)
    head = _ids(tokenizer, f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{before}")
    tail: list[int] = []
    targets: list[int] = []
    asked = after
    for i, turn in enumerate(turns):
        if turn.human:
            asked = after if i == 0 else f"\n<|im_start|>user\n{turn.text}"
            continue
        prompt = _ids(tokenizer, f"{asked}<|im_end|>\n<|im_start|>assistant\n")
        answer = [*_ids(tokenizer, turn.text.strip()), end]
        tail += [*prompt, *answer]
        targets += [*[IGNORED] * len(prompt), *answer]
    return Script(head, tail, targets)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=False).input_ids]
