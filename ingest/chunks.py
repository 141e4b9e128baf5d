"""One source in chunks: what the source is known by, which frame belongs to which chunk, and when a chunk is appended.

The same for a file that is ingested from its start and for the pieces of one in a backfill. It knows nothing of encoders.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from index.errors import NoFrames, SourceError
from index.records import ClockSource, FrameRecords, Segment
from ingest.decoding.sandbox import Decoding, clock_of

__all__ = [
    "BATCH",
    "Batches",
    "ChunkWriter",
    "SourceFootage",
    "first_missing",
    "identify",
    "problem_of",
    "source_digest",
    "stored_chunks",
]

BATCH = 32
_QUEUE = 2 * BATCH
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class SourceFootage:
    """One file as the store knows it: `source` is its digest, `began` the UTC microseconds of its first frame."""

    name: str
    stream_id: str
    source: str
    began: int
    clock: ClockSource


class _Mode(Protocol):
    mode: str


class _Segments(Protocol):
    def segments(self, stream_id: str | None = None) -> list[Segment]: ...


def source_digest(path: Path, stream_id: str, began: int) -> str:
    """What a piece of footage is known by: its size, first and last MiB, its stream and its start."""
    digest = hashlib.sha256(f"{stream_id}\0{began}\0{path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        digest.update(file.read(_MIB))
        file.seek(max(0, path.stat().st_size - _MIB))
        digest.update(file.read(_MIB))
    return digest.hexdigest()[:32]


def identify(path: Path, name: str, stream_id: str, given: datetime | None, info: Any) -> SourceFootage:
    """What an opened local file is; `info` is what its `Decoding` says, `given` the start that somebody said."""
    began, clock = clock_of(path, info, given)
    return SourceFootage(name, stream_id, source_digest(path, stream_id, began), began, clock)


def stored_chunks(store: _Segments, footage: SourceFootage) -> dict[int, Segment]:
    """The chunks of this source that the store has, by number; one that is `final` says it has them all."""
    return {s.chunk: s for s in store.segments(footage.stream_id) if s.source == footage.source}


def first_missing(stored: Mapping[int, Segment]) -> int:
    """Where to go on: chunks are committed in order, so the first that is missing."""
    return next(i for i in range(len(stored) + 1) if i not in stored)


def problem_of(held: SourceError | None, path: Path, name: str) -> str | None:
    """What a file's last segment says of the error that ended its decoding; `path` is where the file lay just now."""
    return None if held is None or isinstance(held, NoFrames) else str(held).replace(str(path), name)


class ChunkWriter:
    """Appends a chunk of one source when the next begins, and the last one, marked final, at the end.

    Attributes:
        frames: how many were added.
        stored: how many were appended that the store did not have.
    """

    def __init__(
        self,
        append: Callable[[Segment, FrameRecords | None], bool],
        footage: SourceFootage,
        info: _Mode,
        *,
        segment_seconds: int,
        chunk: int = 0,
    ) -> None:
        self.footage, self.info, self._began_as = footage, info, info.mode
        self.frames = self.stored = 0
        self._append, self._seconds, self._chunk = append, segment_seconds, chunk
        self._records: list[FrameRecords] = []

    @property
    def empty(self) -> bool:
        return self.frames == 0

    def add(self, chunk: int, records: FrameRecords) -> None:
        """Take frames of `chunk`; the chunks before it are appended, without frames where there were none."""
        while chunk > self._chunk:
            self._close()
            self._chunk += 1
        self._records.append(records)
        self.frames += len(records)

    def finish(self, problem: str | None = None) -> None:
        """Append the last chunk; `problem` is what ended the source before its time."""
        self._close(final=True, problem=problem)

    def _close(self, *, final: bool = False, problem: str | None = None) -> None:
        whole = _joined(self._records) if self._records else None
        self._records = []
        footage, chunk, length = self.footage, self._chunk, self._seconds * 1_000_000
        end = footage.began + (chunk + 1) * length
        if final and whole is not None:
            end = int(whole.captured_at[-1]) + 1_000_000
        segment = Segment(
            stream_id=footage.stream_id,
            source=footage.source,
            chunk=chunk,
            uri=footage.name,
            start=footage.began + chunk * length,
            end=end,
            frames=len(whole) if whole is not None else 0,
            decode_mode=self.info.mode if final else self._began_as,  # what a reader ahead of us knows does not count
            clock_source=footage.clock,
            final=final,
            problem=problem,
        )
        if self._append(segment, whole):
            self.stored += segment.frames


def _joined(records: Sequence[FrameRecords]) -> FrameRecords:
    if len(records) == 1:
        return records[0]
    first = records[0]
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(r, name) for r in records])
        for name in ("captured_at", "pts_seconds", "frame_vectors", "patch_pooled", "patches")
    }
    pictures = [picture for r in records for picture in r.pictures]
    return FrameRecords(stream_id=first.stream_id, clock_source=first.clock_source, pictures=pictures, **columns)


Batch = tuple[int, list[int], list[float], list[NDArray[np.uint8]]]


class Batches:
    """Batches of frames, each within one chunk, read ahead by a thread through a bounded queue.

    Yields (chunk, capture times, pts, pixels), or last the error that decoding ended with.
    """

    def __init__(self, decoding: Decoding, began: int, first: float, segment_seconds: int) -> None:
        self.decoding, self.began, self.first, self.segment_seconds = decoding, began, first, segment_seconds
        self.queue: queue.Queue[tuple[float, NDArray[np.uint8]] | BaseException | None] = queue.Queue(_QUEUE)
        self.stop = threading.Event()

    def _read(self) -> None:
        try:
            for frame in self.decoding:
                self._put(frame)
                if self.stop.is_set():
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: tuple[float, NDArray[np.uint8]] | BaseException | None) -> None:
        while not self.stop.is_set():
            try:
                self.queue.put(item, timeout=0.5)
                return
            except queue.Full:
                continue

    def __iter__(self) -> Iterator[Batch | SourceError]:
        thread = threading.Thread(target=self._read, name="decode-reader", daemon=True)
        thread.start()
        batch: Batch | None = None
        try:
            while True:
                item = self.queue.get()
                if item is None or isinstance(item, BaseException):
                    if batch is not None:
                        yield batch
                    if isinstance(item, SourceError):
                        yield item
                    elif item is not None:
                        raise item
                    return
                pts, pixels = item
                elapsed = pts - self.first
                chunk = int((elapsed + 1e-6) // self.segment_seconds)
                if batch is not None and (batch[0] != chunk or len(batch[1]) >= BATCH):
                    yield batch
                    batch = None
                if batch is None:
                    batch = (chunk, [], [], [])
                batch[1].append(self.began + round(elapsed * 1e6))
                batch[2].append(pts)
                batch[3].append(pixels)
        finally:
            self.stop.set()
            self.decoding.process.kill()  # wakes a reader that waits on the pipe
            thread.join(timeout=10)
