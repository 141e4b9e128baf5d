"""Standing questions of the desk: list, add, preview, history, mute, webhook, remove.

A question about named streams exists for a caller who may manage all of them; one about every stream can be changed
only by a caller who may manage every stream, and its history has the streams that the caller may see. A preview scores
the stored frames with the real scorer and detector.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from index.errors import Forbidden, UnknownQuestion, UsageError, mask_url
from index.records import parse_rfc3339, rfc3339
from index.search.resident_frames import ResidentStream
from index.standing_questions import AlertRule, StandingQuestion, StandingQuestionStore, make_question
from ingest.alerts.detector import UNIT
from ingest.alerts.scorer import StreamScorer
from ingest.alerts.statistics import RecordingDetector
from pipeline.access.caller import Caller
from pipeline.access.database import StateDatabase
from pipeline.access.roles import Action
from pipeline.desk.alerts.following import alert_document, stored_frames
from pipeline.desk.desk import Desk
from pipeline.desk.links import thumbnail_url
from pipeline.http.replies import Reply, TimeText

__all__ = [
    "Fired",
    "Histogram",
    "NewStanding",
    "Preview",
    "StandingEntry",
    "StandingHistory",
    "StandingList",
    "add",
    "change",
    "history",
    "list_standing",
    "preview",
    "remove",
]

_PREVIEW_SECONDS = 86_400
_PREVIEW_FRAMES = 90_000
_READ_FRAMES = 64
_BINS = 40
_FIRED = 200


class Fired(Reply):
    """One alert."""

    stream_id: str
    """The stream."""
    start: TimeText
    """First second of the alert, RFC 3339 UTC."""
    end: TimeText | None
    """Last second; null while it lasts."""
    peak: float
    """The highest score."""
    percentile: float | None
    """Share of the stream's own background that scores less, in percent; null where an earlier version raised it."""
    thumbnail: str | None
    """Address of the picture of that frame; null if it is no longer stored."""


class StandingEntry(Reply):
    """A standing question."""

    id: str
    """Its id."""
    text: str
    """What is looked for."""
    name: str
    """Its name."""
    streams: list[str]
    """The streams that it applies to; empty for every stream."""
    threshold: float
    """Least rise over a stream's usual score that raises an alert."""
    muted: bool
    """Whether no webhook is sent."""
    webhook: str | None
    """Where alerts are sent, without credentials; null for nowhere."""
    last_fired: TimeText | None
    """When it last raised an alert that the caller may see, RFC 3339 UTC."""
    fired: int
    """Number of alerts that the caller may see."""


class StandingList(Reply):
    """The standing questions, the oldest first."""

    items: list[StandingEntry]
    """The questions."""
    next: str | None = None
    """Always null: there are at most 256."""


class StandingHistory(StandingEntry):
    """A standing question with its alerts."""

    history: list[Fired]
    """The newest alerts first, at most 200."""


class NewStanding(StandingEntry):
    """A standing question that was added."""

    secret: str | None
    """Key of the webhook's signatures, shown this once; null without a webhook."""


class Histogram(Reply):
    """Counts of scores."""

    edges: list[float]
    """Edges of the bins, ascending; one more than counts."""
    counts: list[int]
    """Number of frames in each bin."""


class Preview(Reply):
    """What a standing question would have done over the last day."""

    histogram: Histogram
    """Scores of all frames."""
    threshold: float | None
    """The score above which alerts are raised now; null until the background is large enough."""
    would_have_fired: list[Fired]
    """The alerts."""
    warm: bool
    """Whether there were enough frames for alerts."""
    why: str | None
    """What limits the preview; null if nothing does."""


@dataclass(frozen=True, slots=True)
class _Notes:
    muted: bool = False
    webhook: str | None = None


def list_standing(desk: Desk, caller: Caller) -> StandingList:
    """The standing questions that exist for a caller. Raises StoreError."""
    return StandingList(items=[_entry(desk, caller, each) for each in _questions(desk) if _sees(caller, each)])


def add(
    desk: Desk,
    caller: Caller,
    text: str,
    *,
    name: str | None = None,
    streams: Sequence[str] | None = None,
    floor: float | None = None,
    warm_up: int | None = None,
    webhook: str | None = None,
) -> NewStanding:
    """Add a standing question. Workers and the desk apply it within seconds.

    Args:
        desk: the desk.
        caller: the caller.
        text: what to look for.
        name: its name; the text if None.
        streams: names and patterns of streams that exist; every stream if None, also those to come, which only a caller
            who may manage every stream can do.
        floor: least rise over the usual score; the profile's if None.
        warm_up: frames of a stream before its first alert; 300 if None.
        webhook: where alerts are sent.

    Raises:
        UsageError: an argument is invalid.
        UnknownStream, Forbidden: the caller does not see a stream, or may not manage its questions.
        SourceDenied: the address of the webhook is not allowed.
        StoreError: the store cannot be written.
    """
    names = _names(desk, caller, streams)
    if webhook is not None:
        desk.webhooks.check(webhook)
        if desk.database is None:
            raise UsageError("a webhook needs a state folder; start the desk with --state")
    question = _make(desk, text, name, names, floor, warm_up)
    StandingQuestionStore(desk.store.url).add(question)
    secret = secrets.token_urlsafe(32) if webhook is not None else None
    if desk.database is not None:
        desk.database.execute(
            "INSERT OR REPLACE INTO standing (id, muted, webhook, secret) VALUES (?, 0, ?, ?)",
            question.id,
            webhook,
            secret,
        )
    return NewStanding(**_entry(desk, caller, question).model_dump(), secret=secret)


def change(desk: Desk, caller: Caller, question_id: str, *, muted: bool) -> StandingEntry:
    """Mute or unmute the webhook of a question. Raises UnknownQuestion, Forbidden."""
    question = _manageable(desk, caller, question_id)
    if desk.database is None:
        raise UsageError("muting needs a state folder; start the desk with --state")
    desk.database.execute(
        "INSERT INTO standing (id, muted) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET muted = ?2",
        question.id,
        int(muted),
    )
    return _entry(desk, caller, question)


def remove(desk: Desk, caller: Caller, question_id: str) -> None:
    """Remove a question and its history. Raises UnknownQuestion, Forbidden, StoreError."""
    question = _manageable(desk, caller, question_id)
    StandingQuestionStore(desk.store.url).remove(question.id)
    if desk.database is not None:
        with desk.database.transaction() as database:
            database.execute("DELETE FROM standing WHERE id = ?", question.id)
            database.execute("DELETE FROM fired WHERE question = ?", question.id)


def history(desk: Desk, caller: Caller, question_id: str) -> StandingHistory:
    """A question with its newest alerts on streams that the caller may see. Raises UnknownQuestion."""
    question = next((each for each in _questions(desk) if each.id == question_id and _sees(caller, each)), None)
    if question is None:
        raise UnknownQuestion("there is no such standing question")
    held = desk.snapshot().streams
    found = []
    for row in _fired_rows(desk.database, question.id):
        if caller.may(Action.STANDING, row["stream"]):
            found.append(_fired(json.loads(row["document"]), held.get(row["stream"])))
        if len(found) == _FIRED:
            break
    return StandingHistory(**_entry(desk, caller, question).model_dump(), history=found)


def preview(
    desk: Desk,
    caller: Caller,
    text: str,
    *,
    streams: Sequence[str] | None = None,
    floor: float | None = None,
    warm_up: int | None = None,
) -> Preview:
    """What a question would have done over the last day of the streams, and the scores of all their frames.

    Raises:
        UsageError, UnknownStream, Forbidden: see `add`.
        StoreError: the store cannot be read.
    """
    chosen = desk.scope(caller, streams, Action.STANDING)
    question = _make(desk, text, None, (), floor, warm_up)
    scores: list[int] = []
    fired: dict[tuple[str, str], Fired] = {}
    thresholds: list[float] = []
    remarks: list[str] = []
    warm = False
    share = _PREVIEW_FRAMES // max(1, len(chosen))
    for stream in chosen.values():
        detector = RecordingDetector(question)
        watched = StreamScorer(stream.stream_id)
        watched.add(question, detector)
        part = stream.between(int(stream.captured_at[-1]) - _PREVIEW_SECONDS * 1_000_000, None)
        first = max(part.start, part.stop - share)
        if first > part.start:
            remarks.append(f"{stream.stream_id}: the newest {share:,} frames of the last day")
        for at in range(first, part.stop, _READ_FRAMES):
            window = stored_frames(stream, slice(at, min(part.stop, at + _READ_FRAMES)))
            for alert in watched.score(window.captured_at, desk.store.patches(window), lambda _: b""):
                document = alert_document(alert)
                fired[stream.stream_id, document["start"]] = _fired(document, stream)
        scores += detector.scores
        high = detector.thresholds()[0]
        if np.isfinite(high):
            thresholds.append(high / UNIT)
        warm |= len(detector.scores) > question.rule.warm_up
    if not warm:
        remarks.append(
            f"the streams have fewer than {question.rule.warm_up} frames, which teach the usual score before the first "
            "alert"
        )
    counts, edges = np.histogram(np.asarray(scores, np.float64) / UNIT, _BINS) if scores else (np.zeros(0), np.zeros(0))
    return Preview(
        histogram=Histogram(edges=[round(float(edge), 5) for edge in edges], counts=[int(count) for count in counts]),
        threshold=round(max(thresholds), 5) if thresholds else None,
        would_have_fired=sorted(fired.values(), key=lambda each: (each.start, each.stream_id)),
        warm=warm,
        why="; ".join(remarks) or None,
    )


def _questions(desk: Desk) -> list[StandingQuestion]:
    return StandingQuestionStore(desk.store.url).questions()


def _sees(caller: Caller, question: StandingQuestion) -> bool:
    """Whether a question exists for a caller."""
    if not question.streams:
        return caller.may_somewhere(Action.STANDING)
    return len(caller.visible(question.streams, Action.STANDING)) == len(question.streams)


def _manageable(desk: Desk, caller: Caller, question_id: str) -> StandingQuestion:
    question = next((each for each in _questions(desk) if each.id == question_id and _sees(caller, each)), None)
    if question is None:
        raise UnknownQuestion("there is no such standing question")
    if not question.streams and not caller.may_everywhere(Action.STANDING):
        raise Forbidden(f"{caller.name} may not change a question about every stream; ask an administrator")
    return question


def _names(desk: Desk, caller: Caller, streams: Sequence[str] | None) -> tuple[str, ...]:
    """The streams of a new question; none for every stream."""
    if not streams and caller.may_everywhere(Action.STANDING):
        return ()
    names = tuple(desk.scope(caller, streams, Action.STANDING))
    if not names:
        raise UsageError("streams: there is no stream that the question could be about")
    return names


def _make(
    desk: Desk, text: str, name: str | None, streams: tuple[str, ...], floor: float | None, warm_up: int | None
) -> StandingQuestion:
    vector = desk.models.text_vector(" ".join(text.split()), "patch")
    least = getattr(desk.models.asker.profile, "alert_floor", None)
    given = {"floor": least if floor is None else floor, "warm_up": warm_up}
    rule = AlertRule.model_validate({key: value for key, value in given.items() if value is not None})
    encoder = desk.store.encoders.patch
    return make_question(
        text, vector, encoder, name=name, streams=streams, rule=rule, created_at=time.time_ns() // 1_000
    )


def _entry(desk: Desk, caller: Caller, question: StandingQuestion) -> StandingEntry:
    notes = _notes(desk.database, question.id)
    rows = [row for row in _fired_rows(desk.database, question.id) if caller.may(Action.STANDING, row["stream"])]
    return StandingEntry(
        id=question.id,
        text=question.text,
        name=question.name,
        streams=list(question.streams),
        threshold=question.rule.floor,
        muted=notes.muted,
        webhook=None if notes.webhook is None else mask_url(notes.webhook),
        last_fired=rfc3339(rows[0]["start"] * 1_000_000) if rows else None,
        fired=len(rows),
    )


def _notes(database: StateDatabase | None, question_id: str) -> _Notes:
    row = None if database is None else database.row("SELECT muted, webhook FROM standing WHERE id = ?", question_id)
    return _Notes() if row is None else _Notes(bool(row["muted"]), row["webhook"])


def _fired_rows(database: StateDatabase | None, question_id: str) -> list[Any]:
    if database is None:
        return []
    return list(database.rows("SELECT * FROM fired WHERE question = ? ORDER BY start DESC LIMIT 10000", question_id))


def _fired(document: dict[str, Any], stream: ResidentStream | None) -> Fired:
    second = parse_rfc3339(document["peak"]) // 1_000_000
    thumbnail = None
    if stream is not None:
        at = int(stream.captured_at[stream.nearest(second * 1_000_000)])
        if abs(at - second * 1_000_000) <= 1_000_000:
            thumbnail = thumbnail_url(stream.stream_id, at)
    return Fired(
        stream_id=document["stream"],
        start=document["start"],
        end=document["end"],
        peak=document["score"],
        percentile=document.get("percentile"),
        thumbnail=thumbnail,
    )
