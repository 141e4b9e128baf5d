"""What the language model says about moments: only an answer is a yes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from index.errors import EmptyWindow, ServiceUnavailable
from index.records import parse_rfc3339
from pipeline.questions.search import FoundMoment
from pipeline.questions.verification import verification_question, verify_moment, verify_moments

BEST = "2024-03-01T08:00:0{}Z"


@dataclass
class StandIn:
    """An asker whose model says "yes" with a probability, and prefers the option that comes first."""

    yes: dict[int, float | Exception]
    """Probability by second of the moment's start, or what is raised."""
    bias: float = 0.0
    unknown: tuple[str, ...] = ()
    profile: Any = field(default_factory=lambda: SimpleNamespace(name="stand-in"))
    asked: list[tuple[str, tuple[str, ...], list[str], int, int]] = field(default_factory=list)

    def unknown_words(self, text: str) -> list[str]:
        """The words of `text` that are in `unknown`."""
        return [word for word in text.split() if word in self.unknown]

    def ask(self, question: str, *, options: Sequence[str], streams: list[str], start: int, end: int) -> Any:
        """Answer."""
        self.asked.append((question, tuple(options), streams, start, end))
        said = self.yes[(start // 1_000_000 + 2) % 60]
        if isinstance(said, Exception):
            raise said
        yes = min(1.0, max(0.0, said + (self.bias if options[0] == "yes" else -self.bias)))
        return SimpleNamespace(probabilities={"yes": yes, "no": 1 - yes})


def moments(count: int) -> list[FoundMoment]:
    times = [BEST.format(second) for second in range(count)]
    return [
        FoundMoment(stream_id="gate", start=at, end=at, best=at, score=0.3, percentile=99, meaning="") for at in times
    ]


def verify(asker: StandIn, count: int, found: int) -> list[Any]:
    return verify_moments(asker, " a red  car. ", moments(found), count)  # type: ignore[arg-type]


def test_yes_no_and_not_looked() -> None:
    asker = StandIn({0: 0.9, 1: 0.2})
    first, second, third = verify(asker, 2, 3)
    assert (first.state, first.probability, first.why) == ("confirmed", 0.9, "Does this footage show a red car?")
    assert (second.state, second.probability) == ("rejected", 0.2)
    assert (third.state, third.probability, str(third)) == (
        "not_looked", None, "not looked at: only the best 2 are looked at",
    )  # fmt: skip
    assert str(first) == "confirmed (90% yes)"
    assert len(asker.asked) == 4
    at = parse_rfc3339(BEST.format(0))
    assert asker.asked[0][2:] == (["gate"], at - 2_000_000, at + 2_000_001)


def test_a_preference_for_the_first_option_does_not_confirm() -> None:
    asker = StandIn({0: 0.45, 1: 0.55}, bias=0.3)
    assert [each.state for each in verify(asker, 2, 2)] == ["rejected", "confirmed"]


def test_an_even_answer_is_no_yes() -> None:
    assert verify(StandIn({0: 0.5}), 1, 1)[0].state == "rejected"


def test_a_model_that_is_down_confirms_nothing_and_is_not_tried_again() -> None:
    asker = StandIn({0: 0.9, 1: ServiceUnavailable("http://gpu: no answer"), 2: 0.9})
    found = verify(asker, 3, 3)
    assert [each.state for each in found] == ["confirmed", "not_looked", "not_looked"]
    assert found[1].why == found[2].why == "http://gpu: no answer"
    assert len(asker.asked) == 3


def test_a_moment_that_is_gone_does_not_stop_the_others() -> None:
    found = verify(StandIn({0: EmptyWindow("no frames in that time"), 1: 0.8}), 2, 2)
    assert [each.state for each in found] == ["not_looked", "confirmed"]
    assert found[0].why == "no frames in that time"


def test_a_model_that_cannot_say_yes_or_does_not_know_the_words_is_not_asked() -> None:
    mute = StandIn({0: 0.9}, unknown=("yes",))
    assert verify(mute, 1, 1)[0].why == "the language model of the stand-in profile does not answer yes or no"
    lost = StandIn({0: 0.9}, unknown=("red",))
    assert "does not know the word red; the moment was not looked at" in verify(lost, 1, 1)[0].why
    assert mute.asked == lost.asked == []


@pytest.mark.parametrize("failure", [ServiceUnavailable("down"), EmptyWindow("gone")])
def test_one_moment_on_its_own(failure: Exception) -> None:
    start = parse_rfc3339(BEST.format(0))
    yes = verify_moment(StandIn({0: 0.7}), "a car", "gate", start, start)  # type: ignore[arg-type]
    assert (yes.state, yes.probability) == ("confirmed", 0.7)
    assert verify_moment(StandIn({0: failure}), "a car", "gate", start, start).state == "not_looked"  # type: ignore[arg-type]


def test_the_question() -> None:
    assert verification_question("somebody at the door?\n") == "Does this footage show somebody at the door?"
