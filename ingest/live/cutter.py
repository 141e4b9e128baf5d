"""The cutter of live streams: turns packets into closed segments with capture times, without decoding or re-encoding.

A segment starts with an intra frame. It ends at the first intra frame after its minimum length, at a discontinuity of
the timestamps, when the picture's size changes, or when the connection ends. It does not know where packets come from
or where segments go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from index.errors import NotVideo
from ingest.decoding.h264 import length_bytes, parameter_sets
from ingest.decoding.timeline import Timeline
from ingest.live.capture_clock import CaptureClock, Span
from ingest.segments.cutter import FORMATS, CutSegment, Media, SegmentFile, fits

__all__ = ["CodecChanged", "LiveCutter", "LiveSegment"]

_GAP_SECONDS = 0.04  # between frames, until it is measured
_SETTLE_SECONDS = 3.0  # after which packets arrive as they are captured
_MAX_LEAP_SECONDS = 5.0  # that pts may run ahead of the wall clock between two packets
_MAX_HELD = 32  # packets without dts that are held at the start


class CodecChanged(Exception):
    """The codec's parameters differ from those at the start of the connection; the source must be opened again."""


@dataclass(frozen=True, slots=True)
class LiveSegment:
    """One closed segment."""

    start: int
    """UTC microseconds of its first frame."""
    duration: float
    """Its length in seconds."""
    frames: int
    """Its number of packets."""
    payload: bytes
    """The content of its file."""
    media_type: Media
    """The format of the file."""


class LiveCutter:
    """Cuts the packets of one connection.

    Args:
        stream: PyAV's video stream.
        clock: the clock of the stream, which continues over all its connections.
        seconds: minimum length of a segment.
        max_bytes: maximum size of a segment; the rest of its group of pictures is dropped.
        late_seconds: seconds between capture and arrival after which a packet counts as late.

    Attributes:
        frames: the number of packets in segments.
        dropped: the number of packets that are in no segment because it would have become too large.
        skipped: the number of packets that no segment can hold: before the first intra frame of a connection, where it
            was joined in the middle of a group of pictures; after a discontinuity, until the next intra frame; frames
            that refer to the segment before; packets out of order.
        late: the number of late packets.
        newest: capture time of the newest packet, in UTC microseconds.

    Raises:
        NotVideo: the codec fits into neither MP4 nor Matroska.
    """

    def __init__(
        self, stream: Any, clock: CaptureClock, *, seconds: float, max_bytes: int, late_seconds: float = 2.0
    ) -> None:
        self.stream, self.clock, self.seconds, self.max_bytes = stream, clock, seconds, max_bytes
        self.late_seconds = late_seconds
        self.codec = stream.codec_context.name
        kind = next((kind for kind in FORMATS if fits(kind, stream)), None)
        if kind is None:
            raise NotVideo(f"{self.codec} fits into neither MP4 nor Matroska; set the camera to another codec")
        self.kind = kind
        self.base = float(stream.time_base)
        self._lengths = length_bytes(stream.codec_context.extradata)
        self._timeline = Timeline(self.base, gap=_MAX_LEAP_SECONDS)
        self._file: SegmentFile | None = None
        self._span = Span(0.0)
        self._parameters, self._gap = b"", _GAP_SECONDS
        self._held: list[tuple[Any, float]] = []
        self._known: int | None = None  # the last dts as received
        if stream.average_rate:
            self._gap = min(1.0, max(1e-3, float(1 / stream.average_rate)))
        self._count, self._last_dts = 0, 0
        self._since = 0.0  # arrival of the first packet of this timeline
        self._ended: list[tuple[Span, float, int, CutSegment]] = []
        self.frames = self.dropped = self.skipped = self.late = 0
        self._overflow = False  # the rest of a group of pictures is dropped
        self.newest: int | None = clock.newest

    def push(self, packet: Any, arrival: float) -> list[LiveSegment]:
        """Add one packet that arrived at `arrival`, wall clock in seconds. Returns the segments that it closes.

        Raises:
            CodecChanged: the source must be opened again; `close` returns the segments so far.
        """
        if packet.has_sidedata("new_extradata") and self._count:
            raise CodecChanged
        return [segment for each, came in self._timed(packet, arrival) for segment in self._push(each, came)]

    def _timed(self, packet: Any, arrival: float) -> list[tuple[Any, float]]:
        """The packets whose pts and dts are known by now.

        The first packets of RTSP lack them: the intra frame has neither, the packets after it have no dts. They are
        held until the first dts arrives, and their times are derived from it.
        """
        length = packet.duration or round(self._gap / self.base)
        if packet.dts is None and self._known is None and len(self._held) < _MAX_HELD:
            self._held.append((packet, arrival))
            return []
        if packet.dts is None:
            packet.dts = packet.pts if self._known is None else self._known + length
        packet.pts = packet.dts if packet.pts is None else packet.pts
        shown = min([packet.pts, *(held.pts for held, _ in self._held if held.pts is not None)])
        for back, (held, _) in enumerate(reversed(self._held), start=1):
            held.dts = packet.dts - back * length
            if held.pts is None:
                shown -= length
                held.pts = shown
        timed, self._held, self._known = [*self._held, (packet, arrival)], [], packet.dts
        return timed

    def _push(self, packet: Any, arrival: float) -> list[LiveSegment]:
        closed: list[LiveSegment] = []
        self._since = self._since or arrival
        step = self._timeline.follow(packet.dts, arrival)
        if step == "stray":
            self.skipped += 1
            return []
        if step == "break":
            closed += self.close()
            self.clock.discontinuity()
            self._overflow = False
            self._since = arrival
        packet.pts += self._timeline.offset
        packet.dts += self._timeline.offset
        at = packet.pts * self.base
        if packet.is_keyframe:
            changed = self._changed(packet)
            long = self._file is not None and at - self._file.began >= self.seconds - self._gap / 2
            if self._file is None or changed or long:
                self._end(None if changed else at)
                self._begin(packet)
        if self._file is None or at < self._file.began:
            self.dropped += self._overflow
            self.skipped += not self._overflow
            return closed
        self._add(packet, at, arrival)
        if self._file.size > self.max_bytes:
            self._end()
            self._overflow = True
        if self.clock.anchored or arrival - self._since >= _SETTLE_SECONDS:
            closed += self._closed()
        return closed

    def close(self) -> list[LiveSegment]:
        """End the open segment. Returns all segments that were not returned before."""
        self._end()
        return self._closed()

    def _end(self, until: float | None = None) -> None:
        """Close the file. `until` is the pts in seconds at which the next segment starts; None when it is unknown."""
        file, self._file = self._file, None
        if file is None or not self._count:
            return
        if until is None:
            until = self._span.last + self._gap
        else:
            self._gap = min(1.0, max(1e-3, (until - file.began) / self._count))
        self._ended.append((self._span, max(until - file.began, 1e-3), self._count, file.close()))

    def _closed(self) -> list[LiveSegment]:
        """The segments that have ended, with their times.

        Opening a source buffers seconds of it, which then arrive in one burst. The first segments therefore wait until
        packets arrive as they are captured, and the shortest delay of all of them is the anchor.
        """
        ended, self._ended = self._ended, []
        if not ended:
            return []
        if not self.clock.anchored:
            spans = [span for span, *_ in ended] + ([self._span] if self._file is not None else [])
            ended[0][0].min_delay = min(span.min_delay for span in spans)
        segments = [
            LiveSegment(self.clock.assign(span), duration, count, cut.payload, cut.media_type)
            for span, duration, count, cut in ended
        ]
        self.newest = self.clock.newest
        return segments

    def _begin(self, packet: Any) -> None:
        self._file = SegmentFile(self.kind, self.stream, packet, self._gap)
        self._span, self._count, self._overflow = Span(self._file.began), 0, False
        self._last_dts = -(2**62)

    def _add(self, packet: Any, at: float, arrival: float) -> None:
        assert self._file is not None  # checked by the caller
        self._span.add(at, arrival)
        due = self.clock.time_at(at) / 1e6 if self.clock.anchored else arrival
        self.late += arrival - due > self.late_seconds
        self.newest = max(self.newest or 0, round(due * 1e6))
        # Containers require ascending dts.
        packet.dts = max(self._last_dts + 1, packet.dts)
        self._last_dts = packet.dts
        self._file.add(packet, at)
        self._count += 1
        self.frames += 1

    def _changed(self, packet: Any) -> bool:
        """Whether the parameter sets of this intra frame differ from those of the one before."""
        found = parameter_sets(bytes(packet), self._lengths, self.codec)
        before, self._parameters = self._parameters, found or self._parameters
        return bool(found and before and found != before)
