"""Cameras' segments kept as they came: moved into a folder or object store, and announced to Kafka.

Where they lie says what they are, see `ingest.segments.names`. A segment is in its place before its message is sent, and
leaves the spool only when Kafka has acknowledged it; one that is sent twice after a crash is stored once all the same.
Where a recording has an age, segments beyond it are deleted every hour.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import structlog

from index.errors import MessageTooLarge, SourceNotFound, mask_url
from ingest.kafka.publisher import publish_segment
from ingest.kafka.settings import KafkaSettings
from ingest.live.retention import expire
from ingest.live.spool import SpooledSegment
from ingest.outbox import Outbox
from ingest.segments.cutter import CutSegment

__all__ = ["Recorder", "place_of"]

_HOUR = 3600.0
_log = structlog.get_logger(__name__)


def place_of(text: str) -> str:
    """A folder's path or URL as a URL without a slash at its end."""
    return (text if "://" in text else Path(text).expanduser().absolute().as_uri()).rstrip("/")


class Recorder:
    """Keeps segments in `place` (a URL, see `place_of`), sends them to `outbox`, or both.

    `kept`, `sent`, `refused` and `expired` count segments. What is too large for a message and lies in no place of its
    own is put into the folder `aside`. `keep_seconds`: how old a segment in `place` may become; None for ever.
    """

    def __init__(
        self,
        place: str | None,
        *,
        aside: Path | None = None,
        outbox: Outbox | None = None,
        kafka: KafkaSettings | None = None,
        gather: float = 0.2,
        keep_seconds: float | None = None,
    ) -> None:
        self.place, self.aside, self.outbox, self.kafka = place, aside, outbox, kafka or KafkaSettings()
        self.gather_seconds, self.max_segments = gather, 64
        self.keep_seconds, self._expired_at = keep_seconds, float("-inf")
        self.kept = self.sent = self.refused = self.expired = 0

    def write(self, segments: Sequence[SpooledSegment]) -> None:
        """Keep and send them.

        Raises:
            SourceNotFound: the place cannot be written to. KafkaProblem: Kafka does not take them.
        """
        for one in segments:
            uri = self._keep(one) if self.place is not None else None
            if self.outbox is not None:
                self._send(one, uri)
        if self.outbox is not None:
            self.outbox.flush()
        self._expire()

    def _expire(self) -> None:
        if self.place is None or self.keep_seconds is None or time.monotonic() - self._expired_at < _HOUR:
            return
        self._expired_at = time.monotonic()
        try:
            gone = expire(self.place, round((time.time() - self.keep_seconds) * 1e6))
        except SourceNotFound as error:
            _log.warning("trying again in an hour", problem=str(error))
            return
        self.expired += len(gone)
        if gone:
            _log.info("old recordings are deleted", segments=len(gone))

    def _send(self, one: SpooledSegment, uri: str | None) -> None:
        assert self.outbox is not None  # asked by the caller
        segment = one.segment
        cut = CutSegment(0.0, segment.duration, one.path.read_bytes(), segment.media_type)
        try:
            publish_segment(self.outbox, self.kafka, segment.stream, segment.start, cut, uri=uri)
            self.sent += 1
        except MessageTooLarge as error:
            self.refused += 1
            if self.aside is not None:
                where = self.aside / segment.name
                where.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(one.path, where)
            _log.error("a segment was put aside; record with --to as well", segment=segment.name, problem=str(error))

    def _keep(self, one: SpooledSegment) -> str:
        uri = f"{self.place}/{one.segment.name}"
        try:
            if uri.startswith("file://"):
                path = Path(unquote(uri.removeprefix("file://")))
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(path.name + ".part")
                shutil.copyfile(one.path, part)
                part.replace(path)
            else:
                import fsspec

                with one.path.open("rb") as local, fsspec.open(uri, "wb") as remote:
                    shutil.copyfileobj(local, remote, 2**20)
        except Exception as error:  # every file system of fsspec brings its own kind
            raise SourceNotFound(f"{mask_url(uri)}: cannot be written ({mask_url(str(error))}); check --to") from None
        self.kept += 1
        return uri
