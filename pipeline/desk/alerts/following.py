"""Standing questions of the desk at work: new frames of the store are scored, alerts are kept and sent to webhooks.

The scorer and the detector are those of `watch` and `consume` (`ingest.alerts`). The desk keeps its own state of each
stream in its database, so that it needs not write to the store, and continues where it was after a restart. A new
question learns the usual scores of a stream from the frames that are stored, and fires from then on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import structlog

from index.errors import EmptyWindow, SightlineError, UnknownStream
from index.search.resident_frames import ResidentStream
from index.second_grid import seconds_of
from index.standing_questions import StandingQuestion, StandingQuestionStore
from index.store import Store
from index.window import Window
from ingest.alerts.detector import AlertDetector, DetectorState
from ingest.alerts.scorer import StreamScorer, score_frames
from ingest.messages import AlertMessage
from pipeline.access.database import StateDatabase
from pipeline.desk.alerts.webhooks import Delivery, WebhookSender

__all__ = ["Follower", "alert_document", "stored_frames"]

_READ_FRAMES = 64
_MOST_CATCH_UP = 7_200
_SECOND = 1_000_000
_log = structlog.get_logger("sightline.desk")


def stored_frames(stream: ResidentStream, part: slice) -> Window:
    """Frames of a stream as a window without vectors, for `Store.patches`."""
    times = stream.captured_at[part]
    count = len(times)
    nothing = np.zeros((count, 0), np.float32)
    return Window([stream.stream_id], np.zeros(count, np.int32), times, stream.pts_seconds[part], nothing)


def alert_document(alert: AlertMessage) -> dict[str, Any]:
    """An alert as the history and a webhook have it; without its picture."""
    return alert.model_dump(mode="json", exclude={"picture", "version"})


class Follower:
    """Scores new frames for all standing questions of a store.

    Args:
        store: the store.
        database: the database of the state folder.
        sender: sends webhooks.
        seconds: time between two looks at the store.
    """

    def __init__(self, store: Store, database: StateDatabase, sender: WebhookSender, *, seconds: float = 5.0) -> None:
        self._store, self._database, self._sender, self._seconds = store, database, sender, seconds
        self._questions = StandingQuestionStore(store.url)
        self._streams: dict[str, StreamScorer] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, snapshot: Any) -> None:
        """Begin to follow, in the background; `snapshot` returns the streams in memory by name."""

        def work() -> None:
            """Look at the store again and again."""
            while not self._stop.wait(self._seconds):
                try:
                    self.look(snapshot())
                except SightlineError as error:
                    _log.warning("standing questions wait", problem=str(error))

        self._thread = threading.Thread(target=work, name="sightline-standing", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10)

    def look(self, streams: Mapping[str, ResidentStream]) -> int:
        """Score the frames that are new since the last look; returns the number of alerts. Raises StoreError."""
        mine = self._store.encoders.patch
        questions = [question for question in self._questions.questions() if question.encoder == mine]
        count = 0
        for name, stream in streams.items():
            asked = [question for question in questions if question.applies_to(name)]
            if asked and not self._stop.is_set():
                try:
                    count += self._look_at(stream, asked)
                except (EmptyWindow, UnknownStream):  # forgotten meanwhile
                    self._streams.pop(name, None)
        for name in set(self._streams) - set(streams):
            del self._streams[name]
        return count

    def _look_at(self, stream: ResidentStream, asked: Sequence[StandingQuestion]) -> int:
        watched = self._streams.get(stream.stream_id)
        saved: dict[str, Any] = {}
        if watched is None:
            saved = self._saved(stream.stream_id)
            newest = int(seconds_of(stream.captured_at[-1:])[0])
            watched = self._streams[stream.stream_id] = StreamScorer(stream.stream_id, saved.get("upto", newest))
        for question_id in set(watched.questions) - {question.id for question in asked}:
            watched.remove(question_id)
        states = saved.get("watches", {})
        for question in asked:
            if question.id not in watched.questions:
                state = states.get(question.id)
                detector = AlertDetector(question.rule, DetectorState.model_validate(state) if state else None)
                watched.add(question, detector)
                if state is None:
                    self._learn(stream, watched, question)
        seconds = seconds_of(stream.captured_at)
        first = 0 if watched.last_second is None else int(np.searchsorted(seconds, watched.last_second, "right"))
        first = max(first, len(seconds) - _MOST_CATCH_UP)
        if first == len(seconds) and stream.stream_id in self._streams and not states and saved:
            return 0
        count = 0
        for at in range(first, len(seconds), _READ_FRAMES):
            part = slice(at, min(len(seconds), at + _READ_FRAMES))
            window = stored_frames(stream, part)
            alerts = watched.score(window.captured_at, self._store.patches(window), lambda _: b"")
            for alert in alerts:
                self._keep(alert, {question.id: question for question in asked})
            count += len(alerts)
        if first < len(seconds) or not saved:
            self._save(watched)
        return count

    def _learn(self, stream: ResidentStream, watched: StreamScorer, question: StandingQuestion) -> None:
        """Build the background of a question from the frames up to the last that was scored."""
        if watched.last_second is None:
            return
        seconds = seconds_of(stream.captured_at)
        end = int(np.searchsorted(seconds, watched.last_second, "right"))
        begin = int(np.searchsorted(seconds, watched.last_second + 1 - question.rule.samples * question.rule.every))
        pairs: list[tuple[int, int]] = []
        for at in range(begin, end, _READ_FRAMES):
            part = slice(at, min(end, at + _READ_FRAMES))
            patches = self._store.patches(stored_frames(stream, part))
            scores = score_frames(patches, question.as_array()[None])[:, 0]
            pairs += zip(seconds[part].tolist(), scores.tolist(), strict=True)
        chosen = [(second, score) for second, score in pairs if second % question.rule.every == 0]
        watched.detectors[question.id].learn(chosen, end - begin)

    def _keep(self, alert: AlertMessage, questions: Mapping[str, StandingQuestion]) -> None:
        document = alert_document(alert)
        start = int(alert.start.timestamp())
        with self._database.transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO fired (question, stream, start, document) VALUES (?, ?, ?, ?)",
                alert.question,
                alert.stream,
                start,
                json.dumps(document),
            )
        row = self._database.row("SELECT muted, webhook, secret FROM standing WHERE id = ?", alert.question)
        if row is not None and row["webhook"] and not row["muted"]:
            delivery = f"{alert.id}-{alert.state}"
            self._sender.send(Delivery(row["webhook"], row["secret"] or "", delivery, document))

    def _saved(self, stream_id: str) -> dict[str, Any]:
        row = self._database.row("SELECT state FROM following WHERE stream = ?", stream_id)
        found = {} if row is None else json.loads(row["state"])
        return found if isinstance(found, dict) else {}

    def _save(self, watched: StreamScorer) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO following (stream, state) VALUES (?, ?)", watched.stream, watched.state().decode()
        )
