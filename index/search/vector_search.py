"""Search by vector over the frames of one store: in FAISS shards where there are any, else in Parquet.

The table `frames` is the truth. A shard can be deleted at any moment and is built again from it; frames that no shard
contains, such as those of the current day, are read from Parquet and compared directly. The result is exact either way.

Everything that one call reads is of one version of the table. Files are chosen by partition and times; a shard names
the files that it was written from, so that nothing else is read of a day that did not change since.

Where a large index was built (`index.search.ann`), a search of more than `FLAT_ROWS` frames takes its candidates from
there. Scores and moments are those of the exact search; a frame may be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.columns import string_field, to_matrix
from index.delta.row_filter import RowFilter, in_frames, in_window, of_streams, on_day
from index.delta.snapshot import TableSnapshot
from index.delta.table import StoreTable
from index.errors import UsageError
from index.search.ann.large_index import LargeIndex, Scope
from index.search.ann.remote import catalog_of
from index.search.faiss_shards import FaissShard, FaissShards
from index.search.moments import Hit, Moment, merged_moments, moments_among, moments_of
from index.search.scores import MAX_SCORED_FRAMES, ScoredFrames, cosines
from index.window import Window

__all__ = ["FLAT_ROWS", "IndexedMoments", "VectorSearch"]

FLAT_ROWS = 100_000
"""Frames that are compared exactly although there is a large index: more than a day of a stream."""

_BATCH = 8_192  # vectors that are compared at once
_KEPT = 8  # times as many hits as wanted are collected before the best are chosen
_WRITERS = 2
_FIRST_HITS = 200
_MOST_HITS = 12_800


@dataclass(frozen=True, slots=True)
class IndexedMoments:
    """The moments that the large index found, and where they were looked for."""

    moments: Iterator[Moment]
    """The best first; of equal scores, by stream and time."""

    frames: int
    """Number of frames that were searched."""

    streams: int
    """Number of streams that have these frames."""


@dataclass(frozen=True, slots=True)
class _Part:
    """The files of one stream and UTC day that can hold wanted frames, and the shard of that day."""

    stream: str
    day: str
    files: TableSnapshot
    shard: FaissShard | None
    fresh: frozenset[str]
    """Segments of the files that the shard lacks; not known, and empty, without a shard."""

    @property
    def fresh_segments(self) -> pa.Array:
        """`fresh` for a filter."""
        return pa.array(sorted(self.fresh), pa.string())


class VectorSearch:
    """The frame vectors of a store.

    Args:
        frames: the table `frames`.
        shards: its FAISS shards.
        identity: identity of the frame encoder, JSON; shards of another encoder are ignored.
        dimension: Df, the length of a vector.

    Attributes:
        shards: its FAISS shards.
        identity: identity of the frame encoder.
        large: its large index.
        flat_rows: up to so many frames are compared exactly, also with a large index.
    """

    def __init__(self, frames: StoreTable, shards: FaissShards, *, identity: str, dimension: int) -> None:
        self.shards, self.identity = shards, identity
        self._frames, self._dimension = frames, dimension
        self.large = LargeIndex(
            frames, catalog_of(frames.uri, shards.folder.parent / "ann", identity), dimension=dimension
        )
        self.flat_rows = FLAT_ROWS
        self._segments: dict[str, frozenset[str]] = {}  # of files, as far as they were read

    def search(
        self, query: NDArray[np.float32], streams: Sequence[str], start: int | None, end: int | None, top: int
    ) -> list[Hit]:
        """The `top` frames most similar to `query`, best first; ties by stream and time.

        Exact, unless more than `flat_rows` frames are searched and there is a large index.

        Args:
            query: float32[Df], unit norm.
            streams: names of streams.
            start: UTC microseconds; no limit when None.
            end: likewise, exclusive.
            top: largest number of hits.
        """
        query = np.ascontiguousarray(query, np.float32)
        if (scope := self._large_scope(streams, start, end)) is not None:
            return self.large.search(query, scope, top)
        hits: list[Hit] = []

        def best(batch: pa.RecordBatch) -> list[Hit]:
            """The best hits of some frames."""
            scores = to_matrix(pa.chunked_array([batch.column("frame_vector")]), len(query)) @ query
            times = batch.column("captured_at").cast(pa.int64()).to_numpy()
            streams = batch.column("stream_id")
            order = np.lexsort((times, -scores))[:top]
            return [Hit(streams[i].as_py(), int(times[i]), float(scores[i])) for i in order.tolist()]

        snapshot = self._frames.snapshot()
        loose: list[str] = []
        for part in self._parts(snapshot, in_window(streams, start, end)):
            if part.shard is None:
                loose += part.files.listed["path"].to_pylist()
                continue
            times, scores = part.shard.search(query, top, start, end)
            hits += [Hit(part.stream, int(t), float(s)) for t, s in zip(times, scores, strict=True)]
            if part.fresh:
                where = in_window([part.stream], start, end) & string_field("segment").isin(part.fresh_segments)
                hits += self._hits(part.files, where, best)
            hits = self._best(hits, top) if len(hits) > _KEPT * top else hits
        if loose:
            rows = pc.is_in(snapshot.listed["path"], pa.array(loose, pa.string())).to_numpy().astype(bool)
            hits += self._hits(snapshot.take(rows), in_window(streams, start, end), best)
        return self._best(hits, top)

    @staticmethod
    def _best(hits: list[Hit], top: int) -> list[Hit]:
        return sorted(hits, key=lambda h: (-h.score, h.stream_id, h.captured_at))[:top]

    @staticmethod
    def _hits(files: TableSnapshot, where: RowFilter, best: Callable[[pa.RecordBatch], list[Hit]]) -> list[Hit]:
        columns = ["stream_id", "captured_at", "frame_vector"]
        return [hit for found in files.map_batches(columns, where, _BATCH, best) for hit in found]

    def score(
        self, query: NDArray[np.float32], streams: Sequence[str], start: int | None, end: int | None
    ) -> list[ScoredFrames]:
        """Every frame of the window with its score, one entry for each stream that has frames there, by name.

        Arguments as in `search`.

        Raises:
            UsageError: the window has more than `MAX_SCORED_FRAMES` frames.
        """
        query = np.ascontiguousarray(query, np.float32)
        where = in_window(streams, start, end)
        snapshot = self._frames.snapshot().matching(where)
        _check_size(snapshot, where)
        parts: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = {}
        for part in self._parts(snapshot, where):
            of_stream = parts.setdefault(part.stream, [])
            chosen = in_window([part.stream], start, end)
            if part.shard is not None:
                of_stream.append(part.shard.scores(query, start, end))
                if not part.fresh:
                    continue
                chosen &= string_field("segment").isin(part.fresh_segments)

            def scored(batch: pa.RecordBatch) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
                """Times and scores of some frames."""
                vectors = to_matrix(pa.chunked_array([batch.column("frame_vector")]), len(query))
                return batch.column("captured_at").cast(pa.int64()).to_numpy(), cosines(vectors, query)

            of_stream += part.files.map_batches(["captured_at", "frame_vector"], chosen, _BATCH, scored)
        return [
            ScoredFrames(stream, times[order], np.concatenate([scores for _, scores in found])[order])
            for stream, found in parts.items()
            for times in [np.concatenate([np.zeros(0, np.int64), *(times for times, _ in found)])]
            for order in [np.argsort(times, kind="stable")]
            if len(times)
        ]

    def moments(
        self, query: NDArray[np.float32], streams: Sequence[str], start: int | None, end: int | None
    ) -> IndexedMoments | None:
        """The moments that the large index finds; None where it has none, or few frames are searched.

        After the 12,800 frames that match best, all frames are compared exactly, for the moments that follow.

        Arguments as in `search`.
        """
        query = np.ascontiguousarray(query, np.float32)
        scope = self._large_scope(streams, start, end)
        if scope is None:
            return None
        frames, names = self.large.extent(scope)
        return IndexedMoments(self._moments(query, scope), frames, names)

    def _moments(self, query: NDArray[np.float32], scope: Scope) -> Iterator[Moment]:
        last: Hit | None = None  # until all hits were read

        def hits() -> Iterator[Hit]:
            """The hits, best first, a longer list at a time."""
            nonlocal last
            count = _FIRST_HITS
            while count <= _MOST_HITS:
                found = self.large.search(query, scope, count)
                for hit in found:
                    if last is None or _position(hit) > _position(last):
                        last = hit
                        yield hit
                if len(found) < count:
                    last = None
                    return
                count *= 4

        yield from moments_among(hits(), lambda *where: self.large.around(query, scope, *where))
        if last is None:
            return
        begin = _position(last)
        rest = self.score(query, sorted(scope.streams), scope.start, scope.end)
        for moment in merged_moments(moments_of(each) for each in rest):
            if (-moment.score, moment.stream_id, moment.best) > begin:
                yield moment

    def _large_scope(self, streams: Sequence[str], start: int | None, end: int | None) -> Scope | None:
        """What the large index has of a search, None where the exact search is used."""
        scope = self.large.scope(streams, start, end, least=self.flat_rows)
        return scope if scope is not None and scope.rows > self.flat_rows else None

    def sample(self, stream: str, most: int) -> NDArray[np.float32]:
        """Vectors of frames that are spread evenly over everything stored of a stream, float32[n, Df], n ≤ `most`.

        The same rows for the same content of the store.
        """
        if (indexed := self.large.sample(stream, most)) is not None:
            return indexed
        parts = list(self._parts(self._frames.snapshot(), of_streams([stream])))
        counts = [self._count(part) for part in parts]
        total = sum(counts)
        step = -(-total // most) if total else 1
        chosen, before = [np.empty((0, self._dimension), np.float32)], 0
        for part, count in zip(parts, counts, strict=True):
            first = -before % step
            before += count
            if first >= count:
                continue
            if part.shard is not None and not part.fresh and len(part.shard.captured_at) == count:
                chosen.append(part.shard.rows(np.arange(first, count, step)))
            else:
                chosen.append(self._vectors(part.files, on_day(stream, part.day))[1][first::step])
        return np.concatenate(chosen)

    def _shard(self, stream: str, day: str) -> FaissShard | None:
        """The shard of a stream and day, None if there is none of this encoder."""
        shard = self.shards.open(stream, day)
        return shard if shard is not None and shard.identity == self.identity else None

    def seal(self, today: str) -> int:
        """Write a shard for each day but `today` with frames that no shard contains; returns their number."""
        parts = [part for part in self._parts(self._frames.snapshot(), None) if part.day != today]
        return self._write([part for part in parts if not self._complete(part)])

    def rebuild(self) -> int:
        """Delete every shard and write all of them again; returns the number that was written."""
        self.shards.drop()
        return self._write(list(self._parts(self._frames.snapshot(), None)))

    def of_day(
        self, stream: str, day: str, segments: frozenset[str], files: TableSnapshot | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The frames of these segments on one UTC day: times int64[n], ascending, and vectors float32[n, Df].

        Args:
            stream: the stream.
            day: the day, YYYY-MM-DD.
            segments: keys of the segments.
            files: a version of the table `frames`, or those of its files that hold the day; the newest when None.
        """
        where = on_day(stream, day) & string_field("segment").isin(pa.array(sorted(segments), pa.string()))
        return self._vectors(files or self._frames.snapshot(), where)

    def _vectors(self, files: TableSnapshot, where: RowFilter) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        rows = files.read(["captured_at", "frame_vector"], where).sort_by("captured_at")
        return rows["captured_at"].cast(pa.int64()).to_numpy(), to_matrix(rows["frame_vector"], self._dimension)

    def norms(self, window: Window) -> NDArray[np.float32]:
        """Norms that the embeddings of a window's frames had, float32[N] in its row order; NaN where not stored."""
        result = np.full(len(window), np.nan, np.float32)
        if len(window):
            where = in_frames(window.stream_ids, window.stream_index, window.captured_at)
            held = self._frames.read(["stream_id", "captured_at", "frame_norm"], where)
            rows = window.locate(held["stream_id"], held["captured_at"].cast(pa.int64()).to_numpy())
            found = pc.fill_null(held["frame_norm"], np.nan).to_numpy().astype(np.float32)
            result[rows[rows >= 0]] = found[rows >= 0]
        return result

    # ---- partitions --------------------------------------------------------------------------------------------------

    def _parts(self, snapshot: TableSnapshot, where: RowFilter | None) -> Iterator[_Part]:
        """The partitions with files that can hold wanted rows, by stream and day, with their shards.

        The segments of a file are read only if its shard was written from other files, and once.
        """
        chosen = snapshot.matching(where)
        parts = [(key, files, self._shard(*key)) for key, files in chosen.by_day().items()]
        changed = {
            path for _, files, shard in parts if shard is not None for path in files.paths if path not in shard.files
        }
        self._read_segments(chosen, changed)
        for (stream, day), files, shard in parts:
            fresh = frozenset[str]()
            if shard is not None:
                held = (self._segments[path] for path in files.paths if path in changed)
                fresh = fresh.union(*held) - shard.segments
            yield _Part(stream, day, files, shard, fresh)

    def _read_segments(self, files: TableSnapshot, paths: Collection[str]) -> None:
        """Read the segments of some of these files, once in the life of this object: a file never changes."""
        missing = np.array([path in paths and path not in self._segments for path in files.paths], bool)
        if missing.any():
            some = files.take(missing)
            lows, highs = some.listed["low"].to_pylist(), some.listed["high"].to_pylist()
            single = np.array([low is not None and low == high for low, high in zip(lows, highs, strict=True)])
            known = {path: frozenset([low]) for path, low in zip(some.paths, lows, strict=True)}
            read = some.take(~single).values_by_file("segment") if not single.all() else {}
            self._segments.update(known | read)

    @staticmethod
    def _count(part: _Part) -> int:
        """Number of frames of a partition."""
        rows = part.files.rows
        return sum(each.rows for each in part.files.summaries()) if rows is None else rows

    def _complete(self, part: _Part) -> bool:
        """Whether a shard contains the frames of a partition, and no others."""
        shard = part.shard
        if shard is None or part.fresh:
            return False
        paths = frozenset(part.files.paths)
        if shard.files == paths:
            return True
        self._read_segments(part.files, paths)
        if shard.segments != frozenset[str]().union(*(self._segments[path] for path in paths)):
            return False
        self.shards.relist(shard, paths)  # after a compaction: the next search need not look
        return True

    def _write(self, parts: Sequence[_Part]) -> int:
        """Write the shards of partitions, two at a time; returns their number."""

        def write(part: _Part) -> None:
            """Write one shard."""
            columns = ["captured_at", "segment", "frame_vector"]
            rows = part.files.read(columns, on_day(part.stream, part.day)).sort_by("captured_at")
            if len(rows):
                self.shards.write(
                    part.stream,
                    part.day,
                    rows["captured_at"].cast(pa.int64()).to_numpy(),
                    to_matrix(rows["frame_vector"], self._dimension),
                    frozenset(pc.unique(rows["segment"].cast(pa.string())).to_pylist()),
                    self.identity,
                    part.files.paths,
                )

        with ThreadPoolExecutor(_WRITERS) as pool:
            return sum(1 for _ in pool.map(write, parts))


def _position(hit: Hit) -> tuple[float, str, int]:
    """The place of a hit in the order of results."""
    return -hit.score, hit.stream_id, hit.captured_at


def _check_size(snapshot: TableSnapshot, where: RowFilter) -> None:
    """Raise UsageError if more than `MAX_SCORED_FRAMES` frames match; counts rows only if the files have more."""
    most = snapshot.rows
    if most is not None and most <= MAX_SCORED_FRAMES:
        return
    count = snapshot.dataset(where).count_rows(filter=where.rows)
    if count > MAX_SCORED_FRAMES:
        raise UsageError(
            f"the search covers {count:,} frames, more than {MAX_SCORED_FRAMES:,}; choose streams or a shorter time"
        )
