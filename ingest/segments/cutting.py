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

from index.errors import mask_url
from ingest.decoding.decoder_process import DecoderProcess, MessageReader
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.protocol import DONE, SEGMENT, SEGMENT_BODY
from ingest.decoding.sandbox import open_regular, shared_memory
from ingest.segments.cutter import FORMATS, CutSegment

__all__ = ["cut"]


def cut(
    path: Path,
    *,
    name: str | None = None,
    seconds: float = 10.0,
    max_bytes: int = 256 * 2**20,
    limits: DecodeLimits | None = None,
) -> Iterator[CutSegment]:
    """The segments of a local file, in order.

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
    shown, limits = mask_url(name or str(path)), limits or DecodeLimits()
    order = {"task": "cut", "seconds": seconds, "max_bytes": max_bytes, "limits": asdict(limits)}
    source = open_regular(path, name=shown)
    try:
        memory = shared_memory(max_bytes + max_bytes // 4 + 2**20)  # with the container's index
        try:
            shared = mmap.mmap(memory, 0, prot=mmap.PROT_READ)
            process = DecoderProcess(order, source=source, memory=memory)
        finally:
            os.close(memory)
    finally:
        os.close(source)
    with MessageReader(process, name=shown, stall_seconds=limits.stall_seconds) as messages:
        while True:
            kind, body = messages.receive()
            if kind == DONE:
                return
            if kind != SEGMENT:
                messages.raise_reported(kind, body)
            try:
                pts, duration, number, size = SEGMENT_BODY.unpack(body)
                media_type = list(FORMATS.values())[number]
                if not math.isfinite(pts) or not 0 <= duration < math.inf or size > len(shared):
                    raise ValueError(pts)
            except (struct.error, IndexError, ValueError):
                messages.raise_invalid()
            payload = shared[:size]
            with suppress(BrokenPipeError):  # the process ended; the reader raises the reason
                os.write(process.stdin, b"\0")
            yield CutSegment(pts, duration, payload, media_type)
