"""The alert scorer: compares every new frame with the standing questions of a store, and returns alerts to publish.

    late = scorer.prepare(streams)      before frames are stored: loads questions and states, and returns the alerts of
                                        frames that a killed worker stored and did not publish
    alerts = scorer.score(frames)       after the frames are stored
    scorer.save()                       after `late` and `alerts` are published

The state of a stream (its usual scores, its open alerts) is an object beside the store. It is written after an alert
was published, and otherwise every few minutes. A worker that takes over a stream loads the state and continues with the
frames that the store holds after it. Scores depend on the stored frames only, so the worker finds the same alerts with
the same ids; those may not have been published, and are published again. An alert may therefore be published twice,
with one id, but it is never lost and never raised twice.

A frame that is not later than one that was scored is skipped: a late or repeated frame raises nothing. This module does
not know Kafka.
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
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.columns import digest
from index.errors import EmptyWindow, StoreError, UnknownStream
from index.records import FrameRecords, from_micros
from index.second_grid import EARLY_MICROS, seconds_of
from index.standing_questions import StandingQuestion, StandingQuestionStore
from index.store import Store
from index.window import Window
from ingest.alerts.detector import UNIT, AlertDetector, AlertTransition, DetectorState
from ingest.alerts.statistics import RecordingDetector, ScoreStatistics, score_statistics
from ingest.messages import PICTURE_BYTES, AlertMessage

__all__ = ["AlertScorer", "StreamScorer", "replay", "score_frames"]

_SECOND = 1_000_000
_READ_FRAMES = 64  # that are read from the store at once
_MAX_CATCH_UP_FRAMES = 7200  # stored frames that are scored again after a worker took over a stream
_MAX_FLOAT32 = 16 * 2**20  # elements that are converted to float32 at once
_log = structlog.get_logger(__name__)
_RAISED = Counter("sightline_alerts", "Alerts raised.", ["stream", "question"])  # named …_total


def score_frames(patches: NDArray[np.float16], vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """The similarity of frames and texts: the largest cosine of any patch of the frame.

    Args:
        patches: float16[n, M, Dp], the patches of n frames.
        vectors: float32[q, Dp], the texts, of unit norm.

    Returns:
        int64[n, q] in units of 1/`UNIT`.
    """
    n, m, d = patches.shape
    result = np.empty((n, len(vectors)), np.int64)
    step = max(1, _MAX_FLOAT32 // max(1, m * d))
    for at in range(0, n, step):
        flat = patches[at : at + step].astype(np.float32).reshape(-1, d)
        norm = np.sqrt(np.einsum("pd,pd->p", flat, flat))[:, None]
        cosines = (flat @ vectors.T) / np.where(norm == 0, 1.0, norm)
        result[at : at + step] = np.rint(cosines.reshape(-1, m, len(vectors)).max(1) * UNIT)
    return result


class _StreamState(BaseModel):
    """The stored state of a stream; the aliases are the names in the object."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    version: int = 1
    last_second: int | None = Field(alias="upto")
    detectors: dict[str, DetectorState] = Field(alias="watches")


class StreamScorer:
    """All standing questions at one camera.

    Args:
        stream: the stream of the camera.
        last_second: the last UTC second that was scored; None when there is none.

    Attributes:
        questions: the questions by id.
        detectors: their detectors by the same ids.
        changed: whether alerts were returned since the state was saved.
        saved_at: `time.monotonic()` of the last save.
    """

    def __init__(self, stream: str, last_second: int | None = None) -> None:
        self.stream, self.last_second = stream, last_second
        self.questions: dict[str, StandingQuestion] = {}
        self.detectors: dict[str, AlertDetector] = {}
        self.changed = False
        self.saved_at = 0.0

    def add(self, question: StandingQuestion, detector: AlertDetector) -> None:
        """Add a question, or replace the one of the same id."""
        self.questions[question.id], self.detectors[question.id] = question, detector

    def remove(self, question_id: str) -> None:
        """Remove a question."""
        del self.questions[question_id], self.detectors[question_id]

    def vectors(self, ids: Sequence[str] | None = None) -> NDArray[np.float32]:
        """The vectors float32[q, Dp] of the questions `ids`; of all when None."""
        return np.stack([self.questions[question_id].as_array() for question_id in (ids or list(self.questions))])

    def score(
        self, captured_at: NDArray[np.int64], patches: NDArray[np.float16], picture: Callable[[int], bytes]
    ) -> list[AlertMessage]:
        """Score frames, and return the alerts that are raised or cleared by them.

        Args:
            captured_at: int64[n], UTC microseconds, ascending.
            patches: float16[n, M, Dp].
            picture: returns the JPEG of a row.
        """
        seconds = seconds_of(captured_at)
        rows = np.flatnonzero(np.r_[True, np.diff(seconds) > 0] if len(seconds) else [])
        if self.last_second is not None:
            rows = rows[seconds[rows] > self.last_second]
        if not len(rows):
            return []
        self.last_second = int(seconds[rows[-1]])
        if not self.questions:
            return []
        alerts: list[AlertMessage] = []
        scores = score_frames(patches[rows], self.vectors())
        for row, values in zip(rows.tolist(), scores.tolist(), strict=True):
            for question_id, value in zip(self.questions, values, strict=True):
                for transition in self.detectors[question_id].step(int(seconds[row]), value):
                    alerts.append(
                        self._message(question_id, transition, picture(row) if transition.state == "raised" else None)
                    )
        self.changed |= bool(alerts)
        return alerts

    def _message(self, question_id: str, transition: AlertTransition, picture: bytes | None) -> AlertMessage:
        question = self.questions[question_id]
        if transition.state == "raised":
            _RAISED.labels(self.stream, question.name).inc()
        small = picture if picture and len(picture) <= PICTURE_BYTES else None
        return AlertMessage(
            id=digest(question.id, self.stream, transition.start),
            question=question.id,
            text=question.text,
            name=question.name,
            stream=self.stream,
            state=transition.state,
            start=from_micros(transition.start * _SECOND),
            at=from_micros(transition.at * _SECOND),
            end=None if transition.end is None else from_micros(transition.end * _SECOND),
            peak=from_micros(transition.peak * _SECOND),
            score=transition.score / UNIT,
            threshold=round(transition.threshold / UNIT, 4),
            usual=None if transition.usual is None else round(transition.usual / UNIT, 4),
            percentile=None if transition.percentile is None else round(transition.percentile, 1),
            picture=None if small is None else base64.b64encode(small).decode(),
        )

    def state(self) -> bytes:
        """The state to store, JSON."""
        detectors = {question_id: detector.state() for question_id, detector in self.detectors.items()}
        return _StreamState(last_second=self.last_second, detectors=detectors).model_dump_json(by_alias=True).encode()


class AlertScorer:
    """The standing questions of one store, for one worker. Only `forget` may be called by another thread.

    Errors of the store never delay indexing: the stream is left out, with a warning, and scored later.

    Args:
        store: the store of the frames and the questions.
        reload_seconds: seconds after which the questions are read again.
        save_seconds: seconds after which a state is saved although no alert changed it.
    """

    def __init__(self, store: Store, *, reload_seconds: float = 10.0, save_seconds: float = 300.0) -> None:
        self.store, self.reload_seconds, self.save_seconds = store, reload_seconds, save_seconds
        self._question_store = StandingQuestionStore(store.url)
        self._questions: list[StandingQuestion] = []
        self._read_at: float | None = None
        self._streams: dict[str, StreamScorer] = {}
        self._forget = threading.Event()

    def forget(self) -> None:
        """Discard the states in memory, because other workers may have changed the streams; they are loaded again."""
        self._forget.set()

    def prepare(self, streams: Iterable[str]) -> list[AlertMessage]:
        """Load the questions and states of `streams`, before frames of them are stored.

        Returns:
            The alerts of frames that were stored and perhaps not published.
        """
        if self._forget.is_set():
            self._forget.clear()
            self._streams.clear()
        alerts: list[AlertMessage] = []
        streams = sorted(set(streams))
        try:
            self._load_questions()
            wanted = {s: asked for s in streams if (asked := [q for q in self._questions if q.applies_to(s)])}
        except StoreError as error:
            _log.warning("standing questions cannot be read; retrying with the next frames", problem=str(error))
            return []
        for stream in set(streams) - set(wanted):
            if self._streams.pop(stream, None) is not None:
                self._delete_state(stream)
        for stream, asked in wanted.items():
            try:
                alerts += self._prepare_stream(stream, asked)
            except StoreError as error:
                self._streams.pop(stream, None)
                _log.warning(
                    "alerts cannot be scored; retrying with the next frames", stream=stream, problem=str(error)
                )
        return alerts

    def score(self, frames: FrameRecords) -> list[AlertMessage]:
        """The alerts that are raised or cleared by frames that were just stored."""
        watched = self._streams.get(frames.stream_id)
        if watched is None:
            return []
        return watched.score(frames.captured_at, frames.patches, lambda row: frames.pictures[row])

    def save(self) -> None:
        """Save the states, after all alerts were published. States that changed little are saved now and then."""
        now = time.monotonic()
        for watched in self._streams.values():
            if watched.changed or now - watched.saved_at > self.save_seconds:
                try:
                    self._save_state(watched)
                except StoreError as error:
                    _log.warning(
                        "the state of alerts cannot be saved; alerts may be published twice",
                        stream=watched.stream,
                        problem=str(error),
                    )

    def _save_state(self, watched: StreamScorer) -> None:
        self._question_store.write_state(watched.stream, watched.state())
        watched.changed, watched.saved_at = False, time.monotonic()

    def _load_questions(self) -> None:
        now = time.monotonic()
        if self._read_at is not None and now - self._read_at < self.reload_seconds:
            return
        mine = self.store.encoders.patch
        self._questions = []
        for question in self._question_store.questions():
            if question.encoder == mine:
                self._questions.append(question)
            else:
                _log.warning("a question of another encoder is ignored; add it again", question=question.name)
        self._read_at = now

    def _prepare_stream(self, stream: str, asked: Sequence[StandingQuestion]) -> list[AlertMessage]:
        watched, saved = self._streams.get(stream), None
        if watched is None:
            saved = self._load_state(stream, asked)
            # Without a state, frames that are stored already only build the background; alerts start with the next.
            last_second = saved.last_second if saved else self._last_second(stream)
            watched = self._streams[stream] = StreamScorer(stream, last_second)
        for question_id in set(watched.questions) - {question.id for question in asked}:
            watched.remove(question_id)
        added = [question for question in asked if question.id not in watched.questions]
        fresh = []
        for question in added:
            state = saved.detectors.get(question.id) if saved else None
            watched.add(question, AlertDetector(question.rule, state))
            if state is None:
                fresh.append(question)
        if fresh:
            self._learn(watched, fresh)
            self._save_state(watched)
        if saved is None:
            return []
        first = None if watched.last_second is None else watched.last_second + 1
        return list(_catch_up(self.store, watched, first, max_frames=_MAX_CATCH_UP_FRAMES))

    def _last_second(self, stream: str) -> int | None:
        last = self.store.last_captured_at(stream)
        return None if last is None else int(seconds_of(np.array([last]))[0])

    def _delete_state(self, stream: str) -> None:
        """Delete the state of a stream without questions; a question that is added later starts at that time."""
        try:
            self._question_store.delete_state(stream)
        except StoreError as error:
            _log.warning("the state of a stream's alerts cannot be deleted", stream=stream, problem=str(error))

    def _load_state(self, stream: str, asked: Sequence[StandingQuestion]) -> _StreamState | None:
        data = self._question_store.read_state(stream)
        if data is None:
            return None
        try:
            state = _StreamState.model_validate_json(data)
            return state if any(question.id in state.detectors for question in asked) else None
        except ValidationError as error:
            _log.warning(
                "the state of a stream's alerts is invalid; starting without it", stream=stream, problem=str(error)
            )
            return None

    def _learn(self, watched: StreamScorer, fresh: Sequence[StandingQuestion]) -> None:
        """Build the background of new questions from the stored frames up to the stream's `last_second`."""
        if watched.last_second is None:
            return
        span = max(question.rule.samples * question.rule.every for question in fresh)
        window = _window(self.store, watched.stream, watched.last_second + 1 - span, watched.last_second + 1)
        if window is None:
            return
        seconds = seconds_of(window.captured_at)
        wanted = np.zeros(len(seconds), bool)
        for question in fresh:
            wanted |= seconds % question.rule.every == 0
        rows = np.flatnonzero(wanted)
        vectors = watched.vectors([question.id for question in fresh])
        parts = [
            score_frames(self.store.patches(window.take(rows[at : at + _READ_FRAMES])), vectors)
            for at in range(0, len(rows), _READ_FRAMES)
        ]
        scores = np.concatenate(parts) if parts else np.empty((0, len(fresh)), np.int64)
        for i, question in enumerate(fresh):
            pairs = zip(seconds[rows].tolist(), scores[:, i].tolist(), strict=True)
            mine = ((s, v) for s, v in pairs if s % question.rule.every == 0)
            watched.detectors[question.id].learn(mine, len(window))


def replay(
    store: Store,
    questions: Sequence[StandingQuestion],
    *,
    streams: Sequence[str] | None = None,
    start: int | None = None,
    end: int | None = None,
    on_statistics: Callable[[ScoreStatistics], None] = lambda _: None,
) -> Iterator[AlertMessage]:
    """The alerts that `questions` would have raised over stored frames, starting without a background.

    Args:
        store: the store of the frames.
        questions: the questions, which need not be stored.
        streams: the streams; all when None.
        start, end: UTC microseconds, the end exclusive.
        on_statistics: called with the scores of each question at each stream that it applies to.

    Yields:
        The alerts, stream by stream.

    Raises:
        UnknownStream, EmptyWindow, UsageError: see `Store.window`.
    """
    window = store.window(streams, start, end)
    for stream in window.streams:
        watched = StreamScorer(stream)
        detectors = [RecordingDetector(question) for question in questions if question.applies_to(stream)]
        for detector in detectors:
            watched.add(detector.question, detector)
        rows = np.flatnonzero(window.stream_index == window.stream_ids.index(stream))
        if watched.questions:
            yield from _score_window(store, watched, window.take(rows))
        for detector in detectors:
            statistics = score_statistics(stream, detector)
            if statistics is not None:
                on_statistics(statistics)


def _window(store: Store, stream: str, first: int, end: int | None = None) -> Window | None:
    """The frames of a stream from UTC second `first` to `end`, exclusive; None when there are none."""
    try:
        high = None if end is None else end * _SECOND - EARLY_MICROS
        return store.window([stream], first * _SECOND - EARLY_MICROS, high)
    except (EmptyWindow, UnknownStream):
        return None


def _catch_up(store: Store, watched: StreamScorer, first: int | None, *, max_frames: int) -> Iterator[AlertMessage]:
    window = _window(store, watched.stream, 0 if first is None else first)
    if window is not None:
        yield from _score_window(store, watched, window.take(slice(max(0, len(window) - max_frames), None)))


def _score_window(store: Store, watched: StreamScorer, window: Window) -> Iterator[AlertMessage]:
    for at in range(0, len(window), _READ_FRAMES):
        part = window.take(slice(at, at + _READ_FRAMES))

        def picture(row: int, part: Window = part) -> bytes:
            return store.pictures(part.take(np.array([row])))[0]

        yield from watched.score(part.captured_at, store.patches(part), picture)
