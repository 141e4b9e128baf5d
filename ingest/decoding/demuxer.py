"""Packets of the one video stream of a file that is decoded, on one timeline.

A file comes as a descriptor, so that no name has a meaning here, and only in formats of footage. Timestamps go through
`ingest.decoding.timeline`. Where a transport stream changes its program in the middle, the next program goes on behind
the first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import av

from index.errors import NotVideo
from ingest.decoding.timeline import Timeline

__all__ = ["FOOTAGE_FORMATS", "PICTURE_FORMATS", "Demuxer", "frame_seconds", "packet_seconds"]

FOOTAGE_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,mpegts,mpeg,mpegvideo,h264,hevc,vvc,obu,av1,m4v,mjpeg,"
    "mjpeg_2000,"
    "asf,asf_o,dhav,ivf,mxf,ogg,rm,gxf,nut,wtv,dv,vc1,vc1test,yuv4mpegpipe,gif,apng,swf,nsv,h263,h261,dirac,ingenient,"
    "lxf,"
    "kux,smjpeg,mpjpeg,cavsvideo,evc,ifv,hxvs,lvf,lmlm4,nuv,pva,ty,iv8,mpegtsraw"
)
"""Formats of footage. Playlists (HLS, DASH, concat, image lists) name other files and are not among them."""
PICTURE_FORMATS = "jpeg_pipe,png_pipe,webp_pipe,bmp_pipe"
"""Formats of single pictures, which are not footage."""
# Formats whose timestamps ascend, because they follow from an index or the file is written in one go.
_ASCENDING = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mxf", "asf", "ogg", "ivf", "gif", "apng"})
# Twice the cores: a thread that waits for a reference frame leaves its core to another thread.
_THREADS = min(16, 2 * (os.cpu_count() or 1))
_REORDER_SECONDS = 2.0
_REORDER_FRAMES = 20  # H.264 and HEVC show a frame at most 16 places later than it is decoded
_HELD_BYTES = 64 * 2**20


def frame_seconds(stream: Any) -> float:
    """Seconds from one frame to the next, 0.04 where an `av.VideoStream` does not tell its rate."""
    return float(1 / stream.average_rate) if stream.average_rate else 0.04


def packet_seconds(packet: Any) -> float | None:
    """The time of an `av.Packet` in seconds: of presentation, else of decoding, None if it has neither."""
    at = packet.pts if packet.pts is not None else packet.dts
    return None if at is None else float(at * packet.time_base)


@dataclass(slots=True)
class Demuxer:
    """One open file. Made by `Demuxer.open`."""

    source: int
    """Descriptor of the file; it stays the caller's."""
    container: Any
    """The file, `av.container.InputContainer`."""
    stream: Any
    """Its video stream, `av.VideoStream`; another one after `next_program`."""
    duration: float | None
    """Seconds of the video stream, else of the container, as the header says. Matroska's count from time 0."""
    created: datetime | None
    """Creation time in the container's metadata."""
    timeline: Timeline
    """Its timestamps, and the discontinuities that were found in them."""
    reached: float = float("-inf")
    """Latest end of a packet of any stream, sound included, in seconds of the container's own time."""
    program_ended: bool = False
    """The stream has ended, and streams follow that began later in the file."""
    formats: str = FOOTAGE_FORMATS
    """FFmpeg's names of the formats that the file may have."""
    hardware: Any = None
    """The `av.codec.hwaccel.HWAccel` that decodes; None for software."""
    _position: int = 0

    @classmethod
    def open(cls, source: int, formats: str = FOOTAGE_FORMATS, *, hardware: Any = None) -> Demuxer:
        """Open a media file from its first byte.

        The stream is the one marked as default, else the largest: thumbnails and previews are neither.

        Args:
            source: descriptor of the file.
            formats: FFmpeg's names of the formats that it may have, separated by commas.
            hardware: settings of a device that decodes, `av.codec.hwaccel.HWAccel`.

        Raises:
            NotVideo: not a media file, or one without a video stream.
        """
        container, stream = _open(source, formats, hardware)
        timeline = _timeline(container, stream)
        created = _creation_time(container.metadata)
        duration = _duration(container, stream)
        return cls(source, container, stream, duration, created, timeline, formats=formats, hardware=hardware)

    @property
    def counts_from_zero(self) -> bool:
        """Whether `duration` is the time of the end rather than the time from the first frame to the end."""
        return _is_matroska(self.container)

    def packets(self) -> Iterator[Any]:
        """The stream's packets from here on, each an `av.Packet` whose times are on the timeline.

        The empty packets that PyAV appends at the end are left out. Raises av.error.FFmpegError and OSError.
        """
        stream, timeline = self.stream, self.timeline
        reorders, matroska = bool(stream.codec_context.has_b_frames), _is_matroska(self.container)
        # AVI stores no times of presentation; what its demuxer gives as such are times of decoding.
        unordered = self.container.format.name == "avi" and reorders
        packets = self.container.demux()
        while True:
            try:
                packet = next(packets, None)
            except IndexError:  # at the end of the file: PyAV has no object for a stream that began after opening
                self.program_ended = True
                return
            if packet is None:
                return
            at = packet_seconds(packet)
            if at is not None:
                length = float(packet.duration * packet.time_base) if packet.duration else 0.0
                self.reached = max(self.reached, at + length)
            if packet.stream.index != stream.index or not packet.size:
                continue
            if packet.pos is not None:
                self._position = max(self._position, packet.pos + packet.size)
            if unordered:
                packet.pts = None
            # Matroska stores times of presentation alone; what its demuxer gives as times of decoding are guesses.
            ticks = packet.pts if matroska or (packet.dts is None and not reorders) else packet.dts
            if ticks is not None:
                timeline.follow(ticks)
            if timeline.offset:
                packet.pts = None if packet.pts is None else packet.pts + timeline.offset
                packet.dts = None if packet.dts is None else packet.dts + timeline.offset
            yield packet

    def next_program(self) -> bool:
        """Continue behind the last packet, with a stream that the file did not have at its start.

        The timeline goes on behind the present stream. Returns False if there is no such stream.
        """
        if not self.program_ended or not 0 < self._position < os.fstat(self.source).st_size:
            return False
        options = {"protocol_whitelist": "", "format_whitelist": FOOTAGE_FORMATS}
        tail = _FileTail(self.source, self._position)
        try:
            name = self.container.format.name
            container = av.open(tail, format=name, metadata_errors="ignore", options=options, hwaccel=self.hardware)
            stream = _pick_stream(container)
        except (av.error.FFmpegError, OSError, ValueError, NotVideo):
            return False
        self.container, self.stream, self.program_ended = container, stream, False
        self.timeline.rebase(float(stream.time_base), frame=frame_seconds(stream))
        return True

    def packets_from(self, first: float, target: float, intra: Callable[[Any], Callable[[Any], bool]]) -> Iterator[Any]:
        """Packets from an intra frame at or before `target` seconds, or from the start where the format cannot seek.

        In formats without an index, a seek can end after the target or between intra frames; then it is repeated from
        further back. Timestamps of a format that is made for transmission may repeat, so that a seek can end anywhere:
        such a file is read from its start, which costs no decoding.

        Args:
            first: pts of the file's first frame, in seconds.
            target: seconds on the timeline.
            intra: makes the test whether a packet of a stream decodes alone.
        """
        stream, is_intra = self.stream, intra(self.stream)
        for back in (0.0, 5.0, 30.0, 120.0) if self.container.format.name in _ASCENDING else ():
            if target - back <= first:
                break
            try:
                self.container.seek(int((target - back) / stream.time_base), stream=stream, backward=True)
                self.timeline.forget()
                packets = self.packets()
                found = next((packet for packet in packets if is_intra(packet)), None)
            except (av.error.FFmpegError, OSError):
                break
            at = None if found is None else packet_seconds(found)
            if found is not None and at is not None and at <= target + 1e-6:
                return chain([found], packets)
        self.container.close()
        self.container, self.stream = _open(self.source, self.formats, self.hardware)
        self.timeline = _timeline(self.container, self.stream)
        return _from_intra(self.packets(), target, intra(self.stream))


def _is_matroska(container: Any) -> bool:
    return str(container.format.name) == "matroska,webm"


def _timeline(container: Any, stream: Any) -> Timeline:
    frame = frame_seconds(stream)
    back = max(0.5, _REORDER_FRAMES * frame) if _is_matroska(container) else 0.5
    return Timeline(float(stream.time_base), frame=frame, back=back)


def _from_intra(packets: Iterator[Any], target: float, is_intra: Callable[[Any], bool]) -> Iterator[Any]:
    """Packets from the last intra frame at or before `target` seconds. Holds at most `_HELD_BYTES` of packets."""
    held: list[Any] = []
    size = 0
    for packet in packets:
        at = packet_seconds(packet)
        if at is not None and at <= target + 1e-6 and is_intra(packet):
            held, size = [], 0
        held.append(packet)
        size += packet.size
        if size > _HELD_BYTES or (at is not None and at > target + _REORDER_SECONDS):
            break
    return chain(held, packets)


def _open(source: int, formats: str, hardware: Any) -> tuple[Any, Any]:
    options = {"fd": str(source), "protocol_whitelist": "fd", "format_whitelist": formats}
    try:
        os.lseek(source, 0, os.SEEK_SET)
        container = av.open("fd:", metadata_errors="ignore", options=options, hwaccel=hardware)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise NotVideo(f"not a video file ({getattr(error, 'strerror', None) or error})") from error
    try:
        return container, _pick_stream(container)
    except NotVideo:
        container.close()
        raise


def _pick_stream(container: Any) -> Any:
    """The video stream that is decoded. Raises NotVideo if there is none."""
    videos = [s for s in container.streams.video if not _is_cover(s) and s.codec_context is not None]
    if not videos:
        raise NotVideo("the file has no video stream")
    stream = max(videos, key=lambda s: (_is_default(s), s.codec_context.width * s.codec_context.height))
    stream.thread_type = "AUTO"
    # Threads give a GPU nothing to do at once, and each holds a picture in its memory.
    stream.codec_context.thread_count = 1 if stream.codec_context.is_hwaccel else _THREADS
    return stream


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _is_default(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.default)


def _duration(container: Any, stream: Any) -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return float(container.duration / av.time_base) if container.duration else None


def _creation_time(metadata: dict[str, str]) -> datetime | None:
    try:
        created = datetime.fromisoformat(metadata.get("creation_time", "").strip())
    except ValueError:
        return None
    return created if created.tzinfo else created.replace(tzinfo=UTC)


class _FileTail:
    """A file from an offset on, as PyAV reads file objects.

    Args:
        source: descriptor of the file.
        start: offset in bytes that is position 0 here.
    """

    def __init__(self, source: int, start: int) -> None:
        self._source, self._start, self._at = source, start, 0

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        data = os.pread(self._source, size, self._start + self._at)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; returns the new position."""
        size = os.fstat(self._source).st_size - self._start
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: size}[whence])
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at
