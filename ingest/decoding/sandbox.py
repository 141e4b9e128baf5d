"""Decoding in a child process: whatever a file does to the decoder, it does it there.

Pixels come through shared memory with room for a few pictures, so a child whose frames nobody takes waits. A child that
crashes, breaks a limit or says nothing for too long is an error of that one file. There is one child a file, which opens
it once: what a hostile file did to its decoder dies with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import mmap
import os
import select
import signal
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from index import errors
from index.errors import DecodeFailed, NotVideo, SourceError, SourceNotFound, UsageError
from index.records import ClockSource, from_micros, parse_rfc3339
from ingest.decoding.decoder_process import DecoderProcess
from ingest.decoding.frame import Frame
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.protocol import HEADER, MOST_BYTES, PICTURE
from ingest.sources.start_time import began_at

__all__ = ["Decoding", "open_regular", "read_frames"]


@dataclass(slots=True)
class _Info:
    mode: str
    first: float
    duration: float | None
    created: datetime | None


class Decoding:
    """One file being decoded. Iterate over (pts_seconds, pixels); a context manager that leaves no process behind.

    Args:
        path: a local file.
        fps: frames a second of stream time.
        after: seconds of stream time to skip; may be set anew until iteration begins, for instance after `info`.
        until: seconds of stream time to stop at, None for the end; may be set anew like `after`.
        phase: how far into its second the file begins, for a piece of a stream; see `index.second_grid`.

    Raises:
        NotVideo, NoFrames, DecodeFailed: see `index.errors`; raised while iterating, after the frames that did decode.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: float = 1.0,
        after: float = 0.0,
        phase: float = 0.0,
        limits: DecodeLimits | None = None,
    ) -> None:
        self.path, self.after, self.phase, self.limits = str(path), after, phase, limits or DecodeLimits()
        self.until: float | None = None
        source = open_regular(path)
        try:
            memory = _shared_memory(self.limits.pixels * 3)
            try:
                self._pixels = np.frombuffer(mmap.mmap(memory, 0, prot=mmap.PROT_READ), np.uint8)
                order = {"fps": fps, "limits": asdict(self.limits)}
                self.process = DecoderProcess(order, source=source, memory=memory)
            finally:
                os.close(memory)
        finally:
            os.close(source)
        self._in, self._out = self.process.stdin, self.process.stdout
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)
        self._info: _Info | None = None

    def info(self) -> _Info:
        """What the child opened. Raises as iteration does."""
        if self._info is None:
            kind, body = self._message()
            if kind != b"I":
                self._fail(body)
            try:
                values = json.loads(body)
                created = datetime.fromisoformat(values["created"]) if values["created"] else None
                self._info = _Info(values["mode"], values["first"], values["duration"], created)
            except (ValueError, KeyError, TypeError):
                self._nonsense()
        return self._info

    def __iter__(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        info = self.info()
        self._tell(json.dumps({"after": self.after, "until": self.until, "phase": self.phase}).encode() + b"\n")
        while True:
            kind, body = self._message()
            if kind == b"F":
                picture = self._picture(body)
                self._tell(b"\0")
                yield picture
            elif kind == b"D":
                info.mode = body.decode()
                return
            else:
                self._fail(body)

    def _picture(self, body: bytes) -> tuple[float, NDArray[np.uint8]]:
        """A copy of what the child put into the shared memory; its word is checked, as it may have been taken over."""
        if len(body) != PICTURE.size:
            self._nonsense()
        pts, at, width, height, turns = PICTURE.unpack(body)
        size = width * height * 3
        if not (math.isfinite(pts) and size and at + size <= len(self._pixels)):
            self._nonsense()
        pixels = self._pixels[at : at + size].reshape(height, width, 3)
        return pts, np.array(np.rot90(pixels, turns), order="C")

    def _fail(self, body: bytes) -> NoReturn:
        try:
            told = json.loads(body)
            kind, message = getattr(errors, told["type"]), str(told["message"])
        except (ValueError, KeyError, TypeError, AttributeError):
            self._nonsense()
        if not (isinstance(kind, type) and issubclass(kind, SourceError)):
            self._nonsense()
        raise kind(f"{errors.mask_url(self.path)}: {message}")

    def _nonsense(self) -> NoReturn:
        self.close()
        raise DecodeFailed(
            f"{self.path}: the decoder said something that cannot be and was stopped; do not trust the file"
        )

    def _tell(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died: reading says how
            os.write(self._in, data)

    def _message(self) -> tuple[bytes, bytes]:
        header = self._read(HEADER.size)
        kind, length = HEADER.unpack(header)
        if length > MOST_BYTES:
            self._nonsense()
        return kind, self._read(length)

    def _read(self, count: int) -> bytes:
        """Exactly `count` bytes, or a DecodeFailed that says why the child stopped talking."""
        buffer = bytearray()
        while len(buffer) < count:
            if not self._poll.poll(self.limits.stall_seconds * 1000):
                self.close()
                raise DecodeFailed(
                    f"{self.path}: the decoder said nothing for {self.limits.stall_seconds:g} s and was stopped; "
                    "the file is damaged or its disk hangs"
                )
            got = os.read(self._out, count - len(buffer))
            if not got:
                self._report_death()
            buffer += got
        return bytes(buffer)

    def _report_death(self) -> NoReturn:
        code = self.process.wait()
        if code == -signal.SIGXCPU:
            why = f"used more than {self.limits.cpu_seconds} s of CPU"
        elif code < 0:
            why = f"was killed by {signal.Signals(-code).name}"
        else:
            tail = os.read(self.process.stderr, 65536).decode(errors="replace").strip()
            why = f"stopped with exit code {code} ({tail.splitlines()[-1] if tail else 'no message'})"
        raise DecodeFailed(f"{self.path}: the decoder {why}; this file was not finished, the others are not affected")

    def close(self) -> None:
        """Stop the child, if it still runs."""
        self.process.close()

    def __enter__(self) -> Decoding:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def open_regular(path: str | Path) -> int:
    """A descriptor of a regular file, open for reading.

    Raises:
        SourceNotFound: no such file, or no permission.
        NotVideo: a folder, a device, a pipe or a socket, which could block for ever.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SourceNotFound(
            f"{errors.mask_url(str(path))}: {error.strerror}; check the path and its permissions"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotVideo(f"{path}: not a regular file; name a file, or a folder of files")
    return descriptor


def _shared_memory(size: int) -> int:
    """A descriptor of memory that two processes can map. Only what is written to takes room.

    Sealed, where the system can: a child that shrank it would kill its parent by SIGBUS.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("sightline-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return descriptor
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return os.dup(file.fileno())


def clock_of(path: str | Path, info: Any, given: datetime | None) -> tuple[int, ClockSource]:
    """UTC microseconds of a local file's first frame, and whence that is known."""
    modified = datetime.fromtimestamp(Path(path).stat().st_mtime, UTC)
    return began_at(Path(path).name, given=given, container=info.created, modified=modified)


def read_frames(
    source: str | Path, *, fps: float = 1.0, start: datetime | str | None = None, limits: DecodeLimits | None = None
) -> Iterator[Frame]:
    """The frames of one video file, `fps` a second of stream time, decoded in a child process.

    Args:
        source: a local path, or an http(s) or object-store URL (see `ingest.sources.files`).
        fps: above 0; for second k the first frame with pts ≥ k, see `ingest.decoding.decoder` for what GOPs allow.
        start: UTC time of the first frame (datetime with a zone, or RFC 3339); found out when not given.

    Yields:
        `Frame`: pixels uint8[H, W, 3] RGB, pts_seconds, captured_at.

    Raises:
        UsageError: fps not above 0, or a start without a time zone.
        SourceNotFound, SourceDenied, NotVideo, NoFrames, DecodeFailed: the last after the frames that did decode.
    """
    from ingest.sources.files import fetched

    if not 0 < fps <= 1000:
        raise UsageError(f"fps must be above 0 and at most 1000, got {fps}")
    given = from_micros(parse_rfc3339(start)) if isinstance(start, str) else start
    if given is not None and given.tzinfo is None:
        raise UsageError(f"start {given.isoformat()} has no time zone; write it as {given.isoformat()}Z for UTC")
    return _read(str(source), fps, given, limits, fetched)


def _read(
    source: str, fps: float, given: datetime | None, limits: DecodeLimits | None, fetched: Any
) -> Iterator[Frame]:
    with fetched(source) as path, Decoding(path, fps=fps, limits=limits) as decoding:
        try:
            info = decoding.info()
            began, _ = clock_of(path, info, given)
            for pts, pixels in decoding:
                yield Frame(pixels, pts, from_micros(began + round((pts - info.first) * 1e6)))
        except SourceError as error:
            raise type(error)(str(error).replace(str(path), errors.mask_url(source))) from None
