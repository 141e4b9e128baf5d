"""Filters of table rows: an Arrow expression, with the conditions that let a reader skip whole files.

A reader opens every file that it cannot rule out, which costs 0.2 ms or more each. A store of several years has a
hundred thousand files; a question about one camera and one day needs a few of them. `RowFilter.keeps` rules files out
by what the log says of them, see `index.delta.snapshot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray

from index.columns import day_of, string_field

__all__ = ["RowFilter", "in_window", "of_segment", "of_streams", "on_day"]


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
        return kept

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


def _mask(found: pa.ChunkedArray) -> NDArray[np.bool_]:
    """An Arrow array of truth values as bool[n]; null is false."""
    mask: NDArray[np.bool_] = pc.fill_null(found, False).to_numpy().astype(bool)
    return mask


def _timestamp(micros: int) -> pa.Scalar:
    return pa.scalar(int(micros), pa.timestamp("us", "UTC"))
