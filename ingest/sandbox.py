"""Decoding in a child process: whatever a file does to the decoder, it does it there.

The pipe between the two is the bounded queue: a child whose frames nobody takes waits. A child that crashes, breaks a
limit or says nothing for too long is an error of that one file.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from index import errors
from index.errors import DecodeFailed, SourceError, UsageError
from index.records import ClockSource, from_micros, parse_rfc3339
from ingest.clock import began_at
from ingest.frame import Frame
from ingest.limits import Limits

__all__ = ["Decoding", "read_frames"]


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
        after: seconds of stream time to skip.
        phase: how far into its second the file begins, for a piece of a stream; see `index.seconds`. None for a file
            that is no piece.

    Raises:
        NotVideo, NoFrames, DecodeFailed: see `index.errors`; raised while iterating, after the frames that did decode.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: float = 1.0,
        after: float = 0.0,
        phase: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.path, self.limits = str(path), limits or Limits()
        order = {"path": self.path, "fps": fps, "after": after, "phase": phase, "limits": asdict(self.limits)}
        # The packages lie beside this one; a child started elsewhere must find them, and needs nothing else of ours.
        root = str(Path(__file__).parents[1])
        keep = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
        environment = {k: v for k, v in os.environ.items() if k in keep}
        environment["PYTHONPATH"] = os.pathsep.join([root, *[p for p in sys.path if p]])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ingest.child", json.dumps(order)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        assert self.process.stdout is not None  # for the type checker: a pipe was asked for
        self._out: BinaryIO = self.process.stdout  # type: ignore[assignment]
        os.set_blocking(self._out.fileno(), False)
        self._info: _Info | None = None
        self._pending: tuple[bytes, bytes] | None = None

    def info(self) -> _Info:
        """What the child opened. Raises as iteration does."""
        if self._info is None:
            kind, body = self._message()
            if kind == b"E":
                self._fail(body)
            values = json.loads(body)
            created = datetime.fromisoformat(values["created"]) if values["created"] else None
            self._info = _Info(values["mode"], values["first"], values["duration"], created)
        return self._info

    def __iter__(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        info = self.info()
        while True:
            kind, body = self._message()
            if kind == b"F":
                pts = float(np.frombuffer(body, "<f8", 1)[0])
                height, width = (int(v) for v in np.frombuffer(body, "<u4", 2, 8))
                yield pts, np.frombuffer(body, np.uint8, offset=16).reshape(height, width, 3)
            elif kind == b"D":
                info.mode = json.loads(body)["mode"]
                return
            else:
                self._fail(body)

    def _fail(self, body: bytes) -> None:
        told = json.loads(body)
        kind = getattr(errors, told["type"], DecodeFailed)
        raise kind(f"{errors.mask_url(self.path)}: {told['message']}")

    def _message(self) -> tuple[bytes, bytes]:
        header = self._read(5)
        return header[:1], self._read(int.from_bytes(header[1:], "little"))

    def _read(self, count: int) -> bytes:
        """Exactly `count` bytes, or a DecodeFailed that says why the child stopped talking."""
        buffer = bytearray(count)
        view, have = memoryview(buffer), 0
        deadline = time.monotonic() + self.limits.stall_seconds
        while have < count:
            ready, _, _ = select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                raise DecodeFailed(
                    f"{self.path}: the decoder said nothing for {self.limits.stall_seconds:g} s and was stopped; "
                    "the file is damaged or its disk hangs"
                )
            got = os.readv(self._out.fileno(), [view[have:]])
            if got == 0:
                self._report_death()
            have += got
            deadline = time.monotonic() + self.limits.stall_seconds
        return bytes(buffer)

    def _report_death(self) -> None:
        code = self.process.wait()
        if code == -signal.SIGXCPU:
            why = f"used more than {self.limits.cpu_seconds} s of CPU"
        elif code < 0:
            why = f"was killed by {signal.Signals(-code).name}"
        else:
            tail = (self.process.stderr.read() if self.process.stderr else b"").decode(errors="replace").strip()
            why = f"stopped with exit code {code} ({tail.splitlines()[-1] if tail else 'no message'})"
        raise DecodeFailed(f"{self.path}: the decoder {why}; this file was not finished, the others are not affected")

    def close(self) -> None:
        """Stop the child, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()

    def __enter__(self) -> Decoding:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def clock_of(path: str | Path, info: Any, given: datetime | None) -> tuple[int, ClockSource]:
    """UTC microseconds of a local file's first frame, and whence that is known."""
    modified = datetime.fromtimestamp(Path(path).stat().st_mtime, UTC)
    return began_at(Path(path).name, given=given, container=info.created, modified=modified)


def read_frames(
    source: str | Path, *, fps: float = 1.0, start: datetime | str | None = None, limits: Limits | None = None
) -> Iterator[Frame]:
    """The frames of one video file, `fps` a second of stream time, decoded in a child process.

    Args:
        source: a local path, or an http(s) or object-store URL (see `ingest.sources`).
        fps: above 0; for second k the first frame with pts ≥ k, see `ingest.decoder` for what GOPs allow.
        start: UTC time of the first frame (datetime with a zone, or RFC 3339); found out when not given.

    Yields:
        `Frame`: pixels uint8[H, W, 3] RGB, pts_seconds, captured_at.

    Raises:
        UsageError: fps not above 0, or a start without a time zone.
        SourceNotFound, SourceDenied, NotVideo, NoFrames, DecodeFailed: the last after the frames that did decode.
    """
    from ingest.sources import fetched

    if not 0 < fps <= 1000:
        raise UsageError(f"fps must be above 0 and at most 1000, got {fps}")
    given = from_micros(parse_rfc3339(start)) if isinstance(start, str) else start
    if given is not None and given.tzinfo is None:
        raise UsageError(f"start {given.isoformat()} has no time zone; write it as {given.isoformat()}Z for UTC")
    return _read(str(source), fps, given, limits, fetched)


def _read(source: str, fps: float, given: datetime | None, limits: Limits | None, fetched: Any) -> Iterator[Frame]:
    with fetched(source) as path, Decoding(path, fps=fps, limits=limits) as decoding:
        try:
            info = decoding.info()
            began, _ = clock_of(path, info, given)
            for pts, pixels in decoding:
                yield Frame(pixels, pts, from_micros(began + round((pts - info.first) * 1e6)))
        except SourceError as error:
            raise type(error)(str(error).replace(str(path), errors.mask_url(source))) from None
