"""A file cut into segments of about ten seconds, without decoding and without encoding again.

Cuts lie at key frames, so a segment lasts at least what was asked for and at most one group of pictures longer. Where
groups are open, the pictures that come after a key frame and are shown before it are left out: nothing that the new
segment holds could decode them, and the second they belong to has a frame from the segment before.

The segments keep the file's time base wherever the container can (MP4), and begin at 0; `CutSegment.pts` says where that is in
the file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av

from index.errors import DecodeFailed, MessageTooLarge, NotVideo
from ingest.decoding.decoder import open_container
from ingest.decoding.sandbox import open_regular

__all__ = ["FORMATS", "CutSegment", "Media", "SegmentFile", "cut", "fits"]

Media = Literal["video/mp4", "video/x-matroska"]
FORMATS: dict[str, Media] = {"mp4": "video/mp4", "matroska": "video/x-matroska"}


@dataclass(frozen=True, slots=True)
class CutSegment:
    """One segment: the pts of its first frame and its duration in seconds, and the file."""

    pts: float
    duration: float
    payload: bytes
    media_type: Media


def cut(path: Path, *, seconds: float = 10.0, max_bytes: int = 256 * 2**20) -> Iterator[CutSegment]:
    """The segments of a local file, in order.

    Args:
        seconds: least length of a segment but the last.
        most_bytes: largest segment.

    Raises:
        NotVideo: no video, or none that can be put into MP4 or Matroska.
        MessageTooLarge: a group of pictures over `max_bytes`.
        DecodeFailed: the file breaks off; what came before was yielded.
    """
    source = open_regular(path)
    try:
        yield from _cut_source(source, path, seconds, max_bytes)
    finally:
        os.close(source)


def _cut_source(source: int, path: Path, seconds: float, max_bytes: int) -> Iterator[CutSegment]:
    container, stream = open_container(source)
    try:
        kind = next((name for name in FORMATS if fits(name, stream)), None)
        if kind is None:
            raise NotVideo(f"{path}: {stream.codec_context.name} goes into neither MP4 nor Matroska; convert it first")
        yield from _cut(container, stream, kind, path, seconds, max_bytes)
    finally:
        container.close()


def fits(kind: str, stream: Any) -> bool:
    """Whether the container holds the stream's codec."""
    try:
        with av.open(io.BytesIO(), "w", format=kind) as trial:
            trial.add_stream_from_template(stream)
        return True
    except (av.error.FFmpegError, ValueError):
        return False


def _cut(container: Any, stream: Any, kind: str, path: Path, seconds: float, max_bytes: int) -> Iterator[CutSegment]:
    segment: SegmentFile | None = None
    frame = 1 / stream.average_rate if stream.average_rate else 0.04
    try:
        for packet in container.demux(stream):
            if packet.dts is None and packet.pts is None:
                continue  # the empty packet at the end
            if packet.pts is None:
                packet.pts = packet.dts
            at = float(packet.pts * packet.time_base)
            if packet.is_keyframe and (
                segment is None or at - segment.began >= seconds - frame / 2 or at < segment.began
            ):
                if segment is not None:
                    yield segment.close()
                segment = SegmentFile(kind, stream, packet, float(frame))
            if segment is None or at < segment.began:
                continue  # before the first key frame, or shown before the one that this segment begins with
            segment.add(packet, at)
            if segment.size > max_bytes:
                raise MessageTooLarge(
                    f"{path}: more than {max_bytes} bytes from one key frame to the next at {at:.0f} s; "
                    "encode it with more key frames, or raise kafka.object_bytes"
                )
    except (av.error.FFmpegError, OSError) as error:
        if segment is not None:
            yield segment.close()
        raise DecodeFailed(f"{path}: broke off ({error}); what came before was cut") from error
    if segment is not None:
        yield segment.close()


class SegmentFile:
    """One that is being written. Packets keep their time base and are moved so that the first has pts 0."""

    def __init__(self, kind: str, stream: Any, first: Any, frame: float) -> None:
        self.kind, self.frame, self.size = kind, frame, 0
        self.base, self.zero = first.time_base, first.pts
        self.began = self.ends = float(first.pts * first.time_base)
        self.file = io.BytesIO()
        self.out: Any = av.open(self.file, "w", format=kind)
        self.stream = self.out.add_stream_from_template(stream)
        self.stream.time_base = self.base

    def add(self, packet: Any, at: float) -> None:
        length = float(packet.duration * packet.time_base) if packet.duration else self.frame
        self.ends = max(self.ends, at + length)
        self.size += packet.size
        packet.pts -= self.zero
        if packet.dts is not None:
            packet.dts -= self.zero
        packet.stream = self.stream
        self.out.mux(packet)

    def close(self) -> CutSegment:
        self.out.close()
        return CutSegment(self.began, self.ends - self.began, self.file.getvalue(), FORMATS[self.kind])
