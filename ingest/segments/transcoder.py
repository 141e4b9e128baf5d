"""Decoding and encoding of footage for a browser: H.264 in MP4 (VP9 in WebM without an H.264 encoder), boxes removed.

This module reads untrusted files and runs in a confined process. `ingest.segments.clipping.ClipWriter` starts it with
an `Encoding`, and gives it the parts of the footage one after the other, as it does for `ingest.segments.joiner`.
`ingest.segments.playing` asks for `probe_file`.

Frames are those of `ingest.decoding.decoder.decode`: at most as many a second as ordered, with square pixels and
upright.
"""

from __future__ import annotations

import os
import time
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from numpy.typing import NDArray

from index.records import from_micros
from ingest.decoding.decoder import RgbFrame, decode, open_video
from ingest.decoding.demuxer import frame_seconds
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.protocol import CLIPPED, DONE
from ingest.decoding.worker import ParentPipes
from ingest.segments.redaction import redact

__all__ = ["encode_clip", "probe_file", "video_encoder"]

_BASE = Fraction(1, 90_000)
_BEAT_SECONDS = 2.0
"""Longest time without a message while frames are encoded."""
_FRAGMENTS = "frag_keyframe+empty_moov+default_base_moof"
_X264 = {"preset": "veryfast", "tune": "zerolatency", "crf": "24"}
_VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "34", "b": "0"}


def video_encoder() -> tuple[str, Literal["mp4", "webm"]]:
    """The encoder that this build of PyAV has, and the container format that goes with it."""
    known: tuple[tuple[str, Literal["mp4", "webm"]], ...] = (("libx264", "mp4"), ("libvpx-vp9", "webm"))
    for name, kind in known:
        try:
            av.Codec(name, "w")
        except av.error.FFmpegError:
            continue
        return name, kind
    return "mpeg4", "mp4"


def probe_file(parent: ParentPipes, order: Any, source: int, memory: int, limits: DecodeLimits) -> None:
    """Tell what a file has: a task of `ingest.decoding.worker`, which sends one message of the kind DONE."""
    video = open_video(source, limits)
    context = video.demuxer.stream.codec_context
    parent.send_json(
        DONE,
        format=str(video.demuxer.container.format.name),
        codec=str(context.name),
        pixels=str(context.pix_fmt or ""),
        width=int(context.width),
        height=int(context.height),
        first=float(video.first_pts),
        seconds=video.duration,
        frame=frame_seconds(video.demuxer.stream),
    )
    video.demuxer.container.close()


def encode_clip(parent: ParentPipes, order: Any, source: int, memory: int, limits: DecodeLimits) -> None:
    """Encode one clip: a task of `ingest.decoding.worker`.

    Args:
        order: `kind`, `start` and `end`, as for `ingest.segments.joiner.write_clip`; `codec`, an encoder; `fps`, most
            frames a second; `width`, the largest in pixels; `fragments`, whether MP4 is written so that it can be read
            before it is complete; `boxes`, a list of [start, end, [left, top, right, bottom]], in UTC microseconds and
            shares of the picture.
        source: descriptor of the parts, one after the other.
        memory: descriptor of the file that the clip is written to.
        limits: limits of decoding.
    """
    clip = _Encoding(parent, order, memory)
    while (part := parent.receive_order()) is not None:
        clip.add(source, part["start"], part["end"], limits, begin=part["after"])
        clip.report(read=True)
    clip.close()
    parent.send_json(DONE)


class _File:
    """A file as PyAV writes to it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> int:
        """Write all of `data`."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; returns the new position."""
        return os.lseek(self._descriptor, offset, whence)

    def tell(self) -> int:
        """The position."""
        return os.lseek(self._descriptor, 0, os.SEEK_CUR)


class _Encoding:
    """The clip that is being encoded."""

    def __init__(self, parent: ParentPipes, order: Any, descriptor: int) -> None:
        self.parent, self.order, self.descriptor = parent, order, descriptor
        self.start, self.end = int(order["start"]), int(order["end"])
        self.first = self.reached = 0  # UTC microseconds
        self.frames = self.parts = self.missing = 0
        self.last_pts, self.spoke = -1, 0.0
        self.out: Any = None
        self.stream: Any = None
        self.size = (0, 0)

    def add(self, source: int, start: int, end: int | None, limits: DecodeLimits, *, begin: int | None = None) -> None:
        """Encode what is wanted of a part.

        Args:
            start: UTC microseconds of its first frame.
            end: UTC microseconds of its end; that of its last frame when None.
            begin: UTC microseconds before which nothing of it is used.
        """
        low = max(self.start, begin or self.start)
        after = max(0.0, (low - start) / 1e6)
        until = (min(self.end, end if end is not None else self.end) - start) / 1e6
        if until <= after:
            return
        video = open_video(source, limits, fps=self.order["fps"])
        length, used = max(frame_seconds(video.demuxer.stream), 1 / self.order["fps"]), False
        for frame in decode(video, limits, fps=self.order["fps"], after=after, until=until):
            at = start + round((frame.pts - video.first_pts) * 1e6)
            if at < low or at >= self.end:
                continue
            if used is False and self.frames:
                self.missing += max(0, at - self.reached)
            used = True
            self._encode(frame, at, round(length * 1e6))
        self.parts += used
        video.demuxer.container.close()

    def _encode(self, frame: RgbFrame, at: int, length: int) -> None:
        pixels = _upright(frame)
        boxes = [tuple(box) for begins, ends, box in self.order["boxes"] if begins <= at < ends]
        redact(pixels, boxes)
        if self.out is None:
            self._open(pixels, at)
        image = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(*self.size, format="yuv420p")
        image.pts = self.last_pts = max(self.last_pts + 1, round((at - self.first) / 1e6 / _BASE))
        image.time_base = _BASE
        self.out.mux(self.stream.encode(image))
        self.frames += 1
        self.reached = at + length
        if time.monotonic() - self.spoke > _BEAT_SECONDS:
            self.report()

    def _open(self, pixels: NDArray[np.uint8], at: int) -> None:
        self.first = self.reached = at
        height, width = pixels.shape[:2]
        scale = min(1.0, self.order["width"] / width)
        self.size = (max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2))
        kind, codec = self.order["kind"], self.order["codec"]
        flags = {"mp4": {"movflags": _FRAGMENTS}, "webm": {"live": "1"}}[kind] if self.order["fragments"] else {}
        self.out = av.open(_File(self.descriptor), "w", format=kind, options=flags)
        self.out.metadata["creation_time"] = from_micros(at).isoformat().replace("+00:00", "Z")
        options = {"libx264": _X264, "libvpx-vp9": _VP9}.get(codec, {})
        rate = Fraction(self.order["fps"]).limit_denominator(1000)
        self.stream = self.out.add_stream(codec, rate=rate, options=options)
        self.stream.width, self.stream.height = self.size
        self.stream.pix_fmt, self.stream.time_base = "yuv420p", _BASE
        self.stream.codec_context.time_base = _BASE
        self.stream.codec_context.gop_size = max(1, round(float(rate)))  # a second: how late a fragment is

    def report(self, *, read: bool = False) -> None:
        """Tell the parent how far the clip is."""
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
            self.out.mux(self.stream.encode(None))
            self.out.close()


def _upright(frame: RgbFrame) -> NDArray[np.uint8]:
    """A copy of a frame's pixels, uint8[height, width, 3]."""
    data = np.frombuffer(frame.data, np.uint8)
    rows = np.lib.stride_tricks.as_strided(data, (frame.height, frame.width, 3), (frame.stride, 3, 1), writeable=False)
    return np.array(np.rot90(rows, frame.turns), order="C")
