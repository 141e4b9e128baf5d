"""Clips of recordings: packets of recorded segments, copied into one playable file without re-encoding.

A clip starts with the last intra frame at or before the requested time, and ends before the first frame at or after the
requested end. Gaps in the recording become long frames, so that the times of the clip remain those of the camera.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import av
import fsspec
from pydantic import BaseModel, ConfigDict

from index.errors import DecodeFailed, EmptyWindow, SourceNotFound, UsageError, mask_url
from index.files import atomic_file
from index.records import from_micros, rfc3339
from index.schemas import check_stream_id
from ingest.segments.names import NamedSegment, day_of, parse_name

__all__ = ["ClipReport", "clip", "recorded"]

_DAY = 86_400_000_000  # microseconds
_MAX_SEGMENT = 3600 * 1_000_000  # the longest segment in microseconds, see `ingest.messages`


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
        system, root = fsspec.core.url_to_fs(place)
        days = [day_of(at) for at in range(start - _MAX_SEGMENT - (start - _MAX_SEGMENT) % _DAY, end, _DAY)]
        names: list[str] = []
        for day in days:
            try:
                names += system.ls(f"{root.rstrip('/')}/{stream}/{day}", detail=False)
            except FileNotFoundError:
                continue
    except Exception as error:  # each file system of fsspec has its own exceptions
        raise SourceNotFound(f"{mask_url(place)}: cannot be listed ({mask_url(str(error))})") from None
    found = [segment for name in names if (segment := parse_name(name)) is not None]
    return sorted(s for s in found if s.stream == stream and s.start < end and s.end > start)


def clip(place: str, stream: str, start: int, end: int, out: Path) -> ClipReport:
    """Write the footage of `stream` between two times to a file.

    Args:
        place: the URL of the recording's folder or bucket.
        start, end: UTC microseconds.
        out: the file to write, an MP4 or Matroska file by its suffix; it is replaced atomically.

    Raises:
        UsageError: the times are in the wrong order, or the suffix is neither .mp4 nor .mkv.
        EmptyWindow: nothing was recorded between these times.
        SourceNotFound: a segment cannot be read, or `out` cannot be written.
        DecodeFailed: the camera changed its codec or size in between; the message contains the time.
    """
    if start >= end:
        raise UsageError(f"--from {rfc3339(start)} is not before --to {rfc3339(end)}")
    kind = {".mp4": "mp4", ".mkv": "matroska"}.get(out.suffix.lower())
    if kind is None:
        raise UsageError(f"{out}: name the clip .mp4 or .mkv")
    segments = recorded(place, stream, start, end)
    if not segments:
        raise EmptyWindow(
            f"{stream}: nothing is recorded in {mask_url(place)} between {rfc3339(start)} and {rfc3339(end)}"
        )
    try:
        with atomic_file(out) as part, _Writer(part, kind) as writer:
            for segment in segments:
                with _fetch(f"{place}/{segment.name}") as path:
                    writer.add(segment, path, start, end)
            if not writer.frames:
                raise EmptyWindow(f"{stream}: no frame was recorded between {rfc3339(start)} and {rfc3339(end)}")
    except av.error.FFmpegError as error:
        raise DecodeFailed(
            f"{stream}: the segments cannot be joined into one clip ({error}); cut a shorter time"
        ) from None
    except OSError as error:
        raise SourceNotFound(f"{out}: cannot be written ({error.strerror or error})") from None
    return ClipReport(
        stream_id=stream,
        file=str(out),
        start=rfc3339(writer.first),
        end=rfc3339(writer.end),
        segments=writer.segments,
        frames=writer.frames,
        missing_seconds=round(writer.missing, 6),
    )


@contextmanager
def _fetch(uri: str) -> Iterator[Path]:
    if uri.startswith("file://"):
        yield Path(unquote(uri.removeprefix("file://")))
        return
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        path = Path(folder) / Path(uri).name
        try:
            with fsspec.open(uri, "rb") as remote:
                path.write_bytes(remote.read())
        except Exception as error:  # each file system of fsspec has its own exceptions
            raise SourceNotFound(f"{mask_url(uri)}: cannot be read ({mask_url(str(error))})") from None
        yield path


class _Writer:
    """Writes the packets of segments into one file."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        self.first = self.end = 0
        self.frames = self.segments = 0
        self.missing = 0.0
        self._out: Any = None
        self._stream: Any = None
        self._shape: tuple[Any, ...] = ()
        self._last_dts = -(2**62)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._out is not None:
            self._out.close()

    def add(self, segment: NamedSegment, path: Path, start: int, end: int) -> None:
        """Copy those packets of a segment that are between `start` and `end`, in UTC microseconds."""
        with av.open(str(path), metadata_errors="ignore") as source:
            stream = source.streams.video[0]
            context = stream.codec_context
            shape = (context.name, context.width, context.height, bytes(context.extradata or b""))
            packets = [packet for packet in source.demux(stream) if packet.size and packet.pts is not None]
            if not packets:
                return
            zero = min(packet.pts for packet in packets)
            base = float(stream.time_base)
            times = [segment.start + round((packet.pts - zero) * base * 1e6) for packet in packets]
            keys = [at for packet, at in zip(packets, times, strict=True) if packet.is_keyframe and at <= start]
            begin = max(keys) if keys else segment.start
            wanted = [(p, at) for p, at in zip(packets, times, strict=True) if begin <= at < end]
            if not wanted:
                return
            if self._out is None:
                self._open(stream, shape, wanted[0][1])
            elif shape != self._shape:
                raise DecodeFailed(
                    f"{segment.stream}: the camera changed its codec or size at {rfc3339(segment.start)}; "
                    "cut one clip before that time and one after it"
                )
            else:
                self.missing += max(0.0, (wanted[0][1] - self.end) / 1e6)
            self.segments += 1
            for packet, at in wanted:
                pts = round((at - self.first) / 1e6 / base)
                behind = packet.pts - (packet.dts if packet.dts is not None else packet.pts)
                packet.pts = pts
                packet.dts = self._last_dts = max(self._last_dts + 1, pts - behind)
                packet.time_base = stream.time_base
                packet.stream = self._stream
                self._out.mux(packet)
                self.frames += 1
            self.end = min(segment.end, max(end, wanted[-1][1]))

    def _open(self, stream: Any, shape: tuple[Any, ...], first: int) -> None:
        self.first, self._shape = first, shape
        self._out = av.open(str(self.path), "w", format=self.kind)
        self._out.metadata["creation_time"] = from_micros(first).isoformat().replace("+00:00", "Z")
        self._stream = self._out.add_stream_from_template(stream)
        self._stream.time_base = stream.time_base
