"""Frames of a store in memory: the times of all of them, and as many of their vectors as a limit of bytes allows.

A Delta table only adds and removes whole files, and a committed file never changes. `ResidentFrames` keeps what it read
of each file and, when the table has a new version, reads the new files alone. A `FrameSnapshot` is one version: it does
not change while a request uses it, however the store grows meanwhile.

    snapshot = resident.refresh()
    scores = snapshot.streams["gate"].scores(query)

Scores are computed over all frames of a stream, exactly. This module knows neither moments nor texts.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.columns import to_matrix
from index.delta.files import open_file
from index.delta.table import StoreTable
from index.errors import UnknownFrame
from index.records import rfc3339
from index.search.scores import cosines

__all__ = ["FrameSnapshot", "ResidentFrames", "ResidentStream"]

_VECTOR_BYTES = 2 * 2**30
_VERSIONS = 1 << 32
_PICTURE_GROUPS = 64  # row groups whose pictures are kept, because a strip shows neighbours
_PICTURE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class _FrameFile:
    """What is kept of one file of the table `frames`."""

    path: str
    stream_id: str
    captured_at: NDArray[np.int64]
    pts_seconds: NDArray[np.float64]
    clock_sources: frozenset[str]
    groups: NDArray[np.int64]
    """int64[G + 1]: the first row of each row group, and the number of rows."""


@dataclass(frozen=True, slots=True, eq=False)
class ResidentStream:
    """The N frames of one stream in one version of a store, ascending in time; row i of every array is one frame."""

    stream_id: str
    """Name of the stream."""
    captured_at: NDArray[np.int64]
    """int64[N]: UTC microseconds."""
    pts_seconds: NDArray[np.float64]
    """float64[N]: seconds of the stream's own clock."""
    clock_sources: tuple[str, ...]
    """Sources of the times, ascending."""
    _files: tuple[_FrameFile, ...] = field(repr=False)
    _source: ResidentFrames = field(repr=False)
    _order: NDArray[np.int64] = field(repr=False)
    """int64[N]: the position of each frame in the concatenation of the files."""

    def __len__(self) -> int:
        return len(self.captured_at)

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that hold the frames, ascending: two equal streams have equal paths."""
        return tuple(file.path for file in self._files)

    def between(self, start: int | None, end: int | None) -> slice:
        """The rows with start ≤ captured_at < end, UTC microseconds; None means no limit."""
        low = 0 if start is None else int(np.searchsorted(self.captured_at, start))
        high = len(self) if end is None else int(np.searchsorted(self.captured_at, end))
        return slice(low, max(low, high))

    def row(self, at: int) -> int:
        """The row of the frame at a time, UTC microseconds. Raises UnknownFrame."""
        row = int(np.searchsorted(self.captured_at, at))
        if row == len(self) or self.captured_at[row] != at:
            raise UnknownFrame(
                f"{self.stream_id} at {rfc3339(at)}: the store has no such frame; list the frames near it"
            )
        return row

    def nearest(self, at: int) -> int:
        """The row of the frame that is nearest to a time, UTC microseconds; the earlier of two."""
        row = min(int(np.searchsorted(self.captured_at, at)), len(self) - 1)
        return row - 1 if row and at - self.captured_at[row - 1] <= self.captured_at[row] - at else row

    def scores(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosines of all frames and a query (float32[Df], unit norm), float32[N].

        Raises:
            StoreError: a file that is not in memory cannot be read.
        """
        parts = [cosines(self._source.vectors(path), query) for path in self.paths]
        found: NDArray[np.float32] = np.concatenate([np.zeros(0, np.float32), *parts])[self._order]
        return found

    def vector(self, row: int) -> NDArray[np.float32]:
        """The vector of one frame, float32[Df]."""
        file, place = self._place(row)
        found: NDArray[np.float32] = self._source.vectors(file.path)[place]
        return found

    def picture(self, row: int) -> bytes:
        """The picture of one frame, JPEG. Raises StoreError."""
        file, place = self._place(row)
        return self._source.picture(file.path, file.groups, place)

    def _place(self, row: int) -> tuple[_FrameFile, int]:
        place = int(self._order[row])
        for file in self._files:
            if place < len(file.captured_at):
                return file, place
            place -= len(file.captured_at)
        raise IndexError(f"row {row} of {len(self)}")


@dataclass(frozen=True, slots=True)
class FrameSnapshot:
    """All frames of one version of a store."""

    version: int
    """The version of the table `frames`; 2³² more each time that the table was deleted and made anew."""
    streams: Mapping[str, ResidentStream]
    """Every stream with frames, by name."""


class ResidentFrames:
    """Reads the table `frames` into memory and follows its new versions. Any number of threads may use it.

    Args:
        frames: the table.
        dimension: Df, the length of a vector.
        vector_bytes: largest size of the vectors that are kept, in bytes; the others are read again for each search.
        fresh_seconds: `refresh` looks for a new version at most this often.
    """

    def __init__(
        self, frames: StoreTable, *, dimension: int, vector_bytes: int = _VECTOR_BYTES, fresh_seconds: float = 1.0
    ) -> None:
        self._table, self._dimension = frames, dimension
        self._vector_bytes, self._fresh_seconds = vector_bytes, fresh_seconds
        self._files: dict[str, _FrameFile] = {}
        self._vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._held = 0
        self._pictures: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._snapshot = FrameSnapshot(-1, {})
        self._table_id, self._anew = "", 0
        self._checked = -float("inf")

    def refresh(self, *, now: bool = False) -> FrameSnapshot:
        """The newest version, as it was at most `fresh_seconds` ago; `now` looks in any case.

        While one thread reads new files, the others get the version before, unless there is none yet.

        Raises:
            StoreError: the table cannot be read.
        """
        if not now and time.monotonic() - self._checked < self._fresh_seconds:
            return self._snapshot
        if not self._reading.acquire(blocking=now or self._snapshot.version < 0):
            return self._snapshot
        try:
            if not now and time.monotonic() - self._checked < self._fresh_seconds:
                return self._snapshot
            listed = self._table.files()
            if listed.table != self._table_id:
                self._anew += self._table_id != ""
                self._table_id = listed.table
            version = listed.version + self._anew * _VERSIONS
            if version != self._snapshot.version:
                self._snapshot = self._read(version, listed.streams)
            self._checked = time.monotonic()
            return self._snapshot
        finally:
            self._reading.release()

    def vectors(self, path: str) -> NDArray[np.float32]:
        """The vectors of a file, float32[n, Df], in the order of its rows."""
        with self._lock:
            found = self._vectors.get(path)
            if found is not None:
                self._vectors.move_to_end(path)
                return found
        rows = open_file(self._table.uri, path).read(columns=["frame_vector"])
        found = np.ascontiguousarray(to_matrix(rows["frame_vector"], self._dimension), np.float32)
        with self._lock:
            if path not in self._vectors and found.nbytes <= self._vector_bytes:
                self._vectors[path] = found
                self._held += found.nbytes
                while self._held > self._vector_bytes:
                    self._held -= self._vectors.popitem(last=False)[1].nbytes
        return found

    def warm(self) -> None:
        """Read the vectors of all files, up to the limit of bytes, so that the first search need not."""
        for stream in self.refresh(now=True).streams.values():
            for path in stream.paths:
                if self._held >= self._vector_bytes:
                    return
                self.vectors(path)

    @property
    def held_paths(self) -> set[str]:
        """The files of which something is in memory."""
        with self._lock:
            return {*self._files, *self._vectors, *(path for path, _ in self._pictures)}

    def picture(self, path: str, groups: NDArray[np.int64], place: int) -> bytes:
        """The picture at a row of a file, JPEG; `groups`, int64[G + 1], has the first row of each row group."""
        group = int(np.searchsorted(groups, place, side="right")) - 1
        with self._lock:
            column = self._pictures.get((path, group))
            if column is not None:
                self._pictures.move_to_end((path, group))
        if column is None:
            column = open_file(self._table.uri, path).read_row_group(group, columns=["picture"])["picture"]
            with self._lock:
                self._pictures[path, group] = column
                while len(self._pictures) > 1 and (
                    len(self._pictures) > _PICTURE_GROUPS
                    or sum(each.nbytes for each in self._pictures.values()) > _PICTURE_BYTES
                ):
                    self._pictures.popitem(last=False)
        found: bytes = column[place - int(groups[group])].as_py()
        return found

    # ---- reading -----------------------------------------------------------------------------------------------

    def _read(self, version: int, listed: Mapping[str, str]) -> FrameSnapshot:
        for path, stream_id in listed.items():
            if path not in self._files:
                self._files[path] = self._read_file(path, stream_id)
        by_stream: dict[str, list[str]] = {}
        for path, stream_id in sorted(listed.items()):
            by_stream.setdefault(stream_id, []).append(path)
        before = self._snapshot.streams
        streams = {}
        for stream_id, paths in sorted(by_stream.items()):
            same = before.get(stream_id)
            stream = same if same is not None and same.paths == tuple(paths) else self._stream(stream_id, paths)
            if len(stream):
                streams[stream_id] = stream
        for path in set(self._files) - set(listed):
            del self._files[path]
        with self._lock:  # footage may have been forgotten: nothing of it stays in memory
            for path in set(self._vectors) - set(listed):
                self._held -= self._vectors.pop(path).nbytes
            for key in [key for key in self._pictures if key[0] not in listed]:
                del self._pictures[key]
        return FrameSnapshot(version, streams)

    def _read_file(self, path: str, stream_id: str) -> _FrameFile:
        file = open_file(self._table.uri, path)
        rows = file.read(columns=["captured_at", "pts_seconds", "clock_source"])
        counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        return _FrameFile(
            path,
            stream_id,
            rows["captured_at"].cast(pa.int64()).to_numpy(),
            rows["pts_seconds"].to_numpy(),
            frozenset(pc.unique(rows["clock_source"]).to_pylist()),
            np.cumsum([0, *counts], dtype=np.int64),
        )

    def _stream(self, stream_id: str, paths: Sequence[str]) -> ResidentStream:
        files = [self._files[path] for path in paths]
        times = np.concatenate([file.captured_at for file in files])
        order = np.argsort(times, kind="stable")
        return ResidentStream(
            stream_id,
            times[order],
            np.concatenate([file.pts_seconds for file in files])[order],
            tuple(sorted(frozenset[str]().union(*(file.clock_sources for file in files)))),
            tuple(files),
            self,
            order,
        )
