"""Clips of footage, wherever it is: recorded segments, or the files that a stream was ingested from.

A stretch that several files cover is cut from each of them first, without encoding it, and the cuts are joined. Only
the wanted part of a file is copied, however long the file is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from index.errors import EmptyWindow, SourceNotFound
from index.files import atomic_file
from index.records import rfc3339
from ingest.decoding.limits import DecodeLimits
from ingest.live.clip import ClipReport, clip_recorded
from ingest.segments.clipping import MOST_BYTES, ClipKind, ClipSpan, ClipWriter, Encoding, clip_file, clip_kind
from pipeline.media.footage import Footage, FootageFinder, RecordedFootage, SourceFile

__all__ = ["clip_ingested", "footage_parts", "write_footage"]


def clip_ingested(
    finder: FootageFinder, stream_id: str, start: int, end: int, out: Path, *, limits: DecodeLimits | None = None
) -> ClipReport:
    """Write the footage of ingested files between two times to a file, without encoding it again.

    Args:
        finder: finds the ingested files.
        stream_id: the stream.
        start, end: UTC microseconds.
        out: the file to write, an MP4 or Matroska file by its suffix; it is replaced atomically.
        limits: limits of the processes that read the files.

    Raises:
        UsageError: the suffix is neither .mp4 nor .mkv.
        UnknownStream: the store has no such stream.
        EmptyWindow: the store has no frame of that time, or the file that it was ingested from is not there.
        SourceNotFound: `out` cannot be written.
        NotVideo, DecodeFailed: a file cannot be read, or continues with another codec or size than the one before.
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
        with atomic_file(out) as path, path.open("xb+") as target:
            span = write_footage(finder, file, target.fileno(), start=start, end=end, kind=kind, limits=limits)
    except OSError as error:
        raise SourceNotFound(f"{out}: cannot be written ({error.strerror or error})") from None
    return ClipReport.of(stream_id, out, span)


def footage_parts(finder: FootageFinder, footage: Footage, start: int, end: int) -> RecordedFootage | list[SourceFile]:
    """All footage of a stretch, UTC microseconds, that continues what was found for its begin, by time."""
    if isinstance(footage, RecordedFootage):
        return finder.find_recording(footage.stream_id, start, end) or footage
    return finder.find_files(footage.stream_id, start, end) or [footage]


def write_footage(
    finder: FootageFinder,
    footage: Footage,
    out: int,
    *,
    start: int,
    end: int,
    kind: ClipKind,
    limits: DecodeLimits | None = None,
    encoding: Encoding | None = None,
    output_bytes: int = MOST_BYTES,
    on_start: Callable[[ClipWriter], None] = lambda writer: None,
) -> ClipSpan:
    """Write the footage of a stretch of time to an open file; see `ingest.segments.clipping.ClipWriter`.

    Args:
        finder: finds the rest of the stretch.
        footage: what was found for its begin.
        out: descriptor of the file, open for reading and writing.
        start, end: UTC microseconds.
        kind: the clip's container.
        limits: limits of the processes that read the footage.
        encoding: how the clip is encoded; packets are copied when None.
        output_bytes: most bytes of the clip.
        on_start: called with the writer before the first part is read.

    Raises:
        EmptyWindow, SourceNotFound, NotVideo, DecodeFailed, OSError: as `ingest.live.clip.clip`.
    """
    parts = footage_parts(finder, footage, start, end)
    if isinstance(parts, RecordedFootage):
        return clip_recorded(
            parts.segments,
            out,
            kind=kind,
            start=start,
            end=end,
            limits=limits,
            encoding=encoding,
            output_bytes=output_bytes,
            on_start=on_start,
        )
    writer_of = _Writers(out, kind, start, end, limits, encoding, output_bytes)
    if len(parts) == 1:
        with parts[0].opened() as source, writer_of(source, parts) as writer:
            on_start(writer)
            writer.add(parts[0].began)
            return writer.finish()
    with tempfile.TemporaryFile(prefix="sightline-") as part, writer_of(part.fileno(), parts) as writer:
        on_start(writer)
        for file in parts:
            part.seek(0)
            part.truncate()
            with suppress(EmptyWindow), file.opened() as source:
                cut = clip_file(
                    source,
                    part.fileno(),
                    began=file.began,
                    start=start,
                    end=end,
                    kind="matroska",
                    name=file.path.name,
                    limits=limits,
                    output_bytes=output_bytes,
                )
                part.seek(0)
                writer.add(cut.first, cut.end)
        return writer.finish()


class _Writers:
    """Makes the writer of a clip."""

    def __init__(
        self,
        out: int,
        kind: ClipKind,
        start: int,
        end: int,
        limits: DecodeLimits | None,
        encoding: Encoding | None,
        output_bytes: int,
    ) -> None:
        self._out, self._kind, self._start, self._end = out, kind, start, end
        self._limits, self._encoding, self._bytes = limits, encoding, output_bytes

    def __call__(self, source: int, files: Sequence[SourceFile]) -> ClipWriter:
        """A writer that reads the descriptor `source`, which gets the content of `files`."""
        return ClipWriter(
            source,
            self._out,
            kind=self._kind,
            start=self._start,
            end=self._end,
            name=files[0].path.name,
            limits=self._limits,
            input_bytes=sum(file.path.stat().st_size for file in files),
            output_bytes=self._bytes,
            encoding=self._encoding,
        )
