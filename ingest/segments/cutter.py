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
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import av

from index.errors import DecodeFailed, MessageTooLarge, NotVideo, SightlineError, shown_text
from ingest.decoding.decoder import OpenVideo, StartProbe, check_pixels
from ingest.decoding.demuxer import Demuxer, frame_seconds
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.protocol import DONE, OPENED, SEGMENT, SEGMENT_BODY
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
        order: `seconds` and `max_bytes`, see `ingest.segments.cutting.Cutting`.
        source: descriptor of the file, open for reading.
        memory: descriptor of the shared memory, in which one segment at a time is written.
        limits: `pixels` is the largest size of a frame.
    """
    formats, shared = list(FORMATS.values()), _SharedFile(mmap.mmap(memory, 0))
    demuxer = Demuxer.open(source)
    try:
        check_pixels(demuxer, limits)
        packets = _CountedPackets(demuxer)
        video = OpenVideo(demuxer, first_pts=packets.probe())
        created = demuxer.created.isoformat() if demuxer.created else None
        parent.send_json(OPENED, mode=video.mode, first=video.first_pts, duration=video.duration, created=created)
        for segment in _cut_all(packets, order["seconds"], order["max_bytes"], shared):
            duration, size = segment.finish(), shared.size
            parent.send(
                SEGMENT,
                SEGMENT_BODY.pack(segment.began, duration, formats.index(FORMATS[segment.kind]), size),
            )
            parent.wait_copied()
            shared.clear()
    except SightlineError:
        raise
    except Exception as error:  # of PyAV, which has its own for what a file contains
        raise DecodeFailed(
            f"cutting ended early ({type(error).__name__}: {shown_text(str(error))}); the segments before were cut"
        ) from error
    finally:
        demuxer.container.close()
    parent.send_json(DONE)


class _SharedFile:
    """A file in the shared memory, as PyAV writes to it."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory, self._at, self.size = memoryview(memory), 0, 0

    def clear(self) -> None:
        """Begin the next file."""
        self._at = self.size = 0

    def write(self, data: bytes) -> int:
        """Write all of `data`. Raises MessageTooLarge where the memory ends."""
        end = self._at + len(data)
        if end > len(self._memory):
            raise MessageTooLarge(f"a segment has more than {len(self._memory)} bytes; cut shorter")
        self._memory[self._at : end] = data
        self._at, self.size = end, max(self.size, end)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; returns the new position."""
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence])
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at


class _CountedPackets:
    """The packets of a file, each with the number of discontinuities up to it."""

    def __init__(self, demuxer: Demuxer) -> None:
        self.demuxer = demuxer
        self._head: list[tuple[Any, int]] = []
        self._rest = self._counted()
        self._error: Exception | None = None

    def _counted(self) -> Iterator[tuple[Any, int]]:
        for packet in self.demuxer.packets():
            yield packet, self.demuxer.timeline.count

    def probe(self) -> float:
        """Read the packets at the start and keep them; seconds of the first frame."""
        start = StartProbe()
        try:
            for item in self._rest:
                self._head.append(item)
                if start.add(item[0]):
                    break
        except (av.error.FFmpegError, OSError) as error:
            self._error = error
        return start.first or 0.0

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Those that were kept, then the others. Raises av.error.FFmpegError and OSError."""
        head, self._head = self._head, []
        yield from head
        if self._error is not None:
            raise self._error
        yield from self._rest

    def next_program(self) -> bool:
        """Continue with the file's next program, see `Demuxer.next_program`."""
        if not self.demuxer.next_program():
            return False
        self._rest = self._counted()
        return True


def _cut_all(packets: _CountedPackets, seconds: float, max_bytes: int, file: _SharedFile) -> Iterator[SegmentFile]:
    while True:
        stream = packets.demuxer.stream
        kind = next((name for name in FORMATS if fits(name, stream)), None)
        if kind is None:
            raise NotVideo(f"{stream.codec_context.name} fits neither MP4 nor Matroska; convert the file first")
        yield from _cut(packets, kind, seconds, max_bytes, file)
        if not packets.next_program():
            return


def fits(kind: str, stream: Any) -> bool:
    """Whether the container format `kind` can hold the codec of an `av.VideoStream`."""
    try:
        with av.open(io.BytesIO(), "w", format=kind) as trial:
            trial.add_stream_from_template(stream)
        return True
    except (av.error.FFmpegError, ValueError):
        return False


def _cut(
    packets: _CountedPackets, kind: str, seconds: float, max_bytes: int, file: _SharedFile
) -> Iterator[SegmentFile]:
    """Segments of the present stream, to be finished one after the other. None reaches across a gap in time: it ends
    before the first intra frame behind."""
    segment: SegmentFile | None = None
    demuxer = packets.demuxer
    stream, most, length, gaps = demuxer.stream, demuxer.timeline.gap, frame_seconds(demuxer.stream), 0
    try:
        for packet, count in packets:
            if packet.pts is None:
                packet.pts = packet.dts
            if packet.pts is None:
                continue  # a packet without any time cannot be placed
            at = float(packet.pts * packet.time_base)
            full = segment is not None and (at - segment.began >= seconds - length / 2 or at < segment.began)
            if packet.is_keyframe and (segment is None or full or count > gaps):
                if segment is not None:
                    yield segment
                segment, gaps = SegmentFile(kind, stream, packet, length, file), count
            if segment is None or at < segment.began:
                continue  # before the first intra frame, or shown before the intra frame that the segment begins with
            if count > gaps and at - segment.ends > most:
                continue  # behind a gap and before an intra frame: it refers to frames from before the gap
            segment.add(packet, at)
            if segment.size > max_bytes:
                raise MessageTooLarge(
                    f"the segment at {segment.began:.0f} s has more than {max_bytes} bytes; cut shorter "
                    "segments, encode the file with more key frames, or raise kafka.object_bytes"
                )
    except (av.error.FFmpegError, OSError) as error:
        if segment is not None:
            yield segment
        raise DecodeFailed(f"reading ended early ({error}); the segments before were cut") from error
    if segment is not None:
        yield segment


class SegmentFile:
    """A segment that is being written. Packets keep their time base and are shifted so that the first has pts 0.

    Args:
        kind: container format, a key of `FORMATS`.
        stream: the `av.VideoStream` that packets come from.
        first: the first packet, an intra frame; `add` it too.
        frame_seconds: duration of packets that have none.
        file: what it is written to; memory of its own when None.

    Attributes:
        began: pts of the first packet, in seconds.
        ends: end of the last packet shown, in seconds.
        size: bytes of all packets.
    """

    def __init__(
        self, kind: str, stream: Any, first: Any, frame_seconds: float, file: _SharedFile | None = None
    ) -> None:
        self.kind, self.frame_seconds, self.size = kind, frame_seconds, 0
        self.base, self.zero = first.time_base, first.pts
        self.began = self.ends = float(first.pts * first.time_base)
        self.file = io.BytesIO()
        self.out: Any = av.open(file or self.file, "w", format=kind)
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

    def finish(self) -> float:
        """Finish the file; seconds from its first frame to the end of its last."""
        self.out.close()
        return self.ends - self.began

    def close(self) -> CutSegment:
        """Finish a file in memory of its own; the segment."""
        duration = self.finish()
        return CutSegment(self.began, duration, self.file.getvalue(), FORMATS[self.kind])
