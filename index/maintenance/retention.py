"""Deleting a stream's footage for good: from the tables, their old versions, the FAISS shards and pending work.

`forget` deletes the rows of patches, frames and segments and then the files that held them. One that was killed at any
moment is completed by the same call.

This module does not decide what is old: the caller names the stream and the time.
"""

from __future__ import annotations

from pathlib import Path

import fsspec
import pyarrow.compute as pc

from index.columns import day_of, segment_key, sql_string, sql_timestamp
from index.delta.row_filter import of_streams
from index.errors import UnknownStream
from index.schemas import GENERATION_KEY, compose_stream_id, partition_folder
from index.search.faiss_shards import FaissShards
from index.standing_questions import StandingQuestionStore
from index.tables import Tables, is_remote

__all__ = ["forget"]


def forget(tables: Tables, shards: FaissShards, stream_id: str, before: int | None = None) -> int:
    """Delete a stream's frames captured before `before`, UTC microseconds; all frames when None.

    Afterwards no file of the store contains them. A stream that was deleted whole may be ingested again. Frames that a
    stopped backfill left in its staging folder are deleted too, of all streams; the next backfill makes them again.

    Returns:
        The number of frames deleted.

    Raises:
        UnknownStream: the store has no such stream.
        UsageError: not a valid name of a stream.
    """
    stream_id = compose_stream_id(stream_id)
    if not tables.read_segments(stream_id) and not _has_files(tables, stream_id):
        raise UnknownStream(f"{stream_id}: the store has no such stream; `sightline streams` lists those it has")
    of_stream = f"stream_id = {sql_string(stream_id)}"
    earlier = of_stream if before is None else f"{of_stream} AND captured_at < {sql_timestamp(before)}"
    if before is not None:
        tables.patch_store.make_independent(stream_id, before)
    removed = tables.frames.delete(earlier)
    tables.patches.delete(earlier)
    if before is None:
        tables.segments.delete(of_stream)
    else:
        _delete_segments(tables, stream_id, before)
    generation = {GENERATION_KEY: str(tables.generation() + 1)}
    tables.segments.open().alter.set_table_properties(generation, raise_if_not_exists=False)
    for table in tables.all():
        table.purge(stream_id, None if before is None else day_of(before))
        if not is_remote(tables.url):
            _remove_empty_folders(Path(table.uri, partition_folder(stream_id)))
    shards.drop(stream_id)
    StandingQuestionStore(tables.url).delete_state(stream_id)
    files, staging = fsspec.core.url_to_fs(f"{tables.url}/staging")
    if files.exists(staging):
        files.rm(staging, recursive=True)
    return removed


def _has_files(tables: Tables, stream_id: str) -> bool:
    """Whether any table has files of a stream, listed or not: those of a `forget` that was killed before it deleted
    them."""
    for table in tables.all():
        files, folder = fsspec.core.url_to_fs(f"{table.uri}/{partition_folder(stream_id)}")
        if files.exists(folder):
            return True
    return False


def _delete_segments(tables: Tables, stream_id: str, before: int) -> None:
    """Delete the segments that end by `before`, and correct the number of frames of the one that contains it."""
    tables.segments.delete(f'stream_id = {sql_string(stream_id)} AND "end" <= {sql_timestamp(before)}')
    left = tables.frames.read(["segment"], of_streams([stream_id]))["segment"]
    counts = {row["values"]: row["counts"] for row in pc.value_counts(left).to_pylist()}
    for segment in tables.read_segments(stream_id):
        if segment.start < before:
            key = segment_key(segment)
            tables.segments.update(
                {"frames": str(counts.get(key, 0))}, f"stream_id = {sql_string(stream_id)} AND segment = '{key}'"
            )


def _remove_empty_folders(partition: Path) -> None:
    """Remove what is left of a partition's folders, whose names contain the name of the stream."""
    for folder in sorted(partition.glob("**/"), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
