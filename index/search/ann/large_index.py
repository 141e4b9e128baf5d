"""Search in the large index: candidates from its shards, re-ranked exactly, and the frames that no shard contains.

    query ─ rotation ─ centroids ─▶ lists ─▶ codes of each shard ─▶ candidates ─▶ exact vectors from Parquet ─▶ hits
                                     frames of files that are in no shard ─ exact ────────────────────────────▶

Streams and times are pushed down: the rows of a shard are sorted by stream and time, so a scope is a few ranges, and a
bit for each row says whether it counts. A row of another stream is never read. As the bits apply inside the lists that
are looked into, a narrow scope looks into more lists, in proportion, and into more again until enough rows are found
or all lists were seen.

What exists is decided by the table alone: a row of a shard counts only if the newest version lists its file. So
deleted frames are gone at once, and a file that a compaction wrote is searched exactly until it is indexed. Does not
know moments.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import faiss
import numpy as np
from numpy.typing import NDArray

from index.columns import day_of
from index.delta.snapshot import TableSnapshot
from index.delta.table import StoreTable
from index.errors import StoreBusy
from index.search.ann.builder import SHARD_ROWS, Built, ShardPlan, build, write_planned
from index.search.ann.catalog import Catalog
from index.search.ann.shard import Shard
from index.search.ann.vectors import VectorReader
from index.search.moments import Hit
from index.search.scores import ScoredFrames, cosines

__all__ = ["CANDIDATES", "LargeIndex", "Scope"]

CANDIDATES = 2_000
"""Rows that are re-ranked exactly, at least."""
_PER_HIT = 20  # and as many for each hit that is asked for
_PROBED_SHARE = 0.0025  # of the rows of near lists; with 0.001 frames like a picture were missed
_PROBED_ROWS = 16_384
_TAIL_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class _Part:
    """What a shard has of a scope."""

    shard: Shard
    ranges: list[tuple[int, int]]
    """First row, and the one after the last, of each stream."""
    alive: NDArray[np.bool_] | None
    """bool[N]: whether a row still exists; None if all do."""

    def allowed(self) -> NDArray[np.uint8] | None:
        """The rows that count as bits, uint8[⌈N / 8⌉]; None if all do."""
        if self.alive is None and sum(high - low for low, high in self.ranges) == len(self.shard):
            return None
        bits = np.zeros(len(self.shard), bool)
        for low, high in self.ranges:
            bits[low:high] = True if self.alive is None else self.alive[low:high]
        return np.packbits(bits, bitorder="little")

    def names(self) -> set[str]:
        """The streams of the rows that count."""
        alive = self.alive
        kept = [(low, high) for low, high in self.ranges if alive is None or alive[low:high].any()]
        return {self.shard.streams[i] for i in self.shard.stream_of(np.array([low for low, _ in kept], np.int64))}

    def count(self) -> int:
        """The number of rows that count."""
        if self.alive is None:
            return sum(high - low for low, high in self.ranges)
        return int(sum(self.alive[low:high].sum() for low, high in self.ranges))


@dataclass(frozen=True, slots=True)
class _Tail:
    """A file that is in no shard."""

    captured_at: NDArray[np.int64]
    vectors: NDArray[np.float32]


@dataclass(slots=True)
class Scope:
    """What the index has of some streams in some stretch of time, in one version of the store."""

    parts: list[_Part]
    """Rows in shards."""
    tails: list[tuple[str, str]]
    """Files that are in no shard: path and stream."""
    start: int | None
    """UTC microseconds; no limit when None."""
    end: int | None
    """Likewise, exclusive."""
    streams: frozenset[str]
    """The streams."""
    rows: int
    """Number of rows in shards."""
    tail_rows: int
    """Number of rows of the files in no shard, those outside the stretch of time included."""


@dataclass(slots=True)
class _View:
    """The files of one version of the table, beside the shards."""

    stamp: tuple[object, ...]
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    alive: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Of the files of each shard, whether they still exist, and no shard before it has them."""
    tails: list[str] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    rows: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    """`alive_rows`, as far as it was asked for."""

    def alive_rows(self, shard: Shard) -> NDArray[np.bool_] | None:
        """Whether each row of a shard counts, bool[N]; None if all do."""
        alive = self.alive[shard.name]
        if alive.all():
            return None
        if shard.name not in self.rows:
            self.rows[shard.name] = alive[shard.file]
        return self.rows[shard.name]


class LargeIndex:
    """The large index of one store. Any number of threads may use it.

    Args:
        frames: the table `frames`.
        catalog: the folder of the index.
        dimension: Df.
    """

    def __init__(self, frames: StoreTable, catalog: Catalog, *, dimension: int) -> None:
        self.catalog = catalog
        self._frames, self._reader = frames, VectorReader(frames.uri, dimension)
        self._lock = threading.Lock()
        self._view: _View | None = None
        self._tails: OrderedDict[str, _Tail] = OrderedDict()
        self._held = 0

    # ---- what there is -----------------------------------------------------------------------------------------------

    def scope(self, streams: Sequence[str], start: int | None, end: int | None, *, least: int = 0) -> Scope | None:
        """What the index has of these streams with start ≤ captured_at < end, UTC microseconds; None without an index.

        Also None if it certainly has no more than `least` rows of them; shards in an object store are then not fetched.

        Raises:
            StoreError: the table cannot be read.
        """
        shards = self.catalog.shards()
        if not shards:
            return None
        view, wanted = self._newest(shards), frozenset(streams)
        parts = []
        meant = [
            shard
            for shard in view.shards
            if (start is None or shard.end >= start)
            and (end is None or shard.begin < end)
            and not wanted.isdisjoint(shard.streams)
        ]
        if least and sum(shard.most_rows(wanted) for shard in meant) <= least:
            return None
        for shard in meant:
            if not shard.ready():
                self.catalog.ignore(shard.name)
                return self.scope(streams, start, end, least=least)
            self.catalog.touch(shard.name)
            ranges = [shard.rows_of(name, start, end) for name in shard.streams if name in wanted]
            ranges = [(low, high) for low, high in ranges if low < high]
            if ranges:
                parts.append(_Part(shard, ranges, view.alive_rows(shard)))
        first, last = (None if at is None else day_of(at) for at in (start, end))
        tails = [
            (path, view.files[path][0])
            for path in view.tails
            if view.files[path][0] in wanted
            and (first is None or _day(path) >= first)
            and (last is None or _day(path) <= last)
        ]
        rows = sum(part.count() for part in parts)
        return Scope(parts, tails, start, end, wanted, rows, sum(view.files[path][1] for path, _ in tails))

    def extent(self, scope: Scope) -> tuple[int, int]:
        """The number of frames of a scope, and of streams that have them. Raises StoreError."""
        rows, names = scope.rows, {name for part in scope.parts for name in part.names()}
        for path, name in scope.tails:
            times = self._tail(path).captured_at
            inside = np.ones(len(times), bool)
            if scope.start is not None:
                inside &= times >= scope.start
            if scope.end is not None:
                inside &= times < scope.end
            rows += int(inside.sum())
            names |= {name} if inside.any() else set()
        return rows, len(names)

    def build(
        self,
        *,
        shard_rows: int = SHARD_ROWS,
        lists: int | None = None,
        on_progress: Callable[[int, int], None] = lambda done, of: None,
        elsewhere: Callable[[Sequence[ShardPlan]], None] | None = None,
    ) -> Built:
        """Bring the index up to date; see `index.search.ann.builder.build`."""
        return build(
            self.catalog,
            self._reader,
            self._listed(),
            shard_rows=shard_rows,
            lists=lists,
            on_progress=on_progress,
            elsewhere=elsewhere,
        )

    def write_planned(self, plan: ShardPlan) -> str:
        """Write a shard that a build planned; see `index.search.ann.builder.write_planned`."""
        return write_planned(self.catalog, self._reader, plan)

    def follow(self) -> None:
        """Bring an index that was built up to date, for example after a compaction, unless a build is running."""
        if self.catalog.codebook is not None:
            with suppress(StoreBusy):  # that build does it, or the next one
                self.build()

    # ---- searching ---------------------------------------------------------------------------------------------------

    def search(self, query: NDArray[np.float32], scope: Scope, count: int) -> list[Hit]:
        """The `count` frames that are most similar to `query` (float32[Df], unit norm), best first; exact scores.

        Frames may be missing that the codes did not bring among the candidates; `sightline bench search` measures how
        many. Frames of files in no shard are all compared.

        Raises:
            StoreError: a file cannot be read.
        """
        found = [*self._of_shards(query, scope, max(CANDIDATES, _PER_HIT * count)), *self._of_tails(query, scope)]
        if not found:
            return []
        names = [name for name, _, _ in found]
        owner = np.repeat(np.arange(len(found)), [len(times) for _, times, _ in found])
        times = np.concatenate([times for _, times, _ in found])
        scores = np.concatenate([scores for _, _, scores in found])
        rank = np.argsort(np.argsort(np.array(names), kind="stable"), kind="stable")
        best = np.lexsort((times, rank[owner], -scores))[:count]
        hits = [Hit(names[owner[i]], int(times[i]), float(scores[i])) for i in best.tolist()]
        return sorted(hits, key=lambda hit: (-hit.score, hit.stream_id, hit.captured_at))

    def around(self, query: NDArray[np.float32], scope: Scope, stream: str, low: int, high: int) -> ScoredFrames:
        """All frames of a stream in the scope with low ≤ captured_at ≤ high, UTC microseconds, exactly scored.

        Raises:
            StoreError: a file cannot be read.
        """
        low = low if scope.start is None else max(low, scope.start)
        until = high + 1 if scope.end is None else min(high + 1, scope.end)
        times, scores = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        if stream in scope.streams:
            for part in scope.parts:
                begin, end = part.shard.rows_of(stream, low, until)
                rows = np.arange(begin, end)
                if part.alive is not None:
                    rows = rows[part.alive[begin:end]]
                if len(rows):
                    times.append(part.shard.captured_at[rows])
                    scores.append(cosines(self._exact(part.shard, rows), query))
            for found in self._of_tails(query, scope, stream):
                inside = (found[1] >= low) & (found[1] < until)
                times.append(found[1][inside])
                scores.append(found[2][inside])
        at = np.concatenate(times)
        order = np.argsort(at, kind="stable")
        return ScoredFrames(stream, at[order], np.concatenate(scores)[order])

    def sample(self, stream: str, most: int) -> NDArray[np.float32] | None:
        """Vectors of frames spread evenly over everything stored of a stream, float32[n, Df]; those that
        `VectorSearch.sample` selects. None without an index.

        Raises:
            StoreError: a file cannot be read.
        """
        scope = self.scope([stream], None, None)
        if scope is None:
            return None
        places: list[tuple[NDArray[np.int64], NDArray[np.int64], int]] = []
        for number, part in enumerate(scope.parts):
            for low, high in part.ranges:
                rows = np.arange(low, high)
                rows = rows if part.alive is None else rows[part.alive[low:high]]
                places.append((part.shard.captured_at[rows], rows, number))
        for number, (path, _) in enumerate(scope.tails):
            tail = self._tail(path)
            places.append((tail.captured_at, np.arange(len(tail.captured_at)), -1 - number))
        if not places:
            return np.zeros((0, self._reader.dimension), np.float32)
        order = np.argsort(np.concatenate([times for times, _, _ in places]), kind="stable")
        chosen = order[:: max(1, -(-len(order) // most))]
        rows = np.concatenate([rows for _, rows, _ in places])[chosen]
        source = np.repeat([number for _, _, number in places], [len(times) for times, _, _ in places])[chosen]
        result = np.empty((len(chosen), self._reader.dimension), np.float32)
        for number in np.unique(source).tolist():
            members = np.flatnonzero(source == number)
            if number >= 0:
                result[members] = self._exact(scope.parts[number].shard, rows[members])
            else:
                result[members] = self._tail(scope.tails[-1 - number][0]).vectors[rows[members]]
        return result

    def _of_shards(
        self, query: NDArray[np.float32], scope: Scope, count: int
    ) -> list[tuple[str, NDArray[np.int64], NDArray[np.float32]]]:
        """The best candidates of the shards: stream, times and exact scores."""
        codebook = self.catalog.codebook
        parts = [part for part in scope.parts if part.shard.codebook is codebook]
        if codebook is None or not parts or scope.rows == 0:
            return []
        turned = codebook.rotated(query[None])[0]
        far = np.arange(codebook.lists - codebook.far, codebook.lists)
        far_scores = cosines(codebook.centroids[far[0] :], turned)
        sizes = np.sum([part.shard.sizes for part in parts], axis=0)[: far[0]]
        within = int(sizes.sum())
        allowed = [part.allowed() for part in parts]
        probed = max(_PROBED_ROWS, round(_PROBED_SHARE * within)) * within // scope.rows
        enough = min(count, scope.rows)
        while True:
            near, scores = codebook.best_lists(turned, sizes, probed)
            lists, scores = np.concatenate([near, far]), np.concatenate([scores, far_scores])
            found = _in_each([part.shard for part in parts], turned, lists, scores, count, allowed)
            if len(lists) == codebook.lists or sum(len(rows) for rows, _ in found) >= enough:
                break
            probed *= 4
        estimates = np.concatenate([estimate for _, estimate in found])
        owner = np.repeat(np.arange(len(found)), [len(rows) for rows, _ in found])
        rows = np.concatenate([rows for rows, _ in found])
        best = np.argsort(-estimates, kind="stable")[:count]
        result = []
        for number, part in enumerate(parts):
            mine = np.sort(rows[best[owner[best] == number]])
            if not len(mine):
                continue
            scores = cosines(self._exact(part.shard, mine), query)
            streams, times = part.shard.stream_of(mine), part.shard.captured_at[mine]
            for stream in np.unique(streams).tolist():
                members = streams == stream
                result.append((part.shard.streams[stream], times[members], scores[members]))
        return result

    def _of_tails(
        self, query: NDArray[np.float32], scope: Scope, stream: str | None = None
    ) -> list[tuple[str, NDArray[np.int64], NDArray[np.float32]]]:
        """Frames of the files in no shard (of one stream, or of all): stream, times and exact scores."""
        result = []
        for path, name in scope.tails:
            if stream is not None and name != stream:
                continue
            tail = self._tail(path)
            keep = np.ones(len(tail.captured_at), bool)
            if scope.start is not None:
                keep &= tail.captured_at >= scope.start
            if scope.end is not None:
                keep &= tail.captured_at < scope.end
            if keep.any():
                result.append((name, tail.captured_at[keep], cosines(tail.vectors[keep], query)))
        return result

    def _exact(self, shard: Shard, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The stored vectors of some rows, float32[n, Df]."""
        return self._reader.read(
            shard.files, np.array(shard.file[rows]), np.array(shard.row[rows]), np.array(shard.offset[rows])
        )

    # ---- versions ----------------------------------------------------------------------------------------------------

    def _listed(self) -> dict[str, tuple[str, int]]:
        """Stream and number of rows of each file of the newest version."""
        return self._rows_of(self._frames.snapshot())

    def _rows_of(self, files: TableSnapshot) -> dict[str, tuple[str, int]]:
        """Stream and number of rows of each file."""
        streams, counts = files.listed["stream"].to_pylist(), files.listed["num_records"].to_pylist()
        return {
            path: (stream, self._reader.count(path) if count < 0 else count)
            for path, stream, count in zip(files.paths, streams, counts, strict=True)
        }

    def _newest(self, shards: Sequence[Shard]) -> _View:
        """The newest version of the table beside these shards."""
        listed = self._frames.snapshot()
        stamp = (listed.table, listed.version, *map(id, shards))  # the view keeps them, so no other one gets the id
        with self._lock:
            if self._view is not None and self._view.stamp == stamp:
                return self._view
        files = self._rows_of(listed)
        view = _View(stamp, files, shards=list(shards))
        held: set[str] = set()
        for shard in shards:
            view.alive[shard.name] = np.array([path in files and path not in held for path in shard.files], bool)
            held.update(shard.files)
        view.tails = sorted(path for path in files if path not in held)
        self._reader.forget(set(files))
        with self._lock:  # what was deleted does not stay in memory
            self._view = view
            for path in [path for path in self._tails if path not in files]:
                self._held -= self._tails.pop(path).vectors.nbytes
        return view

    def _tail(self, path: str) -> _Tail:
        with self._lock:
            found = self._tails.get(path)
            if found is not None:
                self._tails.move_to_end(path)
                return found
        rows = list(self._reader.file(path, places=False))
        found = _Tail(
            np.concatenate([each.captured_at for each in rows]),
            np.concatenate([each.vectors for each in rows]),
        )
        with self._lock:
            if path not in self._tails:
                self._tails[path] = found
                self._held += found.vectors.nbytes
            while self._held > _TAIL_BYTES and len(self._tails) > 1:
                self._held -= self._tails.popitem(last=False)[1].vectors.nbytes
        return found


def _in_each(
    shards: Sequence[Shard],
    query: NDArray[np.float32],
    lists: NDArray[np.int64],
    scores: NDArray[np.float32],
    count: int,
    allowed: Sequence[NDArray[np.uint8] | None],
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """`Shard.nearest` of each shard, in as many threads as FAISS may use, because one query uses one thread of it."""

    def nearest(shard: Shard, bits: NDArray[np.uint8] | None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Of one shard."""
        return shard.nearest(query, lists, scores, count, bits)

    threads = min(len(shards), faiss.omp_get_max_threads())
    if threads == 1:
        return list(map(nearest, shards, allowed))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(nearest, shards, allowed))


def _day(path: str) -> str:
    return path.partition("date=")[2][:10]
