"""Sequential decoding that does no more work than the sampled frames need.

A sync point is an intra frame at which decoding can begin: nothing after it refers to anything before it. A file is
decoded in the first of three modes that it allows:

- `keyframes`: sync points are at most a second apart, so each second has one, and only they are decoded. The frame of
  second k is then the first sync point at or after k. (The mode has the codecs' word; a keyframe elsewhere in this
  project is a frame that DKS selects.)
- `nonref`: `ingest.decoding.packet_plan` selects the packets that the wanted frames need, and the decoder skips frames
  that no other frame refers to. The frames are exactly those of mode `all`.
- `all`: every frame is decoded, because packets without presentation times cannot be planned.

Seeking to each second would be slower than decoding everything where sync points are far apart. A file is opened and
probed once; the packets that the probe reads are decoded and not read again.

This module runs in the sandbox (`ingest.decoding.worker`) and knows nothing of processes. It does not use numpy, whose
import takes longer than decoding a short file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise
from typing import Any

import av
from av.video.reformatter import VideoReformatter

from index.errors import DecodeFailed, NoFrames, NotVideo
from ingest.decoding.h264 import h264_disposable, h264_kind, length_bytes
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.packet_plan import PacketInfo, PacketPlan
from ingest.decoding.sampler import Sampler
from ingest.decoding.timeline import Timeline

__all__ = ["OpenVideo", "RgbFrame", "decode", "open_container", "open_video"]

_PROBE_PACKETS, _PROBE_SECONDS, _PROBE_BYTES = 1500, 12.0, 64 * 2**20
# Codecs in which each packet is one shown frame. VP8, for example, has hidden frames in packets of their own.
_PLANNABLE = frozenset(
    {"h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "vp9", "av1", "libdav1d", "prores"}
)
# Formats of footage. Playlists (HLS, DASH, concat, image lists) name other files and are not among them.
_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,mpegts,mpeg,mpegvideo,h264,hevc,vvc,obu,av1,m4v,mjpeg,mjpeg_2000,"
    "asf,asf_o,dhav,ivf,mxf,ogg,rm,gxf,nut,wtv,dv,vc1,vc1test,yuv4mpegpipe,gif,apng,swf,nsv,h263,h261,dirac,ingenient,lxf,"
    "kux,smjpeg,mpjpeg,cavsvideo,evc,ifv,hxvs,lvf,lmlm4,nuv,pva,ty,iv8,mpegtsraw"
)
# Formats whose timestamps ascend, because they follow from an index or the file is written in one go.
_ASCENDING = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mxf", "asf", "ogg", "ivf", "gif", "apng"})
_REORDER_SECONDS = 2.0
# Twice the cores: a thread that waits for a reference frame leaves its core to another thread.
_THREADS = min(16, 2 * (os.cpu_count() or 1))
_SYNC_POINT, _DECODES_ALONE = ("idr",), ("idr", "intra")  # kinds of H.264 packets
_MAX_BROKEN_PACKETS = 10_000
_SKIP_FRAME = {True: "DEFAULT", False: "NONREF"}


@dataclass(frozen=True, slots=True)
class RgbFrame:
    """One sampled frame, converted to RGB."""

    pts: float
    """Seconds."""
    width: int
    """Pixels in a row."""
    height: int
    """Number of rows."""
    stride: int
    """Bytes from one row to the next."""
    turns: int
    """Quarter turns counter-clockwise that bring the frame upright."""
    data: memoryview
    """Rows of RGB bytes."""


@dataclass(slots=True)
class OpenVideo:
    """An open file: its video stream and the mode in which it is decoded."""

    source: int
    """Descriptor of the file."""
    container: Any
    """The file, `av.container.InputContainer`."""
    stream: Any
    """Its video stream, `av.VideoStream`."""
    mode: str
    """`keyframes`, `nonref` or `all`."""
    first_pts: float
    """Presentation time of the first frame, in seconds."""
    duration: float | None
    """Seconds, None if the container does not state it."""
    created: datetime | None
    """Creation time in the container's metadata."""
    timeline: Timeline
    """Its timestamps, and the discontinuities that were found in them."""
    head: list[Any] = field(default_factory=list)
    """Packets that the probe has read."""
    rest: Iterator[Any] = field(default_factory=lambda: iter(()))
    """Packets after `head`."""
    position: int = 0
    """Offset in the file, in bytes, behind the last packet that was read."""
    program_ended: bool = False
    """The stream ended and another stream, which began later in the file, follows."""
    reached: float = float("-inf")
    """Latest end of a packet of any stream, sound included, in seconds of the container's own time."""


def open_video(source: int, limits: DecodeLimits, *, fps: float = 1.0) -> OpenVideo:
    """Open a file, given as a descriptor, and choose the mode in which it is decoded.

    Raises:
        NotVideo: not a media file, or one without a video stream.
        DecodeFailed: frames are larger than `limits.pixels`.
    """
    container, stream = open_container(source)
    context = stream.codec_context
    if context.width * context.height > limits.pixels:
        raise DecodeFailed(f"frames of {context.width} × {context.height} exceed the limit of {limits.pixels} pixels")
    timeline = Timeline(float(stream.time_base), frame=_frame_seconds(stream))
    created = _creation_time(container.metadata)
    video = OpenVideo(source, container, stream, "all", 0.0, _duration(container, stream), created, timeline)
    video.rest = _demux(video)
    _probe(video, fps)
    return video


def _frame_seconds(stream: Any) -> float:
    return float(1 / stream.average_rate) if stream.average_rate else 0.04


def _duration(container: Any, stream: Any) -> float | None:
    """Seconds of the video stream, else of the container, as the header announces them."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return float(container.duration / av.time_base) if container.duration else None


def open_container(source: int) -> tuple[Any, Any]:
    """Open a media file, given as a descriptor: its `av.container.InputContainer` and `av.VideoStream`.

    The stream is the one marked as default, else the largest: thumbnails and previews are neither.

    Raises:
        NotVideo: not a media file, or one without a video stream.
    """
    options = {"fd": str(source), "protocol_whitelist": "fd", "format_whitelist": _DEMUXERS}
    try:
        os.lseek(source, 0, os.SEEK_SET)
        container = av.open("fd:", metadata_errors="ignore", options=options)
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
    stream.codec_context.thread_count = _THREADS
    return stream


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _is_default(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.default)


def _creation_time(metadata: dict[str, str]) -> datetime | None:
    try:
        created = datetime.fromisoformat(metadata.get("creation_time", "").strip())
    except ValueError:
        return None
    return created if created.tzinfo else created.replace(tzinfo=UTC)


def _demux(video: OpenVideo) -> Iterator[Any]:
    """Packets of the video stream on its timeline, without the empty packets that PyAV appends at the end."""
    stream, timeline = video.stream, video.timeline
    unordered = video.container.format.name == "avi" and stream.codec_context.has_b_frames
    packets = video.container.demux()
    while True:
        try:
            packet = next(packets, None)
        except IndexError:  # at the end of the file: PyAV has no object for a stream that began after opening
            video.program_ended = True
            return
        if packet is None:
            return
        at = _seconds(packet)
        if at is not None:
            length = float(packet.duration * packet.time_base) if packet.duration else 0.0
            video.reached = max(video.reached, at + length)
        if packet.stream.index != stream.index or not packet.size:
            continue
        if packet.pos is not None:
            video.position = max(video.position, packet.pos + packet.size)
        if unordered:  # AVI stores no times of presentation; what the demuxer gives are times of decoding
            packet.pts = None
        ticks = packet.dts if packet.dts is not None else packet.pts
        if ticks is not None:
            timeline.follow(ticks)
            if timeline.offset:
                packet.pts = None if packet.pts is None else packet.pts + timeline.offset
                packet.dts = None if packet.dts is None else packet.dts + timeline.offset
        yield packet


def _open_next_program(video: OpenVideo) -> bool:
    """Continue behind the last packet, where streams begin that the container did not have at its start.

    Its timeline goes on behind the present one. Returns False if nothing there can be read.
    """
    size = os.fstat(video.source).st_size
    if not 0 < video.position < size:
        return False
    options = {"protocol_whitelist": "", "format_whitelist": _DEMUXERS}
    tail = _FileTail(video.source, video.position)
    try:
        container = av.open(tail, format=video.container.format.name, metadata_errors="ignore", options=options)
        stream = _pick_stream(container)
    except (av.error.FFmpegError, OSError, ValueError, NotVideo):
        return False
    video.container, video.stream, video.program_ended = container, stream, False
    video.timeline.rebase(float(stream.time_base), frame=_frame_seconds(stream))
    return True


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


def _seconds(packet: Any) -> float | None:
    at = packet.pts if packet.pts is not None else packet.dts
    return None if at is None else float(at * packet.time_base)


def _probe(video: OpenVideo, fps: float) -> None:
    """Determine mode and first pts from the packets at the start of the file, and keep those packets in `head`."""
    sync_points: list[float] = []
    times: list[float] = []
    hidden: list[float] = []
    is_sync_point, size = _intra_test(video.stream, _SYNC_POINT), 0
    try:
        for packet in video.rest:
            video.head.append(packet)
            size += packet.size
            at = _seconds(packet)
            if at is not None:
                (hidden if packet.is_discard else times).append(at)
                if not packet.is_discard and is_sync_point(packet):
                    sync_points.append(at)
                if at - (times or hidden)[0] > _PROBE_SECONDS:
                    break
            if len(video.head) > _PROBE_PACKETS or size > _PROBE_BYTES:
                break
    except (av.error.FFmpegError, OSError) as error:
        video.rest = _raising(error)
    times = times or hidden
    if not times:
        return
    video.first_pts = first = min(times)
    if (
        len(sync_points) >= 3
        and _widest_gap(sync_points) <= _max_sync_gap(video.stream, fps)
        and sync_points[0] - first < 1e-6
    ):
        video.mode = "keyframes"
    elif video.stream.codec_context.name in _PLANNABLE and all(packet.pts is not None for packet in video.head):
        video.mode = "nonref"


def _raising(error: Exception) -> Iterator[Any]:
    raise error
    yield


def _max_sync_gap(stream: Any, fps: float) -> float:
    """Largest distance of sync points, in seconds, at which they can be the samples: one sample and half a frame."""
    return float(1 / fps + (1 / stream.average_rate if stream.average_rate else 0.04) / 2)


def _widest_gap(times: list[float]) -> float:
    ordered = sorted(times)
    return max(b - a for a, b in pairwise(ordered))


def _intra_test(stream: Any, kinds: Container[str]) -> Callable[[Any], bool]:
    """A function that returns whether a packet decodes alone; in H.264, whether `h264_kind` is one of `kinds`."""
    if stream.codec_context.name != "h264":
        return lambda packet: bool(packet.is_keyframe)
    lengths = length_bytes(stream.codec_context.extradata)
    return lambda packet: bool(packet.is_keyframe) and h264_kind(bytes(packet), lengths) in kinds


def _disposable_test(stream: Any) -> Callable[[Any], bool]:
    """A function that returns whether a packet need not be given to the decoder at all.

    Packets go to the decoder's threads in turn, and a packet that a thread skips takes a turn too: if every other
    packet were skipped, one of two threads would have nothing to do.
    """
    if stream.codec_context.name != "h264":
        return lambda packet: False
    lengths = length_bytes(stream.codec_context.extradata)
    return lambda packet: h264_disposable(bytes(packet), lengths)


@dataclass(slots=True)
class _ReadState:
    """How far the packets of a file have been read."""

    reached: float
    """Latest pts, in seconds."""
    problem: Exception | None = None
    """The error that ended reading or decoding."""


def _packet_infos(packets: Iterator[Any], stream: Any, state: _ReadState) -> Iterator[PacketInfo[Any]]:
    base, is_sync_point = float(stream.time_base), _intra_test(stream, _SYNC_POINT)
    try:
        for packet in packets:
            pts = packet.pts * base if packet.pts is not None else None
            if pts is not None and pts > state.reached:
                state.reached = pts
            # The intra frame of an open GOP is not one: the H.264 decoder shows it only after the packets before it.
            yield PacketInfo(packet, pts, is_sync_point(packet), not packet.is_discard, packet.size)
    except (av.error.FFmpegError, OSError) as error:
        state.problem = error


def decode(
    video: OpenVideo,
    limits: DecodeLimits,
    *,
    fps: float = 1.0,
    after: float = 0.0,
    until: float | None = None,
    phase: float = 0.0,
) -> Iterator[RgbFrame]:
    """The sampled frames, ascending in time. `video.mode` changes where the footage is unlike its start.

    Args:
        fps: frames a second of stream time.
        after: seconds of stream time to skip, by one seek to a sync point before.
        until: stop before the first frame that is at least this many seconds after the start.
        phase: offset of the first frame within its second, in [0, 1), see `index.second_grid`.

    Raises:
        NoFrames: no frame decodes.
        DecodeFailed: decoding ended early, or a limit was exceeded; the frames before that were yielded.
    """
    first, last, taken, any_frame = video.first_pts, video.first_pts, 0, False
    sampler = Sampler(fps, first=first - phase, after=after)
    state = _ReadState(first)
    for stream, packets in _sections(video, after):
        frame_seconds, aspect = _frame_seconds(stream), Fraction(stream.sample_aspect_ratio or 1)
        plan = PacketPlan(
            _packet_infos(packets, stream, state),
            sampler.copy(),
            mode=video.mode,
            tolerance=_max_sync_gap(stream, fps),
        )
        base, reformatter = float(stream.time_base), VideoReformatter()
        for frame, dts in _frames(plan, stream, state):
            video.mode = plan.mode
            ticks = frame.pts if dts is None else dts
            pts = ticks * base if ticks is not None else (last + frame_seconds if any_frame else first)
            last, any_frame = pts, True
            if not sampler.take(pts):
                continue
            if until is not None and pts - first + 1e-6 >= until:  # the same rounding as in `ingest.chunks`
                return
            if taken >= limits.frames:
                raise DecodeFailed(f"more than {limits.frames} frames; split the file")
            taken += 1
            yield _rgb(frame, pts, aspect, reformatter, limits)
        video.mode = plan.mode
        if state.problem is not None:
            break
    if not any_frame and after == 0:
        raise NoFrames(f"no frame decodes ({state.problem or 'the video stream is empty'})")
    if state.problem is not None:
        raise DecodeFailed(
            f"decoding ended early after {last - first:.0f} s ({state.problem}); the frames before are kept"
        )
    # A plan drops packets at the end of the footage, so the packets that were read count, unless wanted frames failed.
    max_gap = 5 + 1 / fps
    reached = last if video.mode == "all" or state.reached - last > max_gap else state.reached
    _check_whole(video, max(reached - first, after))


def _check_whole(video: OpenVideo, decoded: float) -> None:
    """Raise DecodeFailed if the file is probably truncated: neither its video nor its sound lasts as long as announced.

    Some formats announce the time of the end and not a duration; the smaller of the two readings counts.
    """
    if video.duration is None or video.timeline.count:
        return
    announced = min(video.duration, video.duration - max(0.0, video.first_pts))
    others = video.reached - max(0.0, video.first_pts)
    if max(decoded, others) < announced - 5:
        raise DecodeFailed(
            f"the header announces {video.duration:.0f} s and {decoded:.0f} s decode; the file is probably truncated, "
            "the frames before are kept"
        )


def _sections(video: OpenVideo, after: float) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Streams that follow each other in one file, each with its packets; nearly every file has one."""
    packets = chain(video.head, video.rest) if after <= 0 else _packets_from(video, video.first_pts + after)
    video.head = []
    while True:
        yield video.stream, packets
        if not video.program_ended or not _open_next_program(video):
            return
        packets = _demux(video)


def _packets_from(video: OpenVideo, target: float) -> Iterator[Any]:
    """Packets from an intra frame at or before `target` seconds, or from the start where the format cannot seek.

    In formats without an index, a seek can end after the target or between intra frames; then it is repeated from
    further back. Timestamps of a format that is made for transmission may repeat, so that a seek can end anywhere: such a
    file is read from its start, which costs no decoding.
    """
    stream, first, is_intra = video.stream, video.first_pts, _intra_test(video.stream, _DECODES_ALONE)
    video.rest = iter(())
    if video.container.format.name in _ASCENDING:
        for back in (0.0, 5.0, 30.0, 120.0):
            if target - back <= first:
                break
            try:
                video.container.seek(int((target - back) / stream.time_base), stream=stream, backward=True)
                video.timeline.forget()
                packets = _demux(video)
                found = next((packet for packet in packets if is_intra(packet)), None)
            except (av.error.FFmpegError, OSError):
                break
            at = None if found is None else _seconds(found)
            if found is not None and at is not None and at <= target + 1e-6:
                return chain([found], packets)
    video.container.close()
    video.container, video.stream = open_container(video.source)
    video.timeline = Timeline(float(video.stream.time_base), frame=_frame_seconds(video.stream))
    return _from_intra(_demux(video), target, _intra_test(video.stream, _DECODES_ALONE))


def _from_intra(packets: Iterator[Any], target: float, is_intra: Callable[[Any], bool]) -> Iterator[Any]:
    """Packets from the last intra frame at or before `target` seconds. Holds at most `_PROBE_BYTES` of packets."""
    held: list[Any] = []
    size = 0
    for packet in packets:
        at = _seconds(packet)
        if is_intra(packet) and at is not None and at <= target + 1e-6:
            held, size = [], 0
        held.append(packet)
        size += packet.size
        if size > _PROBE_BYTES or (at is not None and at > target + _REORDER_SECONDS):
            break
    return chain(held, packets)


def _frames(plan: PacketPlan[Any], stream: Any, state: _ReadState) -> Iterator[tuple[Any, int | None]]:
    """Decoded frames, each with its time in ticks where only its place among the times of decoding gives one.

    Packets without a time of presentation come out of the decoder in the order of presentation, so the k-th frame has the k-th
    smallest time of decoding. Packets that do not decode are skipped, up to `_MAX_BROKEN_PACKETS`.
    """
    times: list[int] = []
    context, broken, required = stream.codec_context, 0, True
    is_disposable = _disposable_test(stream)
    for planned in chain(plan, [None]):  # None makes the decoder return the frames that it still holds
        try:
            if planned is not None and not planned.required and is_disposable(planned.packet):
                continue
            if planned is not None and planned.required != required:
                required = planned.required
                context.skip_frame = _SKIP_FRAME[required]  # takes effect with the next packet, in every thread
            if planned is not None and planned.packet.pts is None and planned.packet.dts is not None:
                heappush(times, planned.packet.dts)
            for frame in context.decode(planned.packet if planned is not None else None):
                yield frame, heappop(times) if times else None
        except av.error.InvalidDataError:
            broken += 1
            if planned is not None and planned.packet.pts is None and planned.packet.dts in times:
                times.remove(planned.packet.dts)
                heapify(times)
            if broken > _MAX_BROKEN_PACKETS:
                state.problem = DecodeFailed(f"{broken} packets do not decode")
                return
        except (av.error.FFmpegError, OSError) as error:
            state.problem = error
            return


def _rgb(frame: Any, pts: float, aspect: Fraction, reformatter: VideoReformatter, limits: DecodeLimits) -> RgbFrame:
    """A frame as RGB with square pixels. For sampled frames only: conversion costs about as much as decoding one."""
    width = frame.width if aspect <= 0 else max(1, round(frame.width * aspect))
    if max(width, frame.width) * frame.height > limits.pixels:
        raise DecodeFailed(f"a frame of {width} × {frame.height} exceeds the limit of {limits.pixels} pixels")
    rgb = reformatter.reformat(frame, width=width, height=frame.height, format="rgb24")
    plane = rgb.planes[0]
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return RgbFrame(pts, width, frame.height, plane.line_size, turns, memoryview(plane))
