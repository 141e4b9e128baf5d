"""From files to stored segments: decode in one process, encode in this one, commit by segment.

    child process ─pipe─▶ reader thread ─bounded queue─▶ batches ─encoders─▶ records ─▶ store.append a segment

What is stored already is skipped, whole files without opening them, so an ingest that was stopped anywhere is finished
by running it again. Memory holds one segment's records, whatever the file's length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from index.errors import SourceError, UsageError, mask_url
from index.records import FrameRecords, Segment
from index.schemas import check_stream_id
from ingest.chunks import Batches, ChunkWriter, SourceFootage, first_missing, identify, problem_of, stored_chunks
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding
from ingest.embedding import embed, picture
from ingest.sources.files import expand, fetched
from ingest.sources.start_time import stream_name
from model.encoders.encoder import Encoders

__all__ = ["FileReport", "IngestProgress", "IngestReport", "ingest_sources"]

SEGMENT_SECONDS = 300
_log = structlog.get_logger(__name__)


class SegmentStore(Protocol):
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


def ingest_sources(
    sources: Sequence[str | Path],
    *,
    store: SegmentStore,
    encoders: Encoders,
    stream: str | None = None,
    start: datetime | None = None,
    on_progress: Callable[[IngestProgress], None] = lambda _: None,
    segment_seconds: int = SEGMENT_SECONDS,
    limits: DecodeLimits | None = None,
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
    worker = _Worker(store, encoders, segment_seconds, limits or DecodeLimits(), report)
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
        self, store: SegmentStore, encoders: Encoders, segment_seconds: int, limits: DecodeLimits, report: IngestReport
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
        with Decoding(path, limits=self.limits) as decoding:
            info = decoding.info()
            footage = identify(path, name, stream_id, start, info)
            stored = stored_chunks(self.store, footage)
            if any(s.final for s in stored.values()):
                file.skipped = True
                file.problem = next((s.problem for s in stored.values() if s.problem), None)
                return
            chunk = first_missing(stored)
            decoding.after = chunk * self.segment_seconds
            _log.info("decoding", file=name, mode=info.mode, clock=footage.clock, stream=stream_id)
            batches = Batches(decoding, footage.began, info.first, self.segment_seconds)
            writer = ChunkWriter(self._append, footage, info, segment_seconds=self.segment_seconds, chunk=chunk)
            held: SourceError | None = None
            since = perf_counter()
            for item in batches:
                since = self._spent("decode", since)
                if isinstance(item, SourceError):
                    held = item
                    break
                index, times, pts, frames = item
                writer.add(index, self._encode(footage, times, pts, frames))
                file.seconds = max(file.seconds, (times[-1] - footage.began) / 1e6 + 1)
                tell(file.seconds, info.duration, writer.frames)
                since = perf_counter()
            file.decode_mode = info.mode
            if held is not None and writer.empty and not stored:
                raise held
            file.problem = problem_of(held, path, name)
            writer.finish(file.problem)
            file.frames = writer.stored
            if file.problem:
                _log.info("file not whole", file=name, problem=file.problem)

    def _append(self, segment: Segment, frames: FrameRecords | None) -> bool:
        since = perf_counter()
        appended = self.store.append(segment, frames)
        self._spent("store", since)
        return appended

    def _encode(
        self, footage: SourceFootage, times: list[int], pts: list[float], frames: list[NDArray[np.uint8]]
    ) -> FrameRecords:
        since = perf_counter()
        vectors, pooled, patches = embed(self.encoders, frames)
        since = self._spent("encode", since)
        pictures = [picture(frame) for frame in frames]
        self._spent("pictures", since)
        return FrameRecords(
            stream_id=footage.stream_id,
            clock_source=footage.clock,
            captured_at=np.asarray(times, np.int64),
            pts_seconds=np.asarray(pts, np.float64),
            frame_vectors=vectors,
            patch_pooled=pooled,
            patches=patches,
            pictures=pictures,
        )
