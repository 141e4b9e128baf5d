"""Filters of table rows: an Arrow expression, with the conditions that let a reader skip whole files.

A reader opens every file whose partitions it cannot rule out, which costs 0.2 ms or more each. A store of several years
has a hundred thousand files; a question about one camera and one day needs a few of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.dataset as pads

from index.columns import day_of

__all__ = ["RowFilter", "in_window", "of_streams", "on_day"]


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Which rows of a table are read."""

    rows: pads.Expression
    """The condition that each row must meet."""

    partitions: tuple[tuple[str, str, str | list[str]], ...]
    """Conditions on partition columns that a file must meet, for example ("stream_id", "=", "front")."""

    def __and__(self, other: pads.Expression) -> RowFilter:
        """The rows that match this filter and `other`."""
        return RowFilter(self.rows & other, self.partitions)


def of_streams(streams: Sequence[str]) -> RowFilter:
    """All rows of the named streams."""
    names = sorted(set(streams))
    return RowFilter(pads.field("stream_id").isin(pa.array(names, pa.string())), (("stream_id", "in", names),))


def on_day(stream: str, day: str) -> RowFilter:
    """The rows of one stream on one UTC day, YYYY-MM-DD."""
    rows = (pads.field("stream_id") == stream) & (pads.field("date") == day)
    return RowFilter(rows, (("stream_id", "=", stream), ("date", "=", day)))


def in_window(streams: Sequence[str], start: int | None, end: int | None) -> RowFilter:
    """The rows of the named streams with start ≤ captured_at < end, in UTC microseconds; None means no limit."""
    found = of_streams(streams)
    rows, partitions = found.rows, [*found.partitions]
    if start is not None:
        rows &= (pads.field("date") >= day_of(start)) & (pads.field("captured_at") >= _timestamp(start))
        partitions.append(("date", ">=", day_of(start)))
    if end is not None:
        rows &= (pads.field("date") <= day_of(end)) & (pads.field("captured_at") < _timestamp(end))
        partitions.append(("date", "<=", day_of(end)))
    return RowFilter(rows, tuple(partitions))


def _timestamp(micros: int) -> pa.Scalar:
    return pa.scalar(int(micros), pa.timestamp("us", "UTC"))
