"""Search by vector over the frames of one store: in FAISS shards where there are any, else in Parquet.

The table `frames` is the truth. A shard can be deleted at any moment and is built again from it; frames that no shard
contains, such as those of the current day, are read from Parquet and compared directly. The result is exact either way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.columns import string_field, to_matrix
from index.delta.row_filter import in_window, on_day
from index.delta.table import StoreTable
from index.search.faiss_shards import FaissShards
from index.search.moments import Hit

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
