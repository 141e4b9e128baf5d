"""A playable clip out of recorded segments: packets copied, nothing encoded again, times exact to a group of pictures.

It begins with the last key frame at or before the time asked for and ends before the first frame behind it. Where
nothing was recorded the clip shows the last picture for as long, so that its times stay those of the camera.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import av
from pydantic import BaseModel

from index.errors import DecodeFailed, EmptyWindow, SourceNotFound, UsageError, mask_url
from index.records import from_micros, rfc3339
from index.schemas import check_stream_id
from ingest.segments.names import NamedSegment, day_of, parse_name

__all__ = ["ClipReport", "clip", "recorded"]

_DAY = 86_400_000_000
_LONGEST = 3600 * 1_000_000  # of one segment, see `ingest.messages`


class ClipReport(BaseModel):
    """What a clip holds: times as RFC 3339 of its first frame and behind its last, and seconds without a recording."""

    stream_id: str
    file: str
    start: str
    end: str
    segments: int
    frames: int
    missing_seconds: float


def recorded(place: str, stream: str, start: int, end: int) -> list[NamedSegment]:
    """The segments of `stream` in `place` that touch [start, end), in order; times in UTC microseconds.

    Raises:
        SourceNotFound: the place cannot be listed. UsageError: not a stream's name.
    """
    import fsspec

    check_stream_id(stream)
    try:
        system, root = fsspec.core.url_to_fs(place)
        days = [day_of(at) for at in range(start - _LONGEST - (start - _LONGEST) % _DAY, end, _DAY)]
        names: list[str] = []
        for day in days:
            try:
                names += system.ls(f"{root.rstrip('/')}/{stream}/{day}", detail=False)
            except FileNotFoundError:
                continue
    except Exception as error:  # every file system of fsspec brings its own kind
        raise SourceNotFound(f"{mask_url(place)}: cannot be listed ({mask_url(str(error))})") from None
    found = [segment for name in names if (segment := parse_name(name)) is not None]
    return sorted(s for s in found if s.stream == stream and s.start < end and s.end > start)


def clip(place: str, stream: str, start: int, end: int, out: Path) -> ClipReport:
    """Write the footage of `stream` between two times (UTC microseconds) to `out`, an MP4 or Matroska file.

    Args:
        place: the folder or bucket of the recording, as a URL.

    Raises:
        UsageError: times in the wrong order, or a suffix that is neither .mp4 nor .mkv.
        EmptyWindow: nothing was recorded then. SourceNotFound: a segment cannot be read, or `out` not be written.
        DecodeFailed: the camera changed its codec or size in between; the message says when.
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
    part = out.with_name(out.name + ".part")
    try:
        with _Writer(part, kind) as writer:
            for segment in segments:
                with _fetched(f"{place}/{segment.name}") as path:
                    writer.add(segment, path, start, end)
            if not writer.frames:
                raise EmptyWindow(f"{stream}: no frame was recorded between {rfc3339(start)} and {rfc3339(end)}")
        part.replace(out)
    except av.error.FFmpegError as error:
        raise DecodeFailed(f"{stream}: the segments do not go into one clip ({error}); cut a shorter time") from None
    except OSError as error:
        raise SourceNotFound(f"{out}: cannot be written ({error.strerror or error})") from None
    finally:
        part.unlink(missing_ok=True)
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
def _fetched(uri: str) -> Iterator[Path]:
    if uri.startswith("file://"):
        yield Path(unquote(uri.removeprefix("file://")))
        return
    import fsspec

    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        path = Path(folder) / Path(uri).name
        try:
            with fsspec.open(uri, "rb") as remote:
                path.write_bytes(remote.read())
        except Exception as error:  # every file system of fsspec brings its own kind
            raise SourceNotFound(f"{mask_url(uri)}: cannot be read ({mask_url(str(error))})") from None
        yield path


class _Writer:
    """The clip that is being written."""

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
        """Copy what of one segment belongs into the clip."""
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
