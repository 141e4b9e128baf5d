"""Texts about the rendered world: questions with exactly one right answer, and descriptions for contrastive training.

A question is valid only if the timeline determines its answer: its attributes match the participants of one event
alone. The evidence of a question consists of the events that must be seen to answer it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from model.world.scenes import COLOURS, COUNTS, EVENTS, KINDS, PLACES, PLURALS, Actor, Clip, Event

QUESTION_KINDS = ("what", "colour", "where", "when", "how many", "before/after")
"""Kinds of questions, in the order of reports."""
OPTIONS = 4
"""Options of a question."""

_PAST = {"fall": "fell", "flash": "flashed", "burn": "burned", "drop": "left a box"}
_DID = {"fall": "fall", "flash": "flash", "burn": "burn", "drop": "leave a box"}


@dataclass(frozen=True, slots=True)
class Constraint:
    """The attributes of a participant that a text states; -1 for those that it does not."""

    kind: int = -1
    """Index into KINDS."""
    colour: int = -1
    """Index into COLOURS."""
    place: int = -1
    """Index into PLACES."""
    event: int = -1
    """Index into EVENTS."""
    count: int = -1
    """Number of copies."""

    def matches(self, event: Event, actor: Actor) -> bool:
        """Whether all stated attributes are those of `actor` in `event`."""
        return (
            self.kind in (-1, actor.kind)
            and self.colour in (-1, actor.colour)
            and self.place in (-1, event.place)
            and self.event in (-1, event.kind)
            and self.count in (-1, event.count)
        )


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one timeline."""

    kind: str
    """One of QUESTION_KINDS."""
    text: str
    """The question."""
    answer: str
    """The right answer."""
    options: tuple[str, ...]
    """Options, the right answer among them."""
    evidence: tuple[Event, ...]
    """The events that must be seen."""
    about: Constraint
    """The attributes of frames that are relevant to the question."""
    shown: tuple[Event, Actor]
    """The event and the actor at which the language model finds the answer. For "before" it is the actor that the
    question names, as the tokens of an event contain what came before it."""


def participants(events: Sequence[Event]) -> list[tuple[Event, Actor]]:
    """All actors of `events`, each with its event."""
    return [(event, actor) for event in events for actor in event.actors]


def describe(about: Constraint, rng: np.random.Generator) -> str:
    """A random text that states `about`: a caption, a search phrase or a question."""
    colour = COLOURS[about.colour] + " " if about.colour >= 0 else ""
    kind = KINDS[about.kind] if about.kind >= 0 else "thing"
    plural = PLURALS[about.kind] if about.kind >= 0 else "things"
    at = f" at the {PLACES[about.place]}" if about.place >= 0 else ""
    doing = _PAST.get(EVENTS[about.event], "") if about.event >= 0 else ""
    did = f" that {doing}" if doing else ""
    if about.count > 1:
        return f"{COUNTS[about.count - 1]} {colour}{plural}{at}"
    forms = [f"a {colour}{kind}{did}{at}", f"{colour}{kind}{did}{at}", f"when was the {colour}{kind}{did}{at} ?"]
    forms.append(f"how many {colour}{plural} were{at or ' there'} ?")
    if about.colour < 0 and about.kind >= 0:
        forms += [f"{w} colour was the {kind}{did}{at} ?" for w in ("what", "which")]
    if about.place < 0:
        forms += [f"where was the {colour}{kind}{did} ?"]
        if doing:
            forms += [f"where did the {colour}{kind} {_DID[EVENTS[about.event]]} ?"]
    if about.kind < 0:
        forms += [f"what {colour}thing was{at or ' there'} ?"]
        if doing:
            forms += [f"what {doing}{at} ?"] * 2
    if about.kind < 0 and about.colour < 0 and about.place >= 0 and not doing:
        other = f"{COLOURS[rng.integers(len(COLOURS))]} {KINDS[rng.integers(len(KINDS))]}"
        forms = [f"what was{at} right {w} the {other} ?" for w in ("before", "after")] + [f"something{at}"]
    return forms[rng.integers(len(forms))]


def _others(rng: np.random.Generator, names: Sequence[str], answer: str) -> list[str]:
    pool = [name for name in names if name != answer]
    return [pool[i] for i in rng.permutation(len(pool))[: OPTIONS - 1]]


def _shuffled(rng: np.random.Generator, answer: str, others: Sequence[str]) -> tuple[str, ...]:
    options = [answer, *others]
    return tuple(options[i] for i in rng.permutation(len(options)))


class QuestionMaker:
    """A generator of questions about one timeline that starts at `began` (UTC)."""

    def __init__(self, clips: Sequence[Clip], began: datetime) -> None:
        self.events = [event for clip in clips for event in clip.events]
        self.people = participants(self.events)
        self.began = began

    def make(self, kind: str, rng: np.random.Generator, *, count: int = 0) -> Question | None:
        """One random question of `kind` (see QUESTION_KINDS), or None if the drawn participant has no unique answer.

        The answer to "how many" is `count`, 1 to 4. If `count` is 0, each of the four is drawn equally often, as groups
        are rarer than single actors and "one" would be a good guess.
        """
        people = self.people
        if kind == "how many":
            count = count or int(rng.integers(len(COUNTS))) + 1
            people = [(e, a) for e, a in people if e.count == count and len(e.actors) == 1]
        if not people:
            return None
        event, actor = people[rng.integers(len(people))]
        if kind == "before/after":
            return self._order(event, actor, rng)
        return self._attribute(kind, event, actor, rng)

    def _only(self, about: Constraint, event: Event) -> bool:
        """Whether `about` matches exactly one participant, and that one in `event`."""
        found = [e for e, a in self.people if about.matches(e, a)]
        return len(found) == 1 and found[0] == event

    def clock(self, seconds: float) -> str:
        """The capture time of a second of the stream, HH:MM."""
        return (self.began + timedelta(seconds=seconds)).strftime("%H:%M")

    def _attribute(self, kind: str, event: Event, actor: Actor, rng: np.random.Generator) -> Question | None:
        doing = event.kind if EVENTS[event.kind] in _PAST else -1
        colour, thing, place = COLOURS[actor.colour], KINDS[actor.kind], PLACES[event.place]
        by_event = doing >= 0 and rng.random() < 0.5
        past, did = _PAST.get(EVENTS[event.kind], ""), _DID.get(EVENTS[event.kind], "")
        if kind == "what":
            if by_event:
                about = Constraint(event=doing, place=event.place)
                text = f"What {past} at the {place}?"
            else:
                about = Constraint(colour=actor.colour, place=event.place)
                text = f"What {colour} thing was at the {place}?"
            answer, others = thing, _others(rng, KINDS, thing)
        elif kind == "colour":
            which = ("What", "Which")[rng.integers(2)]
            if by_event:
                about = Constraint(kind=actor.kind, event=doing)
                text = f"{which} colour was the {thing} that {past}?"
            else:
                about = Constraint(kind=actor.kind, place=event.place)
                text = f"{which} colour was the {thing} at the {place}?"
            answer, others = colour, _others(rng, COLOURS, colour)
        elif kind == "where":
            if by_event:
                about = Constraint(kind=actor.kind, event=doing)
                text = f"Where did the {thing} {did}?"
            else:
                about = Constraint(kind=actor.kind, colour=actor.colour)
                text = f"Where was the {colour} {thing}?"
            answer, others = place, _others(rng, PLACES, place)
        elif kind == "when":
            about = Constraint(kind=actor.kind, colour=actor.colour, place=event.place)
            text = f"When was the {colour} {thing} at the {place}?"
            answer = self.clock(event.seen_from)
            if answer != self.clock(event.seen_until):
                return None
            last = max(300.0, *(e.end for e in self.events))
            minutes = sorted({self.clock(s) for s in np.arange(0, last + 60, 60)} - {answer})
            others = _others(rng, minutes, answer)
        else:
            about = Constraint(kind=actor.kind, colour=actor.colour, place=event.place)
            plural = PLURALS[actor.kind]
            text = f"How many {colour} {plural} were at the {place}?"
            answer, others = COUNTS[event.count - 1], _others(rng, COUNTS, COUNTS[event.count - 1])
        if not self._only(about, event):
            return None
        return Question(kind, text, answer, _shuffled(rng, answer, others), (event,), about, (event, actor))

    def _order(self, event: Event, actor: Actor, rng: np.random.Generator) -> Question | None:
        after = bool(rng.random() < 0.5)
        here = sorted((e for e in self.events if e.place == event.place), key=lambda e: e.start)
        i = here.index(event) + (1 if after else -1)
        anchor = Constraint(kind=actor.kind, colour=actor.colour, place=event.place)
        if not 0 <= i < len(here) or len(event.actors) > 1 or len(here[i].actors) > 1 or not self._only(anchor, event):
            return None
        answer = here[i].actors[0].name
        near = [a.name for e in here if e not in (event, here[i]) for a in e.actors]
        far = [a.name for e, a in self.people if e.place != event.place]
        order = [near[j] for j in rng.permutation(len(near))] + [far[j] for j in rng.permutation(len(far))]
        others = [n for n in dict.fromkeys(order) if n not in (answer, actor.name)][: OPTIONS - 1]
        if len(others) < OPTIONS - 1:
            return None
        text = f"What was at the {PLACES[event.place]} right {'after' if after else 'before'} the {actor.name}?"
        evidence = (event, here[i]) if after else (here[i], event)
        shown = (here[i], here[i].actors[0]) if after else (event, actor)
        about = Constraint(place=event.place)
        return Question("before/after", text, answer, _shuffled(rng, answer, others), evidence, about, shown)


def make_questions(clips: Sequence[Clip], began: datetime, rng: np.random.Generator, *, each: int) -> list[Question]:
    """Up to `each` different questions of every kind, in the order of QUESTION_KINDS.

    At most a third of the "how many" questions have the same answer, as "one" would otherwise be a good guess.
    """
    maker = QuestionMaker(clips, began)
    result: list[Question] = []
    for kind in QUESTION_KINDS:
        found: dict[str, Question] = {}
        for _ in range(400):
            if len(found) == each:
                break
            question = maker.make(kind, rng)
            if question is None or question.text in found:
                continue
            same = sum(other.answer == question.answer for other in found.values())
            if kind != "how many" or same < max(1, each // 3):
                found[question.text] = question
        result += found.values()
    return result
