"""The publisher: cuts files into segments and produces each as a Kafka message, keyed by its stream and in order.

Publishing a file again is harmless: the store keeps one frame a second, whichever message contained it. This module
knows nothing of the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

import structlog
from pydantic import BaseModel, ConfigDict, Field

from index.delta.objects import object_reason, open_object
from index.errors import MessageTooLarge, SourceError, SourceNotFound, UsageError, mask_url
from index.files import write_atomically
from index.records import rfc3339
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import VideoInfo
from ingest.footage_plan import plan_footage
from ingest.footage_report import FootageReport
from ingest.kafka.settings import KafkaSettings
from ingest.messages import SegmentMessage, segment_message
from ingest.outbox import Outbox
from ingest.segments.cutter import CutSegment
from ingest.segments.cutting import Cutting
from ingest.sources.files import fetched
from ingest.sources.naming import FileName, Overlap
from ingest.sources.start_time import FoundStart, find_start

__all__ = ["PublishedFile", "publish_files", "publish_segment", "segments_of"]

_log = structlog.get_logger(__name__)


class PublishedFile(BaseModel):
    """The result of publishing one file."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    file: str
    """The file's name or URL, without credentials."""
    stream_id: str | None = None
    """The stream its segments belong to."""
    segments: int = 0
    """Segments that Kafka acknowledged; 0 when the broker found one of them too large: others may be lost with it."""
    seconds: float = 0.0
    """Seconds of footage of these segments."""
    problem: str | None = None
    """The error that ended the file early; None when it was published completely."""
    footage: FootageReport = Field(default_factory=FootageReport)
    """What was stored, what repeated and what was dropped, each with its seconds."""


def segments_of(
    path: Path,
    stream_id: str,
    *,
    name: str | None = None,
    start: datetime | None = None,
    named: FileName | None = None,
    seconds: float = 10.0,
    max_bytes: int = 256 * 2**20,
    limits: DecodeLimits | None = None,
    on_info: Callable[[VideoInfo], None] = lambda _: None,
) -> Iterator[tuple[FoundStart, CutSegment]]:
    """Cut a local file into segments.

    Args:
        name: name of the file in error messages; its path by default.
        start: UTC time of the first frame; read from the file or its name when None.
        named: what the source's name says; read from `path` when None.
        seconds: minimum length of a segment.
        max_bytes: maximum size of a segment.
        on_info: called with what the container says, before the first segment.

    Yields:
        The time of the segment's first frame with the source of that time, and the segment.

    Raises:
        NotVideo, NoFrames, DecodeFailed, MessageTooLarge: see `ingest.segments.cutting.Cutting`.
    """
    with Cutting(path, name=name, seconds=seconds, max_bytes=max_bytes, limits=limits) as cutting:
        info = cutting.info()  # a malformed file fails here, before it is cut
        on_info(info)
        began = find_start(path, given=start, created=info.created, named=named, duration=info.duration)
        for segment in cutting:
            yield began._replace(micros=began.micros + round((segment.pts - info.first) * 1e6)), segment


def publish_segment(
    outbox: Outbox,
    settings: KafkaSettings,
    stream_id: str,
    start: FoundStart,
    segment: CutSegment,
    *,
    objects: str | None = None,
    uri: str | None = None,
) -> SegmentMessage:
    """Produce one segment, inside its message or as an object that the message refers to.

    Args:
        start: time of its first frame, and the source of that time.
        objects: a folder or bucket; the segment is written there, whatever its size.
        uri: where the segment is already stored; used when it does not fit into a message.

    Raises:
        MessageTooLarge: the segment does not fit into a message, and neither `objects` nor `uri` is given.
        SourceNotFound: `objects` cannot be written to.
    """
    if objects is not None:
        uri = _write_object(objects, stream_id, start.micros, segment)
    elif len(segment.payload) <= settings.inline_bytes:
        uri = None
    elif uri is None:
        raise MessageTooLarge(
            f"{stream_id} at {rfc3339(start.micros)}: a segment of {len(segment.payload)} bytes is over "
            f"kafka.inline_bytes ({settings.inline_bytes}); name a folder or bucket for segments with --objects, or "
            "cut shorter with --seconds"
        )
    message = segment_message(
        stream_id,
        start.micros,
        segment.duration,
        segment.payload,
        uri=uri,
        media_type=segment.media_type,
        clock=start.source,
        clock_zone=start.zone,
        clock_fold=start.fold,
    )
    outbox.send(settings.segments, key=stream_id, value=message.to_bytes())
    return message


def _write_object(objects: str, stream_id: str, start: int, segment: CutSegment) -> str:
    """Write the segment into the folder or bucket and return its URI."""
    suffix = {"video/mp4": "mp4", "video/x-matroska": "mkv"}[segment.media_type]
    name = f"{stream_id}/{rfc3339(start).replace(':', '-')}.{suffix}"
    base = objects if "://" in objects else Path(objects).expanduser().absolute().as_uri()
    if mask_url(base) != base:
        raise UsageError(
            f"--objects {mask_url(base)}: the address contains credentials, which every message would show; set "
            "them in the environment"
        )
    uri = f"{base.rstrip('/')}/{name}"
    try:
        if uri.startswith("file://"):
            write_atomically(unquote(uri.removeprefix("file://")), segment.payload, parents=True)
        else:
            with open_object(uri, "wb") as remote:
                remote.write(segment.payload)
    except Exception as error:  # each file system of fsspec has its own exceptions
        raise SourceNotFound(f"{mask_url(uri)}: cannot be written ({object_reason(error)}); check --objects") from None
    return uri


class _CheckedOutbox:
    """An outbox that notes whether the broker finds a message too large: those in flight may be lost with it."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox, self.refused = outbox, False

    def send(self, topic: str, *, key: str | None, value: bytes | None) -> None:
        """Queue a record; see `Outbox`."""
        with self._noting():
            self._outbox.send(topic, key=key, value=value)

    def flush(self) -> None:
        """Wait for all records; see `Outbox`."""
        with self._noting():
            self._outbox.flush()

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except MessageTooLarge:
            self.refused = True
            raise


def publish_files(
    sources: Sequence[str | Path],
    *,
    settings: KafkaSettings,
    sender: Callable[[], AbstractContextManager[Outbox]],
    stream: str | None = None,
    start: datetime | None = None,
    names: str | None = None,
    timezone: str | None = None,
    overlap: Overlap = "error",
    seconds: float = 10.0,
    objects: str | None = None,
    limits: DecodeLimits | None = None,
    on_segment: Callable[[str, SegmentMessage], None] = lambda _, __: None,
) -> list[PublishedFile]:
    """Cut every file of `sources` and produce its segments.

    Args:
        settings: the connection and the sizes of messages.
        sender: opens the outbox.
        stream: the stream of all files; derived from each file's name when None.
        start: UTC time of the first frame; for a single file only.
        names, timezone, overlap: see `ingest.footage_plan.plan_footage`.
        seconds: minimum length of a segment, 1 to 600.
        objects: folder or object-store URL for the segments; they are put into the messages when None.
        limits: the bounds of a decoder process.
        on_segment: called with the file's name and each message.

    Returns:
        The result for each file. A file that fails does not stop the others.

    Raises:
        UsageError: a length out of range, or what `plan_footage` raises.
        KafkaProblem: Kafka does not accept the messages.
    """
    if not 1 <= seconds <= 600:
        raise UsageError(f"--seconds must lie between 1 and 600, got {seconds:g}")
    plan = plan_footage(
        sources, stream=stream, start=start, names=names, timezone=timezone, overlap=overlap, limits=limits
    )
    report = [PublishedFile(file=name, problem=str(error)) for name, error in plan.problems]
    for file in report:
        file.footage.add("dropped", files=1)
    with sender() as outbox:
        for planned in plan.files:
            file = PublishedFile(file=planned.shown, stream_id=planned.name.stream)
            report.append(file)
            lengths: list[float] = []  # that of the file, once it is known
            produced: list[float] = []  # seconds of each segment
            failure: Exception | None = None
            checked = _CheckedOutbox(outbox)
            try:
                with fetched(planned.source) as path:
                    each = segments_of(
                        path,
                        planned.name.stream,
                        name=file.file,
                        start=start,
                        named=planned.name,
                        seconds=seconds,
                        max_bytes=settings.object_bytes,
                        limits=limits,
                        on_info=lambda info, into=lengths: into.append(info.duration or 0.0),  # type: ignore[misc]
                    )
                    for began, segment in each:
                        message = publish_segment(
                            checked, settings, planned.name.stream, began, segment, objects=objects
                        )
                        produced.append(segment.duration)
                        on_segment(file.file, message)
            except (SourceError, MessageTooLarge, UsageError) as error:
                failure = error
            try:
                checked.flush()
            except MessageTooLarge as error:
                failure = error
            if checked.refused:
                produced.clear()
            file.segments, file.seconds = len(produced), sum(produced)
            file.footage.add("stored", segments=file.segments, seconds=file.seconds)
            if failure is not None:
                file.problem = str(failure)
                file.footage.add(
                    "dropped", files=1, seconds=max(0.0, (lengths.pop() if lengths else 0.0) - file.seconds)
                )
                _log.info("file not published completely", file=file.file, problem=file.problem)
    return report
