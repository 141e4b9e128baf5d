"""Playing the footage of a stream from a time on: files as they are, packets copied to MP4, or encoded anew.

    an ingested MP4 file of H.264        served as it is, in ranges; the browser seeks
    H.264 in another container, and      packets copied into an MP4 file of at most `WINDOW_SECONDS`, from the intra
    recorded segments                    frame before the time on
    anything else: H.265, MJPEG, AVI     decoded and encoded in the confined process, from exactly that time on, into a
                                         file that is sent while it grows

Files that are made are temporary and without a name; the least recently used go when they are too many or too large. At
most `JOBS` are made at once. One that nobody reads any more is stopped.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import IO, Literal

from index.errors import EmptyWindow, ServiceBusy, SightlineError, SourceError, SourceNotFound
from index.records import rfc3339
from ingest.decoding.limits import DecodeLimits
from ingest.live.clip import fetch_segment
from ingest.segments.clipping import ClipSpan, ClipWriter, Encoding
from ingest.segments.playing import MediaFacts, probe
from ingest.segments.transcoder import video_encoder
from pipeline.media.clip import write_footage
from pipeline.media.footage import Footage, FootageFinder, SourceFile

__all__ = ["JOBS", "WINDOW_SECONDS", "PlayPlan", "Playable", "Player"]

WINDOW_SECONDS = 120
"""Most seconds of a file that is made to be played."""
JOBS = 2
"""Files that are made at once."""
_MADE_BYTES = 512 * 2**20
_MADE_FILES = 32
_FILE_BYTES = 256 * 2**20
_WAIT_SECONDS = 30.0
"""Longest time in which a file does not grow, before it is stopped."""
_SECONDS_A_SECOND = 8.0
"""Seconds that encoding a second may take, before it is stopped."""
_BLOCK = 256 * 1024
_MICROS = 1_000_000
_TYPES = {"mp4": "video/mp4", "webm": "video/webm"}


@dataclass(frozen=True, slots=True)
class PlayPlan:
    """How the footage of a stream can be played from a time on."""

    kind: Literal["video", "none"]
    """Whether there is a video."""
    media_type: str | None = None
    """Its media type."""
    start_offset_seconds: float = 0.0
    """The position of the wanted time in it."""
    start: int | None = None
    """Time of the first frame of the video, UTC microseconds."""
    end: int | None = None
    """Time at which the video ends, where it ends before the footage does; UTC microseconds."""
    transcoded: bool = False
    """Whether the frames are encoded anew."""
    why: str = ""
    """Why there is none, or why it is encoded anew."""


@dataclass(eq=False, slots=True)
class Playable:
    """Bytes of a video, which may still be growing; close it after use."""

    media_type: str
    """Media type."""
    descriptor: int
    """Descriptor of the file."""
    etag: str
    """Identifies these bytes."""
    size: Callable[[], int | None]
    """The number of bytes, None while the file grows."""
    wait: Callable[[int], int] = field(default=lambda _: 0)
    """Waits until a growing file has more bytes than an offset; returns how many it has then."""
    done: Callable[[], None] = field(default=lambda: None)
    """Called when it is closed."""

    def read_some(self, at: int, most: int = _BLOCK) -> bytes | None:
        """At most `most` bytes from an offset on; none at the end, and None where more may come within a second."""
        data = os.pread(self.descriptor, most, at)
        if data or self.size() is not None:
            return data or os.pread(self.descriptor, most, at)  # it may have grown just before it was complete
        self.wait(at)
        return None

    def read(self, start: int = 0, count: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` on, `count` of them or all."""
        at, left = start, count
        while left is None or left > 0:
            data = self.read_some(at, _BLOCK if left is None else min(_BLOCK, left))
            if data is None:
                continue
            if not data:
                return
            at += len(data)
            left = None if left is None else left - len(data)
            yield data

    def close(self) -> None:
        """Close the file, or give it back to the cache."""
        self.done()


class _Made:
    """A file that is being made, or was."""

    def __init__(self, file: IO[bytes], media_type: str, etag: str) -> None:
        self.file, self.media_type, self.etag = file, media_type, etag
        self.changed = threading.Condition()
        self.span: ClipSpan | None = None
        self.problem: SightlineError | None = None
        self.writer: ClipWriter | None = None
        self.readers = 0
        self.ended = self.stopped = False
        self.grown = (0, time.monotonic())

    def size(self) -> int | None:
        """Bytes of the complete file, None while it grows."""
        return self.held() if self.ended else None

    def held(self) -> int:
        """Bytes that are there."""
        return os.fstat(self.file.fileno()).st_size

    def wait_beyond(self, offset: int) -> int:
        """Wait up to a second until there are more bytes than `offset`, or the file is complete.

        A file that does not grow for too long is stopped.

        Returns:
            How many bytes there are.
        """
        deadline = time.monotonic() + 1.0
        with self.changed:
            while not self.ended and (held := self.held()) <= offset and time.monotonic() < deadline:
                if held > self.grown[0]:
                    self.grown = (held, time.monotonic())
                elif time.monotonic() - self.grown[1] > _WAIT_SECONDS:
                    self.stop()
                self.changed.wait(0.05)
        return self.held()

    def wait_begun(self) -> None:
        """Wait until there are bytes. Raises what ended it before there were any."""
        while not self.ended and not self.wait_beyond(0):
            pass
        if self.problem is not None and not self.held():
            raise self.problem

    def wait_end(self) -> ClipSpan:
        """Wait until the file is complete. Raises what ended it."""
        with self.changed:
            self.changed.wait_for(lambda: self.ended)
        if self.problem is not None:
            raise self.problem
        assert self.span is not None
        return self.span

    def stop(self) -> None:
        """End the process that makes it."""
        self.stopped = True
        if self.writer is not None:
            self.writer.stop()


class Player:
    """Plays footage; keeps the files that it makes for a while. Any number of threads may use it.

    Args:
        finder: finds the footage.
        limits: limits of the confined processes.
    """

    def __init__(self, finder: FootageFinder, limits: DecodeLimits | None = None) -> None:
        self.finder, self.limits = finder, limits or DecodeLimits()
        self._encoder, self._container = video_encoder()
        self._lock = threading.Lock()
        self._made: OrderedDict[Hashable, _Made] = OrderedDict()
        self._facts: OrderedDict[Hashable, MediaFacts] = OrderedDict()
        self._slots = threading.BoundedSemaphore(JOBS)
        self._active = 0

    def plan(self, stream_id: str, at: int) -> PlayPlan:
        """How the footage of a stream is played from a time on, UTC microseconds. Never raises an error of footage."""
        try:
            footage = self.finder.find(stream_id, at, at + _MICROS)
            if footage is None:
                return PlayPlan("none", why="There is no recording of this time, and the ingested file is not there.")
            facts = self.facts(footage)
            if isinstance(footage, SourceFile) and facts.plays:
                return PlayPlan("video", "video/mp4", (at - footage.began) / _MICROS, footage.began)
            if facts.copies:
                made = self._file_of(footage, at, encode=False)
                try:
                    span = made.wait_end()
                finally:
                    self._release(made)
                return PlayPlan("video", "video/mp4", max(0.0, (at - span.first) / _MICROS), span.first, span.end)
            why = f"A browser cannot play {facts.codec} in {facts.format.split(',')[0]}, so it is encoded anew."
            return PlayPlan("video", _TYPES[self._container], 0.0, at, at + WINDOW_SECONDS * _MICROS, True, why)
        except (SourceError, EmptyWindow, ServiceBusy) as error:
            return PlayPlan("none", why=str(error))

    def open(self, stream_id: str, at: int, *, transcode: bool = False) -> Playable:
        """The video that `plan` announces; close it after use.

        Args:
            stream_id: the stream, which the caller must be allowed to see.
            at: the time, UTC microseconds.
            transcode: encode it anew, whatever the footage is.

        Raises:
            EmptyWindow: there is no footage of that time.
            SourceError: it cannot be read.
            ServiceBusy: as many files as allowed are being made.
        """
        footage = self.finder.find(stream_id, at, at + _MICROS)
        if footage is None:
            raise EmptyWindow(
                f"{stream_id} at {rfc3339(at)}: there is no recording, and the ingested file is not there"
            )
        facts = self.facts(footage)
        if isinstance(footage, SourceFile) and facts.plays and not transcode:
            return _open_file(footage)
        made = self._file_of(footage, at, encode=transcode or not facts.copies)
        try:
            if not transcode and facts.copies:
                made.wait_end()
            else:
                made.wait_begun()
        except SightlineError:
            self._release(made)
            raise
        return Playable(
            made.media_type,
            made.file.fileno(),
            made.etag,
            made.size,
            made.wait_beyond,
            lambda: self._release(made),
        )

    def close(self) -> None:
        """Stop what is being made and forget everything."""
        with self._lock:
            for made in self._made.values():
                made.stop()
            self._made.clear()

    @property
    def active(self) -> int:
        """How many files are being made."""
        with self._lock:
            return self._active

    # ---- files that are made -----------------------------------------------------------------------------------------

    def _file_of(self, footage: Footage, at: int, *, encode: bool) -> _Made:
        """The file that begins at a time, made now or before, with one more reader if it is encoded."""
        key = (*_identity(footage), at, encode)
        with self._lock:
            made = self._made.get(key)
            if made is not None and not (made.stopped or made.problem):
                self._made.move_to_end(key)
                made.readers += 1
                return made
        if not self._slots.acquire(timeout=2.0):
            raise ServiceBusy(f"{JOBS} videos are being prepared already; try again in a few seconds", retry_after=5)
        etag = hashlib.sha256(repr(key).encode()).hexdigest()[:32]
        made = _Made(
            tempfile.TemporaryFile(prefix="sightline-"),  # noqa: SIM115  # closed when the cache drops it
            _TYPES[self._container] if encode else "video/mp4",
            etag,
        )
        made.readers = 1
        with self._lock:
            self._made[key] = made
            self._active += 1
            self._trim()
        threading.Thread(target=self._make, args=(made, footage, at, encode), name="play", daemon=True).start()
        return made

    def _make(self, made: _Made, footage: Footage, at: int, encode: bool) -> None:
        end = at + WINDOW_SECONDS * _MICROS
        encoding = Encoding(codec=self._encoder, fragments=True) if encode else None
        timer = threading.Timer(WINDOW_SECONDS * _SECONDS_A_SECOND, made.stop)
        timer.daemon = True
        timer.start()
        try:
            made.span = write_footage(
                self.finder,
                footage,
                made.file.fileno(),
                start=at,
                end=end,
                kind=self._container if encode else "mp4",
                limits=self.limits,
                encoding=encoding,
                output_bytes=_FILE_BYTES,
                on_start=lambda writer: _started(made, writer),
            )
        except SightlineError as error:
            made.problem = error
        except OSError as error:
            made.problem = SourceNotFound(f"{footage.stream_id}: cannot be prepared ({error.strerror or error})")
        finally:
            timer.cancel()
            self._slots.release()
            with self._lock:
                self._active -= 1
            with made.changed:
                made.ended = True
                made.changed.notify_all()

    def _release(self, made: _Made) -> None:
        """One reader less; a file that grows without a reader is stopped."""
        with self._lock:
            made.readers -= 1
            if made.readers <= 0 and not made.ended:
                made.stop()

    def _trim(self) -> None:
        """Drop files that are too many; the caller holds the lock. An open descriptor keeps the bytes for a reader."""
        while len(self._made) > _MADE_FILES or sum(made.held() for made in self._made.values()) > _MADE_BYTES:
            key = next((key for key, made in self._made.items() if made.readers <= 0), None)
            if key is None:
                return
            self._made.pop(key).file.close()

    # ---- what files are ----------------------------------------------------------------------------------------------

    def facts(self, footage: Footage) -> MediaFacts:
        """What footage has: container and codec. Raises SourceError."""
        key = _identity(footage)
        with self._lock:
            if (held := self._facts.get(key)) is not None:
                return held
        if isinstance(footage, SourceFile):
            with footage.opened() as source:
                facts = probe(source, name=footage.path.name, limits=self.limits)
        else:
            with tempfile.TemporaryFile(prefix="sightline-") as part:
                fetch_segment(footage.segments[0].uri, part)
                facts = probe(part.fileno(), name=footage.segments[0].segment.name, limits=self.limits)
        with self._lock:
            self._facts[key] = facts
            while len(self._facts) > 1000:
                self._facts.popitem(last=False)
        return facts


def _started(made: _Made, writer: ClipWriter) -> None:
    made.writer = writer
    if made.stopped:
        writer.stop()


def _identity(footage: Footage) -> tuple[Hashable, ...]:
    """What a file that is made of footage depends on."""
    if isinstance(footage, SourceFile):
        try:
            state = os.stat(footage.path)
        except OSError as error:
            raise SourceNotFound(f"{footage.path.name}: {error.strerror}") from None
        return (footage.stream_id, footage.source, state.st_ino, state.st_size, state.st_mtime_ns)
    return (footage.stream_id, *((part.uri, part.after, part.until) for part in footage.segments))


def _open_file(footage: SourceFile) -> Playable:
    descriptor = os.open(footage.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    state = os.fstat(descriptor)
    etag = hashlib.sha256(f"{footage.source}/{state.st_mtime_ns}/{state.st_size}".encode()).hexdigest()[:32]
    return Playable(
        "video/mp4", descriptor, etag, lambda: state.st_size, lambda _: state.st_size, lambda: os.close(descriptor)
    )
