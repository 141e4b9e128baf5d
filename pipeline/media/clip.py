"""A clip of the file that a stream was ingested from, without encoding it again."""

from __future__ import annotations

from pathlib import Path

from index.errors import EmptyWindow, SourceNotFound
from index.files import atomic_file
from index.records import rfc3339
from ingest.decoding.limits import DecodeLimits
from ingest.live.clip import ClipReport
from ingest.segments.clipping import clip_file, clip_kind
from pipeline.media.footage import FootageFinder

__all__ = ["clip_ingested"]


def clip_ingested(
    finder: FootageFinder, stream_id: str, start: int, end: int, out: Path, *, limits: DecodeLimits | None = None
) -> ClipReport:
    """Write the footage of an ingested file between two times to a file.

    Args:
        finder: finds the ingested file.
        stream_id: the stream.
        start, end: UTC microseconds.
        out: the file to write, an MP4 or Matroska file by its suffix; it is replaced atomically.
        limits: limits of the process that reads the file.

    Raises:
        UsageError: the suffix is neither .mp4 nor .mkv.
        UnknownStream: the store has no such stream.
        EmptyWindow: the store has no frame of that time, or the file that it was ingested from is not there.
        SourceNotFound: `out` cannot be written.
        NotVideo, DecodeFailed: the file cannot be read.
    """
    kind = clip_kind(out)
    finder.store.check_window([stream_id], start, end)
    file = finder.find_file(stream_id, start, end)
    if file is None:
        raise EmptyWindow(
            f"{stream_id} at {rfc3339(start)}: the ingested file is not there any more, or was changed; name a folder "
            "above it with --footage, or a recording with --recording"
        )
    try:
        with file.opened() as source, atomic_file(out) as path, path.open("xb+") as target:
            span = clip_file(
                source,
                target.fileno(),
                began=file.began,
                start=start,
                end=end,
                kind=kind,
                name=file.path.name,
                limits=limits,
            )
    except OSError as error:
        raise SourceNotFound(f"{out}: cannot be written ({error.strerror or error})") from None
    return ClipReport(
        stream_id=stream_id,
        file=str(out),
        start=rfc3339(span.first),
        end=rfc3339(span.end),
        segments=span.parts,
        frames=span.frames,
        missing_seconds=round(span.missing_seconds, 6),
    )
