"""Clips of recordings: packets of recorded segments, copied into one playable file without re-encoding.

Which segments a clip needs follows from their names. What they contain is read, and the clip written, in a confined
process (`ingest.segments.clipping`), which this module feeds one segment after the other.

A stream may be recorded in several places, at the same time or in turn. Places have an order: a segment of a later one
is used only where those before it have a gap.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict

from index.delta.objects import file_system, object_reason, open_object
from index.errors import DecodeFailed, EmptyWindow, SourceNotFound, UsageError, mask_url
from index.files import atomic_file
from index.records import rfc3339
from index.schemas import check_stream_id
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import open_regular
from ingest.segments.clipping import MOST_BYTES, ClipKind, ClipSpan, ClipWriter, Encoding, clip_kind
from ingest.segments.names import NamedSegment, day_of, parse_name

__all__ = ["ClipReport", "PlacedSegment", "clip", "clip_recorded", "fetch_segment", "merged", "recorded"]

_DAY = 86_400_000_000  # microseconds
_MAX_SEGMENT = 3600 * 1_000_000  # the longest segment in microseconds, see `ingest.messages`
_SEGMENT_BYTES = 16 * 2**20  # about, for the limit of CPU time
_BLOCK_BYTES = 2**20
_SEAM = 1_000_000
"""Longest stretch between two segments, in microseconds, that is no gap. Named lengths are not exact."""


class ClipReport(BaseModel):
    """The content of a clip."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    stream_id: str
    """The stream."""
    file: str
    """The clip's file."""
    start: str
    """The time of its first frame, RFC 3339."""
    end: str
    """The end of its last frame, RFC 3339."""
    segments: int
    """The number of segments it was cut from."""
    frames: int
    """The number of frames."""
    missing_seconds: float
    """Seconds within the clip that were not recorded."""

    @classmethod
    def of(cls, stream_id: str, out: Path, span: ClipSpan) -> Self:
        """The report of a clip that was written to `out`."""
        return cls(
            stream_id=stream_id,
            file=str(out),
            start=rfc3339(span.first),
            end=rfc3339(span.end),
            segments=span.parts,
            frames=span.frames,
            missing_seconds=round(span.missing_seconds, 6),
        )


@dataclass(frozen=True, slots=True)
class PlacedSegment:
    """A recorded segment, or the part of it that fills a gap."""

    place: str
    """The URL of the recording's folder or bucket."""
    rank: int
    """Position of the place among those that were given."""
    segment: NamedSegment
    """The segment."""
    after: int | None = None
    """UTC microseconds before which it is not used; None for its start."""
    until: int | None = None
    """UTC microseconds from which on it is not used; None for its end."""

    @property
    def uri(self) -> str:
        """The URL of the file."""
        return f"{self.place}/{self.segment.name}"

    @property
    def start(self) -> int:
        """UTC microseconds from which on it is used."""
        return self.segment.start if self.after is None else self.after

    @property
    def end(self) -> int:
        """UTC microseconds until which it is used, exclusive."""
        return self.segment.end if self.until is None else self.until


def merged(found: Sequence[tuple[str, Sequence[NamedSegment]]], start: int, end: int) -> list[PlacedSegment]:
    """The segments of a stretch from all places, in the order of time.

    Args:
        found: each place with its segments that overlap the stretch, as `recorded` returns them; the first place is
            used wherever it has footage, the second in its gaps, and so on.
        start, end: UTC microseconds.
    """
    chosen: list[PlacedSegment] = []
    for rank, (place, segments) in enumerate(found):
        for low, high in _gaps(chosen, start, end):
            for segment in segments:
                if min(segment.end, high) <= max(segment.start, low):
                    continue
                after = low if start < low and segment.start < low else None
                until = high if high < end and high < segment.end else None
                chosen.append(PlacedSegment(place, rank, segment, after, until))
    return sorted(chosen, key=lambda part: (part.start, part.end))


def _gaps(parts: Sequence[PlacedSegment], start: int, end: int) -> list[tuple[int, int]]:
    """The stretches between two times that no part covers, but for seams."""
    gaps, reached = list[tuple[int, int]](), start
    for part in sorted(parts, key=lambda part: part.start):
        if part.start - reached > _SEAM:
            gaps.append((reached, part.start))
        reached = max(reached, part.end)
    if not parts or end - reached > _SEAM:
        gaps.append((reached, end))
    return gaps


def recorded(place: str, stream: str, start: int, end: int) -> list[NamedSegment]:
    """The segments of `stream` in `place` that overlap [start, end), in order.

    Args:
        place: the URL of the recording's folder or bucket.
        start, end: UTC microseconds.

    Raises:
        SourceNotFound: the place cannot be listed.
        UsageError: the stream's name is invalid.
    """
    check_stream_id(stream)
    try:
        system, root = file_system(place)
        days = [day_of(at) for at in range(start - _MAX_SEGMENT - (start - _MAX_SEGMENT) % _DAY, end, _DAY)]
        names: list[str] = []
        for day in days:
            try:
                names += system.ls(f"{root.rstrip('/')}/{stream}/{day}", detail=False)
            except FileNotFoundError:
                continue
    except Exception as error:  # each file system of fsspec has its own exceptions
        raise SourceNotFound(f"{mask_url(place)}: cannot be listed ({object_reason(error)})") from None
    found = [segment for name in names if (segment := parse_name(name)) is not None]
    return sorted(s for s in found if s.stream == stream and s.start < end and s.end > start)


def clip(
    place: str | Sequence[str],
    stream: str,
    start: int,
    end: int,
    out: Path,
    *,
    limits: DecodeLimits | None = None,
) -> ClipReport:
    """Write the footage of `stream` between two times to a file.

    Args:
        place: the URL of the recording's folder or bucket, or several, see `merged`.
        start, end: UTC microseconds.
        out: the file to write, an MP4 or Matroska file by its suffix; it is replaced atomically.
        limits: limits of the process that reads the segments.

    Raises:
        UsageError: the times are in the wrong order, or the suffix is neither .mp4 nor .mkv.
        EmptyWindow: nothing was recorded between these times.
        SourceNotFound: a segment cannot be read, or `out` cannot be written.
        NotVideo: a segment is no footage.
        DecodeFailed: a segment cannot be read, or the camera changed its codec or size in between; the message contains
            the time.
    """
    if start >= end:
        raise UsageError(f"--from {rfc3339(start)} is not before --to {rfc3339(end)}")
    kind = clip_kind(out)
    places = [place] if isinstance(place, str) else place
    parts = merged([(each, recorded(each, stream, start, end)) for each in places], start, end)
    if not parts:
        shown = ", ".join(map(mask_url, places))
        raise EmptyWindow(f"{stream}: nothing is recorded in {shown} between {rfc3339(start)} and {rfc3339(end)}")
    try:
        with atomic_file(out) as path, path.open("xb+") as file:
            span = clip_recorded(parts, file.fileno(), kind=kind, start=start, end=end, limits=limits)
    except OSError as error:
        raise SourceNotFound(f"{out}: cannot be written ({error.strerror or error})") from None
    return ClipReport.of(stream, out, span)


def clip_recorded(
    parts: Sequence[PlacedSegment],
    out: int,
    *,
    kind: ClipKind,
    start: int,
    end: int,
    limits: DecodeLimits | None = None,
    encoding: Encoding | None = None,
    output_bytes: int = MOST_BYTES,
    on_start: Callable[[ClipWriter], None] = lambda writer: None,
) -> ClipSpan:
    """Write the footage of recorded segments between two times to an open file.

    A gap is filled from another place only if the footage there has the same codec and size, or the clip is encoded.

    Args:
        parts: of one stream, ascending, at least one; see `merged`.
        out: descriptor of the file, open for reading and writing.
        kind: the clip's container.
        start, end: UTC microseconds.
        limits: limits of the process that reads the segments.
        encoding: how the clip is encoded; packets are copied when None.
        output_bytes: most bytes of the clip.
        on_start: called with the writer before the first segment is read.

    Raises:
        EmptyWindow, SourceNotFound, NotVideo, DecodeFailed, OSError: as `clip`.
    """

    def write(chosen: Sequence[PlacedSegment]) -> ClipSpan:
        """Write these parts."""
        with (
            tempfile.TemporaryFile(prefix="sightline-") as file,
            ClipWriter(
                file.fileno(),
                out,
                kind=kind,
                start=start,
                end=end,
                name=chosen[0].segment.stream,
                limits=limits,
                input_bytes=len(chosen) * _SEGMENT_BYTES,
                output_bytes=output_bytes,
                encoding=encoding,
            ) as writer,
        ):
            on_start(writer)
            for part in chosen:
                fetch_segment(part.uri, file)
                writer.add(part.segment.start, part.end, after=part.after, until=part.until)
            return writer.finish()

    first = min(part.rank for part in parts)
    own = [part for part in parts if part.rank == first]
    try:
        return write(parts)
    except DecodeFailed:
        if len(own) == len(parts) or encoding is not None:
            raise
    os.ftruncate(out, os.lseek(out, 0, os.SEEK_SET))
    return write(own)


def fetch_segment(uri: str, part: IO[bytes]) -> None:
    """Replace the content of the open file `part` by that of a recorded segment.

    Raises:
        SourceNotFound: the segment cannot be read.
    """
    part.seek(0)
    part.truncate()
    if uri.startswith("file://"):
        descriptor = open_regular(unquote(uri.removeprefix("file://")), name=uri)
        with open(descriptor, "rb") as local:
            shutil.copyfileobj(local, part, _BLOCK_BYTES)
    else:
        try:
            with open_object(uri) as remote:
                shutil.copyfileobj(remote, part, _BLOCK_BYTES)
        except Exception as error:  # each file system of fsspec has its own exceptions
            raise SourceNotFound(f"{mask_url(uri)}: cannot be read ({object_reason(error)})") from None
    part.flush()
