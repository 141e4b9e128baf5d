"""What a backfill's workers do with a file: look at it, decode and embed pieces of it, commit it. Knows nothing of Beam.

The rows of a file that shares no time with another of its stream and fits one piece become Parquet files as they are
embedded, and are committed with those of other files, many chunks at once (`index.commits.bulk`). All others go through
staging: pieces are embedded anywhere, at once, into Parquet files beside the store, and one worker stores them in order
when all are there, because the store takes the chunks of a source in order and the frames of a moment from the file
that is named first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.commits import bulk as parts
from index.errors import SourceError, mask_url
from index.records import FrameRecords, Segment, to_micros
from index.store import Store
from ingest.chunks import BATCH, Batches, ChunkWriter, SourceFootage, first_missing, identify, problem_of, stored_chunks
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding
from ingest.embedding import embed, picture
from ingest.sources.files import fetched
from model.encoders.encoder import Encoders
from pipeline.backfill.manifest import Entry
from pipeline.backfill.report import FileResult
from pipeline.backfill.staging import Staging

_COMMIT_CHUNKS = 64  # the most in one commit, which a worker that dies writes again

__all__ = ["ChunkRange", "Indexer", "Probed", "Staged", "WorkerSettings", "commit_group", "plan", "probe"]


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What every worker of a run must know. `piece_chunks`: the most chunks of one piece of work."""

    store: str
    staging: str
    profile: str
    device: str | None
    segment_seconds: int
    piece_chunks: int
    limits: DecodeLimits
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Probed:
    """A file that opens: `order` is its row in the manifest, `first` the first chunk the store lacks."""

    order: int
    uri: str
    start: int | None
    footage: SourceFootage
    mode: str
    duration: float | None
    size: int
    first: int


@dataclass(frozen=True, slots=True)
class ChunkRange:
    """Chunks [first, end) of a file, to the file's end when `end` is None; one of `pieces` in its `group`.

    Files of one group are committed by one worker, in the manifest's order. An `alone` piece is a group of its own.
    """

    file: Probed
    first: int
    end: int | None
    group: str
    pieces: int
    alone: bool


@dataclass(frozen=True, slots=True)
class Staged:
    """A piece whose frames lie in staging, as (chunk, place)."""

    piece: ChunkRange
    mode: str
    chunks: tuple[tuple[int, str], ...]
    kind: str | None = None
    problem: str | None = None


# ---- looking -----------------------------------------------------------------------------------------------------


def probe(job: WorkerSettings, store: Store, order: int, entry: Entry) -> Probed | FileResult:
    """Open a file; a result when there is nothing to do: it is stored, or it does not open."""
    name = mask_url(entry.uri)
    try:
        with fetched(entry.uri) as path, Decoding(path, limits=job.limits) as decoding:
            size = path.stat().st_size
            info = decoding.info()
            footage = identify(path, name, entry.stream, entry.start, info)
    except SourceError as error:
        return FileResult(uri=name, stream_id=entry.stream, state="lost", kind=type(error).__name__, problem=str(error))
    stored = stored_chunks(store, footage)
    if any(s.final for s in stored.values()):
        return _result(footage, stored.values(), size, state="skipped")
    start = None if entry.start is None else to_micros(entry.start)
    return Probed(order, entry.uri, start, footage, info.mode, info.duration, size, first_missing(stored))


def plan(job: WorkerSettings, stream: Iterable[Probed]) -> Iterator[ChunkRange]:
    """The pieces of one stream's files; files that share time are one group."""
    group: list[Probed] = []
    until = -math.inf
    for file in sorted(stream, key=lambda f: (f.footage.began, f.order)):
        if group and file.footage.began >= until:
            yield from _pieces(job, group)
            group, until = [], -math.inf
        group.append(file)
        until = max(until, file.footage.began + (file.duration or math.inf) * 1e6)
    if group:
        yield from _pieces(job, group)


def _pieces(job: WorkerSettings, group: list[Probed]) -> Iterator[ChunkRange]:
    cuts: list[tuple[Probed, int, int | None]] = []
    for file in sorted(group, key=lambda f: f.order):
        chunks = math.ceil(file.duration / job.segment_seconds) if file.duration else 0
        starts = list(range(file.first, chunks, job.piece_chunks)) or [file.first]
        ends: list[int | None] = [*starts[1:], None]
        cuts += [(file, first, end) for first, end in zip(starts, ends, strict=True)]
    name = f"{group[0].footage.source}-{len(cuts)}"
    for file, first, end in cuts:
        yield ChunkRange(file, first, end, name, len(cuts), alone=len(cuts) == 1)


# ---- decoding and embedding --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Draft:
    """A piece at work; `pending` frames are decoded and not embedded yet."""

    piece: ChunkRange
    writer: ChunkWriter
    info: Any
    resumed: bool
    chunks: list[tuple[int, str]] = field(default_factory=list)
    pending: int = 0
    ended: bool = False
    kind: str | None = None
    problem: str | None = None


@dataclass(slots=True)
class _Waiting:
    draft: _Draft
    chunk: int
    captured_at: int
    pts: float
    pixels: NDArray[np.uint8]


class Indexer:
    """Decodes pieces one after the other and fills the encoders' batches across them.

    `take` and `flush` yield what became of the pieces that are finished: a `FileResult` where the piece was a whole
    file, once it is committed, a `Staged` where it was not.
    """

    def __init__(self, job: WorkerSettings, store: Store, encoders: Encoders) -> None:
        self._job, self._store, self._encoders = job, store, encoders
        self._staging = Staging(job.staging, store.encoders)
        self._waiting: list[_Waiting] = []
        self._drafts: list[_Draft] = []
        self._group = _Group(store)
        self._written: list[tuple[Probed, str | None]] = []

    def take(self, piece: ChunkRange) -> Iterator[FileResult | Staged]:
        """Decode a piece; its last frames may wait for others to fill a batch."""
        file, seconds = piece.file, self._job.segment_seconds
        stored = stored_chunks(self._store, file.footage)
        if any(s.final for s in stored.values()):  # by an earlier try at this very piece, or by another file's copy
            if piece.alone:
                yield _result(file.footage, stored.values(), file.size)
            else:
                yield Staged(piece, file.mode, ())
            return
        first = first_missing(stored) if piece.alone else piece.first
        if not piece.alone and (held := self._staging.piece(file.footage, piece.first, piece.end, seconds)):
            yield Staged(piece, **held)
            return
        try:
            with fetched(file.uri) as path, Decoding(path, limits=self._job.limits) as decoding:
                info = decoding.info()
                decoding.after = first * seconds
                decoding.until = None if piece.end is None else float(piece.end * seconds)
                draft = self._draft(piece, info, first, resumed=bool(stored))
                for item in Batches(decoding, file.footage.began, info.first, seconds):
                    if isinstance(item, SourceError):
                        draft.problem = problem_of(item, path, file.footage.name)
                        draft.kind = type(item).__name__ if draft.problem or draft.writer.empty else None
                        draft.problem = draft.problem or (str(item) if draft.kind else None)
                        break
                    self._wait(draft, *item)
        except SourceError as error:  # it opened when it was probed and does not now
            draft = self._draft(piece, SimpleNamespace(mode=file.mode), first, resumed=bool(stored))
            draft.kind, draft.problem = type(error).__name__, str(error)
        draft.ended = True
        yield from self._finished()

    def flush(self) -> Iterator[FileResult | Staged]:
        """Embed what waits and finish every piece."""
        if self._waiting:
            self._embed(len(self._waiting))
        yield from self._finished()
        yield from self._committed()

    def _draft(self, piece: ChunkRange, info: Any, first: int, *, resumed: bool) -> _Draft:
        footage, draft = piece.file.footage, None

        def stage(segment: Segment, frames: FrameRecords | None) -> bool:
            assert draft is not None  # for the type checker: nothing is appended before it is made
            if frames is not None:
                draft.chunks.append(
                    (segment.chunk, self._staging.write(footage, segment, frames, self._job.segment_seconds))
                )
            return True

        append = self._group.append if piece.alone else stage
        writer = ChunkWriter(append, footage, info, segment_seconds=self._job.segment_seconds, chunk=first)
        draft = _Draft(piece, writer, info, resumed)
        self._drafts.append(draft)
        return draft

    def _wait(
        self, draft: _Draft, chunk: int, times: list[int], pts: list[float], frames: list[NDArray[np.uint8]]
    ) -> None:
        rows = zip(times, pts, frames, strict=True)
        self._waiting += [_Waiting(draft, chunk, at, seconds, pixels) for at, seconds, pixels in rows]
        draft.pending += len(times)
        while len(self._waiting) >= BATCH:
            self._embed(BATCH)

    def _embed(self, count: int) -> None:
        some, self._waiting = self._waiting[:count], self._waiting[count:]
        vectors, pooled, patches = embed(self._encoders, [w.pixels for w in some])
        at = 0
        for (_, chunk), members in groupby(some, key=lambda w: (id(w.draft), w.chunk)):
            mine = list(members)
            draft, rows = mine[0].draft, slice(at, at + len(mine))
            at += len(mine)
            records = FrameRecords(
                stream_id=draft.piece.file.footage.stream_id,
                clock_source=draft.piece.file.footage.clock,
                captured_at=np.asarray([w.captured_at for w in mine], np.int64),
                pts_seconds=np.asarray([w.pts for w in mine], np.float64),
                frame_vectors=vectors[rows],
                patch_pooled=pooled[rows],
                patches=patches[rows],
                pictures=[picture(w.pixels) for w in mine],
            )
            draft.writer.add(chunk, records)
            draft.pending -= len(mine)

    def _finished(self) -> Iterator[FileResult | Staged]:
        while self._drafts and self._drafts[0].ended and not self._drafts[0].pending:
            done = self._finish(self._drafts.pop(0))
            if done is not None:
                yield done
        if len(self._group) >= _COMMIT_CHUNKS:
            yield from self._committed()

    def _committed(self) -> Iterator[FileResult]:
        """Commit what is written, and say what became of the files that are whole with it."""
        self._group.commit()
        written, self._written = self._written, []
        for file, kind in written:
            yield _stored(self._store, file, kind)

    def _finish(self, draft: _Draft) -> FileResult | Staged | None:
        """What became of a piece; None for a file that is written and not committed yet."""
        piece, writer, mode = draft.piece, draft.writer, draft.info.mode
        if not piece.alone:
            if not writer.empty:
                writer.finish()
            staged = Staged(piece, mode, tuple(draft.chunks), draft.kind, draft.problem)
            self._staging.finish(piece.file.footage, piece.first, piece.end, self._job.segment_seconds, staged)
            return staged
        if draft.kind and writer.empty and not draft.resumed:
            return _lost(piece.file, draft.kind, draft.problem)
        writer.finish(draft.problem)
        self._written.append((piece.file, draft.kind))
        return None


class _Group:
    """Chunks that are written, up to their one commit."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._chunks: list[parts.WrittenChunk] = []

    def __len__(self) -> int:
        return len(self._chunks)

    def append(self, segment: Segment, frames: FrameRecords | None) -> bool:
        """Write a chunk, as `Store.append` takes it; False when the store has it. A full group is committed."""
        if len(self) >= _COMMIT_CHUNKS:
            self.commit()
        written = parts.write(self._store, segment, frames)
        if written is not None:
            self._chunks.append(written)
        return written is not None

    def commit(self) -> None:
        if self._chunks:
            parts.commit(self._store, self._chunks)
            self._chunks = []


# ---- committing --------------------------------------------------------------------------------------------------


def commit_group(
    job: WorkerSettings, store: Store, encoders: Encoders, staged: Iterable[Staged]
) -> Iterator[FileResult]:
    """Append the files of one group in the manifest's order, each in the order of its chunks.

    A file of several pieces that ended before its time, or whose footage changed its nature on the way, is done again
    in one piece: what follows depends on what came before, and the store shall hold what `sightline ingest` writes.
    """
    staging = Staging(job.staging, store.encoders)
    pieces = sorted(staged, key=lambda s: (s.piece.file.order, s.piece.first))
    for _, members in groupby(pieces, key=lambda s: s.piece.file.order):
        mine = list(members)
        file = mine[0].piece.file
        stored = stored_chunks(store, file.footage)
        if any(s.final for s in stored.values()):
            yield _result(file.footage, stored.values(), file.size)
        elif len(mine) > 1 and any(s.problem or s.mode != file.mode for s in mine):
            whole = Indexer(job, store, encoders)
            for done in (*whole.take(replace(mine[0].piece, end=None, alone=True)), *whole.flush()):
                assert isinstance(done, FileResult)  # for the type checker: a piece that is alone is a file
                yield done
        else:
            yield _commit(job, store, staging, file, mine, first_missing(stored))
        staging.drop(file.footage)


def _commit(
    job: WorkerSettings, store: Store, staging: Staging, file: Probed, mine: list[Staged], first: int
) -> FileResult:
    last = mine[-1]
    if last.kind and not last.chunks and not first and len(mine) == 1:
        return _lost(file, last.kind, last.problem)
    info = SimpleNamespace(mode=file.mode)
    group = _Group(store)
    writer = ChunkWriter(group.append, file.footage, info, segment_seconds=job.segment_seconds, chunk=first)
    for staged in mine:
        for chunk, place in staged.chunks:
            if chunk >= first:
                writer.add(chunk, staging.read(place, file.footage))
    info.mode = last.mode
    writer.finish(last.problem)
    group.commit()  # before the next file, whose frames of the same moments are then left out
    return _stored(store, file, last.kind)


def _lost(file: Probed, kind: str, problem: str | None) -> FileResult:
    name, stream = file.footage.name, file.footage.stream_id
    return FileResult(uri=name, stream_id=stream, state="lost", bytes=file.size, kind=kind, problem=problem)


def _stored(store: Store, file: Probed, kind: str | None) -> FileResult:
    return _result(file.footage, stored_chunks(store, file.footage).values(), file.size, kind=kind)


def _result(
    footage: SourceFootage, segments: Iterable[Segment], size: int, *, state: str = "stored", kind: str | None = None
) -> FileResult:
    """What the store says of a file, so that a piece of work done twice reports the same twice."""
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
