"""Decoding of a file in a process of its own, so that a hostile or damaged file cannot harm this one.

There is one process a file, which opens the file once (`ingest.decoding.worker`, started by
`ingest.decoding.decoder_process`). Frames come through shared memory with room for a few of them, so the process waits
while its frames are not read. A process that crashes, exceeds a limit, sends an invalid message or is silent for too
long raises DecodeFailed for that one file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import mmap
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from index.errors import NotVideo, SourceNotFound, UsageError, mask_url, shown_text
from index.records import Time, from_micros, parse_time
from ingest.decoding.decoder_process import DecoderProcess, MessageReader
from ingest.decoding.frame import Frame
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.protocol import DONE, FRAME, FRAME_BODY, MODES, OPENED
from ingest.decoding.timeline import Discontinuity
from ingest.sources.files import fetched
from ingest.sources.start_time import find_start

_log = structlog.get_logger(__name__)
_warned: set[str] = set()
_WARNINGS = 20
"""Most different reasons that one process logs, since a hostile file can make them up."""

__all__ = ["Decoding", "VideoInfo", "open_regular", "read_frames", "receive_info", "shared_memory"]


@dataclass(slots=True)
class VideoInfo:
    """What is known of a file once it is open."""

    mode: str
    """How it is decoded, see `ingest.decoding.decoder`. It may change until the last frame has been read."""
    first: float
    """pts of the first frame, in seconds."""
    duration: float | None
    """Seconds, None if the container does not state it."""
    created: datetime | None
    """Creation time in the container, None if there is none."""
    rate: float | None = None
    """Mean frames a second of the video, None if the container does not state it."""
    gpu: bool = False
    """Whether a GPU decodes it."""
    gpu_problem: str = ""
    """Why the GPU that the settings ask for does not decode it."""
    discontinuities: list[Discontinuity] = field(default_factory=list)
    """Steps and gaps of the timestamps, at most a hundred; known once the last frame has been read."""
    discontinuity_count: int = 0
    """How many there were."""

    def clock_problem(self, name: str) -> str | None:
        """A sentence about the steps and gaps of the file called `name`, None where there are none."""
        if not self.discontinuity_count:
            return None
        shown = "; ".join(str(step) for step in self.discontinuities[:3])
        more = self.discontinuity_count - len(self.discontinuities[:3])
        return f"{name}: {shown}" + (f"; and {more} more" if more else "")


def receive_info(reader: MessageReader) -> VideoInfo:
    """The first message of a confined process: what it found when it opened the file. Raises what it reports."""
    kind, body = reader.receive()
    if kind != OPENED:
        reader.raise_reported(kind, body)
    try:
        values = json.loads(body)
        mode, first, duration = values["mode"], float(values["first"]), values["duration"]
        created = datetime.fromisoformat(values["created"]) if values["created"] else None
        rate = None if values.get("rate") is None else float(values["rate"])
        if mode not in MODES or not math.isfinite(first) or not (duration is None or math.isfinite(duration)):
            raise ValueError(mode)
        if rate is not None and not 0 < rate < math.inf:
            raise ValueError(rate)
        gpu, problem = bool(values.get("gpu")), shown_text(str(values.get("gpu_problem", "")))
    except (ValueError, KeyError, TypeError, RecursionError):
        reader.raise_invalid()
    return VideoInfo(mode, first, duration, created, rate, gpu, problem)


class Decoding:
    """One file that is being decoded: iterates over (pts_seconds, pixels), and is a context manager that ends the
    process.

    Args:
        path: a local file.
        name: name of the file in error messages; its path by default. Credentials in it are masked.
        fps: frames a second of stream time.
        after: seconds of stream time to skip. Can be set until iteration begins, for instance after `info`.
        phase: offset of the first frame within its second, for a part of a stream; see `index.second_grid`.
        pictures: read a single picture (JPEG, PNG, WebP, BMP) and no footage.

    Attributes:
        until: seconds of stream time to stop at, None for the end. Can be set like `after`.

    Raises:
        SourceNotFound: no such file, or no permission to read it.
        NotVideo, NoFrames, DecodeFailed: see `index.errors`; raised by `info` and by iteration, after the frames that
            were decoded.
        SandboxUnavailable: raised likewise if `limits.require_sandbox` and the process is not confined.
        GpuUnavailable, SourceUnsupported: raised likewise if `limits.decoder` is `gpu-only`, and there is no GPU that
            decodes video, or it cannot decode this file.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        fps: float = 1.0,
        after: float = 0.0,
        phase: float = 0.0,
        limits: DecodeLimits | None = None,
        pictures: bool = False,
    ) -> None:
        self.path, self.after, self.phase, self.limits = str(path), after, phase, limits or DecodeLimits()
        self.name = mask_url(name or self.path)
        self.until: float | None = None
        source = open_regular(path, name=self.name)
        try:
            memory = shared_memory(self.limits.pixels * 3)
            try:
                self._memory = np.frombuffer(mmap.mmap(memory, 0, prot=mmap.PROT_READ), np.uint8)
                order = {"task": "decode", "fps": fps, "pictures": pictures, "limits": asdict(self.limits)}
                self.process = DecoderProcess(order, source=source, memory=memory)
            finally:
                os.close(memory)
        finally:
            os.close(source)
        os.set_blocking(self.process.stdin, False)
        self._reader = MessageReader(self.process, name=self.name, stall_seconds=self.limits.stall_seconds)
        self._info: VideoInfo | None = None

    def info(self) -> VideoInfo:
        """What the process found when it opened the file. Raises as iteration does."""
        if self._info is None:
            self._info = receive_info(self._reader)
            if problem := self._info.gpu_problem:
                _warn_once(problem, self.name)
        return self._info

    def __iter__(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        info = self.info()
        self._send(json.dumps({"after": self.after, "until": self.until, "phase": self.phase}).encode() + b"\n")
        while True:
            kind, body = self._reader.receive()
            if kind == FRAME:
                frame = self._copied(body)
                self._send(b"\0")
                yield frame
            elif kind == DONE:
                self._finish(info, body)
                return
            else:
                self._reader.raise_reported(kind, body)

    def _finish(self, info: VideoInfo, body: bytes) -> None:
        """Take over what is known once the file was read to its end."""
        try:
            values = json.loads(body)
            found = [
                Discontinuity(float(at), float(by), bool(bridged)) for at, by, bridged in values["discontinuities"]
            ]
            mode, count = values["mode"], int(values["count"])
            if mode not in MODES or not all(math.isfinite(step.at) and math.isfinite(step.by) for step in found):
                raise ValueError(mode)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            self._reader.raise_invalid()
        info.mode, info.discontinuities, info.discontinuity_count = mode, found, max(count, len(found))

    def _copied(self, body: bytes) -> tuple[float, NDArray[np.uint8]]:
        """A copy of a frame in the shared memory. The message is checked, because the file may control the process."""
        if len(body) != FRAME_BODY.size:
            self._reader.raise_invalid()
        pts, at, width, height, turns = FRAME_BODY.unpack(body)
        size = width * height * 3
        if not (math.isfinite(pts) and size and at + size <= len(self._memory)):
            self._reader.raise_invalid()
        pixels = self._memory[at : at + size].reshape(height, width, 3)
        return pts, np.array(np.rot90(pixels, turns), order="C")

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # the process ended; the reader raises the reason
            os.write(self.process.stdin, data)

    def close(self) -> None:
        """Kill the process if it still runs, and close the pipes."""
        self.process.close()

    def __enter__(self) -> Decoding:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _warn_once(problem: str, name: str) -> None:
    """Log that a GPU does not decode, the first time that this process meets the reason."""
    if problem not in _warned and len(_warned) < _WARNINGS:
        _warned.add(problem)
        _log.warning("video is decoded in software, not on the GPU", reason=problem, file=name)


def open_regular(path: str | Path, *, name: str | None = None) -> int:
    """A descriptor of a regular file, open for reading. Error messages name the file as `name`.

    Raises:
        SourceNotFound: no such file, or no permission to read it.
        NotVideo: a folder, a device, a pipe or a socket: reading one could block forever.
    """
    shown = mask_url(name or str(path))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SourceNotFound(f"{shown}: {error.strerror}; check the path and its permissions") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotVideo(f"{shown}: not a regular file; name a file, or a folder of files")
    return descriptor


def shared_memory(size: int) -> int:
    """A descriptor of `size` bytes of shared memory. Only pages that are written to use memory.

    It is sealed where the system supports that: a process that shrank it would kill its parent by SIGBUS.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("sightline-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return descriptor
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return os.dup(file.fileno())


def read_frames(
    source: str | Path, *, fps: float = 1.0, start: Time | None = None, limits: DecodeLimits | None = None
) -> Iterator[Frame]:
    """The frames of one video file, `fps` a second of stream time, decoded in a process of its own.

    Args:
        source: a local path, or an http(s) or object-store URL (see `ingest.sources.files`).
        fps: above 0 and at most 1000. For second k, the first frame with pts ≥ k is taken; see
            `ingest.decoding.decoder` for files whose sync points are dense.
        start: time of the first frame: a datetime with a time zone, RFC 3339 or UTC microseconds. By default it is
            found as `ingest.sources.start_time.find_start` describes.

    Yields:
        `Frame`, ascending in time.

    Raises:
        UsageError: `fps` is out of range, or `start` is not a time or has no time zone.
        SourceNotFound, SourceDenied, NotVideo, NoFrames: raised before the first frame.
        DecodeFailed: raised after the frames that were decoded.
    """
    if not 0 < fps <= 1000:
        raise UsageError(f"fps must be above 0 and at most 1000, got {fps}")
    given = parse_time(start, "start")
    return _read_frames(str(source), fps, None if given is None else from_micros(given), limits)


def _read_frames(source: str, fps: float, given: datetime | None, limits: DecodeLimits | None) -> Iterator[Frame]:
    with fetched(source) as path, Decoding(path, name=source, fps=fps, limits=limits) as decoding:
        info = decoding.info()
        began = find_start(path, given=given, created=info.created, duration=info.duration).micros
        for pts, pixels in decoding:
            yield Frame(pixels, pts, from_micros(began + round((pts - info.first) * 1e6)))
