"""Haystacks and needles from rendered footage, with no data at all.

A haystack is joined from rendered streams of five minutes, a needle is a rendered stream of 60 to 120 seconds. Texts of
the rendered world are ambiguous in hours of footage, so a stream in which any participant fits what the question states
is never in the haystack of that question. Questions of the kind "when" are not asked, because a splice has no clock
that is that of its footage. Streams are drawn at one frame a second, written as H.264, and ingested as any footage is.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from index.child_processes import process_pool
from index.records import to_micros
from index.store import Store
from ingest.file_ingest import ingest_sources
from ingest.video_writer import VideoWriter
from model.encoders.encoder import Encoders
from model.world.drawing import draw
from model.world.questions import QUESTION_KINDS, Constraint, Question, make_questions, participants
from model.world.scenes import HEIGHT, WALK_SECONDS, WIDTH, Event, make_camera, make_timeline, rng_of
from pipeline.evaluation.needles.cases import Needle

__all__ = ["BEGAN", "RenderedFootage", "anchor", "write_stream"]

BEGAN = datetime(2001, 1, 1, tzinfo=UTC)
"""Time of the first frame of every stream; clips of four frames begin with it."""
HAYSTACK_SECONDS = 300
_NEEDLE_SECONDS = (60, 120)
_SPARE = 1.5  # frames of all haystack streams, by frames of the longest haystack: about a sixth fits a question
_MOST_NEEDLES = 1000
_KINDS = tuple(kind for kind in QUESTION_KINDS if kind != "when")


def anchor(question: Question) -> Constraint:
    """What a question states of one participant; a stream where it matches anybody makes the question ambiguous."""
    if question.kind != "before/after":
        return question.about
    event = question.evidence[0] if question.text.split(" right ")[1].startswith("after") else question.evidence[1]
    actor = event.actors[0]
    return Constraint(kind=actor.kind, colour=actor.colour, place=event.place)


@dataclass(frozen=True, slots=True)
class RenderedStream:
    """A rendered stream that is not drawn yet."""

    name: str
    """Its stream in the store, and the name of its file."""
    seed: int
    """Seed of its camera and timeline."""
    seconds: int
    """Its length."""

    @property
    def events(self) -> list[Event]:
        """The events of its timeline."""
        return [event for clip in make_timeline(self.seed, self.seconds) for event in clip.events]


class RenderedFootage:
    """The streams and questions of a seed. Everything is known before a picture is drawn.

    Args:
        seed: seed of the world.
        longest: frames of the longest haystack.
        each: needles of every kind of question.
    """

    def __init__(self, seed: int, *, longest: int, each: int = 12) -> None:
        self.seed = seed
        count = -(-int(longest * _SPARE) // HAYSTACK_SECONDS) + 3
        self.haystacks = [
            RenderedStream(f"hay-{seed}-{i:03}", 2_000_000_000 + seed * 10_000 + i, HAYSTACK_SECONDS)
            for i in range(count)
        ]
        self._events = {stream.name: participants(stream.events) for stream in self.haystacks}
        self._anchors: dict[str, Constraint] = {}
        self.needle_streams: list[RenderedStream] = []
        self.needles: list[Needle] = []
        self._find_needles(each)

    def _find_needles(self, each: int) -> None:
        """Take streams in order until every kind has `each` questions, at most one of a kind and a stream.

        At most a third of a kind's questions have the same answer: events of one participant are the most frequent, so
        that "one" would be right for four in five of the questions "how many".
        """
        left = dict.fromkeys(_KINDS, each)
        answers = Counter[tuple[str, str]]()
        for number in range(_MOST_NEEDLES):
            if not any(left.values()):
                return
            rng = rng_of("needle", self.seed, number)
            seconds = int(rng.integers(_NEEDLE_SECONDS[0], _NEEDLE_SECONDS[1] + 1))
            stream = RenderedStream(
                f"needle-{self.seed}-{number:03}", 2_500_000_000 + self.seed * 10_000 + number, seconds
            )
            asked = make_questions(make_timeline(stream.seed, seconds), BEGAN, rng, each=1)
            wanted = [
                question
                for question in asked
                if left.get(question.kind) and answers[question.kind, question.answer] < max(1, each // 3)
            ]
            for question in wanted:
                left[question.kind] -= 1
                answers[question.kind, question.answer] += 1
                self._add(stream, question)
            if wanted:
                self.needle_streams.append(stream)

    def _add(self, stream: RenderedStream, question: Question) -> None:
        needle = Needle(
            id=f"{stream.name}-{question.kind}",
            stream=stream.name,
            frames=stream.seconds,
            kind=question.kind,
            question=question.text,
            options=question.options,
            answer=question.options.index(question.answer),
            evidence=tuple((event.seen_from, event.seen_until) for event in question.evidence),
        )
        self.needles.append(needle)
        self._anchors[needle.id] = anchor(question)

    def allowed(self, needle: Needle, stream: str) -> bool:
        """Whether nobody in a haystack stream fits what the needle's question states."""
        return not self.fits(self._anchors[needle.id], stream)

    def fits(self, stated: Constraint, stream: str) -> bool:
        """Whether anybody in a haystack stream fits what a text states."""
        return any(stated.matches(event, actor) for event, actor in self._events[stream])

    def ingest(
        self,
        store: Store,
        encoders: Encoders,
        work: Path,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Draw and ingest the streams that the store lacks. Files are deleted once all are stored.

        Args:
            store: the store.
            encoders: its encoders.
            work: folder for the files.
            on_progress: called with the streams drawn and the streams in all.
        """
        stored = {segment.stream_id for segment in store.segments() if segment.final}
        missing = [stream for stream in (*self.needle_streams, *self.haystacks) if stream.name not in stored]
        if not missing:
            return
        work.mkdir(parents=True, exist_ok=True)
        with process_pool(2) as pool:
            jobs = [pool.submit(write_stream, stream, work) for stream in missing]
            for done, job in enumerate(as_completed(jobs), 1):
                job.result()
                on_progress(done, len(missing))
        for stream in missing:
            ingest_sources(
                [work / f"{stream.name}.mp4"],
                store=store,
                encoders=encoders,
                stream=stream.name,
                start=to_micros(BEGAN),
            )
        shutil.rmtree(work)


def write_stream(stream: RenderedStream, folder: Path) -> Path:
    """Draw a stream at one frame a second into `folder`; a file that is there already is kept."""
    path = folder / f"{stream.name}.mp4"
    if path.exists():
        return path
    camera, events = make_camera(stream.seed), _by_start(stream.events)
    with VideoWriter(path, WIDTH, HEIGHT, fps=1, gop=1, created=BEGAN) as writer:
        for second in range(stream.seconds):
            near = [e for e in events if e.start - WALK_SECONDS < second < e.end + WALK_SECONDS]
            clock = (BEGAN + timedelta(seconds=second)).strftime("%H:%M:%S")
            writer.write(draw(camera, near, float(second), clock, second)[0])
    return path


def _by_start(events: Sequence[Event]) -> list[Event]:
    return [events[i] for i in np.argsort([event.start for event in events], kind="stable")]


__all__ += ["RenderedStream"]
