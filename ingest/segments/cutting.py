"""Cutting of a file into segments in a confined process, so that a hostile file cannot harm this one.

The process is one of the fork server's (`ingest.decoding.decoder_process`), which runs `ingest.segments.cutter`.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from index.errors import mask_url
from ingest.decoding.decoder_process import DecoderProcess, MessageReader
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.protocol import DONE, SEGMENT, SEGMENT_BODY
from ingest.decoding.sandbox import VideoInfo, open_regular, receive_info, shared_memory
from ingest.segments.cutter import FORMATS, CutSegment

__all__ = ["Cutting", "cut"]


class Cutting:
    """One file that is being cut: iterates over its segments in order, and is a context manager that ends the process.

    Args:
        path: a local file.
        name: name of the file in error messages; its path by default. Credentials in it are masked.
        seconds: least distance from the start of a segment to the start of the next.
        max_bytes: most bytes of packets in a segment.
        limits: limits of the process.

    Raises:
        SourceNotFound: no such file, or no permission to read it.
        NotVideo: the file has no video, or its codec fits neither MP4 nor Matroska.
        MessageTooLarge: a segment exceeds `max_bytes`.
        DecodeFailed: the file cannot be read to its end, or the process fails; the segments before were yielded.
        SandboxUnavailable: `limits.require_sandbox`, and the process is not confined.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str | None = None,
        seconds: float = 10.0,
        max_bytes: int = 256 * 2**20,
        limits: DecodeLimits | None = None,
    ) -> None:
        shown, limits = mask_url(name or str(path)), limits or DecodeLimits()
        order = {"task": "cut", "seconds": seconds, "max_bytes": max_bytes, "limits": asdict(limits)}
        source = open_regular(path, name=shown)
        try:
            memory = shared_memory(max_bytes + max_bytes // 4 + 2**20)  # with the container's index
            try:
                self._shared = mmap.mmap(memory, 0, prot=mmap.PROT_READ)
                self.process = DecoderProcess(order, source=source, memory=memory)
            finally:
                os.close(memory)
        finally:
            os.close(source)
        self._messages = MessageReader(self.process, name=shown, stall_seconds=limits.stall_seconds)
        self._info: VideoInfo | None = None

    def info(self) -> VideoInfo:
        """What the process found when it opened the file; its `mode` has no meaning. Raises as iteration does."""
        if self._info is None:
            self._info = receive_info(self._messages)
        return self._info

    def __iter__(self) -> Iterator[CutSegment]:
        self.info()
        while True:
            kind, body = self._messages.receive()
            if kind == DONE:
                return
            if kind != SEGMENT:
                self._messages.raise_reported(kind, body)
            try:
                pts, duration, number, size = SEGMENT_BODY.unpack(body)
                media_type = list(FORMATS.values())[number]
                if not math.isfinite(pts) or not 0 <= duration < math.inf or size > len(self._shared):
                    raise ValueError(pts)
            except (struct.error, IndexError, ValueError):
                self._messages.raise_invalid()
            payload = self._shared[:size]
            with suppress(BrokenPipeError):  # the process ended; the reader raises the reason
                os.write(self.process.stdin, b"\0")
            yield CutSegment(pts, duration, payload, media_type)

    def __enter__(self) -> Cutting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.close()


def cut(
    path: Path,
    *,
    name: str | None = None,
    seconds: float = 10.0,
    max_bytes: int = 256 * 2**20,
    limits: DecodeLimits | None = None,
) -> Iterator[CutSegment]:
    """The segments of a local file, in order. Arguments and errors are those of `Cutting`."""
    with Cutting(path, name=name, seconds=seconds, max_bytes=max_bytes, limits=limits) as cutting:
        yield from cutting
