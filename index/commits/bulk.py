"""Chunks that are written first and committed later, many in one commit: for the workers of one large job.

`write` puts the rows of a chunk into Parquet files in the folders of the tables, where no reader sees them before a
commit names them. `commit` adds a group of chunks to each table in one commit, `patches` first and `segments` last,
with the same transactions as `index.commits.append`: chunks that the store has already are left out, so repeating both
steps changes nothing. Files that no commit ever names are deleted by the next `forget` or `compact`, once they are an
hour old.

This module does not know which worker writes which chunk, nor what a chunk was decoded from.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, WriterProperties
from deltalake.transaction import AddAction

from index.columns import frame_rows, segment_row
from index.commits.append import find_new
from index.commits.deletion import generations_for_append, requirement
from index.delta.failures import translate_errors
from index.delta.objects import file_system
from index.delta.table import StoreTable
from index.errors import StoreCorrupt, mask_url
from index.records import FrameRecords, Segment
from index.schemas import SEGMENTS, partition_folder
from index.tables import Tables, is_remote

__all__ = ["DataFile", "WrittenChunk", "commit", "write"]

_PARTITIONS = ("stream_id", "date")
_MICROSECONDS = "%Y-%m-%dT%H:%M:%SZ"  # Arrow's %S includes the fraction


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file of one table."""

    path: str
    """Path below the table's folder."""

    size: int
    """Bytes."""

    partition: tuple[tuple[str, str], ...]
    """Name and value of each partition column."""

    stats: str
    """Statistics by which Delta skips files, JSON in Delta's own format."""


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
        _check_present(table, files)
        _add_columns(delta, table.schema)
        delta.create_write_transaction(
            [_add_action(file) for file in files],
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
        partition = (("stream_id", some["stream_id"][0].as_py()), ("date", day))
        path = f"{partition_folder(partition[0][1])}/date={day}/part-{uuid.uuid4()}.parquet"
        some = some.drop_columns(list(_PARTITIONS))
        size = _write_file(table, path, some)
        found.append(DataFile(path, size, partition, _statistics(some)))
    return found


def _write_file(table: StoreTable, path: str, rows: pa.Table) -> int:
    with translate_errors(table.uri):
        system, root = file_system(table.uri)
        place = f"{root}/{path}"
        if not is_remote(table.uri):
            Path(place).parent.mkdir(parents=True, exist_ok=True)
        with system.open(place, "wb") as file:
            pq.write_table(rows, file, **_parquet_options(table.writer, rows.column_names))
        return int(system.size(place))


def _parquet_options(writer: WriterProperties, names: Sequence[str]) -> dict[str, Any]:
    """Options with which Arrow's writer writes a file as Delta's does with `writer`."""
    own = writer.column_properties or {}
    if writer.default_column_properties is None:
        others = [name for name in names if name not in own]
    else:  # columns that are not named have neither dictionaries nor statistics
        others = [name for name in names if name in own]
    compression = (writer.compression or "SNAPPY").split("(")[0]
    return {
        "compression": "NONE" if compression == "UNCOMPRESSED" else compression,
        "compression_level": 3 if compression == "ZSTD" else None,
        "use_dictionary": others,
        "write_statistics": others,
        "row_group_size": writer.max_row_group_size,
    }


def _statistics(rows: pa.Table) -> str:
    """Statistics by which Delta skips files: least and greatest value of the columns that predicates name.

    deltalake 1.6.6 skips a file for a predicate on a column that is not among them.
    """
    low: dict[str, str] = {}
    high: dict[str, str] = {}
    for name in ("captured_at", "head"):
        if name in rows.column_names:
            low[name], high[name] = (pc.strftime(f(rows[name]), format=_MICROSECONDS).as_py() for f in (pc.min, pc.max))
    low["segment"] = high["segment"] = rows["segment"][0].as_py()
    counts = dict.fromkeys(low, 0)
    return json.dumps({"numRecords": rows.num_rows, "minValues": low, "maxValues": high, "nullCount": counts})


def _add_action(file: DataFile) -> AddAction:
    return AddAction(file.path, file.size, dict(file.partition), round(time() * 1000), True, file.stats)


def _check_present(table: StoreTable, files: Sequence[DataFile]) -> None:
    with translate_errors(table.uri):
        system, root = file_system(table.uri)
        gone = [
            file
            for file in files
            if not system.exists(f"{root}/{file.path}") or system.size(f"{root}/{file.path}") != file.size
        ]
    for file in gone:
        raise StoreCorrupt(f"{mask_url(table.uri)}/{file.path}: written and now gone; run the same backfill again")
