"""The recorder: a sink of live segments that keeps them unchanged in a folder or object store, and sends them to Kafka.

The name of a segment contains its stream and times, see `ingest.segments.names`. A segment is written to its place,
durably, before its message is sent, and leaves the spool only after Kafka has acknowledged the message. After a crash a
segment may be sent twice; it is stored once all the same. When a maximum age is set, older segments are deleted once an
hour, or ten times within that age if it is shorter. This module does not decode anything.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import structlog

from index.commits.held import Hold
from index.delta.objects import object_reason, open_object
from index.errors import MessageTooLarge, SourceNotFound, StoreError, UsageError, mask_url
from index.files import write_atomically
from ingest.footage_report import FootageReport
from ingest.kafka.publisher import publish_segment
from ingest.kafka.settings import KafkaSettings
from ingest.live.retention import expire
from ingest.live.spool import SpooledSegment
from ingest.outbox import Outbox
from ingest.segments.cutter import CutSegment
from ingest.sources.start_time import FoundStart

__all__ = ["Recorder", "folder_url"]

_EXPIRE_SECONDS = 3600.0  # between deletions of old segments
_COPY_BYTES = 2**20
_log = structlog.get_logger(__name__)


def folder_url(text: str) -> str:
    """The URL, without a trailing slash, of a folder that is given as a path or URL.

    Raises:
        UsageError: the URL contains credentials, which every message would show.
    """
    url = (text if "://" in text else Path(text).expanduser().absolute().as_uri()).rstrip("/")
    if mask_url(url) != url:
        raise UsageError(
            f"{mask_url(url)}: the address contains credentials, which every message would show; set them "
            "in the environment"
        )
    return url


class Recorder:
    """Keeps segments, sends them to Kafka, or both; see `ingest.live.supervisor.SegmentSink`.

    Args:
        place: the URL of the folder or bucket that keeps the segments (see `folder_url`); None to keep none.
        aside: a folder for segments that are too large for a message and not kept in `place`.
        outbox: sends messages; None to send none.
        kafka: the topics and sizes of messages.
        gather_seconds: seconds to wait for more segments before they are written.
        keep_seconds: the maximum age of a segment in `place`; None for no limit.
        holds: the evidence locks of a store, whose segments stay longer. Nothing is deleted while it raises StoreError.

    Attributes:
        kept: segments written to `place`. These and the next two count a segment once, when all of its `write` is done.
        sent: segments that Kafka has acknowledged.
        refused: segments too large for a message, by the settings or by the broker.
        expired: segments deleted because of their age.
        held: segments that are old enough and that evidence locks kept when segments were deleted last.
        footage: what was kept or sent ("stored"), and what was neither ("dropped"): refused, or dropped by the full
            spool. What no camera sent, and groups of pictures that are too large for a segment, are not in it.
    """

    def __init__(
        self,
        place: str | None,
        *,
        aside: Path | None = None,
        outbox: Outbox | None = None,
        kafka: KafkaSettings | None = None,
        gather_seconds: float = 0.2,
        keep_seconds: float | None = None,
        holds: Callable[[], Sequence[Hold]] = list,
    ) -> None:
        self.place, self.aside, self.outbox, self.kafka = place, aside, outbox, kafka or KafkaSettings()
        self.gather_seconds, self.max_segments = gather_seconds, 64
        self.keep_seconds, self._expired_at = keep_seconds, float("-inf")
        self._holds = holds
        self.kept = self.sent = self.refused = self.expired = self.held = 0
        self.footage, self._lock = FootageReport(), threading.Lock()

    def write(self, segments: Sequence[SpooledSegment]) -> None:
        """Keep and send segments.

        A segment that is too large for a message is put aside and does not stop the others.

        Raises:
            SourceNotFound: the place cannot be written to.
            KafkaProblem: Kafka does not accept the messages.
        """
        kept = [self._keep(spooled) for spooled in segments] if self.place is not None else [None] * len(segments)
        refused = self._send(self.outbox, segments, kept) if self.outbox is not None else set()
        with self._lock:
            for spooled, uri in zip(segments, kept, strict=True):
                sent = self.outbox is not None and spooled.path not in refused
                self.kept += uri is not None
                self.sent += sent
                self.refused += spooled.path in refused
                stored = sent or uri is not None
                self.footage.add("stored" if stored else "dropped", segments=1, seconds=spooled.segment.duration)
        self._expire()

    def drop(self, spooled: SpooledSegment) -> None:
        """Count a segment that the full spool dropped; for any thread."""
        with self._lock:
            self.footage.add("dropped", segments=1, seconds=spooled.segment.duration)

    def report(self) -> dict[str, Any]:
        """The counts of segments, and the footage."""
        with self._lock:
            counts = {name: getattr(self, name) for name in ("kept", "sent", "refused", "expired")}
            return {**counts, "footage": self.footage.model_copy(deep=True)}

    def _expire(self) -> None:
        if self.place is None or self.keep_seconds is None:
            return
        if time.monotonic() - self._expired_at < min(_EXPIRE_SECONDS, self.keep_seconds / 10):
            return
        self._expired_at = time.monotonic()
        try:
            gone, held = expire(self.place, round((time.time() - self.keep_seconds) * 1e6), held=self._holds())
        except (SourceNotFound, StoreError) as error:
            _log.warning("old recordings were not deleted; retrying later", problem=str(error))
            return
        if held and len(held) != self.held:
            seconds = round(sum(segment.duration for segment in held), 3)
            _log.info("old recordings are held as evidence and stay", segments=len(held), seconds=seconds)
        self.held = len(held)
        self.expired += len(gone)
        if gone:
            _log.info("old recordings are deleted", segments=len(gone))

    def _send(self, outbox: Outbox, segments: Sequence[SpooledSegment], uris: Sequence[str | None]) -> set[Path]:
        """Send segments. Returns the files of those that are too large for a message, which are put aside."""
        try:
            for spooled, uri in zip(segments, uris, strict=True):
                self._publish(outbox, spooled, uri)
            outbox.flush()
        except MessageTooLarge:  # any of them, and the others in flight may be lost with it: again, one by one
            refused: set[Path] = set()
            for spooled, uri in zip(segments, uris, strict=True):
                try:
                    self._publish(outbox, spooled, uri)
                    outbox.flush()
                except MessageTooLarge as error:
                    self._put_aside(spooled, error)
                    refused.add(spooled.path)
            return refused
        return set()

    def _publish(self, outbox: Outbox, spooled: SpooledSegment, uri: str | None) -> None:
        segment = spooled.segment
        cut = CutSegment(0.0, segment.duration, spooled.path.read_bytes(), segment.media_type)
        publish_segment(outbox, self.kafka, segment.stream, FoundStart(segment.start, "arrival"), cut, uri=uri)

    def _put_aside(self, spooled: SpooledSegment, error: MessageTooLarge) -> None:
        if self.aside is not None:
            _copy(spooled.path, self.aside / spooled.segment.name)
        _log.error(
            "a segment was put aside; record with --to as well", segment=spooled.segment.name, problem=str(error)
        )

    def _keep(self, spooled: SpooledSegment) -> str:
        """Copy a segment to its place. Returns its URI."""
        uri = f"{self.place}/{spooled.segment.name}"
        try:
            if uri.startswith("file://"):
                _copy(spooled.path, Path(unquote(uri.removeprefix("file://"))))
            else:
                with spooled.path.open("rb") as local, open_object(uri, "wb") as remote:
                    shutil.copyfileobj(local, remote, _COPY_BYTES)
        except Exception as error:  # each file system of fsspec has its own exceptions
            raise SourceNotFound(f"{mask_url(uri)}: cannot be written ({object_reason(error)}); check --to") from None
        return uri


def _copy(source: Path, target: Path) -> None:
    """Copy a file atomically and durably, and create the missing folders."""
    with source.open("rb") as file:
        write_atomically(target, lambda out: shutil.copyfileobj(file, out, _COPY_BYTES), parents=True)
