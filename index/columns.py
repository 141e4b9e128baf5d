"""Conversions between values and columns: rows of the tables from records, matrices from Arrow lists, predicates,
digests.

This module does not open tables; `index.schemas` says what each column is.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from numpy.typing import NDArray

from index.errors import mask_url
from index.records import FrameRecords, Segment, from_micros
from index.schemas import FRAMES

__all__ = [
    "MICROS_PER_DAY",
    "day_of",
    "digest",
    "frame_rows",
    "key_columns",
    "segment_key",
    "segment_row",
    "sql_string",
    "sql_timestamp",
    "string_field",
    "to_list_array",
    "to_matrix",
]

MICROS_PER_DAY = 86_400_000_000


def digest(*parts: object) -> str:
    """32 hex digits of SHA-256 that identify `parts` in this order."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def segment_key(segment: Segment) -> str:
    """The value of the column `segment` in all three tables: the digest of stream, source and chunk."""
    return digest(segment.stream_id, segment.source, segment.chunk)


def day_of(micros: int) -> str:
    """The UTC day, YYYY-MM-DD, of a time in UTC microseconds, as in the column `date`."""
    return from_micros(micros).strftime("%Y-%m-%d")


def sql_string(text: str) -> str:
    """A string as a literal of Delta's SQL predicates."""
    return "'" + text.replace("'", "''") + "'"


def sql_timestamp(micros: int) -> str:
    """A time in UTC microseconds as a literal of Delta's SQL predicates."""
    return f"arrow_cast({int(micros)}, 'Timestamp(Microsecond, Some(\"UTC\"))')"


def to_matrix(column: pa.ChunkedArray, width: int) -> NDArray[np.float32]:
    """A column of lists of `width` floats as float32[N, width]; copies once."""
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks if len(chunk)]
    flat = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.float32), *parts])
    return np.ascontiguousarray(flat, np.float32).reshape(-1, width)


def to_list_array(matrix: NDArray[np.float32]) -> pa.Array:
    """float32[N, width] as an Arrow array of N lists."""
    n, width = matrix.shape
    offsets = pa.array(np.arange(0, (n + 1) * width, width, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(matrix).reshape(-1)))


def string_field(name: str) -> pads.Expression:
    """A column of strings for a filter, cast to `string`: files that Delta rewrote hold `string_view`.

    Arrow cannot always compare `string_view`.
    """
    return pads.field(name).cast(pa.string())


def key_columns(stream_id: str, key: str, captured_at: NDArray[np.int64]) -> list[pa.Array]:
    """The columns stream_id, date, captured_at and segment of rows of one segment; int64[N] UTC microseconds."""
    n = len(captured_at)
    days = (captured_at // MICROS_PER_DAY).astype("datetime64[D]").astype(str)
    times = pa.array(captured_at).cast(pa.timestamp("us", "UTC"))
    return [pa.array([stream_id] * n), pa.array(days.tolist()), times, pa.array([key] * n)]


def segment_row(key: str, segment: Segment) -> dict[str, Any]:
    """The row of one segment for the table `segments`; `key` is its `segment_key`. Credentials in its URI are
    masked."""
    return {**segment.model_dump(), "segment": key, "uri": mask_url(segment.uri)}


def frame_rows(key: str, frames: FrameRecords) -> pa.Table:
    """The rows of one segment for the table `frames`; `key` is its `segment_key`."""
    columns = [
        *key_columns(frames.stream_id, key, frames.captured_at),
        pa.array(frames.pts_seconds),
        pa.array([frames.clock_source] * len(frames)),
        to_list_array(frames.frame_vectors),
        to_list_array(frames.patch_pooled),
        pa.array(frames.pictures, pa.binary()),
        pa.nulls(len(frames), pa.float32()) if frames.frame_norms is None else pa.array(frames.frame_norms),
    ]
    return pa.Table.from_arrays(columns, schema=FRAMES)
