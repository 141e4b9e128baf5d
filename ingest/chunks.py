"""Chunks of one source file: what identifies the file, which frame belongs to which chunk, and when a chunk is stored.

A chunk is a stretch of `segment_seconds` of a file that is committed at once, numbered from 0. A file that is ingested
from its start and a part of a file in a backfill use the same code. This module knows nothing of encoders.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from index.errors import NoFrames, SourceError
from index.records import ClockFold, ClockSource, FrameRecords, Segment
from ingest.decoding.frame import FrameBatch
from ingest.decoding.sandbox import Decoding, VideoInfo
from ingest.sources.naming import FileName
from ingest.sources.start_time import find_start
from model.encoders.clips import ClipBoundary

__all__ = [
    "BATCH_BYTES",
    "BATCH_FRAMES",
    "ChunkFrames",
    "ChunkWriter",
    "FrameReader",
    "SourceFootage",
    "concatenated",
    "decoding_problem",
    "first_missing_chunk",
    "identify_footage",
    "resume_footage",
    "source_digest",
    "stored_chunks",
]

BATCH_FRAMES = 32
"""Most frames that are decoded and encoded at once."""
BATCH_BYTES = 256 * 2**20
"""Most bytes of pixels that are encoded at once, and that wait for it; a single frame may have more."""
_QUEUE_FRAMES = 2 * BATCH_FRAMES
_MIB = 2**20
_SECOND = 1_000_000


@dataclass(frozen=True, slots=True)
class SourceFootage:
    """One file as the store knows it."""

    name: str
    """Path or URL, credentials masked."""
    stream_id: str
    source: str
    """What identifies the footage in the store, see `source_digest`."""
    began: int
    """UTC microseconds of the first frame."""
    clock: ClockSource
    """The source of that time."""
    zone: str | None = None
    """The zone that a time in the file's name was read in."""
    fold: ClockFold | None = None
    """How a time in the file's name was read that daylight saving makes doubtful."""


class _SegmentStore(Protocol):
    def segments(self, stream_id: str | None = None) -> list[Segment]:
        """The stored segments of a stream, or of all."""
        ...


def source_digest(path: Path, stream_id: str, began: int | None) -> str:
    """What identifies a file's footage: a digest of its size, first and last MiB, stream and start (UTC microseconds).

    `began` is None where the start is a guess from the modification time: the content alone identifies such a file, so
    that a copy of it is not stored again.
    """
    start = "unknown" if began is None else began
    digest = hashlib.sha256(f"{stream_id}\0{start}\0{path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        digest.update(file.read(_MIB))
        file.seek(max(0, path.stat().st_size - _MIB))
        digest.update(file.read(_MIB))
    return digest.hexdigest()[:32]


def identify_footage(
    path: Path, name: str, stream_id: str, given: datetime | None, info: VideoInfo, named: FileName | None = None
) -> SourceFootage:
    """The identity of an open local file.

    Args:
        name: path or URL of the source, credentials masked.
        given: start given by the user, see `ingest.sources.start_time.find_start`.
        info: from the file's `Decoding`.
        named: what the source's name says, read from `path` when None.

    Raises:
        StartImplausible: the footage begins in the future.
    """
    began, clock, zone, fold = find_start(path, given=given, created=info.created, named=named, duration=info.duration)
    digest = source_digest(path, stream_id, None if clock == "mtime" else began)
    return SourceFootage(name, stream_id, digest, began, clock, zone, fold)


def resume_footage(store: _SegmentStore, footage: SourceFootage) -> tuple[SourceFootage, dict[int, Segment]]:
    """A source as the store knows it, and its `stored_chunks`.

    Of a file without a clock, the start under which it was first stored counts, whatever its modification time is now.
    """
    stored = stored_chunks(store, footage)
    if footage.clock == "mtime" and 0 in stored:
        footage = replace(footage, began=stored[0].start)
    return footage, stored


def stored_chunks(store: _SegmentStore, footage: SourceFootage) -> dict[int, Segment]:
    """The chunks of a source that the store holds, by number. They are complete if one is `final`."""
    return {s.chunk: s for s in store.segments(footage.stream_id) if s.source == footage.source}


def first_missing_chunk(stored: Mapping[int, Segment], segment_seconds: int) -> int:
    """The chunk at which an ingest continues. Chunks are committed in order, so it is the first that is missing.

    A stored chunk whose segment is longer than `segment_seconds` covers the chunks behind it: footage has a gap there.
    """
    chunk = 0
    while chunk in stored:
        covered = (stored[chunk].end - stored[chunk].start) // (segment_seconds * _SECOND)
        chunk += max(1, covered)
    return chunk


def decoding_problem(error: SourceError | None) -> str | None:
    """The `problem` of a file's last segment: the error that ended decoding, except that no frame decodes."""
    return None if error is None or isinstance(error, NoFrames) else str(error)


class ChunkWriter:
    """Appends each chunk of one source when the next one begins, and the last one, marked `final`, at the end.

    Args:
        append: stores one chunk's segment and frames; returns the segment as stored, None if the store has it.
        footage: the source.
        info: of its decoding; the last chunk's mode is the mode in which decoding ended.
        segment_seconds: length of a chunk.
        chunk: number of the first chunk.

    Attributes:
        frames: number of frames added.
        stored: number of frames appended that the store did not have.
    """

    def __init__(
        self,
        append: Callable[[Segment, FrameRecords | None], Segment | None],
        footage: SourceFootage,
        info: VideoInfo,
        *,
        segment_seconds: int,
        chunk: int = 0,
    ) -> None:
        self.footage, self.info = footage, info
        self.frames = self.stored = 0
        # A reader ahead of this writer may change `info.mode` before a chunk is appended; only the last chunk has it.
        self._first_mode = info.mode
        self._append, self._seconds, self._chunk = append, segment_seconds, chunk
        self._records: list[FrameRecords] = []

    @property
    def empty(self) -> bool:
        """Whether no frame has been added."""
        return self.frames == 0

    def add(self, chunk: int, records: FrameRecords) -> None:
        """Add frames of `chunk`. The chunk before is appended; its segment covers chunks between, which have no
        frames."""
        if chunk > self._chunk:
            self._close(until=chunk)
            self._chunk = chunk
        self._records.append(records)
        self.frames += len(records)

    def finish(self, problem: str | None = None) -> None:
        """Append the last chunk. `problem` is the error that ended decoding early."""
        self._close(final=True, problem=problem)

    def _close(self, *, until: int = 0, final: bool = False, problem: str | None = None) -> None:
        """Append the present chunk; its segment ends where chunk `until` begins, or with the last frame if it is
        final."""
        records = concatenated(self._records) if self._records else None
        self._records = []
        footage, chunk, length = self.footage, self._chunk, self._seconds * _SECOND
        end = footage.began + max(until, chunk + 1) * length
        if final and records is not None:
            end = int(records.captured_at[-1]) + _SECOND
        segment = Segment(
            stream_id=footage.stream_id,
            source=footage.source,
            chunk=chunk,
            uri=footage.name,
            start=footage.began + chunk * length,
            end=end,
            frames=len(records) if records is not None else 0,
            decode_mode=self.info.mode if final else self._first_mode,
            clock_source=footage.clock,
            clock_zone=footage.zone,
            clock_fold=footage.fold,
            final=final,
            problem=problem,
        )
        stored = self._append(segment, records)
        if stored is not None:
            self.stored += stored.frames


def concatenated(parts: Sequence[FrameRecords]) -> FrameRecords:
    """The frames of all parts, in order, as one; the parts are of one stream and at least one."""
    if len(parts) == 1:
        return parts[0]
    norms = [part.frame_norms for part in parts if part.frame_norms is not None]
    return replace(
        parts[0],
        captured_at=np.concatenate([part.captured_at for part in parts]),
        pts_seconds=np.concatenate([part.pts_seconds for part in parts]),
        frame_vectors=np.concatenate([part.frame_vectors for part in parts]),
        patch_pooled=np.concatenate([part.patch_pooled for part in parts]),
        patches=np.concatenate([part.patches for part in parts]),
        pictures=[picture for part in parts for picture in part.pictures],
        frame_norms=None if len(norms) < len(parts) else np.concatenate(norms),
    )


class ChunkFrames(NamedTuple):
    """At most `BATCH_FRAMES` frames and `BATCH_BYTES` bytes of one chunk; a single clip may have more."""

    chunk: int
    """Number of the chunk."""
    frames: FrameBatch


class FrameReader:
    """Reads frames ahead in a thread, through a bounded queue, and iterates over them in batches within one chunk.

    Iteration ends with the SourceError that ended decoding, as an item, if there was one; other errors are raised.

    Args:
        decoding: the file, not yet iterated over. Its process is killed when iteration ends.
        began: UTC microseconds of the file's first frame.
        first: pts of the file's first frame, in seconds.
        segment_seconds: length of a chunk.
        clip_frames: frames of a clip; a batch ends with a clip or with its chunk.
    """

    def __init__(
        self, decoding: Decoding, began: int, first: float, segment_seconds: int, clip_frames: int = 1
    ) -> None:
        self.decoding, self.began, self.first, self.segment_seconds = decoding, began, first, segment_seconds
        self._clip = ClipBoundary(clip_frames)
        self._queue: queue.Queue[tuple[float, NDArray[np.uint8]] | BaseException | None] = queue.Queue(_QUEUE_FRAMES)
        self._waiting, self._taken = 0, threading.Condition()  # bytes of the frames in the queue
        self._stop = threading.Event()

    def __iter__(self) -> Iterator[ChunkFrames | SourceError]:
        thread = threading.Thread(target=self._read, name="decode-reader", daemon=True)
        thread.start()
        batch: ChunkFrames | None = None
        size = 0  # bytes of the batch
        try:
            while True:
                item = self._queue.get()
                if item is None or isinstance(item, BaseException):
                    if batch is not None:
                        yield batch
                    if isinstance(item, SourceError):
                        yield item
                    elif item is not None:
                        raise item
                    return
                pts, pixels = item
                with self._taken:
                    self._waiting -= pixels.nbytes
                    self._taken.notify()
                elapsed = pts - self.first
                chunk = int((elapsed + 1e-6) // self.segment_seconds)
                captured_at = self.began + round(elapsed * 1e6)
                if batch is not None and batch.chunk != chunk:
                    yield batch
                    batch = None
                    self._clip.reset()
                if self._clip.begins(captured_at) and batch is not None and self._full(len(batch.frames), size, pixels):
                    yield batch
                    batch = None
                if batch is None:
                    batch, size = ChunkFrames(chunk, FrameBatch([], [], [])), 0
                size += pixels.nbytes
                batch.frames.captured_at.append(captured_at)
                batch.frames.pts_seconds.append(pts)
                batch.frames.pixels.append(pixels)
        finally:
            self._stop.set()
            self.decoding.process.kill()  # wakes a thread that waits for the process
            thread.join(timeout=10)

    def _full(self, frames: int, size: int, pixels: NDArray[np.uint8]) -> bool:
        """Whether a batch of `frames` frames and `size` bytes has no room for a clip of frames like `pixels`."""
        clip = self._clip.clip_frames
        return frames + clip > BATCH_FRAMES or size + clip * pixels.nbytes > BATCH_BYTES

    def _read(self) -> None:
        try:
            for frame in self.decoding:
                with self._taken:
                    while self._waiting and self._waiting + frame[1].nbytes > BATCH_BYTES and not self._stop.is_set():
                        self._taken.wait(timeout=0.5)
                    self._waiting += frame[1].nbytes
                self._put(frame)
                if self._stop.is_set():
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: tuple[float, NDArray[np.uint8]] | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.5)
                return
            except queue.Full:
                continue
