"""Ingest of files: decoding in another process, encoding in this one, a commit for each chunk.

    decoder process ─pipe─▶ reader thread ─bounded queue─▶ batches ─encoders─▶ records ─▶ store.append, chunk by chunk

Chunks that the store holds are skipped, and complete files are not decoded at all, so an ingest that was interrupted
is completed by running it again. Memory holds the records of one chunk, whatever the length of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Protocol

import structlog
from pydantic import BaseModel, ConfigDict, Field

from index.errors import SourceError, UsageError
from index.records import FrameRecords, Segment, Time, clock_text, parse_zoned_time, rfc3339
from ingest.chunks import (
    BATCH_FRAMES,
    ChunkFrames,
    ChunkWriter,
    FrameReader,
    SourceFootage,
    decoding_problem,
    first_missing_chunk,
    identify_footage,
    resume_footage,
)
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding
from ingest.embedding import encode_records
from ingest.footage_plan import PlannedFile, plan_footage
from ingest.footage_report import FootageReport
from ingest.sources.files import fetched
from ingest.sources.naming import Overlap
from model.encoders.encoder import Encoders

__all__ = ["FileReport", "IngestProgress", "IngestReport", "SegmentStore", "ingest_sources"]

SEGMENT_SECONDS = 300
_log = structlog.get_logger(__name__)


class SegmentStore(Protocol):
    """The part of `index.store.Store` that an ingest uses."""

    def append(self, segment: Segment, frames: FrameRecords | None) -> Segment | None:
        """Store a segment and its frames; returns whether the store did not have it."""
        ...

    def segments(self, stream_id: str | None = None) -> list[Segment]:
        """The stored segments of a stream, or of all."""
        ...

    def seal(self) -> int:
        """Build the search shards of days that are complete."""
        ...


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """How far one file has been ingested."""

    file: str
    """Path or URL, credentials masked."""
    number: int
    """Position of the file among all, from 0."""
    files: int
    """Number of files."""
    seconds: float
    """Seconds of footage done."""
    duration: float | None
    """Seconds of footage in the file, None if the container does not state it."""
    frames: int
    """Frames encoded so far."""


class FileReport(BaseModel):
    """The result of one file."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    file: str
    """Path or URL, credentials masked."""
    stream_id: str | None = None
    """The stream that its frames belong to; null if the file could not be read."""
    frames: int = 0
    """Frames stored by this run."""
    repeated: int = 0
    """Frames decoded by this run and not stored, because the stream has a frame of their second already."""
    seconds: float = 0.0
    """Seconds of footage from the start of the file to the last frame."""
    start: str | None = None
    """RFC 3339 time of the first frame."""
    clock: str | None = None
    """The source of that time: `given`, `filename` with the zone that it was read in, `container` or `mtime`."""
    decode_mode: str | None = None
    """How it was decoded: `keyframes`, `nonref` or `all`."""
    skipped: bool = False
    """The store held all of it."""
    problem: str | None = None
    """The error that ended decoding, now or when the file was stored."""
    footage: FootageReport = Field(default_factory=FootageReport)
    """What was stored, what repeated and what was dropped, each with its seconds."""


class IngestReport(BaseModel):
    """The result of an ingest: every file, and its speed."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    files: list[FileReport] = Field(default_factory=list)
    """One entry for each file, in the order of the sources."""
    frames: int = 0
    """Frames stored."""
    repeated: int = 0
    """Frames decoded and not stored, because their seconds were stored already."""
    footage: FootageReport = Field(default_factory=FootageReport)
    """What was stored, what repeated and what was dropped, each with its seconds."""
    layout: str | None = None
    """The recorder whose layout of names all files have."""
    skipped: list[str] = Field(default_factory=list)
    """Files in folders that were passed over, each with the reason."""
    footage_seconds: float = 0.0
    """Seconds of footage in all files."""
    wall_seconds: float = 0.0
    """Seconds that the ingest took."""
    frames_per_second: float = 0.0
    """Frames stored by seconds taken."""
    realtime_factor: float = 0.0
    """Seconds of footage by seconds taken."""
    stages: dict[str, float] = Field(default_factory=dict)
    """Seconds in each stage: `decode` (waiting for the decoder), `encode`, `pictures` (making JPEGs), `store`."""

    @property
    def failed(self) -> list[FileReport]:
        """The files that have a problem."""
        return [file for file in self.files if file.problem]


def ingest_sources(
    sources: Sequence[str | Path],
    *,
    store: SegmentStore,
    encoders: Encoders,
    stream: str | None = None,
    start: Time | None = None,
    names: str | None = None,
    timezone: str | None = None,
    overlap: Overlap = "error",
    on_progress: Callable[[IngestProgress], None] = lambda _: None,
    segment_seconds: int = SEGMENT_SECONDS,
    limits: DecodeLimits | None = None,
) -> IngestReport:
    """Ingest every file of `sources` at one frame a second.

    Args:
        sources: files, folders, globs and URLs, see `ingest.sources.files`.
        store: an open store whose encoders are `encoders`.
        stream: the stream that all files belong to; by default each file's name gives it.
        start: time of the first frame: a datetime with a time zone, RFC 3339 or UTC microseconds; for a single file
            only.
        names, timezone, overlap: see `ingest.footage_plan.plan_footage`.
        on_progress: called after each batch of frames.
        segment_seconds: seconds of footage in one commit, at least 1.
        limits: of the decoder.

    Returns:
        The report. A file that fails has a problem there and does not stop the others.

    Raises:
        UsageError: `segment_seconds` is below 1, `stream` is not a valid stream id, or `start` is given for several
            files, is not a time, or has no time zone; a name does not match `names`.
        StreamConflict: two sources claim the same seconds of one stream; nothing was stored.
        StoreError: the store cannot append (another encoder, no space). What was committed stays; running again
            continues after it.
    """
    if segment_seconds < 1:
        raise UsageError(f"segment_seconds must be at least 1, got {segment_seconds}")
    began_at = parse_zoned_time(start, "start")
    plan = plan_footage(
        sources, stream=stream, start=began_at, names=names, timezone=timezone, overlap=overlap, limits=limits
    )
    report = IngestReport(
        files=[FileReport(file=name, problem=str(error)) for name, error in plan.problems],
        layout=plan.layout,
        skipped=plan.skipped,
    )
    report.footage.add("dropped", files=len(plan.problems))
    began = perf_counter()
    ingest = _FileIngest(store, encoders, segment_seconds, limits or DecodeLimits(), report)
    for number, planned in enumerate(plan.files):

        def advance(
            seconds: float, duration: float | None, frames: int, name: str = planned.shown, number: int = number
        ) -> None:
            """Report the progress of this file."""
            on_progress(IngestProgress(name, number, len(plan.files), seconds, duration, frames))

        file = FileReport(file=planned.shown, stream_id=planned.name.stream)
        report.files.append(file)
        try:
            with fetched(planned.source) as path:
                ingest.run(path, planned, began_at, file, advance)
        except SourceError as error:
            file.problem = str(error)
            if not file.footage.dropped.files:
                file.footage.add("dropped", files=1)
            _log.info("file not ingested", file=planned.shown, problem=file.problem)
        report.frames += file.frames
        report.repeated += file.repeated
        report.footage_seconds += file.seconds
        report.footage.include(file.footage)
    store.seal()
    report.wall_seconds = perf_counter() - began
    report.frames_per_second = report.frames / max(report.wall_seconds, 1e-9)
    report.realtime_factor = report.footage_seconds / max(report.wall_seconds, 1e-9)
    return report


class _FileIngest:
    def __init__(
        self, store: SegmentStore, encoders: Encoders, segment_seconds: int, limits: DecodeLimits, report: IngestReport
    ) -> None:
        self.store, self.encoders, self.report = store, encoders, report
        self.segment_seconds, self.limits = segment_seconds, limits

    def run(
        self,
        path: Path,
        planned: PlannedFile,
        start: datetime | None,
        file: FileReport,
        advance: Callable[[float, float | None, int], None],
    ) -> None:
        """Ingest one local file and fill in its report."""
        name, stream_id = planned.shown, planned.name.stream
        with Decoding(path, name=name, limits=self.limits) as decoding:
            info = decoding.info()
            footage = identify_footage(path, name, stream_id, start, info, planned.name)
            footage, stored = resume_footage(self.store, footage)
            file.start, file.clock = rfc3339(footage.began), clock_text(footage.clock, footage.zone, footage.fold)
            if any(s.final for s in stored.values()):
                file.skipped = True
                file.footage.add("repeated", frames=sum(s.frames for s in stored.values()))
                file.problem = next((s.problem for s in stored.values() if s.problem), None)
                return
            chunk = first_missing_chunk(stored, self.segment_seconds)
            decoding.after = chunk * self.segment_seconds
            _log.info("decoding", file=name, mode=info.mode, clock=footage.clock, stream=stream_id)
            writer = ChunkWriter(self._append, footage, info, segment_seconds=self.segment_seconds, chunk=chunk)
            failure: SourceError | None = None
            since = perf_counter()
            for item in FrameReader(
                decoding, footage.began, info.first, self.segment_seconds, self.encoders.pair.clip_frames
            ):
                self._add_seconds("decode", since)
                if isinstance(item, SourceError):
                    failure = item
                    break
                file.seconds = max(file.seconds, (item.frames.captured_at[-1] - footage.began) / 1e6 + 1)
                writer.add(item.chunk, self._encoded(footage, item))
                advance(file.seconds, info.duration, writer.frames)
                since = perf_counter()
            file.decode_mode = info.mode
            if failure is not None:
                file.footage.add("dropped", files=1, seconds=max(0.0, (info.duration or 0.0) - file.seconds))
            if failure is not None and writer.empty and not stored:
                raise failure
            file.problem = decoding_problem(failure) or info.clock_problem(name)
            writer.finish(file.problem)
            file.frames, file.repeated = writer.stored, writer.frames - writer.stored
            file.footage.add("stored", frames=file.frames)
            file.footage.add("repeated", frames=file.repeated)
            if file.problem:
                _log.info("file incomplete", file=name, problem=file.problem)

    def _encoded(self, footage: SourceFootage, item: ChunkFrames) -> FrameRecords:
        (records,) = encode_records(
            self.encoders,
            [(footage.stream_id, footage.clock, item.frames)],
            batch_frames=BATCH_FRAMES,
            seconds=self.report.stages,
        )
        return records

    def _append(self, segment: Segment, frames: FrameRecords | None) -> Segment | None:
        since = perf_counter()
        appended = self.store.append(segment, frames)
        self._add_seconds("store", since)
        return appended

    def _add_seconds(self, stage: str, since: float) -> None:
        self.report.stages[stage] = self.report.stages.get(stage, 0.0) + perf_counter() - since
