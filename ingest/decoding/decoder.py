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

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise
from typing import Any

import av
from av.video.reformatter import VideoReformatter

from index.errors import DecodeFailed, NoFrames, SourceUnsupported
from ingest.decoding.demuxer import FOOTAGE_FORMATS, Demuxer, frame_seconds, packet_seconds
from ingest.decoding.gpu.device import hardware, on_gpu, refusal
from ingest.decoding.h264 import h264_disposable, h264_kind, length_bytes
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.packet_plan import PacketInfo, PacketPlan
from ingest.decoding.sampler import Sampler

__all__ = ["OpenVideo", "RgbFrame", "StartProbe", "check_pixels", "decode", "open_video", "sections"]

_PROBE_PACKETS, _PROBE_SECONDS, _PROBE_BYTES = 1500, 12.0, 64 * 2**20
# Codecs in which each packet is one shown frame. VP8, for example, has hidden frames in packets of their own.
_PLANNABLE = frozenset(
    {"h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "vp9", "av1", "libdav1d", "prores"}
)
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
    """An open file and the mode in which it is decoded."""

    demuxer: Demuxer
    """The file."""
    mode: str = "all"
    """`keyframes`, `nonref` or `all`."""
    first_pts: float = 0.0
    """Presentation time of the first frame, in seconds."""
    head: list[Any] = field(default_factory=list)
    """Packets that the probe has read."""
    rest: Iterator[Any] = field(default_factory=lambda: iter(()))
    """Packets after `head`."""
    gpu: bool = False
    """Whether a GPU decodes it."""
    gpu_problem: str = ""
    """Why the GPU that was asked for does not."""

    @property
    def duration(self) -> float | None:
        """Seconds from the first frame to the end, as the header announces them."""
        announced = self.demuxer.duration
        if announced is None or not self.demuxer.counts_from_zero or announced <= self.first_pts:
            return announced
        return announced - max(0.0, self.first_pts)


def open_video(
    source: int, limits: DecodeLimits, *, fps: float = 1.0, formats: str = FOOTAGE_FORMATS, gpu: bool = False
) -> OpenVideo:
    """Open a file, given as a descriptor, and choose the mode in which it is decoded.

    Args:
        source: the file.
        limits: limits on the frames, and whether only a GPU may decode.
        fps: frames a second of stream time that are wanted.
        formats: FFmpeg's names of the formats that it may have, separated by commas.
        gpu: decode on the GPU, which this process has started; software decodes what the GPU cannot.

    Raises:
        NotVideo: not a media file, or one without a video stream.
        DecodeFailed: frames are larger than `limits.pixels`.
        SourceUnsupported: `limits.decoder` is `gpu-only`, and the GPU cannot decode the stream.
    """
    demuxer = Demuxer.open(source, formats, hardware=hardware() if gpu else None)
    check_pixels(demuxer, limits)
    video = OpenVideo(demuxer, rest=demuxer.packets(), gpu=gpu)
    _probe(video, fps)
    if gpu and (problem := refusal(demuxer.stream.codec_context, video.head)):
        if limits.decoder == "gpu-only":
            raise SourceUnsupported(f'{problem}; set decoder = "gpu" to decode such files in software')
        demuxer.container.close()
        return replace(open_video(source, limits, fps=fps, formats=formats), gpu_problem=problem)
    return video


def check_pixels(demuxer: Demuxer, limits: DecodeLimits) -> None:
    """Raise DecodeFailed if the header announces frames that are larger than `limits.pixels`."""
    context = demuxer.stream.codec_context
    if context.width * context.height > limits.pixels:
        raise DecodeFailed(f"frames of {context.width} × {context.height} exceed the limit of {limits.pixels} pixels")


@dataclass(slots=True)
class StartProbe:
    """The packets at the start of a file, as far as they tell when its first frame is shown."""

    times: list[float] = field(default_factory=list)
    """Seconds of each packet that is shown."""
    hidden: list[float] = field(default_factory=list)
    """Seconds of each packet that is not."""
    _count: int = 0
    _bytes: int = 0

    @property
    def first(self) -> float | None:
        """Seconds of the first frame, None if no packet has a time."""
        return min(self.times or self.hidden, default=None)

    def add(self, packet: Any) -> bool:
        """Add the next packet. Returns whether these are enough."""
        self._count, self._bytes = self._count + 1, self._bytes + packet.size
        at = packet_seconds(packet)
        if at is not None:
            (self.hidden if packet.is_discard else self.times).append(at)
            if at - (self.times or self.hidden)[0] > _PROBE_SECONDS:
                return True
        return self._count > _PROBE_PACKETS or self._bytes > _PROBE_BYTES


def _probe(video: OpenVideo, fps: float) -> None:
    """Determine mode and first pts from the packets at the start of the file, and keep those packets in `head`."""
    sync_points: list[float] = []
    is_sync_point, start = _intra_test(video.demuxer.stream, _SYNC_POINT), StartProbe()
    try:
        for packet in video.rest:
            video.head.append(packet)
            at = packet_seconds(packet)
            if at is not None and not packet.is_discard and is_sync_point(packet):
                sync_points.append(at)
            if start.add(packet):
                break
    except (av.error.FFmpegError, OSError) as error:
        video.rest = _raising(error)
    first = start.first
    if first is None:
        return
    video.first_pts = first
    if (
        len(sync_points) >= 3
        and _widest_gap(sync_points) <= _max_sync_gap(video.demuxer.stream, fps)
        and sync_points[0] - first < 1e-6
    ):
        video.mode = "keyframes"
    elif video.demuxer.stream.codec_context.name in _PLANNABLE and all(packet.pts is not None for packet in video.head):
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
        SourceUnsupported: `limits.decoder` is `gpu-only`, and from here on the GPU cannot decode the stream.
    """
    first, last, taken, any_frame = video.first_pts, video.first_pts, 0, False
    sampler = Sampler(fps, first=first - phase, after=after)
    state = _ReadState(first)
    for stream, packets in sections(video, after):
        length, aspect = frame_seconds(stream), Fraction(stream.sample_aspect_ratio or 1)
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
            pts = ticks * base if ticks is not None else (last + length if any_frame else first)
            last, any_frame = pts, True
            if not sampler.take(pts):
                continue
            if until is not None and pts - first + 1e-6 >= until:  # the same rounding as in `ingest.chunks`
                return
            if taken >= limits.frames:
                raise DecodeFailed(f"more than {limits.frames} frames; split the file")
            taken += 1
            if video.gpu and limits.decoder == "gpu-only" and not on_gpu(frame):
                raise SourceUnsupported(f"the GPU cannot decode the stream from {pts - first:.0f} s on")
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

    Timestamps that step say nothing about it.
    """
    announced = video.duration
    if announced is None or video.demuxer.timeline.count:
        return
    if max(decoded, video.demuxer.reached - max(0.0, video.first_pts)) < announced - 5:
        raise DecodeFailed(
            f"the header announces {announced:.0f} s and {decoded:.0f} s decode; the file is probably "
            "truncated, the frames before are kept"
        )


def sections(video: OpenVideo, after: float) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Streams that follow each other in one file, each with its packets; nearly every file has one.

    The packets of the first begin with an intra frame at or before `after` seconds of stream time.
    """
    demuxer, first = video.demuxer, video.first_pts
    packets: Iterator[Any] = chain(video.head, video.rest)
    if after > 0:
        packets = demuxer.packets_from(first, first + after, lambda stream: _intra_test(stream, _DECODES_ALONE))
    video.head = []
    while True:
        yield demuxer.stream, packets
        if not demuxer.next_program():
            return
        packets = demuxer.packets()


def _frames(plan: PacketPlan[Any], stream: Any, state: _ReadState) -> Iterator[tuple[Any, int | None]]:
    """Decoded frames, each with its time in ticks where only its place among the times of decoding gives one.

    Packets without a time of presentation come out of the decoder in the order of presentation, so the k-th frame has
    the k-th smallest time of decoding. Packets that do not decode are skipped, up to `_MAX_BROKEN_PACKETS`.
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
