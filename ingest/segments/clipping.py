"""Clips of footage: packets copied into one playable file, in a confined process, so that hostile footage cannot harm
this one.

The process is one of the fork server's (`ingest.decoding.decoder_process`), which runs `ingest.segments.joiner`. It
gets the footage as a descriptor and writes to another one; neither has a name there.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from index.errors import EmptyWindow, UsageError, mask_url
from index.records import rfc3339
from ingest.decoding.decoder_process import DecoderProcess, MessageReader
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.protocol import CLIPPED, DONE
from ingest.segments.redaction import Box

__all__ = ["MOST_BYTES", "ClipKind", "ClipSpan", "ClipWriter", "Encoding", "Redaction", "clip_file", "clip_kind"]

ClipKind = Literal["mp4", "matroska", "webm"]
MOST_BYTES = 2**40
"""Largest clip that a process may write, if nothing else bounds it."""


@dataclass(frozen=True, slots=True)
class ClipSpan:
    """The content of a clip."""

    first: int
    """UTC microseconds of its first frame."""
    end: int
    """UTC microseconds of the end of its last frame."""
    frames: int
    """The number of frames."""
    parts: int
    """The number of parts it was cut from."""
    missing_seconds: float
    """Seconds between parts that no footage covers."""


@dataclass(frozen=True, slots=True)
class Redaction:
    """A box that is removed from the frames of a stretch of time, see `ingest.segments.redaction`."""

    start: int
    """UTC microseconds."""
    end: int
    """UTC microseconds, exclusive."""
    box: Box
    """Left, top, right and bottom, as shares of the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How a clip is encoded again, instead of being copied."""

    codec: str
    """FFmpeg's name of the encoder, see `ingest.segments.transcoder.video_encoder`."""
    fps: float = 25.0
    """Most frames a second."""
    width: int = 1280
    """Largest width, in pixels."""
    fragments: bool = False
    """Whether the file can be read before it is complete."""
    redactions: tuple[Redaction, ...] = ()
    """What is removed."""

    def order(self) -> dict[str, Any]:
        """The fields of the order for `ingest.segments.transcoder.encode_clip`."""
        boxes = [[each.start, each.end, list(each.box)] for each in self.redactions]
        return {**{name: getattr(self, name) for name in ("codec", "fps", "width", "fragments")}, "boxes": boxes}


def clip_kind(path: str | Path) -> ClipKind:
    """The container of a clip by its file's suffix. Raises UsageError for another one than .mp4 and .mkv."""
    suffix = Path(path).suffix.lower()
    if suffix == ".mp4":
        return "mp4"
    if suffix == ".mkv":
        return "matroska"
    raise UsageError(f"{path}: name the clip .mp4 or .mkv")


class ClipWriter:
    """A clip that is being written by a confined process; a context manager that ends the process.

    Args:
        source: descriptor of the footage, open for reading. For several parts, the caller replaces its content before
            each `add`.
        out: descriptor that the clip is written to: a file, open for reading and writing, or a pipe. MP4 is written in
            fragments to a pipe, which must be read meanwhile, for instance in another thread.
        kind: the clip's container.
        start, end: UTC microseconds of the wanted time.
        name: of the footage, in error messages; credentials in it are masked.
        limits: limits of the process.
        input_bytes: size of all parts together, which bounds the CPU time; that of `source` by default.
        output_bytes: most bytes of a clip that is written to a file.
        encoding: how the clip is encoded; packets are copied when None.

    Raises:
        UsageError: `start` is not before `end`.
    """

    def __init__(
        self,
        source: int,
        out: int,
        *,
        kind: ClipKind,
        start: int,
        end: int,
        name: str,
        limits: DecodeLimits | None = None,
        input_bytes: int = 0,
        output_bytes: int = MOST_BYTES,
        encoding: Encoding | None = None,
    ) -> None:
        if start >= end:
            raise UsageError(f"{rfc3339(start)} is not before {rfc3339(end)}")
        self.name, self.start, self.end, self.span = mask_url(name), start, end, ClipSpan(0, 0, 0, 0, 0.0)
        limits = limits or DecodeLimits()
        order = {
            "task": "clip",
            "kind": kind,
            "start": start,
            "end": end,
            "limits": asdict(limits),
            "input_bytes": input_bytes,
            "output_bytes": output_bytes,
        }
        if encoding is not None:
            order |= {"task": "encode", **encoding.order()}
        self._process = DecoderProcess(order, source=source, memory=out)
        self._messages = MessageReader(self._process, name=self.name, stall_seconds=limits.stall_seconds)

    def add(self, start: int, end: int | None = None, *, after: int | None = None, until: int | None = None) -> None:
        """Copy what is wanted of the present content of `source`.

        Args:
            start: UTC microseconds of its first frame.
            end: UTC microseconds of its end; that of its last frame when None.
            after: UTC microseconds before which it is not used, so that it begins with its first intra frame from then
                on.
            until: UTC microseconds from which on it is not used.

        Raises:
            NotVideo, DecodeFailed: it cannot be read, or continues with another codec or size than the part before.
            SandboxUnavailable: `limits.require_sandbox`, and the process is not confined.
        """
        self._send({"start": start, "end": end, "after": after, "until": until})
        while not self._receive():
            pass

    def finish(self) -> ClipSpan:
        """Finish the file. Raises EmptyWindow if it has no frame, and what `add` raises."""
        self._send(None)
        while True:
            kind, body = self._messages.receive()
            if kind == DONE:
                break
            self._progress(kind, body)
        if not self.span.frames:
            raise EmptyWindow(f"{self.name}: no frame between {rfc3339(self.start)} and {rfc3339(self.end)}")
        return self.span

    def _send(self, part: dict[str, int | None] | None) -> None:
        with suppress(BrokenPipeError):  # the process ended; the reader raises the reason
            os.write(self._process.stdin, json.dumps(part).encode() + b"\n")

    def _receive(self) -> bool:
        return self._progress(*self._messages.receive())

    def _progress(self, kind: bytes, body: bytes) -> bool:
        """Take over how far the clip is; whether the part was read."""
        if kind != CLIPPED:
            self._messages.raise_reported(kind, body)
        try:
            values = json.loads(body)
            numbers = [values[key] for key in ("first", "end", "frames", "parts", "missing")]
            if not all(isinstance(number, int) and 0 <= number < 2**62 for number in numbers):
                raise ValueError(numbers)
            read = bool(values["read"])
        except (ValueError, KeyError, TypeError, RecursionError):
            self._messages.raise_invalid()
        first, end, frames, parts, missing = numbers
        self.span = ClipSpan(first, end, frames, parts, missing / 1e6)
        return read

    def stop(self) -> None:
        """End the process now, from another thread; what waits for it raises DecodeFailed."""
        self._process.kill()

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.close()


def clip_file(
    source: int,
    out: int,
    *,
    began: int,
    start: int,
    end: int,
    kind: ClipKind = "mp4",
    name: str,
    limits: DecodeLimits | None = None,
    encoding: Encoding | None = None,
    output_bytes: int = MOST_BYTES,
) -> ClipSpan:
    """Write the footage of one ordinary file between two times, without encoding it again unless `encoding` says how.

    The clip begins with the last intra frame at or before `start`, so up to one group of pictures earlier. The file is
    not read before it, where its format has an index. Times are those under which `ingest` stores the file's frames.

    Args:
        source: descriptor of the file, open for reading (`ingest.decoding.sandbox.open_regular`); its position changes.
        out: descriptor that the clip is written to: a file, open for reading and writing, or the writing end of a pipe,
            which another thread must read. It stays open.
        began: UTC microseconds of the file's first frame, such as the store has of its first segment.
        start, end: UTC microseconds.
        kind: the clip's container.
        name: of the file, in error messages; credentials in it are masked.
        limits: limits of the process.
        encoding: how the clip is encoded; packets are copied when None.
        output_bytes: most bytes of the clip.

    Raises:
        UsageError: `start` is not before `end`.
        EmptyWindow: the file has no frame between these times.
        NotVideo, DecodeFailed: the file cannot be read, or the process fails. What was written is not usable.
        SandboxUnavailable: `limits.require_sandbox`, and the process is not confined.
    """
    with ClipWriter(
        source,
        out,
        kind=kind,
        start=start,
        end=end,
        name=name,
        limits=limits,
        output_bytes=output_bytes,
        encoding=encoding,
    ) as writer:
        writer.add(began)
        return writer.finish()
