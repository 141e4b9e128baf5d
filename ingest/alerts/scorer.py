"""Standing questions against every new frame: frames in, alerts out. It does not know Kafka.

    before = alerts.ready(streams)      before the frames are stored: questions and states are there, and what a
                                        worker that was killed had stored and not told is told now
    now = alerts.score(frames)          after they are stored
    alerts.keep()                       after `before` and `now` were published

The state of a stream (how its camera usually scores, which alerts are open) is an object beside the store, written when
an alert was published, else every few minutes. A worker that takes a stream over begins with that object and goes on
with the frames that the store holds after it. The scores are a function of the stored frames alone, so it comes to the
same alerts with the same ids; what comes out of that had not been published for certain, and is published. An alert may
so be told twice, with one id, but is never lost and never raised twice.

A frame no later than one that was scored is passed over: a late or repeated frame raises nothing.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import structlog
from numpy.typing import NDArray
from prometheus_client import Counter
from pydantic import BaseModel, ConfigDict, ValidationError

from index.columns import digest
from index.errors import EmptyWindow, StoreError, UnknownStream
from index.records import FrameRecords, from_micros
from index.second_grid import EARLY_MICROS, seconds_of
from index.standing_questions import StandingQuestion, StandingQuestionStore
from index.store import Store
from index.window import Window
from ingest.alerts.detector import UNIT, AlertDetector, AlertTransition, DetectorState
from ingest.messages import PICTURE_BYTES, AlertMessage

__all__ = ["AlertScorer", "StreamScorer", "replay", "score_frames"]

_SECOND = 1_000_000
_CHUNK = 64  # frames of one reading from the store
_CATCH_UP = 7200  # most stored frames that are gone through again
_WIDE = 16 * 2**20  # most elements that are widened to float32 at once
_log = structlog.get_logger(__name__)
_RAISED = Counter("sightline_alerts", "Alerts that were raised.", ["stream", "question"])  # named …_total


def score_frames(patches: NDArray[np.float16], vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """How much each frame looks like each text: the largest cosine of any patch, in units of 1/`UNIT`.

    Args:
        patches: [n, M, Dp]. vectors: [q, Dp] of unit norm.

    Returns:
        int64[n, q].
    """
    n, m, d = patches.shape
    result = np.empty((n, len(vectors)), np.int64)
    step = max(1, _WIDE // max(1, m * d))
    for at in range(0, n, step):
        wide = patches[at : at + step].astype(np.float32).reshape(-1, d)
        length = np.sqrt(np.einsum("pd,pd->p", wide, wide))[:, None]
        cosines = (wide @ vectors.T) / np.where(length == 0, 1.0, length)
        result[at : at + step] = np.rint(cosines.reshape(-1, m, len(vectors)).max(1) * UNIT)
    return result


class _State(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = 1
    upto: int | None
    watches: dict[str, DetectorState]


class StreamScorer:
    """All standing questions at one camera. `upto` is the last second that was scored."""

    def __init__(self, stream: str, upto: int | None = None) -> None:
        self.stream, self.upto = stream, upto
        self.questions: dict[str, StandingQuestion] = {}
        self.watches: dict[str, AlertDetector] = {}
        self.turned = False  # something was told since the state was last kept
        self.kept_at = 0.0

    def put(self, question: StandingQuestion, watch: AlertDetector) -> None:
        self.questions[question.id], self.watches[question.id] = question, watch

    def remove(self, which: str) -> None:
        del self.questions[which], self.watches[which]

    def vectors(self, ids: Sequence[str] | None = None) -> NDArray[np.float32]:
        return np.stack([self.questions[which].as_array() for which in (ids or list(self.questions))])

    def score(
        self, captured_at: NDArray[np.int64], patches: NDArray[np.float16], picture: Callable[[int], bytes]
    ) -> list[AlertMessage]:
        """What is to be told of frames that ascend in time.

        Args:
            captured_at: int64[n], UTC microseconds. patches: [n, M, Dp]. picture: the JPEG of a row.
        """
        seconds = seconds_of(captured_at)
        rows = np.flatnonzero(np.r_[True, np.diff(seconds) > 0] if len(seconds) else [])
        if self.upto is not None:
            rows = rows[seconds[rows] > self.upto]
        if not len(rows):
            return []
        self.upto = int(seconds[rows[-1]])
        if not self.questions:
            return []
        told: list[AlertMessage] = []
        scores = score_frames(patches[rows], self.vectors())
        for row, values in zip(rows.tolist(), scores.tolist(), strict=True):
            for which, value in zip(self.questions, values, strict=True):
                for turn in self.watches[which].step(int(seconds[row]), value):
                    told.append(self._message(which, turn, picture(row) if turn.state == "raised" else None))
        self.turned |= bool(told)
        return told

    def _message(self, which: str, turn: AlertTransition, picture: bytes | None) -> AlertMessage:
        question = self.questions[which]
        if turn.state == "raised":
            _RAISED.labels(self.stream, question.name).inc()
        small = picture if picture and len(picture) <= PICTURE_BYTES else None
        return AlertMessage(
            id=digest(question.id, self.stream, turn.start),
            question=question.id,
            text=question.text,
            name=question.name,
            stream=self.stream,
            state=turn.state,
            start=from_micros(turn.start * _SECOND),
            at=from_micros(turn.at * _SECOND),
            end=None if turn.end is None else from_micros(turn.end * _SECOND),
            peak=from_micros(turn.peak * _SECOND),
            score=turn.score / UNIT,
            threshold=round(turn.threshold / UNIT, 4),
            picture=None if small is None else base64.b64encode(small).decode(),
        )

    def state(self) -> bytes:
        watches = {which: watch.kept() for which, watch in self.watches.items()}
        return _State(upto=self.upto, watches=watches).model_dump_json().encode()


class AlertScorer:
    """The standing questions of one store, for one worker. Only `forget` may be called by another thread.

    A store that cannot be read for this holds nothing up: the stream is left out with a warning and caught up with later.
    """

    def __init__(self, store: Store, *, reload_seconds: float = 10.0, keep_seconds: float = 300.0) -> None:
        self.store, self.shelf = store, StandingQuestionStore(store.url)
        self.reload_seconds, self.keep_seconds = reload_seconds, keep_seconds
        self._questions: list[StandingQuestion] = []
        self._read_at: float | None = None
        self._streams: dict[str, StreamScorer] = {}
        self._forget = threading.Event()

    def forget(self) -> None:
        """Streams may have changed hands: begin again with what is kept of them."""
        self._forget.set()

    def ready(self, streams: Iterable[str]) -> list[AlertMessage]:
        """Before frames of `streams` are stored; what is to be told of frames that were stored before."""
        if self._forget.is_set():
            self._forget.clear()
            self._streams.clear()
        told: list[AlertMessage] = []
        streams = sorted(set(streams))
        try:
            self._reload()
            wanted = {s: asked for s in streams if (asked := [q for q in self._questions if q.applies_to(s)])}
        except StoreError as error:
            _log.warning("standing questions cannot be read; trying again with the next frames", problem=str(error))
            return []
        for stream in set(streams) - set(wanted):
            if self._streams.pop(stream, None) is not None:
                self._drop(stream)
        for stream, asked in wanted.items():
            try:
                told += self._ready(stream, asked)
            except StoreError as error:
                self._streams.pop(stream, None)
                _log.warning("alerts are late", stream=stream, problem=str(error))
        return told

    def score(self, frames: FrameRecords) -> list[AlertMessage]:
        """What is to be told of frames that were stored just now."""
        watched = self._streams.get(frames.stream_id)
        if watched is None:
            return []
        return watched.score(frames.captured_at, frames.patches, lambda row: frames.pictures[row])

    def keep(self) -> None:
        """All that was told has been published: write down how far the streams are, where that is worth it."""
        now = time.monotonic()
        for watched in self._streams.values():
            if watched.turned or now - watched.kept_at > self.keep_seconds:
                try:
                    self._keep(watched)
                except StoreError as error:
                    _log.warning("alerts may be told twice", stream=watched.stream, problem=str(error))

    def _keep(self, watched: StreamScorer) -> None:
        self.shelf.write_state(watched.stream, watched.state())
        watched.turned, watched.kept_at = False, time.monotonic()

    def _reload(self) -> None:
        now = time.monotonic()
        if self._read_at is not None and now - self._read_at < self.reload_seconds:
            return
        mine = self.store.encoders.patch
        self._questions = []
        for question in self.shelf.questions():
            if question.encoder == mine:
                self._questions.append(question)
            else:
                _log.warning("a question of another encoder is not asked; add it again", question=question.name)
        self._read_at = now

    def _ready(self, stream: str, asked: Sequence[StandingQuestion]) -> list[AlertMessage]:
        watched, kept = self._streams.get(stream), None
        if watched is None:
            kept = self._kept(stream, asked)
            # Without a state, everything that is stored already is the past; what is stored from now on is not.
            watched = self._streams[stream] = StreamScorer(stream, kept.upto if kept else self._last(stream))
        for which in set(watched.questions) - {question.id for question in asked}:
            watched.remove(which)
        added = [question for question in asked if question.id not in watched.questions]
        fresh = []
        for question in added:
            held = kept.watches.get(question.id) if kept else None
            watched.put(question, AlertDetector(question.rule, held))
            if held is None:
                fresh.append(question)
        if fresh:
            self._learn(watched, fresh)
            self._keep(watched)
        if kept is None:
            return []
        return list(_told(self.store, watched, None if watched.upto is None else watched.upto + 1, most=_CATCH_UP))

    def _last(self, stream: str) -> int | None:
        last = self.store.last_captured_at(stream)
        return None if last is None else int(seconds_of(np.array([last]))[0])

    def _drop(self, stream: str) -> None:
        """Nothing is asked of the stream any more: what is asked later begins then."""
        try:
            self.shelf.delete_state(stream)
        except StoreError as error:
            _log.warning("the state of a stream's alerts stays", stream=stream, problem=str(error))

    def _kept(self, stream: str, asked: Sequence[StandingQuestion]) -> _State | None:
        data = self.shelf.read_state(stream)
        if data is None:
            return None
        try:
            state = _State.model_validate_json(data)
            return state if any(question.id in state.watches for question in asked) else None
        except ValidationError as error:
            _log.warning(
                "the state of a stream's alerts does not parse; beginning anew", stream=stream, problem=str(error)
            )
            return None

    def _learn(self, watched: StreamScorer, fresh: Sequence[StandingQuestion]) -> None:
        """The background of new questions, from the frames before the stream's `upto`."""
        if watched.upto is None:
            return
        span = max(question.rule.samples * question.rule.every for question in fresh)
        window = _window(self.store, watched.stream, watched.upto + 1 - span, watched.upto + 1)
        if window is None:
            return
        seconds = seconds_of(window.captured_at)
        wanted = np.zeros(len(seconds), bool)
        for question in fresh:
            wanted |= seconds % question.rule.every == 0
        rows = np.flatnonzero(wanted)
        vectors = watched.vectors([question.id for question in fresh])
        parts = [
            score_frames(self.store.patches(window.take(rows[at : at + _CHUNK])), vectors)
            for at in range(0, len(rows), _CHUNK)
        ]
        scores = np.concatenate(parts) if parts else np.empty((0, len(fresh)), np.int64)
        for i, question in enumerate(fresh):
            pairs = zip(seconds[rows].tolist(), scores[:, i].tolist(), strict=True)
            mine = ((s, v) for s, v in pairs if s % question.rule.every == 0)
            watched.watches[question.id].learn(mine, len(window))


def replay(
    store: Store,
    questions: Sequence[StandingQuestion],
    *,
    streams: Sequence[str] | None = None,
    start: int | None = None,
    end: int | None = None,
) -> Iterator[AlertMessage]:
    """The alerts that `questions` would have given over stored frames, stream by stream, from an empty background.

    Args:
        start, end: UTC microseconds, the end exclusive.

    Raises:
        UnknownStream, EmptyWindow, UsageError: as `Store.window`.
    """
    window = store.window(streams, start, end)
    for stream in window.streams:
        watched = StreamScorer(stream)
        for question in questions:
            if question.applies_to(stream):
                watched.put(question, AlertDetector(question.rule))
        rows = np.flatnonzero(window.stream_index == window.stream_ids.index(stream))
        if watched.questions:
            yield from _scored(store, watched, window.take(rows))


def _window(store: Store, stream: str, first: int, end: int | None = None) -> Window | None:
    """A stream's frames from UTC second `first` to `end`, exclusive; None when there are none."""
    try:
        high = None if end is None else end * _SECOND - EARLY_MICROS
        return store.window([stream], first * _SECOND - EARLY_MICROS, high)
    except (EmptyWindow, UnknownStream):
        return None


def _told(store: Store, watched: StreamScorer, first: int | None, *, most: int) -> Iterator[AlertMessage]:
    window = _window(store, watched.stream, 0 if first is None else first)
    if window is not None:
        yield from _scored(store, watched, window.take(slice(max(0, len(window) - most), None)))


def _scored(store: Store, watched: StreamScorer, window: Window) -> Iterator[AlertMessage]:
    for at in range(0, len(window), _CHUNK):
        part = window.take(slice(at, at + _CHUNK))

        def picture(row: int, part: Window = part) -> bytes:
            return store.pictures(part.take(np.array([row])))[0]

        yield from watched.score(part.captured_at, store.patches(part), picture)
