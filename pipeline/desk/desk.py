"""The desk: one opened store with its models and caches, for the web page, the API, the MCP server and scripts.

The functions of this folder take the desk and the caller, and reduce the streams to those that the caller may see
before they read anything: `Desk.scope`. Caches hold data of the store, never of a caller, and are looked up after that.
Who did what is recorded by `Desk.audit`, which those call that dispatch into these functions.

Does not know HTTP.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from index.errors import SightlineError, UnknownStream, shown_text
from index.maintenance.rules import RetentionRule
from index.search.resident_frames import FrameSnapshot, ResidentFrames, ResidentStream
from index.store import Store
from index.stream_patterns import is_pattern
from ingest.live.recorder import folder_url
from pipeline.access.caller import Caller
from pipeline.access.database import StateDatabase
from pipeline.access.roles import Action
from pipeline.desk.alerts.following import Follower
from pipeline.desk.alerts.webhooks import WebhookSender, webhook_policy
from pipeline.desk.history import History
from pipeline.desk.jobs import Jobs
from pipeline.desk.models import DeskModels
from pipeline.media.footage import FootageFinder
from pipeline.media.playback import Player
from pipeline.memo import Memo
from pipeline.questions.asker import WINDOW_BYTES
from pipeline.service.admission import Admission
from pipeline.service.answers.failures import failure_of
from pipeline.service.client import ServiceClient

__all__ = ["AuditSink", "Desk", "DeskSettings", "RunningQuestions"]

_log = structlog.get_logger("sightline.desk")
_WAITING = 16  # questions in the queue of the language model
_ONE_RECORD_SECONDS = 600.0
AuditSink = Callable[[Caller, str, Sequence[str], Mapping[str, object]], None]
"""Receives the caller, the action, the streams and details of what was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskSettings:
    """What a desk is started with."""

    store: str
    """URL or path of the store."""
    profile: str = "micro"
    """Model profile."""
    device: str | None = None
    """Device of the models; a GPU if there is one if None."""
    recordings: tuple[str, ...] = ()
    """Folders or URLs with recordings, from which moments are played."""
    footage: tuple[Path, ...] | None = None
    """Folders below which ingested files may be opened; None for everywhere, which suits a single user."""
    window_bytes: int = WINDOW_BYTES
    """Most bytes of frame vectors that one question holds in memory."""
    state: Path | None = None
    """Folder of users, sessions, history and keys; without it nothing of these is kept."""
    live: Path | None = None
    """Folder of a running `watch` or `record`, whose status is shown."""
    retention: Mapping[str, RetentionRule] = field(default_factory=dict)
    """How long footage is kept, by pattern of streams."""
    webhook_networks: tuple[str, ...] = ()
    """Networks, besides the public Internet, in which webhooks may be sent, in CIDR notation."""
    timezone: str = "UTC"
    """Zone in which the page shows times at first, an IANA name."""


class RunningQuestions:
    """The questions that are being answered, by id."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs: dict[str, Any] = {}


class Desk:
    """One store, its models and its caches. Any number of threads may use it.

    Args:
        settings: what the desk is started with.
        connect: returns the client of a model service; None to run the models in this process.
        audit: receives what callers do; nothing is recorded if None.
        on_close: called when the desk is closed, to store what was recorded.
        database: the database of the state folder; without it questions are kept in memory.

    Attributes:
        store: the store.
        frames: its frames in memory.
        models: its models.
        admission: the queue of the language model.
        running: the questions that are being answered.
        history: the questions of callers.
        jobs: work that outlasts a request.
        days: days of streams, by the files of the stream.
        rankings: searches whose moments are read page by page.
        verified: what the language model said about moments, by text, stream, start and end.
        thumbnails: small pictures, by stream, time and width.
        footage: finds the footage behind frames.
        player: plays it.
        recorded: when `audit_once` made a record.
        webhooks: sends the alerts of standing questions.
        follower: compares new frames with the standing questions; None without a database.
        uploads: uploaded pictures, by caller and id.

    Raises:
        StoreError: the store cannot be opened.
    """

    def __init__(
        self,
        settings: DeskSettings,
        *,
        connect: Callable[[], ServiceClient] | None = None,
        audit: AuditSink | None = None,
        on_close: Callable[[], None] = lambda: None,
        database: StateDatabase | None = None,
    ) -> None:
        self.settings = settings
        self.store = Store.open(settings.store)
        self.frames = ResidentFrames(self.store.tables.frames, dimension=self.store.encoders.frame.dimension)
        self.footage = FootageFinder(self.store, [folder_url(each) for each in settings.recordings], settings.footage)
        self.models = DeskModels(
            self.store,
            settings.profile,
            settings.device,
            connect,
            footage=self.footage,
            window_bytes=settings.window_bytes,
        )
        self.audit_sink, self.database, self._on_close = audit, database, on_close
        self.admission = Admission(waiting=_WAITING, translate=failure_of)
        self.running = RunningQuestions()
        self.history = History(database)
        self.jobs = Jobs()
        self.days: Memo[Any] = Memo(4_096)
        self.rankings: Memo[Any] = Memo(64, 256 * 2**20, lambda ranking: int(ranking.nbytes))
        self.verified: Memo[Any] = Memo(10_000)
        self.thumbnails: Memo[bytes] = Memo(20_000, 128 * 2**20, len)
        self.player = Player(self.footage)
        self.recorded: Memo[float] = Memo(16_384)
        self.uploads: Memo[Any] = Memo(1_000)
        self.webhooks = WebhookSender(webhook_policy(settings.webhook_networks))
        self.follower = None if database is None else Follower(self.store, database, self.webhooks)
        self._warming: threading.Thread | None = None

    def snapshot(self) -> FrameSnapshot:
        """The frames of the store, as they were at most a second ago. Raises StoreError."""
        return self.frames.refresh()

    def scope(
        self, caller: Caller, wanted: Sequence[str] | None = None, action: Action = Action.VIEW
    ) -> dict[str, ResidentStream]:
        """The streams that names and patterns mean for a caller, by name; all visible ones if None.

        Raises:
            UnknownStream: a name or pattern matches no stream that the caller may see.
            Forbidden: the caller may see a stream that is named, but not do this with it.
            StoreError: the store cannot be read.
        """
        held = self.snapshot().streams
        return {name: held[name] for name in caller.scope(wanted, held, action)}

    def stream(self, caller: Caller, stream_id: str, action: Action = Action.VIEW) -> ResidentStream:
        """One stream by its name. Raises as `scope`; a pattern is no name, so there is no such stream."""
        if is_pattern(stream_id):
            raise UnknownStream(
                f"{shown_text(stream_id)}: there is no such stream; one name is expected, not a pattern"
            )
        held = self.snapshot().streams
        (name,) = caller.scope([stream_id], held, action)
        return held[name]

    def audit(
        self, caller: Caller, action: str, *, streams: Sequence[str] = (), detail: Mapping[str, object] | None = None
    ) -> None:
        """Record what a caller did.

        Args:
            caller: who.
            action: what, such as `search`.
            streams: on which streams.
            detail: further facts, which must not contain credentials.
        """
        if self.audit_sink is not None:
            self.audit_sink(caller, action, streams, detail or {})

    def audit_once(
        self, caller: Caller, action: str, *, stream: str, what: object, detail: Mapping[str, object]
    ) -> None:
        """Record what a browser does in many requests, such as playing: one record in ten minutes.

        Args:
            caller: who.
            action: what, such as `view`.
            stream: on which stream.
            what: what makes two requests the same, besides caller, action and stream.
            detail: as in `audit`; that of the first request.
        """
        key = (caller.name, caller.via, caller.origin, action, stream, what)
        before = self.recorded.find(key)
        if before is None or time.monotonic() - before > _ONE_RECORD_SECONDS:
            self.audit(caller, action, streams=[stream], detail=detail)
            self.recorded.put(key, time.monotonic())

    def warm(self) -> None:
        """Read frames and load the encoders in the background, so that the first search is not slower than the next."""

        def work() -> None:
            """Load what a search needs; an error appears again, and is reported, when it is used."""
            try:
                self.frames.warm()
                self.models.text_vector("ready")
            except SightlineError as error:
                _log.warning("not ready yet", problem=str(error))

        if self.follower is not None:
            self.follower.start(lambda: self.snapshot().streams)
        self._warming = threading.Thread(target=work, name="sightline-warm", daemon=True)
        self._warming.start()

    def drain(self) -> None:
        """Refuse new questions; admitted ones continue. Takes no lock, so a signal handler may call it."""
        self.admission.drain()

    def stop(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the admitted questions, then cancel the rest; whether all finished."""
        return self.admission.stop(timeout)

    def close(self) -> None:
        """End the jobs and the questions, and release what the desk holds."""
        if self.follower is not None:
            self.follower.close()
        self.webhooks.close()
        self.jobs.close()
        self.admission.stop(0.0)
        self.player.close()
        self._on_close()
