"""Verification of search results by the language model, as a job: moment by moment, each result as soon as it is there.

The model is asked by `pipeline.questions.verification`, in the queue of all questions. A model that cannot answer makes
a moment `unavailable`, never `confirmed`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

from index.errors import ServiceBusy, ServiceUnavailable, SightlineError, mask_url
from index.records import rfc3339
from pipeline.access.caller import Caller
from pipeline.access.roles import Action
from pipeline.desk.desk import Desk
from pipeline.desk.jobs import Job
from pipeline.desk.search import Verification
from pipeline.questions.verification import verify_moment
from pipeline.service.admission import JobEnd, QueuedRequest

__all__ = ["Span", "verify"]

_DEADLINE_SECONDS = 300.0
_RETRIES = 30


@dataclass(frozen=True, slots=True)
class Span:
    """A moment to verify."""

    stream_id: str
    """The stream."""
    start: int
    """Time of its first frame, UTC microseconds."""
    end: int
    """Time of its last frame, UTC microseconds."""


def verify(desk: Desk, caller: Caller, text: str, moments: Sequence[Span]) -> Job:
    """Begin a job that asks the language model whether each moment shows what the text describes.

    The result has `items`: stream, start, end and the verification of each moment so far.

    Raises:
        UnknownStream: there is no such stream that the caller may see.
        Forbidden: the caller may not ask about one of the streams.
        ServiceBusy: too many jobs wait.
    """
    names = tuple(sorted({desk.stream(caller, each.stream_id, Action.ASK).stream_id for each in moments}))
    for each in moments:
        key = (text, each.stream_id, each.start, each.end)
        held = desk.verified.find(key)
        if held is None or held.state == "unavailable":
            desk.verified.put(key, Verification(state="pending", why="The language model is being asked."))

    def work(job: Job) -> Mapping[str, Any]:
        """Verify one moment after the other."""
        items: list[dict[str, Any]] = []
        try:
            for number, each in enumerate(moments):
                job.advance(number / len(moments), {"items": list(items)})
                found = _verified(desk, text, each)
                items.append(
                    {
                        "stream_id": each.stream_id,
                        "start": rfc3339(each.start),
                        "end": rfc3339(each.end),
                        "verification": found.model_dump(),
                    }
                )
        finally:
            _unpend(desk, text, moments)
        return {"items": items}

    try:
        return desk.jobs.begin("verify", caller, work, streams=names)
    except SightlineError:
        _unpend(desk, text, moments)
        raise


def _unpend(desk: Desk, text: str, moments: Sequence[Span]) -> None:
    """Forget `pending` of moments that were not looked at."""
    for each in moments:
        key = (text, each.stream_id, each.start, each.end)
        held = desk.verified.find(key)
        if held is not None and held.state == "pending":
            desk.verified.drop(lambda other, key=key: other == key)  # type: ignore[misc]


def _verified(desk: Desk, text: str, span: Span) -> Verification:
    key = (text, span.stream_id, span.start, span.end)
    held = desk.verified.find(key)
    if isinstance(held, Verification) and held.state in ("confirmed", "rejected"):
        return held
    try:
        said = _ask(desk, text, span)
    except SightlineError as error:
        found = Verification(state="unavailable", why=mask_url(str(error)))
    else:
        found = said
    desk.verified.put(key, found)
    return found


def _ask(desk: Desk, text: str, span: Span) -> Verification:
    """The model's verdict, asked in the queue of all questions. Raises ServiceError, StoreError."""
    found: list[Verification] = []
    ended = Event()
    errors: list[Exception | None] = []

    def work(job: QueuedRequest) -> Iterator[Verification]:
        """Ask the model."""
        said = verify_moment(desk.models.asker, text, span.stream_id, span.start, span.end)
        state = "unavailable" if said.state == "not_looked" else said.state
        yield Verification(state=state, why=said.why, probability=said.probability)

    def emit(item: object) -> None:
        """Take the verdict, or the end."""
        if isinstance(item, JobEnd):
            errors.append(item.error)
            ended.set()
        elif isinstance(item, Verification):
            found.append(item)

    for attempt in range(_RETRIES + 1):
        try:
            desk.admission.submit(work, deadline=time.monotonic() + _DEADLINE_SECONDS, emit=emit)
            break
        except ServiceBusy as error:
            if attempt == _RETRIES:
                raise
            time.sleep(min(error.retry_after, 2))
    ended.wait(_DEADLINE_SECONDS + 10)
    if found:
        return found[0]
    why = errors[0] if errors else None
    raise why if isinstance(why, SightlineError) else ServiceUnavailable("the language model did not answer")
