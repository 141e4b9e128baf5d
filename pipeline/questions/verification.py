"""What the language model says about a moment that a search found: confirmed, rejected, or not looked at and why.

A search ranks frames by similarity, and its best moment is the best there is, even if nothing fits. Here the language
model reads the frames of a moment and chooses between "yes" and "no":

    text ─▶ "Does this footage show a red car?" ─▶ Asker over the moment's frames ─▶ probability of "yes"

The question is asked twice with the options in both orders, because a model may prefer the first one, and the mean
decides. A moment is confirmed only by an answer: a model that fails, is missing, or does not know the words leaves it
"not looked at". Does not know how moments are found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from index.errors import ModelError, SightlineError
from index.records import parse_rfc3339
from model.vocabulary import unknown_words_notice
from pipeline.questions.asker import Asker

__all__ = ["Verification", "not_looked", "verification_question", "verify_moment", "verify_moments"]

AROUND_SECONDS = 2.0
"""Frames before and after a moment that the model reads too, in seconds."""
_YES, _NO = "yes", "no"


class Verification(BaseModel):
    """What the language model said about a moment."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    state: Literal["confirmed", "rejected", "not_looked"]
    """Whether the model says yes, says no, or has not looked."""
    why: str = ""
    """The question that was answered, or the reason why the model has not looked."""
    probability: float | None = None
    """Probability of "yes", 0 to 1; None if the model has not looked."""

    def __str__(self) -> str:
        if self.state == "not_looked":
            return f"not looked at: {self.why}"
        return f"{self.state} ({self.probability:.0%} yes)"


class Span(Protocol):
    """A moment as far as it matters here. Times are RFC 3339."""

    stream_id: str
    start: str
    end: str


def verification_question(text: str) -> str:
    """The question whether footage shows what a text describes."""
    return f"Does this footage show {' '.join(text.split()).rstrip('.?! ')}?"


def not_looked(why: str) -> Verification:
    """A moment that the model has not looked at, for this reason."""
    return Verification(state="not_looked", why=why)


def verify_moment(asker: Asker, text: str, stream_id: str, start: int, end: int) -> Verification:
    """Ask the language model whether a moment shows what a text describes. A failure is "not looked at".

    Args:
        asker: the models, in this process or in a service.
        text: what was searched for.
        stream_id: the stream, which the caller may see.
        start, end: times of the first and the last frame, UTC microseconds.
    """
    return next(_verify(asker, text, [(stream_id, start, end)]))


def verify_moments(asker: Asker, text: str, moments: Sequence[Span], count: int) -> list[Verification]:
    """What the model says about the first `count` moments; the others are not looked at.

    After a failure of the model itself the remaining moments are not tried.
    """
    looked = [(each.stream_id, parse_rfc3339(each.start), parse_rfc3339(each.end)) for each in moments[:count]]
    rest = not_looked(f"only the best {count} are looked at")
    return [*_verify(asker, text, looked), *[rest] * (len(moments) - len(looked))]


def _verify(asker: Asker, text: str, moments: Sequence[tuple[str, int, int]]) -> Iterator[Verification]:
    question, broken = verification_question(text), ""
    try:
        broken = _misunderstood(asker, text)
    except SightlineError as error:
        broken = str(error)
    for moment in moments:
        if broken:
            yield not_looked(broken)
            continue
        try:
            yield _look(asker, question, *moment)
        except ModelError as error:
            broken = str(error)
            yield not_looked(broken)
        except SightlineError as error:  # of this moment alone, such as footage that was deleted meanwhile
            yield not_looked(str(error))


def _look(asker: Asker, question: str, stream_id: str, start: int, end: int) -> Verification:
    """The model's answer. Raises what `Asker.ask` raises."""
    around = round(AROUND_SECONDS * 1e6)
    shares = []
    for options in ((_YES, _NO), (_NO, _YES)):
        asked = asker.ask(question, options=options, streams=[stream_id], start=start - around, end=end + around + 1)
        shares.append(asked.probabilities[_YES])
    share = sum(shares) / len(shares)
    state: Literal["confirmed", "rejected"] = "confirmed" if share > 0.5 else "rejected"
    return Verification(state=state, why=question, probability=round(share, 4))


def _misunderstood(asker: Asker, text: str) -> str:
    """Why this model cannot answer whether footage shows `text`; empty if it can. Raises ModelError."""
    name = asker.profile.name
    if asker.unknown_words(f"{_YES} {_NO}"):
        return f"the language model of the {name} profile does not answer yes or no"
    return " ".join(unknown_words_notice(name, asker.unknown_words(text), "the moment was not looked at"))
