"""Sequential decoding that does no more work than one frame a second needs.

Three modes, the first that the footage allows:
- `keyframes`: key frames stand at most a second apart, so each second has one; only they are decoded. The frame of
  second k is then the first key frame at or after k.
- `nonref`: `ingest.decoding.packet_plan` tells from the packets which frames are wanted; the decoder gets what those need and skips
  frames that no other refers to. What comes out is exactly what `all` gives.
- `all`: every frame is decoded, because packets without times cannot be planned.
Seeking each second instead is slower than decoding everything where key frames are far apart. A file is opened and
probed once; the packets the probe read are decoded, not read again. This module runs inside the sandbox
(`ingest.decoding.worker`); it knows nothing of processes, and does without numpy, which would take longer to import than a short
file to decode.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from itertools import chain, pairwise
from typing import Any

import av
from av.video.reformatter import VideoReformatter

from index.errors import DecodeFailed, NoFrames, NotVideo
from ingest.decoding.h264 import h264_disposable, h264_kind, length_bytes
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.packet_plan import Plan, Unit
from ingest.decoding.sampler import Sampler

__all__ = ["Opened", "Picture", "decode", "open_container", "open_video"]

_PROBE_PACKETS, _PROBE_SECONDS, _PROBE_BYTES = 1500, 12.0, 64 * 2**20
# Codecs whose every packet is one shown frame; VP8, for one, has hidden frames in packets of their own.
_PLANNED = frozenset({"h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "vp9", "av1", "libdav1d", "prores"})
# What reads footage. Playlists (hls, dash, concat, image lists) name other files and are not among them.
_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,mpegts,mpeg,mpegvideo,h264,hevc,vvc,obu,av1,m4v,mjpeg,mjpeg_2000,"
    "asf,asf_o,dhav,ivf,mxf,ogg,rm,gxf,nut,wtv,dv,vc1,vc1test,yuv4mpegpipe,gif,apng,swf,nsv,h263,h261,dirac,ingenient,lxf,"
    "kux,smjpeg,mpjpeg,cavsvideo,evc,ifv,hxvs,lvf,lmlm4,nuv,pva,ty,iv8,mpegtsraw"
)
# Twice the cores: a thread that waits for the frame it refers to leaves its core to another.
_THREADS = min(16, 2 * (os.cpu_count() or 1))
_SKIP = {True: "DEFAULT", False: "NONREF"}


@dataclass(frozen=True, slots=True)
class Picture:
    """One sampled frame: RGB rows of `stride` bytes in `data`, to be turned by `turns` × 90° counter-clockwise."""

    pts: float
    width: int
    height: int
    stride: int
    turns: int
    data: memoryview


@dataclass(slots=True)
class Opened:
    """A file whose video stream was chosen and whose mode was decided.

    `head` holds the packets that the probe read, `rest` the ones behind them.
    """

    source: int
    container: Any
    stream: Any
    mode: str
    first_pts: float
    duration: float | None
    created: datetime | None
    head: list[Any] = field(default_factory=list)
    rest: Iterator[Any] = field(default_factory=lambda: iter(()))


def open_video(source: int, limits: DecodeLimits, *, fps: float = 1.0) -> Opened:
    """Open a file, given as a descriptor, and decide how to decode it.

    Raises:
        NotVideo: no container, or none with a video stream.
        DecodeFailed: frames larger than `limits.pixels`.
    """
    container, stream = open_container(source)
    context = stream.codec_context
    if context.width * context.height > limits.pixels:
        raise DecodeFailed(f"frames of {context.width} × {context.height} are over the limit of {limits.pixels} pixels")
    duration = float(container.duration / av.time_base) if container.duration else None
    opened = Opened(source, container, stream, "all", 0.0, duration, _creation_time(container.metadata))
    opened.rest = _demux(container, stream)
    _probe(opened, fps)
    return opened


def open_container(source: int) -> tuple[Any, Any]:
    """The container behind a descriptor, from its first byte, and the video stream to read.

    The default stream is preferred, then the largest: thumbnails and previews are neither.

    Raises:
        NotVideo: no format that is read here, or no video stream.
    """
    options = {"fd": str(source), "protocol_whitelist": "fd", "format_whitelist": _DEMUXERS}
    try:
        os.lseek(source, 0, os.SEEK_SET)
        container = av.open("fd:", metadata_errors="ignore", options=options)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise NotVideo(f"not a video file ({getattr(error, 'strerror', None) or error})") from error
    videos = [s for s in container.streams.video if not _is_picture(s) and s.codec_context is not None]
    if not videos:
        container.close()
        raise NotVideo("there is no video stream in it")
    # The one marked default, then the largest: thumbnails and previews are neither.
    stream = max(videos, key=lambda s: (_is_default(s), s.codec_context.width * s.codec_context.height))
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = _THREADS
    return container, stream


def _is_picture(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _is_default(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.default)


def _creation_time(metadata: dict[str, str]) -> datetime | None:
    try:
        created = datetime.fromisoformat(metadata.get("creation_time", "").strip())
    except ValueError:
        return None
    return created if created.tzinfo else created.replace(tzinfo=UTC)


def _demux(container: Any, stream: Any) -> Iterator[Any]:
    """Packets of the stream, without the empty ones with which the end is announced."""
    for packet in container.demux(stream):
        if packet.size:
            yield packet


def _seconds(packet: Any) -> float | None:
    at = packet.pts if packet.pts is not None else packet.dts
    return None if at is None else float(at * packet.time_base)


def _probe(opened: Opened, fps: float) -> None:
    """Decide the mode and the first pts from the packets at the start of the file, and keep those packets."""
    keys: list[float] = []
    times: list[float] = []
    hidden: list[float] = []
    kind, size = _kinds(opened.stream), 0
    try:
        for packet in opened.rest:
            opened.head.append(packet)
            size += packet.size
            at = _seconds(packet)
            if at is not None:
                (hidden if packet.is_discard else times).append(at)
                if packet.is_keyframe and not packet.is_discard and kind(packet)[1]:
                    keys.append(at)
                if at - (times or hidden)[0] > _PROBE_SECONDS:
                    break
            if len(opened.head) > _PROBE_PACKETS or size > _PROBE_BYTES:
                break
    except (av.error.FFmpegError, OSError) as error:
        opened.rest = _raising(error)
    times = times or hidden
    if not times:
        return
    opened.first_pts = first = min(times)
    if len(keys) >= 3 and _widest(keys) <= _key_gap(opened.stream, fps) and keys[0] - first < 1e-6:
        opened.mode = "keyframes"
    elif opened.stream.codec_context.name in _PLANNED and all(packet.pts is not None for packet in opened.head):
        opened.mode = "nonref"


def _raising(error: Exception) -> Iterator[Any]:
    raise error
    yield


def _key_gap(stream: Any, fps: float) -> float:
    """How far apart key frames may stand to serve as samples: one sample and half a frame, in seconds."""
    return float(1 / fps + (1 / stream.average_rate if stream.average_rate else 0.04) / 2)


def _widest(times: list[float]) -> float:
    ordered = sorted(times)
    return max(b - a for a, b in pairwise(ordered))


def _kinds(stream: Any) -> Callable[[Any], tuple[bool, bool]]:
    """A function that says of a packet whether it decodes alone and whether decoding may begin there."""
    if stream.codec_context.name != "h264":
        return lambda packet: (packet.is_keyframe, packet.is_keyframe)
    lengths = length_bytes(stream.codec_context.extradata)

    def kind(packet: Any) -> tuple[bool, bool]:
        if not packet.is_keyframe:
            return False, False
        found = h264_kind(bytes(packet), lengths)
        return found != "other", found == "idr"

    return kind


def _disposable(stream: Any) -> Callable[[Any], bool]:
    """A function that says of a packet whether the decoder need not see it at all.

    Packets go to the decoder's threads in turn. One that is skipped takes a turn too: of every other packet skipped, two
    threads would be one.
    """
    if stream.codec_context.name != "h264":
        return lambda packet: False
    lengths = length_bytes(stream.codec_context.extradata)
    return lambda packet: h264_disposable(bytes(packet), lengths)


@dataclass(slots=True)
class _Reading:
    """How far the packets of a file were read: the latest pts in seconds, and what broke it off."""

    reached: float
    problem: Exception | None = None


def _units(packets: Iterator[Any], stream: Any, reading: _Reading) -> Iterator[Unit[Any]]:
    base, kind = float(stream.time_base), _kinds(stream)
    try:
        for packet in packets:
            pts = packet.pts * base if packet.pts is not None else None
            if pts is not None and pts > reading.reached:
                reading.reached = pts
            _, restart = kind(packet)
            # Of an open GOP, H.264's decoder shows the key frame only when it was given what comes before it.
            yield Unit(packet, pts, restart, restart, not packet.is_discard, packet.size)
    except (av.error.FFmpegError, OSError) as error:
        reading.problem = error


def decode(
    opened: Opened,
    limits: DecodeLimits,
    *,
    fps: float = 1.0,
    after: float = 0.0,
    until: float | None = None,
    phase: float = 0.0,
) -> Iterator[Picture]:
    """The sampled frames, ascending. `opened.mode` changes if the footage does not keep what its start promised.

    Args:
        after: skip that many seconds of stream time (one seek to a key frame before).
        until: stop before the first frame that lies so many seconds or more behind the start.
        phase: seconds between the grid's second 0 and the first frame, in [0, 1).

    Raises:
        NoFrames: nothing decodes at all.
        DecodeFailed: decoding broke off, or a limit was met; what came before has been yielded.
    """
    first = opened.first_pts
    packets = chain(opened.head, opened.rest) if after <= 0 else _packets_from(opened, first + after)
    opened.head, stream = [], opened.stream
    rate = float(stream.average_rate or 25)
    reading = _Reading(first)
    plan = Plan(
        _units(packets, stream, reading),
        Sampler(fps, first=first - phase, after=after),
        mode=opened.mode,
        tolerance=_key_gap(stream, fps),
    )
    sampler = Sampler(fps, first=first - phase, after=after)
    base, aspect = float(stream.time_base), Fraction(stream.sample_aspect_ratio or 1)
    reformatter = VideoReformatter()
    taken, last, any_frame = 0, first - 1 / rate, False
    for frame in _frames(plan, stream, reading):
        any_frame = True
        opened.mode = plan.mode
        pts = frame.pts * base if frame.pts is not None else last + 1 / rate
        last = pts
        if not sampler.take(pts):
            continue
        if until is not None and pts - first + 1e-6 >= until:  # as chunks are told apart, see `ingest.chunks`
            return
        if taken >= limits.frames:
            raise DecodeFailed(f"more than {limits.frames} frames; split the file")
        taken += 1
        yield _picture(frame, pts, aspect, reformatter, limits)
    opened.mode = plan.mode
    if not any_frame and after == 0:
        raise NoFrames(f"no frame decodes ({reading.problem or 'the video stream is empty'})")
    if reading.problem is not None:
        raise DecodeFailed(
            f"decoding broke off after {last - first:.0f} s ({reading.problem}); what came before is kept"
        )
    # The plan passes over the end of the footage, so what was read counts, unless wanted frames did not decode.
    silent = 5 + 1 / fps
    reached = last if plan.mode == "all" or reading.reached - last > silent else reading.reached
    if opened.duration and max(reached - first, after) < opened.duration - 5:
        raise DecodeFailed(
            f"the file promises {opened.duration:.0f} s and decodes {reached - first:.0f} s; it is probably cut off, "
            "what decodes is kept"
        )


def _packets_from(opened: Opened, target: float) -> Iterator[Any]:
    """Packets from a key frame at or before `target` seconds, or from the start where the format cannot seek.

    Formats without an index land near the target, at times behind it or between key frames: then from further back.
    """
    stream, first, kind = opened.stream, opened.first_pts, _kinds(opened.stream)
    opened.rest = iter(())
    for back in (0.0, 5.0, 30.0, 120.0):
        if target - back <= first:
            break
        try:
            opened.container.seek(int((target - back) / stream.time_base), stream=stream, backward=True)
            packets = _demux(opened.container, stream)
            found = next((packet for packet in packets if kind(packet)[0]), None)
        except (av.error.FFmpegError, OSError):
            break
        if found is not None and found.pts is not None and float(found.pts * found.time_base) <= target + 1e-6:
            return chain([found], packets)
    opened.container.close()
    opened.container, opened.stream = open_container(opened.source)
    return _demux(opened.container, opened.stream)


def _frames(plan: Plan[Any], stream: Any, reading: _Reading) -> Iterator[Any]:
    """Decoded frames; packets that do not decode are passed over as long as others follow."""
    context, broken, whole = stream.codec_context, 0, True
    disposable = _disposable(stream)
    for planned in chain(plan, [None]):  # None makes the decoder give what it still holds
        try:
            if planned is not None and not planned.whole and disposable(planned.packet):
                continue
            if planned is not None and planned.whole != whole:
                whole = planned.whole
                context.skip_frame = _SKIP[whole]  # goes with the packet, also to a decoder's other threads
            yield from context.decode(planned.packet if planned is not None else None)
        except av.error.InvalidDataError:
            broken += 1
            if broken > 10_000:
                reading.problem = DecodeFailed(f"{broken} packets do not decode")
                return
        except (av.error.FFmpegError, OSError) as error:
            reading.problem = error
            return


def _picture(frame: Any, pts: float, aspect: Fraction, reformatter: VideoReformatter, limits: DecodeLimits) -> Picture:
    """RGB with square pixels. Only sampled frames come here: converting costs about as much as decoding one."""
    width = frame.width if aspect <= 0 else max(1, round(frame.width * aspect))
    if max(width, frame.width) * frame.height > limits.pixels:
        raise DecodeFailed(f"a frame of {width} × {frame.height} is over the limit of {limits.pixels} pixels")
    rgb = reformatter.reformat(frame, width=width, height=frame.height, format="rgb24")
    plane = rgb.planes[0]
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return Picture(pts, width, frame.height, plane.line_size, turns, memoryview(plane))
