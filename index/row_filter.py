"""Which rows of a table are read: what Arrow filters by, and which partitions can hold such rows at all.

A reader opens every file of a table that its partitions do not rule out, 0.2 ms each and more; a store of years has a
hundred thousand files, a question about one camera and one day looks into a few.
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
    """`rows` is the filter, `partitions` are conditions that files must meet, as ("stream_id", "=", "front")."""

    rows: pads.Expression
    partitions: tuple[tuple[str, str, str | list[str]], ...]

    def __and__(self, other: pads.Expression) -> RowFilter:
        """Of these rows, those that `other` takes."""
        return RowFilter(self.rows & other, self.partitions)


def of_streams(streams: Sequence[str]) -> RowFilter:
    """All rows of the named streams."""
    names = sorted(set(streams))
    return RowFilter(pads.field("stream_id").isin(names), (("stream_id", "in", names),))


def on_day(stream: str, day: str) -> RowFilter:
    """The rows of one stream on one UTC day, YYYY-MM-DD."""
    rows = (pads.field("stream_id") == stream) & (pads.field("date") == day)
    return RowFilter(rows, (("stream_id", "=", stream), ("date", "=", day)))


def in_window(streams: Sequence[str], start: int | None, end: int | None) -> RowFilter:
    """The rows of the named streams with start ≤ captured_at < end, UTC microseconds; None for no limit."""
    found = of_streams(streams)
    rows, partitions = found.rows, [*found.partitions]
    if start is not None:
        rows &= (pads.field("date") >= day_of(start)) & (pads.field("captured_at") >= _moment(start))
        partitions.append(("date", ">=", day_of(start)))
    if end is not None:
        rows &= (pads.field("date") <= day_of(end)) & (pads.field("captured_at") < _moment(end))
        partitions.append(("date", "<=", day_of(end)))
    return RowFilter(rows, tuple(partitions))


def _moment(micros: int) -> pa.Scalar:
    return pa.scalar(int(micros), pa.timestamp("us", "UTC"))
