"""Writing of a clip: packets of one file, or of several that follow each other, copied into one without encoding again.

This module reads untrusted files and runs in a confined process; `ingest.segments.clipping` starts it. The parts come
one after the other through the same descriptor, and the clip leaves through another one.

A clip begins with the last intra frame at or before the requested time. It ends with the last frame, in the order of
decoding, that is shown before the requested end: the frames that this one refers to may be shown a moment later. Gaps
become long frames, so that the times of the clip remain those of the footage.
"""

from __future__ import annotations

import os
import time
from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import av

from index.errors import DecodeFailed
from index.records import from_micros, rfc3339
from ingest.decoding.decoder import open_video, sections
from ingest.decoding.demuxer import frame_seconds, packet_seconds
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.protocol import CLIPPED, DONE
from ingest.decoding.worker import ParentPipes

__all__ = ["write_clip"]

_BEAT_SECONDS = 2.0
"""Longest time without a message while packets are copied."""
_REORDER_PACKETS = 64
"""Packets behind the end among which frames from before the end may be; codecs reorder at most 16."""


def write_clip(parent: ParentPipes, order: Any, source: int, memory: int, limits: DecodeLimits) -> None:
    """Write one clip: a task of `ingest.decoding.worker`.

    Args:
        order: `kind`, FFmpeg's name of the clip's container; `start` and `end`, UTC microseconds.
        source: descriptor of the parts, one after the other: the parent replaces its content when it is told that a
            part was read, and sends a line of JSON for each with the UTC microseconds of its first frame and of its
            end (`start`, and `end` or null), and of the stretch that is used (`after` and `until`, or null);
            null behind the last one.
        memory: descriptor that the clip is written to, a file or a pipe.
        limits: `pixels` is the largest size of a frame.
    """
    clip = _Clip(parent, order["kind"], order["start"], order["end"], memory)
    while (part := parent.receive_order()) is not None:
        clip.add(source, part["start"], part["end"], limits, after=part["after"], until=part["until"])
        clip.report(read=True)
    clip.close()
    parent.send_json(DONE)


class _Descriptor:
    """A descriptor as PyAV writes to it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> int:
        """Write all of `data`."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        return len(data)


class _SeekableDescriptor(_Descriptor):
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; returns the new position."""
        return os.lseek(self._descriptor, offset, whence)

    def tell(self) -> int:
        """The position."""
        return os.lseek(self._descriptor, 0, os.SEEK_CUR)


@dataclass(slots=True)
class _Clip:
    """The clip that is being written."""

    parent: ParentPipes
    kind: str
    start: int
    end: int
    descriptor: int
    first: int = 0  # UTC microseconds of the first frame
    reached: int = 0  # UTC microseconds of the end of the last frame
    frames: int = 0
    parts: int = 0
    missing: int = 0  # microseconds
    out: Any = None
    stream: Any = None
    base: Any = None
    shape: tuple[Any, ...] = ()
    last_dts: int = -(2**62)
    guesses: bool = False  # whether the container has no times of decoding of its own
    depth: int = 0  # packets that come before one that is shown earlier
    waiting: list[int] = field(default_factory=list)  # times of presentation of as many packets
    spoke: float = 0.0

    def add(
        self,
        source: int,
        start: int,
        end: int | None,
        limits: DecodeLimits,
        *,
        after: int | None = None,
        until: int | None = None,
    ) -> None:
        """Copy the packets of a part that are between the clip's `start` and `end`.

        Args:
            start: UTC microseconds of its first frame.
            end: UTC microseconds of its end; that of the last packet when None.
            after: UTC microseconds before which nothing of the part is used.
            until: UTC microseconds from which on nothing of it is used.
        """
        low, high = max(self.start, after or self.start), min(self.end, until or self.end)
        video = open_video(source, limits)
        first, used = video.first_pts, False
        self.guesses = self.guesses or video.demuxer.counts_from_zero  # Matroska has times of presentation alone
        for stream, packets in sections(video, max(0.0, (low - start) / 1e6)):
            length = frame_seconds(stream)
            shape = _shape(stream)
            wanted = _wanted(packets, start, first, end, length, (low, high), late=low > self.start)
            if self.guesses and not self.frames:
                head = list(islice(wanted, _REORDER_PACKETS))
                self.depth, wanted = _reordering([at for _, at in head]), chain(head, wanted)
            for packet, at in wanted:
                if self.out is None:
                    self._open(stream, shape, at)
                elif shape != self.shape:
                    raise DecodeFailed(
                        f"the camera changed its codec or size at {rfc3339(at)}; cut one clip before that time and "
                        "one after it"
                    )
                elif not used:
                    self.missing += max(0, at - self.reached)
                used = True
                self._mux(packet, at, length)
        if used:
            self.parts += 1
            if end is not None:
                self.reached = min(end, max(self.end, self.reached))
        video.demuxer.container.close()

    def _open(self, stream: Any, shape: tuple[Any, ...], first: int) -> None:
        self.first = self.reached = first
        self.shape, self.base = shape, stream.time_base
        target, options = _Descriptor(self.descriptor), dict[str, str]()
        try:
            os.lseek(self.descriptor, 0, os.SEEK_CUR)
            target = _SeekableDescriptor(self.descriptor)
        except OSError:  # a pipe: MP4 in fragments, whose index need not be written at its start afterwards
            if self.kind == "mp4":
                options["movflags"] = "frag_keyframe+empty_moov+default_base_moof"
        self.out = av.open(target, "w", format=self.kind, options=options)
        self.out.metadata["creation_time"] = from_micros(first).isoformat().replace("+00:00", "Z")
        self.stream = self.out.add_stream_from_template(stream)
        self.stream.time_base = self.base

    def _mux(self, packet: Any, at: int, frame_seconds: float) -> None:
        scale = packet.time_base / self.base
        pts = round((at - self.first) / 1e6 / self.base)
        length = float(packet.duration * packet.time_base) if packet.duration else frame_seconds
        packet.duration = max(1, round(length / self.base))
        if self.guesses:
            dts = self._decoding_time(pts, packet.duration)
        else:
            dts = pts if packet.dts is None or packet.pts is None else pts - round((packet.pts - packet.dts) * scale)
        packet.pts = pts
        packet.dts = self.last_dts = max(self.last_dts + 1, dts)
        packet.time_base = self.base
        packet.stream = self.stream
        self.out.mux(packet)
        self.frames += 1
        self.reached = max(self.reached, at + round(length * 1e6))
        if time.monotonic() - self.spoke > _BEAT_SECONDS:
            self.report()

    def _decoding_time(self, pts: int, length: int) -> int:
        """A time of decoding for the next packet of a format that has none: never after `pts`, and ascending.

        It is the smallest of the last d + 1 times of presentation, where at most d packets come before one that is
        shown earlier.
        """
        if not self.waiting:
            self.waiting = [pts - (self.depth + 1 - i) * length for i in range(1, self.depth + 1)]
        insort(self.waiting, pts)
        return self.waiting.pop(0)

    def report(self, *, read: bool = False) -> None:
        """Tell the parent how far the clip is, and whether its part was read."""
        self.spoke = time.monotonic()
        self.parent.send_json(
            CLIPPED,
            first=self.first,
            end=self.reached,
            frames=self.frames,
            parts=self.parts,
            missing=self.missing,
            read=read,
        )

    def close(self) -> None:
        """Finish the file."""
        if self.out is not None:
            self.out.close()


def _wanted(
    packets: Iterator[Any],
    start: int,
    first: float,
    until: int | None,
    length: float,
    bounds: tuple[int, int],
    *,
    late: bool,
) -> Iterator[tuple[Any, int]]:
    """The packets to copy, each with UTC microseconds.

    Args:
        packets: those of a part, in the order of decoding.
        start: UTC microseconds of the part's first frame.
        first: time of that frame in the part, in seconds.
        until: where the footage ends, UTC microseconds; None for `length` seconds after its last frame begins.
        length: seconds of a frame.
        bounds: the wanted time, UTC microseconds.
        late: whether to begin with the first intra frame in the wanted time, instead of the last one before it.
    """
    low, high = bounds
    ahead: list[tuple[Any, int]] = []  # from the last intra frame on, while the start is not reached
    behind: list[tuple[Any, int]] = []  # shown at or after the end
    begun, begin = False, 0
    for packet in packets:
        seconds = packet_seconds(packet)
        if seconds is None:
            continue
        at = start + round((seconds - first) * 1e6)
        if not begun:
            if late and at < low:
                continue
            if packet.is_keyframe and (at <= low or not ahead):
                ahead, begin = [], at
            elif not ahead:
                continue
            if at < low:
                ahead.append((packet, at))
                continue
            begun = True
            yield from (item for item in ahead if begin <= item[1] < high)
        if at < begin:
            continue  # it refers to frames before the intra frame that the clip begins with
        if at >= high:
            behind.append((packet, at))
            if len(behind) > _REORDER_PACKETS:
                return
            continue
        yield from behind
        behind = []
        yield packet, at
    if not begun and ahead and (until or ahead[-1][1] + round(length * 1e6)) > low:
        yield from (item for item in ahead if begin <= item[1] < high)


def _reordering(times: Sequence[int]) -> int:
    """The most packets that come before one that is shown earlier, for the times of packets in the order of
    decoding."""
    return max((sum(before > at for before in times[:i]) for i, at in enumerate(times)), default=0)


def _shape(stream: Any) -> tuple[Any, ...]:
    context = stream.codec_context
    return (context.name, context.width, context.height, bytes(context.extradata or b""))
