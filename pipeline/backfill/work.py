"""Work of a backfill's workers: probe a file, decode and embed pieces of it, commit it. Knows nothing of Beam.

There are two ways into the store. A file that shares no time with another file of its stream and fits one piece becomes
Parquet files while it is embedded; they are committed together with those of other files (`index.commits.bulk`). All
other files go through staging: their pieces are embedded anywhere and at the same time, and when all are staged, one
worker commits them in order. The order matters because the store takes the chunks of a source in ascending order, and
keeps the frame of a moment from the file that the manifest names first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from index.commits import bulk
from index.errors import SourceError, mask_url
from index.records import ClockSource, FrameRecords, Segment, to_micros
from index.store import Store
from ingest.chunks import (
    BATCH_BYTES,
    BATCH_FRAMES,
    ChunkFrames,
    ChunkWriter,
    FrameReader,
    SourceFootage,
    decoding_problem,
    first_missing_chunk,
    identify_footage,
    resume_footage,
    stored_chunks,
)
from ingest.decoding.frame import FrameBatch
from ingest.decoding.sandbox import Decoding, VideoInfo
from ingest.embedding import encode_records
from ingest.sources.files import fetched
from ingest.sources.naming import FileName
from model.encoders.clips import clip_batches, clip_numbers
from model.encoders.encoder import Encoders
from pipeline.backfill.elements import ChunkRange, ProbedFile, StagedRange, WorkerSettings
from pipeline.backfill.manifest import Entry
from pipeline.backfill.report import FileResult
from pipeline.backfill.staging import Staging

__all__ = ["Indexer", "commit_group", "plan", "probe"]

_COMMIT_CHUNKS = 64  # the most in one commit; if a worker dies, this many are written again

_MIN_BYTES_A_SECOND = 100
"""No footage is smaller; a header that announces more seconds than this allows must not become work."""


# ---- probing -----------------------------------------------------------------------------------------------------


def probe(settings: WorkerSettings, store: Store, order: int, entry: Entry) -> ProbedFile | FileResult:
    """Open a file. Returns its result if nothing is left to do, because it is stored already or does not open."""
    name = mask_url(entry.uri)
    try:
        limits = settings.limits.in_software()
        with fetched(entry.uri) as path, Decoding(path, name=name, limits=limits) as decoding:
            size = path.stat().st_size
            info = decoding.info()
            named = (
                FileName(entry.stream, entry.name_start, entry.name_zone, fold=entry.name_fold)
                if entry.name_start
                else None
            )
            footage = identify_footage(path, name, entry.stream, entry.start, info, named)
    except SourceError as error:
        return FileResult(uri=name, stream_id=entry.stream, state="lost", kind=type(error).__name__, problem=str(error))
    footage, stored = resume_footage(store, footage)
    if any(s.final for s in stored.values()):
        return _result(footage, stored.values(), size, state="skipped")
    start = None if entry.start is None else to_micros(entry.start)
    duration = None if info.duration is None else min(info.duration, size / _MIN_BYTES_A_SECOND)
    return ProbedFile(
        order,
        entry.uri,
        start,
        footage,
        info.mode,
        duration,
        size,
        first_missing_chunk(stored, settings.segment_seconds),
    )


def plan(settings: WorkerSettings, stream: Iterable[ProbedFile]) -> Iterator[ChunkRange]:
    """Cut the files of one stream into pieces; files that overlap in time form one group."""
    group: list[ProbedFile] = []
    until = -math.inf
    for file in sorted(stream, key=lambda f: (f.footage.began, f.order)):
        if group and file.footage.began >= until:
            yield from _pieces(settings, group)
            group, until = [], -math.inf
        group.append(file)
        until = max(until, file.footage.began + (file.duration or math.inf) * 1e6)
    if group:
        yield from _pieces(settings, group)


def _pieces(settings: WorkerSettings, group: list[ProbedFile]) -> Iterator[ChunkRange]:
    cuts: list[tuple[ProbedFile, int, int | None]] = []
    for file in sorted(group, key=lambda f: f.order):
        chunks = math.ceil(file.duration / settings.segment_seconds) if file.duration else 0
        starts = list(range(file.first, chunks, settings.piece_chunks)) or [file.first]
        ends: list[int | None] = [*starts[1:], None]
        cuts += [(file, first, end) for first, end in zip(starts, ends, strict=True)]
    name = f"{group[0].footage.source}-{len(cuts)}"
    for file, first, end in cuts:
        yield ChunkRange(file, first, end, name, len(cuts), alone=len(cuts) == 1)


# ---- decoding and embedding --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _OpenPiece:
    """A piece that is decoded and not embedded completely yet."""

    piece: ChunkRange
    writer: ChunkWriter
    info: VideoInfo
    resumed: bool
    first: int  # chunk
    chunks: list[tuple[int, str]] = field(default_factory=list)
    pending: int = 0  # frames decoded and not embedded
    ended: bool = False
    kind: str | None = None
    problem: str | None = None


@dataclass(slots=True)
class _PendingFrame:
    """A decoded frame that waits for its batch."""

    opened: _OpenPiece
    chunk: int
    captured_at: int
    pts: float
    pixels: NDArray[np.uint8]


class Indexer:
    """Decodes pieces one after the other and fills the encoders' batches across them.

    `add` and `flush` yield one value for each finished piece: a `FileResult` for a piece that is alone in its group,
    once it is committed, and a `StagedRange` for any other.
    """

    def __init__(self, settings: WorkerSettings, store: Store, encoders: Encoders) -> None:
        self._settings, self._store, self._encoders = settings, store, encoders
        self._staging = Staging(settings.staging, store.encoders)
        self._frames: list[_PendingFrame] = []
        self._bytes = 0  # of the pixels of `_frames`
        self._open: list[_OpenPiece] = []
        self._buffer = _CommitBuffer(store)
        self._written: list[tuple[_OpenPiece, int]] = []

    def add(self, piece: ChunkRange) -> Iterator[FileResult | StagedRange]:
        """Decode a piece. Its last frames may wait until frames of other pieces fill their batch."""
        file, seconds = piece.file, self._settings.segment_seconds
        stored = stored_chunks(self._store, file.footage)
        if any(s.final for s in stored.values()):  # an earlier attempt at this piece, or a copy of the file, stored it
            if piece.alone:
                yield _result(file.footage, stored.values(), file.size)
            else:
                yield StagedRange(piece, file.mode, ())
            return
        first = first_missing_chunk(stored, seconds) if piece.alone else piece.first
        if not piece.alone and (held := self._staging.finished(file.footage, piece.first, piece.end, seconds)):
            yield StagedRange(piece, **held)
            return
        try:
            with (
                fetched(file.uri) as path,
                Decoding(path, name=file.footage.name, limits=self._settings.limits) as decoding,
            ):
                info = decoding.info()
                decoding.after = first * seconds
                decoding.until = None if piece.end is None else float(piece.end * seconds)
                opened = self._open_piece(piece, info, first, resumed=bool(stored))
                for item in FrameReader(
                    decoding, file.footage.began, info.first, seconds, self._encoders.pair.clip_frames
                ):
                    if isinstance(item, SourceError):
                        opened.problem = decoding_problem(item)
                        opened.kind = type(item).__name__ if opened.problem or opened.writer.empty else None
                        opened.problem = opened.problem or (str(item) if opened.kind else None)
                        break
                    self._enqueue(opened, item)
                else:
                    if piece.end is None:  # this piece has read the file to its end
                        opened.problem = info.clock_problem(file.footage.name)
        except SourceError as error:  # it opened when it was probed, and no longer does
            opened = self._open_piece(piece, VideoInfo(file.mode, 0.0, None, None), first, resumed=bool(stored))
            opened.kind, opened.problem = type(error).__name__, str(error)
        opened.ended = True
        yield from self._finished()

    def flush(self) -> Iterator[FileResult | StagedRange]:
        """Embed the waiting frames and finish every piece."""
        if self._frames:
            self._embed(len(self._frames))
        yield from self._finished()
        yield from self._committed()

    def _open_piece(self, piece: ChunkRange, info: VideoInfo, first: int, *, resumed: bool) -> _OpenPiece:
        footage, opened = piece.file.footage, None

        def stage(segment: Segment, frames: FrameRecords | None) -> Segment | None:
            assert opened is not None  # for the type checker: it is assigned before anything is appended
            if frames is not None:
                opened.chunks.append(
                    (segment.chunk, self._staging.write(footage, segment, frames, self._settings.segment_seconds))
                )
            return segment

        append = self._buffer.append if piece.alone else stage
        writer = ChunkWriter(append, footage, info, segment_seconds=self._settings.segment_seconds, chunk=first)
        opened = _OpenPiece(piece, writer, info, resumed, first)
        self._open.append(opened)
        return opened

    def _enqueue(self, opened: _OpenPiece, item: ChunkFrames) -> None:
        rows = zip(item.frames.captured_at, item.frames.pts_seconds, item.frames.pixels, strict=True)
        self._frames += [_PendingFrame(opened, item.chunk, at, seconds, pixels) for at, seconds, pixels in rows]
        opened.pending += len(item.frames)
        self._bytes += sum(pixels.nbytes for pixels in item.frames.pixels)
        while len(self._frames) >= BATCH_FRAMES or self._bytes > BATCH_BYTES:
            self._embed(self._batch())

    def _batch(self) -> int:
        """How many of the waiting frames make one batch that cuts no clip. Pieces come with whole clips."""
        pieces = [(id(w.opened), w.chunk) for w in self._frames]
        index = np.cumsum([0, *(one != two for one, two in pairwise(pieces))])
        clips = clip_numbers([w.captured_at for w in self._frames], index, self._encoders.pair.clip_frames)
        return int(next(clip_batches(clips, BATCH_FRAMES)).stop)

    def _embed(self, count: int) -> None:
        some, self._frames = self._frames[:count], self._frames[count:]
        self._bytes -= sum(waiting.pixels.nbytes for waiting in some)
        groups = [list(group) for _, group in groupby(some, key=lambda w: (id(w.opened), w.chunk))]
        batches: list[tuple[str, ClockSource, FrameBatch]] = []
        for group in groups:
            frames = FrameBatch([w.captured_at for w in group], [w.pts for w in group], [w.pixels for w in group])
            footage = group[0].opened.piece.file.footage
            batches.append((footage.stream_id, footage.clock, frames))
        encoded = encode_records(self._encoders, batches, batch_frames=BATCH_FRAMES)
        for group, records in zip(groups, encoded, strict=True):
            group[0].opened.writer.add(group[0].chunk, records)
            group[0].opened.pending -= len(group)

    def _finished(self) -> Iterator[FileResult | StagedRange]:
        while self._open and self._open[0].ended and not self._open[0].pending:
            done = self._finish(self._open.pop(0))
            if done is not None:
                yield done
        if len(self._buffer) >= _COMMIT_CHUNKS:
            yield from self._committed()

    def _committed(self) -> Iterator[FileResult]:
        """Commit the written chunks and yield the results of the files that are complete with them."""
        self._buffer.commit()
        written, self._written = self._written, []
        for opened, first in written:
            yield _stored(self._store, opened.piece.file, opened.kind, opened.writer.frames, first)

    def _finish(self, opened: _OpenPiece) -> FileResult | StagedRange | None:
        """Return the outcome of a piece, or None for a file that is written and not committed yet."""
        piece, writer, mode = opened.piece, opened.writer, opened.info.mode
        if not piece.alone:
            if not writer.empty:
                writer.finish()
            staged = StagedRange(piece, mode, tuple(opened.chunks), opened.kind, opened.problem)
            self._staging.finish(piece.file.footage, piece.first, piece.end, self._settings.segment_seconds, staged)
            return staged
        if opened.kind and writer.empty and not opened.resumed:
            return _lost(piece.file, opened.kind, opened.problem)
        writer.finish(opened.problem)
        self._written.append((opened, opened.first))
        return None


class _CommitBuffer:
    """Chunks that are written, until one commit takes them all."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._chunks: list[bulk.WrittenChunk] = []

    def __len__(self) -> int:
        return len(self._chunks)

    def append(self, segment: Segment, frames: FrameRecords | None) -> Segment | None:
        """Write a chunk, with the arguments of `Store.append`; None if the store has it. A full buffer is committed."""
        if len(self) >= _COMMIT_CHUNKS:
            self.commit()
        written = bulk.write(self._store.tables, segment, frames)
        if written is not None:
            self._chunks.append(written)
        return None if written is None else segment

    def commit(self) -> None:
        """Commit the written chunks, if there are any."""
        if self._chunks:
            bulk.commit(self._store.tables, self._chunks)
            self._chunks = []


# ---- committing --------------------------------------------------------------------------------------------------


def commit_group(
    settings: WorkerSettings, store: Store, encoders: Encoders, staged: Iterable[StagedRange]
) -> Iterator[FileResult]:
    """Commit the files of one group in the manifest's order, each in the order of its chunks.

    A file of several pieces is decoded again as one piece if it ended early or if the way of decoding it changed within
    it: later pieces then depend on earlier ones, and the store must hold the rows that `sightline ingest` writes.
    """
    staging = Staging(settings.staging, store.encoders)
    pieces = sorted(staged, key=lambda s: (s.piece.file.order, s.piece.first))
    for _, members in groupby(pieces, key=lambda s: s.piece.file.order):
        mine = list(members)
        file = mine[0].piece.file
        stored = stored_chunks(store, file.footage)
        if any(s.final for s in stored.values()):
            yield _result(file.footage, stored.values(), file.size)
        elif len(mine) > 1 and any(s.problem or s.mode != file.mode for s in mine):
            whole = Indexer(settings, store, encoders)
            for done in (*whole.add(replace(mine[0].piece, end=None, alone=True)), *whole.flush()):
                assert isinstance(done, FileResult)  # for the type checker: a piece that is alone gives a FileResult
                yield done
        else:
            yield _commit(settings, store, staging, file, mine, first_missing_chunk(stored, settings.segment_seconds))
        staging.drop(file.footage)


def _commit(
    settings: WorkerSettings, store: Store, staging: Staging, file: ProbedFile, mine: list[StagedRange], first: int
) -> FileResult:
    last = mine[-1]
    if last.kind and not last.chunks and not first and len(mine) == 1:
        return _lost(file, last.kind, last.problem)
    info = VideoInfo(file.mode, 0.0, None, None)
    group = _CommitBuffer(store)
    writer = ChunkWriter(group.append, file.footage, info, segment_seconds=settings.segment_seconds, chunk=first)
    for staged in mine:
        for chunk, url in staged.chunks:
            if chunk >= first:
                writer.add(chunk, staging.read(url, file.footage))
    info.mode = last.mode
    writer.finish(last.problem)
    group.commit()  # before the next file, so that its frames of the same moments are left out
    return _stored(store, file, last.kind, writer.frames, first)


def _lost(file: ProbedFile, kind: str, problem: str | None) -> FileResult:
    name, stream = file.footage.name, file.footage.stream_id
    return FileResult(
        uri=name,
        stream_id=stream,
        state="lost",
        dropped_seconds=file.duration or 0.0,
        bytes=file.size,
        kind=kind,
        problem=problem,
    )


def _stored(store: Store, file: ProbedFile, kind: str | None, decoded: int, first: int) -> FileResult:
    """The result of a file of which `decoded` frames were decoded from chunk `first` on."""
    held = stored_chunks(store, file.footage)
    result = _result(file.footage, held.values(), file.size, kind=kind)
    new = sum(segment.frames for chunk, segment in held.items() if chunk >= first)
    result.repeated = max(0, decoded - new)
    if kind is not None:
        result.dropped_seconds = max(0.0, (file.duration or 0.0) - result.seconds)
    return result


def _result(
    footage: SourceFootage, segments: Iterable[Segment], size: int, *, state: str = "stored", kind: str | None = None
) -> FileResult:
    """Build the result of a file from its rows in the store, so that repeated work reports the same result."""
    held = list(segments)
    seconds = (max(s.end for s in held) - footage.began) / 1e6 if held else 0.0
    problem = next((s.problem for s in held if s.problem), None)
    return FileResult(
        uri=footage.name,
        stream_id=footage.stream_id,
        state=state,
        source=footage.source,
        frames=sum(s.frames for s in held),
        seconds=seconds,
        bytes=size,
        kind=(kind or "DecodeFailed") if problem else None,
        problem=problem,
    )
