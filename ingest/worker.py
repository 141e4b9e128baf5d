"""From files to stored segments: decode in one process, encode in this one, commit by segment.

    child process ─pipe─▶ reader thread ─bounded queue─▶ batches ─encoders─▶ records ─▶ store.append a segment

What is stored already is skipped, whole files without opening them, so an ingest that was stopped anywhere is finished
by running it again. Memory holds one segment's records, whatever the file's length.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from index.errors import NoFrames, SourceError, UsageError, mask_url
from index.records import ClockSource, FrameRecords, Segment
from index.schemas import check_stream_id
from ingest.clock import stream_name
from ingest.embedding import embed, picture
from ingest.limits import Limits
from ingest.sandbox import Decoding, clock_of
from ingest.sources import expand, fetched
from model.encoders import Encoders

__all__ = ["FileReport", "IngestProgress", "IngestReport", "ingest_sources"]

SEGMENT_SECONDS = 300
_BATCH = 32
_QUEUE = 2 * _BATCH
_MIB = 2**20
_log = structlog.get_logger(__name__)


class FrameStore(Protocol):
    """What the worker needs of `index.store.Store`."""

    def append(self, segment: Segment, frames: FrameRecords | None) -> bool: ...
    def segments(self, stream_id: str | None = None) -> list[Segment]: ...
    def seal(self) -> int: ...


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """How far one file is: seconds of footage done and in all (None when the file does not say), frames so far."""

    file: str
    number: int
    files: int
    seconds: float
    duration: float | None
    frames: int


class FileReport(BaseModel):
    """What became of one file; `problem` is the error that ended or spoiled it."""

    file: str
    stream_id: str | None = None
    frames: int = 0
    seconds: float = 0.0
    decode_mode: str | None = None
    skipped: bool = False
    problem: str | None = None


class IngestReport(BaseModel):
    """All files, and how fast it went; `stages` are seconds waiting for the decoder, encoding, making pictures, storing."""

    files: list[FileReport] = Field(default_factory=list)
    frames: int = 0
    footage_seconds: float = 0.0
    wall_seconds: float = 0.0
    frames_per_second: float = 0.0
    realtime_factor: float = 0.0
    stages: dict[str, float] = Field(default_factory=dict)

    @property
    def failed(self) -> list[FileReport]:
        return [file for file in self.files if file.problem]


def source_digest(path: Path, stream_id: str, began: int) -> str:
    """What a piece of footage is known by: its size, first and last MiB, its stream and its start."""
    digest = hashlib.sha256(f"{stream_id}\0{began}\0{path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        digest.update(file.read(_MIB))
        file.seek(max(0, path.stat().st_size - _MIB))
        digest.update(file.read(_MIB))
    return digest.hexdigest()[:32]


def ingest_sources(
    sources: Sequence[str | Path],
    *,
    store: FrameStore,
    encoders: Encoders,
    stream: str | None = None,
    start: datetime | None = None,
    on_progress: Callable[[IngestProgress], None] = lambda _: None,
    segment_seconds: int = SEGMENT_SECONDS,
    limits: Limits | None = None,
) -> IngestReport:
    """Ingest every file of `sources` at one frame a second.

    Args:
        stream: the stream they all belong to; by file name when None.
        start: UTC time of the first frame; only for a single file.
        segment_seconds: footage of one commit, at least 1.

    Returns:
        The report. A file that fails is in it with its problem and does not stop the others.

    Raises:
        UsageError: a start for several files, a start without a zone, a name that cannot be a stream.
        StoreError: the store refuses (identity, no space); what was committed stays, and running again goes on.
    """
    if segment_seconds < 1:
        raise UsageError(f"segment_seconds must be at least 1, got {segment_seconds}")
    if stream is not None:
        check_stream_id(stream)
    expansion = expand(sources)
    if start is not None and len(expansion.files) > 1:
        raise UsageError(
            f"--start fits one file, the sources hold {len(expansion.files)}; put the time into their names"
        )
    report = IngestReport(files=[FileReport(file=name, problem=str(error)) for name, error in expansion.problems])
    began = perf_counter()
    worker = _Worker(store, encoders, segment_seconds, limits or Limits(), report)
    for number, source in enumerate(expansion.files):
        name = mask_url(source)

        def tell(seconds: float, duration: float | None, frames: int, name: str = name, number: int = number) -> None:
            on_progress(IngestProgress(name, number, len(expansion.files), seconds, duration, frames))

        file = FileReport(file=name)
        report.files.append(file)
        try:
            with fetched(source) as path:
                worker.run(path, name, stream or stream_name(source), start, file, tell)
        except SourceError as error:
            file.problem = str(error)
            _log.info("file not ingested", file=name, problem=file.problem)
        report.frames += file.frames
        report.footage_seconds += file.seconds
    store.seal()
    report.wall_seconds = perf_counter() - began
    report.frames_per_second = report.frames / max(report.wall_seconds, 1e-9)
    report.realtime_factor = report.footage_seconds / max(report.wall_seconds, 1e-9)
    return report


class _Worker:
    def __init__(
        self, store: FrameStore, encoders: Encoders, segment_seconds: int, limits: Limits, report: IngestReport
    ) -> None:
        self.store, self.encoders, self.report = store, encoders, report
        self.segment_seconds, self.limits = segment_seconds, limits

    def _spent(self, stage: str, since: float) -> float:
        now = perf_counter()
        self.report.stages[stage] = self.report.stages.get(stage, 0.0) + now - since
        return now

    def run(
        self,
        path: Path,
        name: str,
        stream_id: str,
        start: datetime | None,
        file: FileReport,
        tell: Callable[[float, float | None, int], None],
    ) -> None:
        """Ingest one local file into `stream_id`, filling `file` in as it goes."""
        file.stream_id = check_stream_id(stream_id)
        with Decoding(path, limits=self.limits) as first_look:
            info = first_look.info()
            began, clock = clock_of(path, info, start)
        source = source_digest(path, stream_id, began)
        stored = {s.chunk: s for s in self.store.segments(stream_id) if s.source == source}
        if any(s.final for s in stored.values()):
            file.skipped = True
            file.problem = next((s.problem for s in stored.values() if s.problem), None)
            return
        # Chunks are committed in order, so the first that is missing is where to go on.
        chunk = next(i for i in range(len(stored) + 1) if i not in stored)
        with Decoding(path, after=chunk * self.segment_seconds, limits=self.limits) as decoding:
            info = decoding.info()
            _log.info("decoding", file=name, mode=info.mode, clock=clock, stream=stream_id)
            batches = _Batches(decoding, began, info.first, self.segment_seconds)
            records: list[FrameRecords] = []
            held: SourceError | None = None
            since = perf_counter()
            for item in batches:
                since = self._spent("decode", since)
                if isinstance(item, SourceError):
                    held = item
                    break
                index, times, pts, frames = item
                while index > chunk:
                    self._commit(source, chunk, name, stream_id, began, clock, info.mode, records, file)
                    records, chunk = [], chunk + 1
                records.append(self._encode(stream_id, clock, times, pts, frames))
                file.seconds = max(file.seconds, (times[-1] - began) / 1e6 + 1)
                tell(file.seconds, info.duration, file.frames + sum(len(r) for r in records))
                since = perf_counter()
            file.decode_mode = info.mode
            if held is not None and not records and not stored and file.frames == 0:
                raise held
            problem = None if held is None or isinstance(held, NoFrames) else str(held).replace(str(path), name)
            self._commit(
                source, chunk, name, stream_id, began, clock, info.mode, records, file, final=True, problem=problem
            )
            file.problem = problem
            if problem:
                _log.info("file not whole", file=name, problem=problem)

    def _encode(
        self, stream_id: str, clock: ClockSource, times: list[int], pts: list[float], frames: list[NDArray[np.uint8]]
    ) -> FrameRecords:
        since = perf_counter()
        vectors, pooled, patches = embed(self.encoders, frames)
        since = self._spent("encode", since)
        pictures = [picture(frame) for frame in frames]
        self._spent("pictures", since)
        return FrameRecords(
            stream_id=stream_id,
            clock_source=clock,
            captured_at=np.asarray(times, np.int64),
            pts_seconds=np.asarray(pts, np.float64),
            frame_vectors=vectors,
            patch_pooled=pooled,
            patches=patches,
            pictures=pictures,
        )

    def _commit(
        self,
        source: str,
        chunk: int,
        name: str,
        stream_id: str,
        began: int,
        clock: ClockSource,
        mode: str,
        records: list[FrameRecords],
        file: FileReport,
        *,
        final: bool = False,
        problem: str | None = None,
    ) -> None:
        since = perf_counter()
        whole = _joined(records) if records else None
        length = self.segment_seconds * 1_000_000
        end = began + (chunk + 1) * length
        if final and whole is not None:
            end = int(whole.captured_at[-1]) + 1_000_000
        segment = Segment(
            stream_id=stream_id,
            source=source,
            chunk=chunk,
            uri=name,
            start=began + chunk * length,
            end=end,
            frames=len(whole) if whole is not None else 0,
            decode_mode=mode,
            clock_source=clock,
            final=final,
            problem=problem,
        )
        if self.store.append(segment, whole):
            file.frames += segment.frames
        self._spent("store", since)


def _joined(records: Sequence[FrameRecords]) -> FrameRecords:
    first = records[0]
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(r, name) for r in records])
        for name in ("captured_at", "pts_seconds", "frame_vectors", "patch_pooled", "patches")
    }
    pictures = [picture for r in records for picture in r.pictures]
    return FrameRecords(stream_id=first.stream_id, clock_source=first.clock_source, pictures=pictures, **columns)


_Batch = tuple[int, list[int], list[float], list[NDArray[np.uint8]]]


class _Batches:
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

    def __iter__(self) -> Iterator[_Batch | SourceError]:
        thread = threading.Thread(target=self._read, name="decode-reader", daemon=True)
        thread.start()
        batch: _Batch | None = None
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
                if batch is not None and (batch[0] != chunk or len(batch[1]) >= _BATCH):
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
