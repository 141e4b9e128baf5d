"""Search by vector over the frames of one store: in FAISS shards where there are any, else in Parquet.

The table `frames` is the truth. A shard can be deleted at any moment and is built again from it; frames that no shard
contains, such as those of the current day, are read from Parquet and compared directly. The result is exact either way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.columns import string_field, to_matrix
from index.delta.row_filter import in_window, on_day
from index.delta.table import StoreTable
from index.errors import UsageError
from index.search.faiss_shards import FaissShard, FaissShards
from index.search.moments import Hit
from index.search.scores import MAX_SCORED_FRAMES, ScoredFrames, cosines
from index.window import Window

__all__ = ["VectorSearch"]


class VectorSearch:
    """The frame vectors of a store.

    Args:
        frames: the table `frames`.
        shards: its FAISS shards.
        identity: identity of the frame encoder, JSON; shards of another encoder are ignored.
        dimension: Df, the length of a vector.
    """

    def __init__(self, frames: StoreTable, shards: FaissShards, *, identity: str, dimension: int) -> None:
        self.shards, self.identity = shards, identity
        self._frames, self._dimension = frames, dimension

    def search(
        self, query: NDArray[np.float32], streams: Sequence[str], start: int | None, end: int | None, top: int
    ) -> list[Hit]:
        """The `top` frames most similar to `query`, best first; ties by stream and time. Exact.

        Args:
            query: float32[Df], unit norm.
            streams: names of streams.
            start: UTC microseconds; no limit when None.
            end: likewise, exclusive.
            top: largest number of hits.
        """
        query = np.ascontiguousarray(query, np.float32)
        held = self._frames.read(["stream_id", "date", "segment"], in_window(streams, start, end))
        hits: list[Hit] = []
        for stream, day, fresh in self._days(held):
            shard = self.shards.open(stream, day)
            if shard is not None and shard.identity == self.identity:
                times, scores = shard.search(query, top, start, end)
                hits += [Hit(stream, int(t), float(s)) for t, s in zip(times, scores, strict=True)]
                fresh -= shard.segments
            if fresh:
                where = (
                    on_day(stream, day)
                    & in_window([stream], start, end).rows
                    & string_field("segment").isin(sorted(fresh))
                )
                tail = self._frames.read(["captured_at", "frame_vector"], where)
                scores = to_matrix(tail["frame_vector"], len(query)) @ query
                best = np.argsort(-scores, kind="stable")[:top]
                times = tail["captured_at"].cast(pa.int64()).to_numpy()
                hits += [Hit(stream, int(times[i]), float(scores[i])) for i in best]
        return sorted(hits, key=lambda h: (-h.score, h.stream_id, h.captured_at))[:top]

    def score(
        self, query: NDArray[np.float32], streams: Sequence[str], start: int | None, end: int | None
    ) -> list[ScoredFrames]:
        """Every frame of the window with its score, one entry for each stream that has frames there, by name.

        Arguments as in `search`.

        Raises:
            UsageError: the window has more than `MAX_SCORED_FRAMES` frames.
        """
        query = np.ascontiguousarray(query, np.float32)
        held = self._frames.read(["stream_id", "date", "segment"], in_window(streams, start, end))
        if len(held) > MAX_SCORED_FRAMES:
            raise UsageError(
                f"the search covers {len(held):,} frames, more than {MAX_SCORED_FRAMES:,}; choose streams or "
                "a shorter time"
            )
        parts: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = {}
        for stream, day, fresh in sorted(self._days(held), key=lambda group: group[:2]):
            of_stream = parts.setdefault(stream, [])
            shard = self._shard(stream, day)
            if shard is not None:
                of_stream.append(shard.scores(query, start, end))
                fresh -= shard.segments
            if fresh:
                times, vectors = self.of_day(stream, day, fresh)
                low = 0 if start is None else int(np.searchsorted(times, start))
                high = len(times) if end is None else int(np.searchsorted(times, end))
                of_stream.append((times[low:high], cosines(vectors[low:high], query)))
        return [
            ScoredFrames(stream, times[order], np.concatenate([scores for _, scores in found])[order])
            for stream, found in parts.items()
            for times in [np.concatenate([times for times, _ in found])]
            for order in [np.argsort(times, kind="stable")]
        ]

    def sample(self, stream: str, most: int) -> NDArray[np.float32]:
        """Vectors of frames that are spread evenly over everything stored of a stream, float32[n, Df], n ≤ `most`.

        The same rows for the same content of the store.
        """
        held = self._frames.read(["stream_id", "date", "segment"], in_window([stream], None, None))
        step = -(-len(held) // most) if len(held) else 1
        chosen, before = [np.empty((0, self._dimension), np.float32)], 0
        counts = dict(zip(*np.unique(held["date"].to_pylist(), return_counts=True), strict=True)) if len(held) else {}
        for _, day, segments in sorted(self._days(held), key=lambda group: group[1]):
            first = -before % step
            before += int(counts[day])
            shard = self._shard(stream, day)
            if first >= counts[day]:
                continue
            if shard is not None and shard.segments == segments:
                chosen.append(shard.rows(np.arange(first, int(counts[day]), step)))
            else:
                chosen.append(self.of_day(stream, day, segments)[1][first::step])
        return np.concatenate(chosen)

    def _shard(self, stream: str, day: str) -> FaissShard | None:
        """The shard of a stream and day, None if there is none of this encoder."""
        shard = self.shards.open(stream, day)
        return shard if shard is not None and shard.identity == self.identity else None

    def seal(self, today: str) -> int:
        """Write a shard for each day but `today` with frames that no shard contains; returns their number."""
        return sum(
            self._write(*group) for group in self._all_days() if group[1] != today and not self._complete(*group)
        )

    def rebuild(self) -> int:
        """Delete every shard and write all of them again; returns the number that was written."""
        self.shards.drop()
        return sum(self._write(*group) for group in self._all_days())

    def of_day(self, stream: str, day: str, segments: frozenset[str]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The frames of these segments on one UTC day: times int64[n], ascending, and vectors float32[n, Df]."""
        where = on_day(stream, day) & string_field("segment").isin(pa.array(sorted(segments), pa.string()))
        rows = self._frames.read(["captured_at", "frame_vector"], where).sort_by("captured_at")
        return rows["captured_at"].cast(pa.int64()).to_numpy(), to_matrix(rows["frame_vector"], self._dimension)

    def norms(self, window: Window) -> NDArray[np.float32]:
        """Norms that the embeddings of a window's frames had, float32[N] in its row order; NaN where not stored."""
        result = np.full(len(window), np.nan, np.float32)
        if len(window):
            where = in_window(window.streams, int(window.captured_at.min()), int(window.captured_at.max()) + 1)
            held = self._frames.read(["stream_id", "captured_at", "frame_norm"], where)
            rows = window.locate(held["stream_id"], held["captured_at"].cast(pa.int64()).to_numpy())
            found = pc.fill_null(held["frame_norm"], np.nan).to_numpy().astype(np.float32)
            result[rows[rows >= 0]] = found[rows >= 0]
        return result

    def _all_days(self) -> list[tuple[str, str, frozenset[str]]]:
        return sorted(self._days(self._frames.read(["stream_id", "date", "segment"])), key=lambda group: group[:2])

    @staticmethod
    def _days(rows: pa.Table) -> list[tuple[str, str, frozenset[str]]]:
        groups = rows.group_by(["stream_id", "date"]).aggregate([("segment", "distinct")])
        return [(r["stream_id"], r["date"], frozenset(r["segment_distinct"])) for r in groups.to_pylist()]

    def _complete(self, stream: str, day: str, segments: frozenset[str]) -> bool:
        shard = self.shards.open(stream, day)
        return shard is not None and shard.segments == segments and shard.identity == self.identity

    def _write(self, stream: str, day: str, segments: frozenset[str]) -> int:
        captured_at, vectors = self.of_day(stream, day, segments)
        self.shards.write(stream, day, captured_at, vectors, segments, self.identity)
        return 1
