"""Small pieces the store is written with: Arrow columns from arrays and back, predicates, digests."""

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

__all__ = ["day_of", "digest", "frame_rows", "key_columns", "lists", "matrix", "segment_row", "sql_time", "text"]


def digest(*parts: object) -> str:
    """32 hex digits that name `parts`, given in this order."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def day_of(micros: int) -> str:
    """The UTC day of a time in microseconds, as the tables' `date` column writes it."""
    return from_micros(micros).strftime("%Y-%m-%d")


def sql_time(micros: int) -> str:
    """A time in UTC microseconds as Delta's predicates write it."""
    return f"arrow_cast({int(micros)}, 'Timestamp(Microsecond, Some(\"UTC\"))')"


def matrix(column: pa.ChunkedArray, width: int) -> NDArray[np.float32]:
    """A list<float> column as float32[N, width], one copy."""
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks if len(chunk)]
    flat = np.concatenate(parts) if len(parts) != 1 else parts[0]
    return np.ascontiguousarray(flat, np.float32).reshape(-1, width)


def lists(matrix: NDArray[np.float32]) -> pa.Array:
    n, width = matrix.shape
    offsets = pa.array(np.arange(0, (n + 1) * width, width, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(matrix).reshape(-1)))


def text(name: str) -> pads.Expression:
    """A column of strings for a filter. Files that Delta rewrote hold string_view, which Arrow cannot always compare."""
    return pads.field(name).cast(pa.string())


def key_columns(stream_id: str, key: str, captured_at: NDArray[np.int64]) -> list[pa.Array]:
    n = len(captured_at)
    days = (captured_at // 86_400_000_000).astype("datetime64[D]").astype(str)
    times = pa.array(captured_at).cast(pa.timestamp("us", "UTC"))
    return [pa.array([stream_id] * n), pa.array(days.tolist()), times, pa.array([key] * n)]


def segment_row(key: str, segment: Segment) -> dict[str, Any]:
    """The row of one segment for the table `segments`; `key` names it. Secrets in its URI are masked."""
    return {**segment.model_dump(), "segment": key, "uri": mask_url(segment.uri)}


def frame_rows(key: str, frames: FrameRecords) -> pa.Table:
    """The rows of one segment for the table `frames`; `key` names the segment."""
    columns = [
        *key_columns(frames.stream_id, key, frames.captured_at),
        pa.array(frames.pts_seconds),
        pa.array([frames.clock_source] * len(frames)),
        lists(frames.frame_vectors),
        lists(frames.patch_pooled),
        pa.array(frames.pictures, pa.binary()),
    ]
    return pa.Table.from_arrays(columns, schema=FRAMES)
