"""Files into Kafka: cut into segments, each a message keyed by its stream, in order.

Publishing a file again is harmless: the store keeps one frame a second, whichever message brought it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

import structlog
from pydantic import BaseModel

from index.errors import MessageTooLarge, SourceError, SourceNotFound, UsageError, mask_url
from index.records import ClockSource, rfc3339
from index.schemas import check_stream_id
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding
from ingest.kafka.settings import KafkaSettings
from ingest.messages import SegmentMessage, segment_message
from ingest.outbox import Outbox
from ingest.segments.cutter import CutSegment, cut
from ingest.sources.files import expand, fetched
from ingest.sources.start_time import find_start, stream_name

__all__ = ["PublishedFile", "publish_files", "publish_segment", "segments_of"]

_log = structlog.get_logger(__name__)


class PublishedFile(BaseModel):
    """What became of one file; `problem` is the error that ended or spoiled it."""

    file: str
    stream_id: str | None = None
    segments: int = 0
    seconds: float = 0.0
    problem: str | None = None


def segments_of(
    path: Path,
    stream_id: str,
    *,
    start: datetime | None = None,
    seconds: float = 10.0,
    max_bytes: int = 256 * 2**20,
    limits: DecodeLimits | None = None,
) -> Iterator[tuple[int, ClockSource, CutSegment]]:
    """(UTC microseconds of its first frame, the clock's source, segment) of each segment of a local file.

    Raises:
        NotVideo, NoFrames, DecodeFailed, MessageTooLarge: see `ingest.segments.cutter` and `ingest.decoding.sandbox`.
    """
    with Decoding(path, limits=limits) as first_look:  # whatever is wrong with the file shows in the sandbox first
        info = first_look.info()
        began, clock = find_start(path, given=start, created=info.created)
    for segment in cut(path, seconds=seconds, max_bytes=max_bytes):
        yield began + round((segment.pts - info.first) * 1e6), clock, segment


def publish_segment(
    outbox: Outbox,
    settings: KafkaSettings,
    stream_id: str,
    start: int,
    segment: CutSegment,
    *,
    clock: ClockSource = "arrival",
    place: str | None = None,
    uri: str | None = None,
) -> SegmentMessage:
    """Produce one segment, inside its message or, with a `place`, as an object there.

    Args:
        uri: where it lies already, for a segment that does not fit into a message.

    Raises:
        MessageTooLarge: too large to go inside, and no place was given.
        SourceNotFound: the place cannot be written to.
    """
    if place is not None:
        uri = _stored(place, stream_id, start, segment)
    elif len(segment.payload) <= settings.inline_bytes:
        uri = None
    elif uri is None:
        raise MessageTooLarge(
            f"{stream_id} at {rfc3339(start)}: a segment of {len(segment.payload)} bytes is over kafka.inline_bytes "
            f"({settings.inline_bytes}); name a folder or bucket for segments with --objects, or cut shorter with --seconds"
        )
    message = segment_message(
        stream_id, start, segment.duration, segment.payload, uri=uri, media_type=segment.media_type, clock=clock
    )
    outbox.send(settings.segments, key=stream_id, value=message.to_bytes())
    return message


def _stored(place: str, stream_id: str, start: int, segment: CutSegment) -> str:
    """Write the segment to `place` and return its URI."""
    import fsspec

    suffix = {"video/mp4": "mp4", "video/x-matroska": "mkv"}[segment.media_type]
    name = f"{stream_id}/{rfc3339(start).replace(':', '-')}.{suffix}"
    base = place if "://" in place else Path(place).expanduser().absolute().as_uri()
    uri = f"{base.rstrip('/')}/{name}"
    try:
        if uri.startswith("file://"):
            from urllib.parse import unquote

            path = Path(unquote(uri.removeprefix("file://")))
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            part.write_bytes(segment.payload)
            part.replace(path)
        else:
            with fsspec.open(uri, "wb") as remote:
                remote.write(segment.payload)
    except Exception as error:  # every file system of fsspec brings its own kind
        raise SourceNotFound(f"{mask_url(uri)}: cannot be written ({mask_url(str(error))}); check --objects") from None
    return uri


def publish_files(
    sources: Sequence[str | Path],
    *,
    settings: KafkaSettings,
    sender: Callable[[], AbstractContextManager[Outbox]],
    stream: str | None = None,
    start: datetime | None = None,
    seconds: float = 10.0,
    place: str | None = None,
    limits: DecodeLimits | None = None,
    on_segment: Callable[[str, SegmentMessage], None] = lambda _, __: None,
) -> list[PublishedFile]:
    """Cut every file of `sources` and produce the segments.

    Args:
        sender: makes the outbox.
        stream: the stream they all belong to; by file name when None.
        start: UTC time of the first frame; only for a single file.
        seconds: least length of a segment.
        place: folder or object-store URL for segments; inside the messages when None.
        on_segment: told of each file's name and message.

    Returns:
        What became of each file; one that fails does not stop the others.

    Raises:
        UsageError: a start for several files, a name that cannot be a stream, a length out of range.
        KafkaProblem: Kafka does not take the messages.
    """
    if not 1 <= seconds <= 600:
        raise UsageError(f"--seconds must lie between 1 and 600, got {seconds:g}")
    if stream is not None:
        check_stream_id(stream)
    expansion = expand(sources)
    if start is not None and len(expansion.files) > 1:
        raise UsageError(
            f"--start fits one file, the sources hold {len(expansion.files)}; put the time into their names"
        )
    report = [PublishedFile(file=name, problem=str(error)) for name, error in expansion.problems]
    with sender() as outbox:
        for source in expansion.files:
            file = PublishedFile(file=mask_url(source), stream_id=stream or stream_name(source))
            report.append(file)
            try:
                with fetched(source) as path:
                    each = segments_of(
                        path,
                        check_stream_id(str(file.stream_id)),
                        start=start,
                        seconds=seconds,
                        max_bytes=settings.object_bytes,
                        limits=limits,
                    )
                    for began, clock, segment in each:
                        message = publish_segment(
                            outbox, settings, str(file.stream_id), began, segment, clock=clock, place=place
                        )
                        file.segments += 1
                        file.seconds += segment.duration
                        on_segment(file.file, message)
            except (SourceError, MessageTooLarge) as error:
                file.problem = str(error)
                _log.info("file not published whole", file=file.file, problem=file.problem)
            outbox.flush()
    return report
