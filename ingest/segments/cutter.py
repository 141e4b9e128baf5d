"""Cutting of a file into segments of about ten seconds, without decoding and without encoding again.

Segments begin at intra frames, so two of them begin at least as far apart as requested, and at most one group of
pictures farther. Where groups are open, the frames that follow an intra frame and are shown before it are dropped:
they refer to the previous segment, which holds a frame of their second already.

This module reads untrusted files and runs in a confined process; `ingest.segments.cutting` starts it.

A segment keeps the file's time base where the container allows it (MP4), and its first frame has pts 0.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import av

from index.errors import DecodeFailed, MessageTooLarge, NotVideo, SightlineError, shown_text
from ingest.decoding.demuxer import Demuxer, frame_seconds
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.protocol import DONE, SEGMENT, SEGMENT_BODY
from ingest.decoding.worker import ParentPipes

__all__ = ["FORMATS", "CutSegment", "Media", "SegmentFile", "cut_file", "fits"]

Media = Literal["video/mp4", "video/x-matroska"]
FORMATS: dict[str, Media] = {"mp4": "video/mp4", "matroska": "video/x-matroska"}
"""Media types of segments by the name of FFmpeg's container format, in order of preference."""


@dataclass(frozen=True, slots=True)
class CutSegment:
    """One segment of a file."""

    pts: float
    """pts of its first frame in the file, in seconds."""
    duration: float
    """Seconds from the first frame to the end of the last."""
    payload: bytes
    """The segment as a media file."""
    media_type: Media
    """Media type of `payload`."""


def cut_file(parent: ParentPipes, order: Any, source: int, memory: int, limits: DecodeLimits) -> None:
    """Cut one file and send its segments to the parent: a task of `ingest.decoding.worker`.

    Args:
        order: `seconds` and `max_bytes`, see `ingest.segments.cutting.cut`.
        source: descriptor of the file, open for reading.
        memory: descriptor of the shared memory, which takes one segment at a time.
        limits: not used.
    """
    formats, shared, first = list(FORMATS.values()), mmap.mmap(memory, 0), True
    try:
        for segment in _cut_source(source, order["seconds"], order["max_bytes"]):
            if len(segment.payload) > len(shared):
                raise MessageTooLarge(
                    f"the segment at {segment.pts:.0f} s has {len(segment.payload)} bytes; cut shorter"
                )
            if not first:
                parent.wait_copied()
            first = False
            shared[: len(segment.payload)] = segment.payload
            values = (segment.pts, segment.duration, formats.index(segment.media_type), len(segment.payload))
            parent.send(SEGMENT, SEGMENT_BODY.pack(*values))
    except SightlineError:
        raise
    except Exception as error:  # of PyAV, which has its own for what a file contains
        raise DecodeFailed(
            f"cutting ended early ({type(error).__name__}: {shown_text(str(error))}); the segments before were cut"
        ) from error
    parent.send_json(DONE)


def _cut_source(source: int, seconds: float, max_bytes: int) -> Iterator[CutSegment]:
    demuxer = Demuxer.open(source)
    try:
        while True:
            stream = demuxer.stream
            kind = next((name for name in FORMATS if fits(name, stream)), None)
            if kind is None:
                raise NotVideo(f"{stream.codec_context.name} fits neither MP4 nor Matroska; convert the file first")
            yield from _cut(demuxer, kind, seconds, max_bytes)
            if not demuxer.next_program():
                return
    finally:
        demuxer.container.close()


def fits(kind: str, stream: Any) -> bool:
    """Whether the container format `kind` can hold the codec of an `av.VideoStream`."""
    try:
        with av.open(io.BytesIO(), "w", format=kind) as trial:
            trial.add_stream_from_template(stream)
        return True
    except (av.error.FFmpegError, ValueError):
        return False


def _cut(demuxer: Demuxer, kind: str, seconds: float, max_bytes: int) -> Iterator[CutSegment]:
    """Segments of the present stream. None reaches across a gap in time: it ends before the first intra frame
    behind."""
    segment: SegmentFile | None = None
    stream, timeline, length = demuxer.stream, demuxer.timeline, frame_seconds(demuxer.stream)
    gaps = timeline.count
    try:
        for packet in demuxer.packets():
            if packet.pts is None:
                packet.pts = packet.dts
            if packet.pts is None:
                continue  # a packet without any time cannot be placed
            at = float(packet.pts * packet.time_base)
            full = segment is not None and (at - segment.began >= seconds - length / 2 or at < segment.began)
            if packet.is_keyframe and (segment is None or full or timeline.count > gaps):
                if segment is not None:
                    yield segment.close()
                segment, gaps = SegmentFile(kind, stream, packet, length), timeline.count
            if segment is None or at < segment.began:
                continue  # before the first intra frame, or shown before the intra frame that the segment begins with
            if timeline.count > gaps and at - segment.ends > timeline.gap:
                continue  # behind a gap and before an intra frame: it refers to frames from before the gap
            segment.add(packet, at)
            if segment.size > max_bytes:
                raise MessageTooLarge(
                    f"the segment at {segment.began:.0f} s has more than {max_bytes} bytes; cut shorter "
                    "segments, encode the file with more key frames, or raise kafka.object_bytes"
                )
    except (av.error.FFmpegError, OSError) as error:
        if segment is not None:
            yield segment.close()
        raise DecodeFailed(f"reading ended early ({error}); the segments before were cut") from error
    if segment is not None:
        yield segment.close()


class SegmentFile:
    """A segment that is being written. Packets keep their time base and are shifted so that the first has pts 0.

    Args:
        kind: container format, a key of `FORMATS`.
        stream: the `av.VideoStream` that packets come from.
        first: the first packet, an intra frame; `add` it too.
        frame_seconds: duration of packets that have none.

    Attributes:
        began: pts of the first packet, in seconds.
        ends: end of the last packet shown, in seconds.
        size: bytes of all packets.
    """

    def __init__(self, kind: str, stream: Any, first: Any, frame_seconds: float) -> None:
        self.kind, self.frame_seconds, self.size = kind, frame_seconds, 0
        self.base, self.zero = first.time_base, first.pts
        self.began = self.ends = float(first.pts * first.time_base)
        self.file = io.BytesIO()
        self.out: Any = av.open(self.file, "w", format=kind)
        self.stream = self.out.add_stream_from_template(stream)
        self.stream.time_base = self.base

    def add(self, packet: Any, at: float) -> None:
        """Write a packet that is shown at `at` seconds."""
        if not packet.duration:
            # MPEG-TS has none. Without the last one, MP4's edit list would hide the frame that is shown last.
            packet.duration = max(1, round(self.frame_seconds / packet.time_base))
        self.ends = max(self.ends, at + float(packet.duration * packet.time_base))
        self.size += packet.size
        packet.pts -= self.zero
        if packet.dts is not None:
            packet.dts -= self.zero
        packet.stream = self.stream
        self.out.mux(packet)

    def close(self) -> CutSegment:
        """Finish the file."""
        self.out.close()
        return CutSegment(self.began, self.ends - self.began, self.file.getvalue(), FORMATS[self.kind])
