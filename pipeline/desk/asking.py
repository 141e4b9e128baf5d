"""Questions of the desk: admitted one at a time, answered in parts, and kept for the caller who asked.

    run = ask(desk, caller, query)        a place in the queue
    async for name, data in run.events()  selected, text…, answer or error

The work goes on when nobody reads its events: `GET /questions/{id}` has the answer later. The models run in this
process or in a model service; a service that fails ends the question with its error.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from index.errors import (
    EmptyWindow,
    ServiceBusy,
    ServiceError,
    SightlineError,
    UnknownStream,
    UsageError,
    mask_url,
)
from index.records import parse_rfc3339, rfc3339
from model.answers import GREEDY, Sampling
from model.selection import check_selection
from pipeline.access.caller import Caller
from pipeline.access.roles import Action
from pipeline.desk.desk import Desk
from pipeline.desk.history import StoredQuestion
from pipeline.desk.links import decode_cursor, encode_cursor, thumbnail_url
from pipeline.http.replies import Reply, TimeText
from pipeline.questions.asker import Asked, Keyframe, Selection, check_reading
from pipeline.questions.curves import relevance_curves
from pipeline.service.admission import JobEnd, QueuedRequest, RequestCancelled
from pipeline.service.schemas import code_of

__all__ = [
    "DEADLINE_SECONDS",
    "AnswerEvent",
    "AskQuery",
    "AskRun",
    "Curve",
    "KeyframeEntry",
    "QuestionEntry",
    "QuestionError",
    "QuestionPage",
    "SelectedEvent",
    "TextEvent",
    "ask",
    "ask_recorded",
    "cancel",
    "forget_question",
    "list_questions",
    "read_question",
]

DEADLINE_SECONDS = 900.0
"""Longest time of a question, the wait in the queue included."""
_OF_ONE_CALLER = 4


class KeyframeEntry(Reply):
    """One keyframe of a question."""

    stream_id: str
    """The stream."""
    captured_at: TimeText
    """Capture time, RFC 3339 UTC."""
    score: float
    """Relevance: cosine of the frame and the question."""
    thumbnail: str
    """Address of its picture."""


class Curve(Reply):
    """Relevance of the frames of one stream over time; of many frames, the most relevant of each stretch."""

    stream_id: str
    """The stream."""
    times: list[TimeText]
    """Capture times, RFC 3339 UTC, ascending; of all curves together at most 4,000, and the keyframes."""
    scores: list[float]
    """Relevance of each of these frames."""


class SelectedEvent(Reply):
    """Data of the event `selected`: the keyframes, before the answer."""

    id: str
    """Id of the question."""
    keyframes: list[KeyframeEntry]
    """The keyframes, stream by stream in the order of time."""
    relevance: list[Curve]
    """Relevance over time, stream by stream; of many streams, of the 16 with the most keyframes."""
    window_frames: int
    """Number of frames in the window."""
    window_streams: int | None = None
    """Number of streams with frames in the window; null for a question of an earlier version."""


class TextEvent(Reply):
    """Data of the event `text`: a part of the answer."""

    text: str
    """The part."""


class AnswerEvent(Reply):
    """Data of the event `answer`: the whole answer."""

    id: str
    """Id of the question."""
    answer: str
    """The answer."""
    option: str | None
    """The chosen option; null for an open question."""
    probabilities: dict[str, float]
    """Probability of each option; empty for an open question."""
    frames: int
    """Number of frames that the model read."""
    visual_tokens: int
    """Number of tokens that represent the frames."""
    timings_seconds: dict[str, float]
    """Time of each stage, in seconds."""
    notices: list[str]
    """Remarks that limit the trust in the answer."""


class QuestionError(Reply):
    """Why a question has no answer."""

    code: str
    """Name of the error in snake case, such as `service_unavailable`."""
    detail: str
    """What happened and what to do, in one line."""


class QuestionEntry(Reply):
    """A question of the caller's history."""

    id: str
    """Id of the question."""
    question: str
    """The question."""
    options: list[str]
    """Answers to choose from; empty for an open question."""
    streams: list[str]
    """The streams that it is about."""
    start: TimeText | None
    """First time, RFC 3339; null for no limit."""
    end: TimeText | None
    """Last time, exclusive; null for no limit."""
    asked_at: TimeText
    """When it was asked, RFC 3339 UTC."""
    state: Literal["running", "done", "failed", "cancelled"]
    """Where it is."""
    selected: SelectedEvent | None = None
    """The keyframes; null in lists."""
    answer: AnswerEvent | None = None
    """The answer; null until it is there."""
    error: QuestionError | None = None
    """Why there is no answer; null unless it failed or was cancelled."""


class QuestionPage(Reply):
    """The caller's questions, the newest first."""

    items: list[QuestionEntry]
    """The questions."""
    next: str | None
    """Cursor of the next page; null at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskQuery:
    """A question."""

    question: str
    """The question."""
    options: Sequence[str] = ()
    """Answers to choose from; an open question if empty."""
    streams: Sequence[str] | None = None
    """Names and patterns; all streams that the caller may ask about if None."""
    start: int | None = None
    """First time, UTC microseconds."""
    end: int | None = None
    """Last time, exclusive, UTC microseconds."""
    k: int | None = None
    """Largest number of keyframes; the profile's if None."""
    tau: float | None = None
    """Similarity threshold of DKS; the profile's if None."""
    max_frames: int | None = None
    """Largest number of frames to read; the profile's if None."""
    max_new_tokens: int | None = None
    """Largest number of tokens of an open answer; the profile's if None."""
    sampling: Sampling = GREEDY
    """How an open answer is decoded."""
    seconds: float = DEADLINE_SECONDS
    """Longest time until the answer, the wait in the queue included."""


Event = tuple[str, BaseModel | Exception]
"""Name and data of an event; an exception for `error`."""


class AskRun:
    """A question that is being answered. Its events are kept, so that a reader may come late."""

    def __init__(self, caller: Caller, query: AskQuery, streams: tuple[str, ...], store: Callable[[AskRun], None]):
        self.id, self.caller, self.query, self.streams = secrets.token_urlsafe(12), caller, query, streams
        self.asked = time.time_ns() // 1_000
        self.state: Literal["running", "done", "failed", "cancelled"] = "running"
        self.selected: SelectedEvent | None = None
        self.answer: AnswerEvent | None = None
        self.error: Exception | None = None
        self.result: Asked | None = None
        self.forgotten = False
        self._events: list[Event] = []
        self._ended = False
        self._readers: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._lock = threading.Lock()
        self._store = store
        self.job: QueuedRequest | None = None

    async def events(self) -> AsyncIterator[Event]:
        """The events from the first one on, as they occur."""
        waker = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._readers.append(waker)
        place = 0
        try:
            while True:
                waker[1].clear()
                with self._lock:
                    new, ended = self._events[place:], self._ended
                for event in new:
                    yield event
                place += len(new)
                if ended and not new:
                    return
                if not new:
                    await waker[1].wait()
        finally:
            with self._lock:
                self._readers.remove(waker)

    def wait(self, timeout: float) -> bool:
        """Wait for the end, for callers without an event loop; returns whether it came."""
        deadline = time.monotonic() + timeout
        while not self._ended and time.monotonic() < deadline:
            time.sleep(0.02)
        return self._ended

    def emit(self, item: Any) -> None:
        """Take an item of the job, on the worker's thread."""
        if isinstance(item, JobEnd):
            self._end(item.error)
            return
        name, data = item
        if isinstance(data, SelectedEvent):
            self.selected = data
        elif isinstance(data, AnswerEvent):
            self.answer = data
        self._publish(name, data)

    @property
    def seconds_left(self) -> float:
        """Time until the deadline, in seconds; 0 after it."""
        return 0.0 if self.job is None else max(0.0, self.job.deadline - time.monotonic())

    def entry(self, *, whole: bool) -> QuestionEntry:
        """The question as replies have it; with keyframes if `whole`."""
        error = self.error
        return QuestionEntry(
            id=self.id,
            question=self.query.question,
            options=list(self.query.options),
            streams=list(self.streams),
            start=None if self.query.start is None else rfc3339(self.query.start),
            end=None if self.query.end is None else rfc3339(self.query.end),
            asked_at=rfc3339(self.asked),
            state=self.state,
            selected=self.selected if whole else None,
            answer=self.answer,
            error=None if error is None else QuestionError(code=code_of(type(error)), detail=_detail(error)),
        )

    def _end(self, error: Exception | None) -> None:
        if error is None:
            self.state = "done"
        else:
            self.error = error
            self.state = "cancelled" if isinstance(error, RequestCancelled) else "failed"
        self._store(self)
        if error is not None:
            self._publish("error", error)
        with self._lock:
            self._ended = True
        self._wake()

    def _publish(self, name: str, data: BaseModel | Exception) -> None:
        with self._lock:
            self._events.append((name, data))
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            readers = list(self._readers)
        for loop, event in readers:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:  # the loop is closed, because the server has stopped
                continue


def ask(desk: Desk, caller: Caller, query: AskQuery) -> AskRun:
    """Admit a question; its answer follows as events.

    Raises:
        UsageError: an argument is invalid.
        UnknownStream: there is no such stream that the caller may see.
        Forbidden: the caller may see a stream that is named, but not ask about it.
        EmptyWindow: the caller may ask about no stream.
        ServiceBusy: too many questions wait, of all callers or of this one.
        ServiceUnavailable: the desk is stopping.
    """
    check_selection(query.question, query.k, query.tau)
    check_reading(list(query.options), query.max_frames)
    if query.start is not None and query.end is not None and query.start >= query.end:
        raise UsageError(f"start {rfc3339(query.start)} is not before end {rfc3339(query.end)}")
    streams = tuple(desk.scope(caller, query.streams, Action.ASK))
    if not streams:
        raise EmptyWindow("there is nothing to ask about yet: no frames are stored")
    running = desk.running
    with running.lock:
        running.runs = {key: run for key, run in running.runs.items() if run.state == "running"}
        if sum(run.caller.name == caller.name for run in running.runs.values()) >= _OF_ONE_CALLER:
            raise ServiceBusy(f"{_OF_ONE_CALLER} questions of yours are being answered; wait for one", 5)
        run = AskRun(caller, query, streams, lambda run: _remember(desk, run))
        _remember(desk, run)
        running.runs[run.id] = run
        try:
            run.job = desk.admission.submit(
                lambda job: _work(desk, run, job), deadline=time.monotonic() + query.seconds, emit=run.emit
            )
        except SightlineError:
            del running.runs[run.id]
            desk.history.remove(caller, run.id)
            raise
    return run


def ask_recorded(desk: Desk, caller: Caller, query: AskQuery) -> AskRun:
    """As `ask`, with a record in the audit trail."""
    run = ask(desk, caller, query)
    detail = {"question": query.question, "id": run.id, "options": list(query.options)}
    desk.audit(caller, "ask", streams=run.streams, detail=detail)
    return run


def list_questions(desk: Desk, caller: Caller, *, limit: int = 50, cursor: str | None = None) -> QuestionPage:
    """The questions of a caller, the newest first. Raises UsageError for an invalid cursor."""
    place = decode_cursor(cursor, asked=int, id=str)
    before = None if place is None else (place["asked"], place["id"])
    found = desk.history.newest(caller, before=before, limit=limit + 1)
    last = found[limit - 1] if len(found) > limit else None
    items = [_entry(desk, each).model_copy(update={"selected": None}) for each in found[:limit]]
    return QuestionPage(items=items, next=None if last is None else encode_cursor({"asked": last.asked, "id": last.id}))


def read_question(desk: Desk, caller: Caller, question_id: str) -> QuestionEntry:
    """A question of a caller, with its keyframes. Raises UnknownItem."""
    return _entry(desk, desk.history.find(caller, question_id))


def forget_question(desk: Desk, caller: Caller, question_id: str) -> None:
    """Remove a question of a caller; one that is being answered is cancelled. Raises UnknownItem."""
    desk.history.remove(caller, question_id)
    run = desk.running.runs.get(question_id)
    if run is not None:
        run.forgotten = True
        cancel(desk, run)


def cancel(desk: Desk, run: AskRun) -> None:
    """End the work on a question, which the history keeps as cancelled; does nothing if it has ended."""
    if run.job is not None and run.state == "running":
        desk.admission.cancel(run.job)


def _entry(desk: Desk, stored: StoredQuestion) -> QuestionEntry:
    """A stored question. One that was being answered when the desk was stopped has failed."""
    entry = QuestionEntry.model_validate(stored.document)
    if entry.state == "running" and stored.id not in desk.running.runs:
        detail = "the desk was stopped before it could answer; ask again"
        stopped = QuestionError(code="service_unavailable", detail=detail)
        return entry.model_copy(update={"state": "failed", "error": stopped})
    return entry


def _remember(desk: Desk, run: AskRun) -> None:
    if run.forgotten:
        return
    document = run.entry(whole=True).model_dump()
    desk.history.put(StoredQuestion(run.id, run.caller.name, run.asked, run.streams, document))


def _work(desk: Desk, run: AskRun, job: QueuedRequest) -> Iterator[tuple[str, BaseModel]]:
    """Answer a question, as a job of the admission queue."""
    query = run.query
    asker = desk.models.asker
    try:
        selection = asker.select(
            query.question, streams=run.streams, start=query.start, end=query.end, k=query.k, tau=query.tau
        )
        yield "selected", _selected(run.id, asker.listed(selection), selection)

        def forward(text: str) -> None:
            """Pass a part of the answer on, if the question is still wanted."""
            job.check()
            job.emit(("text", TextEvent(text=text)))

        asked = asker.answer(
            query.question,
            selection,
            options=list(query.options) or None,
            max_frames=query.max_frames,
            sampling=query.sampling,
            max_new_tokens=query.max_new_tokens,
            on_text=forward,
        )
    except UnknownStream:  # deleted since the scope was made; the message would name the streams of others
        raise UnknownStream("the streams of the question no longer exist") from None
    except ServiceError as error:
        desk.models.note_service(error)
        raise
    desk.models.note_service(None)
    run.result = asked
    yield "answer", _answered(run.id, asked)


def _selected(question_id: str, keyframes: Sequence[Keyframe], selection: Selection) -> SelectedEvent:
    return SelectedEvent(
        id=question_id,
        keyframes=[
            KeyframeEntry(
                stream_id=each.stream_id,
                captured_at=each.captured_at,
                score=each.score,
                thumbnail=thumbnail_url(each.stream_id, parse_rfc3339(each.captured_at)),
            )
            for each in keyframes
        ],
        relevance=[
            Curve(
                stream_id=curve.stream_id,
                times=[rfc3339(at) for at in curve.captured_at.tolist()],
                scores=[round(float(score), 4) for score in curve.scores],
            )
            for curve in relevance_curves(selection)
        ],
        window_frames=len(selection.window),
        window_streams=len(selection.window.streams),
    )


def _answered(question_id: str, asked: Asked) -> AnswerEvent:
    return AnswerEvent(
        id=question_id,
        answer=asked.answer,
        option=asked.option,
        probabilities=asked.probabilities,
        frames=asked.frames,
        visual_tokens=asked.visual_tokens,
        timings_seconds=asked.timings_seconds,
        notices=asked.notices,
    )


def _detail(error: Exception) -> str:
    if isinstance(error, SightlineError):
        return mask_url(str(error))
    return "the question was cancelled" if isinstance(error, RequestCancelled) else "see the log of the desk"
