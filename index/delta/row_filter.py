"""Filters of table rows: an Arrow expression, with the conditions that let a reader skip whole files.

A reader opens every file that it cannot rule out, which costs 0.2 ms or more each. A store of several years has a
hundred thousand files; a question about one camera and one day needs a few of them. `RowFilter.keeps` rules files out
by what the log says of them, see `index.delta.snapshot`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray

from index.columns import day_of, string_field

__all__ = ["RowFilter", "in_frames", "in_window", "of_segment", "of_streams", "on_day"]


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Which rows of a table are read."""

    rows: pads.Expression
    """The condition that each row must meet."""

    streams: tuple[str, ...]
    """The streams of the rows, ascending."""

    day: str | None = None
    """Their UTC day, YYYY-MM-DD; any when None."""

    start: int | None = None
    """The rows have captured_at ≥ start, UTC microseconds; no limit when None."""

    end: int | None = None
    """The rows have captured_at < end, UTC microseconds; no limit when None."""

    segment: str | None = None
    """The segment of the rows; any when None."""

    wanted: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]] | None = None
    """First and last times of the stretches of each stream that are wanted, ascending each, UTC microseconds, so that
    files and row groups between them are not read; None if all rows that match are wanted."""

    def __and__(self, other: pads.Expression) -> RowFilter:
        """The rows that match this filter and `other`."""
        return replace(self, rows=self.rows & other)

    def keeps(self, listed: pa.Table) -> NDArray[np.bool_]:
        """Which files can hold wanted rows, bool[n]; `listed` as in `index.delta.snapshot.TableSnapshot`."""
        kept = self._of_partitions(listed)
        if self.start is not None:
            kept &= listed["last"].to_numpy() >= self.start
        if self.end is not None:
            kept &= listed["first"].to_numpy() < self.end
        if self.segment is not None:
            low, high = (pc.fill_null(listed[name], self.segment) for name in ("low", "high"))
            kept &= _mask(pc.and_(pc.less_equal(low, self.segment), pc.greater_equal(high, self.segment)))
        if self.wanted is not None:
            names = listed["stream"].dictionary_encode().combine_chunks()
            codes = pc.fill_null(names.indices, -1).to_numpy()
            first, last = listed["first"].to_numpy(), listed["last"].to_numpy()
            for code, name in enumerate(names.dictionary.to_pylist()):
                rows = codes == code
                kept[rows] &= self.wants(name, first[rows], last[rows])
        return kept

    def wants(self, stream: str, first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether anything between two times of a stream is wanted, bool[n].

        Args:
            stream: the stream.
            first, last: int64[n], UTC microseconds, both inclusive.
        """
        if self.wanted is None:
            return np.ones(len(first), bool)
        if stream not in self.wanted:
            return np.zeros(len(first), bool)
        begins, ends = self.wanted[stream]
        # Stretches that begin before the end, without those that end before the begin.
        begun = np.searchsorted(begins, last, side="right")
        return np.asarray(begun > np.searchsorted(ends, first, side="left"), bool)

    def contains(self, listed: pa.Table) -> NDArray[np.bool_]:
        """Which files hold no other rows than those of these streams and times, bool[n].

        Only for filters that `of_streams`, `on_day` and `in_window` made.
        """
        kept = self._of_partitions(listed)
        if self.start is not None:
            kept &= listed["first"].to_numpy() >= self.start
        if self.end is not None:
            kept &= listed["last"].to_numpy() < self.end
        return kept

    def _of_partitions(self, listed: pa.Table) -> NDArray[np.bool_]:
        kept = pc.is_in(listed["stream"], pa.array(self.streams, pa.string()))
        date = listed["date"]
        if date.null_count == len(date):  # a table without days
            return _mask(kept)
        if self.day is not None:
            kept = pc.and_(kept, pc.equal(date, self.day))
        if self.start is not None:
            kept = pc.and_(kept, pc.greater_equal(date, day_of(self.start)))
        if self.end is not None:
            kept = pc.and_(kept, pc.less_equal(date, day_of(self.end)))
        return _mask(kept)


def of_streams(streams: Sequence[str]) -> RowFilter:
    """All rows of the named streams."""
    names = sorted(set(streams))
    return RowFilter(pads.field("stream_id").isin(pa.array(names, pa.string())), tuple(names))


def of_segment(stream: str, segment: str) -> RowFilter:
    """The rows of one segment of a stream; `segment` is its key."""
    return RowFilter(
        (pads.field("stream_id") == stream) & (string_field("segment") == segment), (stream,), segment=segment
    )


def on_day(stream: str, day: str) -> RowFilter:
    """The rows of one stream on one UTC day, YYYY-MM-DD."""
    rows = (pads.field("stream_id") == stream) & (pads.field("date") == day)
    return RowFilter(rows, (stream,), day=day)


def in_window(streams: Sequence[str], start: int | None, end: int | None) -> RowFilter:
    """The rows of the named streams with start ≤ captured_at < end, in UTC microseconds; None means no limit."""
    found = of_streams(streams)
    rows = found.rows
    if start is not None:
        rows &= (pads.field("date") >= day_of(start)) & (pads.field("captured_at") >= _timestamp(start))
    if end is not None:
        rows &= (pads.field("date") <= day_of(end)) & (pads.field("captured_at") < _timestamp(end))
    return replace(found, rows=rows, start=start, end=end)


def in_frames(
    streams: Sequence[str],
    stream_index: NDArray[np.integer],
    first: NDArray[np.int64],
    last: NDArray[np.int64] | None = None,
) -> RowFilter:
    """The rows of scattered frames, and of other frames that are read with them.

    Args:
        streams: names of streams.
        stream_index: the stream of each frame, int[N > 0], as an index into `streams`.
        first: times of the frames, int64[N], UTC microseconds.
        last: the end of the stretch that begins with each frame, inclusive; the frame alone if None.
    """
    last = first if last is None else last
    wanted = {}
    for number in np.unique(stream_index).tolist():
        mine = stream_index == number
        wanted[streams[number]] = np.sort(first[mine]), np.sort(last[mine])
    found = in_window(list(wanted), int(first.min()), int(last.max()) + 1)
    return replace(found, wanted=wanted)


def _mask(found: pa.ChunkedArray) -> NDArray[np.bool_]:
    """An Arrow array of truth values as bool[n]; null is false."""
    mask: NDArray[np.bool_] = pc.fill_null(found, False).to_numpy().astype(bool)
    return mask


def _timestamp(micros: int) -> pa.Scalar:
    return pa.scalar(int(micros), pa.timestamp("us", "UTC"))
