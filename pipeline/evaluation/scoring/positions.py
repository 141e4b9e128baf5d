"""Position bias: whether a model prefers a letter, whatever the option says.

Keys of benchmarks are uneven (Video-MME: B is right in 27.2 %), so a model that prefers a letter gains or loses by it.
The table shows, letter by letter, how often it is right, how often it is chosen, and how often a question whose key it
is, is answered right. Rotated options show the same without the key: with every cyclic order of the options, a model
without bias answers alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from pipeline.evaluation.scoring.reply import LETTERS

__all__ = ["Position", "Rotations", "position_table", "rotate", "rotation_spread", "unrotate"]


class Position(BaseModel):
    """One letter."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    letter: str
    """The letter; `–` for replies that name none."""
    keys: int
    """Questions whose right option has this letter."""
    chosen: int
    """Replies that name it."""
    right: int
    """Replies that name it and are right."""


class Rotations(BaseModel):
    """The same questions with their options in several cyclic orders."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    accuracy: dict[int, float]
    """Accuracy of each rotation, over the questions that were asked in all of them."""
    questions: int
    """Number of these questions."""
    spread: float
    """Largest minus smallest accuracy."""
    always: float
    """Share of questions that are right in every rotation."""


def position_table(answers: Iterable[tuple[int, int | None, int]]) -> list[Position]:
    """The table of letters.

    Args:
        answers: for each question the shown position of the right option, the chosen position (None if none was), and
            the number of options.
    """
    keys: dict[str, int] = defaultdict(int)
    chosen: dict[str, int] = defaultdict(int)
    right: dict[str, int] = defaultdict(int)
    widest = 0
    for key, choice, count in answers:
        widest = max(widest, count)
        keys[LETTERS[key]] += 1
        chosen["–" if choice is None else LETTERS[choice]] += 1
        right[LETTERS[key]] += choice == key
    letters = [*LETTERS[:widest], *(["–"] if chosen["–"] else [])]
    return [Position(letter=each, keys=keys[each], chosen=chosen[each], right=right[each]) for each in letters]


def rotate(options: tuple[str, ...], by: int) -> tuple[str, ...]:
    """The options in cyclic order, beginning with number `by`."""
    by %= max(1, len(options))
    return options[by:] + options[:by]


def unrotate(position: int, by: int, count: int) -> int:
    """The index in the original order of the option at `position` of `rotate(options, by)`."""
    return (position + by) % count


def rotation_spread(answers: Iterable[tuple[str, int, bool]]) -> Rotations | None:
    """How far the accuracy depends on the order of options; None unless questions were asked in several orders.

    Args:
        answers: question id, rotation, and whether the answer is right.
    """
    by_question: dict[str, dict[int, bool]] = defaultdict(dict)
    for name, rotation, right in answers:
        by_question[name][rotation] = right
    rotations = sorted({rotation for each in by_question.values() for rotation in each})
    whole = [each for each in by_question.values() if len(each) == len(rotations)]
    if len(rotations) < 2 or not whole:
        return None
    accuracy = {r: sum(each[r] for each in whole) / len(whole) for r in rotations}
    return Rotations(
        accuracy=accuracy,
        questions=len(whole),
        spread=max(accuracy.values()) - min(accuracy.values()),
        always=sum(all(each.values()) for each in whole) / len(whole),
    )
