"""Chunks that are written first and committed later, many in one commit: for the workers of one large job.

`write` puts the rows of a chunk into Parquet files in the folders of the tables, where no reader sees them before a
commit names them. `commit` adds a group of chunks to each table in one commit, `patches` first and `segments` last,
with the same transactions as `index.commits.append`: chunks that the store has already are left out, so repeating both
steps changes nothing. Files that no commit ever names are deleted by the next `forget` or `compact`, once they are an
hour old.

This module does not know which worker writes which chunk, nor what a chunk was decoded from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Schema

from index.columns import frame_rows, segment_row
from index.commits.append import find_new
from index.commits.deletion import generations_for_append, requirement
from index.delta.data_files import DataFile, check_present, write_file
from index.delta.table import StoreTable
from index.records import FrameRecords, Segment
from index.schemas import SEGMENTS, partition_folder
from index.tables import Tables

__all__ = ["WrittenChunk", "commit", "write"]


@dataclass(frozen=True, slots=True)
class WrittenChunk:
    """A chunk whose rows are in files that are not committed yet."""

    app: str
    """Application id of its transactions; see `index.commits.append.NewSegment`."""

    key: str
    """Its `segment_key`."""

    segment: Segment
    """Its row in `segments`."""

    patches: tuple[DataFile, ...]
    """Files of the table `patches`, one per UTC day; none if the chunk has no new frames."""

    frames: tuple[DataFile, ...]
    """Files of the table `frames`, likewise."""

    generation: int = 0
    """How often footage of the stream was deleted when it was written."""


def write(tables: Tables, segment: Segment, frames: FrameRecords | None) -> WrittenChunk | None:
    """Write the rows of one chunk that the store lacks; None if it has the whole chunk.

    Raises:
        UsageError: frames of another stream, or vectors of another shape than the store's.
        StoreFull: no space is left; files that were written are not committed.
    """
    new = find_new(tables, segment, frames)
    if new is None:
        return None
    if new.frames is None:
        return WrittenChunk(new.app, new.key, new.segment, (), (), new.generation)
    patches = _write_files(tables.patches, tables.patch_store.rows(new.key, new.frames))
    written = _write_files(tables.frames, frame_rows(new.key, new.frames))
    return WrittenChunk(new.app, new.key, new.segment, tuple(patches), tuple(written), new.generation)


def commit(tables: Tables, chunks: Sequence[WrittenChunk]) -> int:
    """Commit chunks; those of one source must ascend. Returns the number of chunks the store did not have.

    Raises:
        StoreCorrupt: a written file is gone; write the chunks again.
        CommitFenced: footage of a stream was deleted since a chunk was written; write the chunks again.
    """
    requires: dict[str, str] = {}
    for chunk in chunks:
        requires |= requirement(chunk.segment.stream_id, chunk.generation)
    generations_for_append(tables, {chunk.segment.stream_id for chunk in chunks})  # completes a killed deletion
    _commit_files(tables.patches, [(c.app, c.segment.chunk, c.patches) for c in chunks if c.patches], requires)
    _commit_files(tables.frames, [(c.app, c.segment.chunk, c.frames) for c in chunks if c.frames], requires)
    segments = tables.segments

    def add_rows(delta: DeltaTable, rows: list[dict[str, Any]], properties: CommitProperties) -> None:
        """Append the rows of the segments in one commit."""
        segments.write(delta, pa.Table.from_pylist(rows, schema=SEGMENTS), properties)

    items = [(c.app, c.segment.chunk, segment_row(c.key, c.segment)) for c in chunks]
    return segments.commit_new(items, add_rows, requires)


def _commit_files(
    table: StoreTable, items: Sequence[tuple[str, int, tuple[DataFile, ...]]], requires: dict[str, str]
) -> None:
    def add_files(delta: DeltaTable, new: list[tuple[DataFile, ...]], properties: CommitProperties) -> None:
        """Add the data files, which are written already, in one commit."""
        files = [file for files in new for file in files]
        check_present(table.uri, files)
        _add_columns(delta, table.schema)
        delta.create_write_transaction(
            [file.added() for file in files],
            mode="append",
            schema=table.schema,
            partition_by=list(table.partitions),
            commit_properties=properties,
        )

    table.commit_new(items, add_files, requires)


def _add_columns(delta: DeltaTable, schema: pa.Schema) -> None:
    """Add the optional columns that a table of an earlier version lacks and the written files have."""
    held = {field.name for field in delta.schema().fields}
    missing = [field for field in Schema.from_arrow(schema).fields if field.name not in held]
    if missing:
        delta.alter.add_columns(missing)


# ---- files -------------------------------------------------------------------------------------------------------


def _write_files(table: StoreTable, rows: pa.Table) -> list[DataFile]:
    """Write rows of one stream, one file per UTC day."""
    found = []
    for day in pc.unique(rows["date"]).to_pylist():
        some = rows.filter(pc.equal(rows["date"], day))
        stream = some["stream_id"][0].as_py()
        folder = f"{partition_folder(stream)}/date={day}"
        found.append(write_file(table.uri, folder, {"stream_id": stream, "date": day}, some, table.writer))
    return found
