"""Chunks written first and committed later, many at once: what many workers of one job do.

A chunk's rows become Parquet files in the tables' own folders, which nobody reads before a commit names them. `commit`
then takes a group of chunks into each table by one commit, patches first and segments last, as `Store.append` does for
one chunk and with the same transactions (digest of stream and source, chunk): a chunk that is there already is left
out, so doing all of it twice changes nothing. Files that no commit ever names are removed with the next `forget`
or `compact`, once they are an hour old.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, WriterProperties, write_deltalake
from deltalake.transaction import AddAction

from index.columns import frame_rows, segment_row
from index.delta_table import StoreTable, translate_errors
from index.errors import StoreCorrupt, mask_url
from index.records import FrameRecords, Segment
from index.schemas import SEGMENTS

if TYPE_CHECKING:
    from index.store import Store

__all__ = ["DataFile", "WrittenChunk", "commit", "write"]

_PARTITIONS = ("stream_id", "date")
_MICROSECONDS = "%Y-%m-%dT%H:%M:%SZ"  # Arrow's %S has the fraction


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file of one table; `path` is relative to the table, `size` in bytes, `stats` Delta's own JSON."""

    path: str
    size: int
    partition: tuple[tuple[str, str], ...]
    stats: str


@dataclass(frozen=True, slots=True)
class WrittenChunk:
    """A chunk whose rows lie in files; `app` names stream and source in the transactions, `key` the segment."""

    app: str
    key: str
    segment: Segment
    patches: tuple[DataFile, ...]
    frames: tuple[DataFile, ...]


def write(store: Store, segment: Segment, frames: FrameRecords | None) -> WrittenChunk | None:
    """Write the rows of one chunk that the store lacks; None when it has the whole chunk.

    Raises:
        UsageError: frames of another stream or with vectors of another shape.
        StoreFull: no space; nothing of this chunk counts.
    """
    new = store._new(segment, frames)
    if new is None:
        return None
    app, key, segment, kept = new
    if kept is None:
        return WrittenChunk(app, key, segment, (), ())
    patches = _files(store._tables["patches"], store._patches.rows(key, kept))
    return WrittenChunk(
        app, key, segment, tuple(patches), tuple(_files(store._tables["frames"], frame_rows(key, kept)))
    )


def commit(store: Store, chunks: Sequence[WrittenChunk]) -> int:
    """Take chunks into the store, those of one source in ascending order; how many were new.

    Raises:
        StoreCorrupt: a file that was written is gone, as after a `forget` meanwhile; write the chunks again.
    """
    for name in ("patches", "frames"):
        table = store._tables[name]
        some = [(c.app, c.segment.chunk, getattr(c, name)) for c in chunks if getattr(c, name)]

        def add(
            delta: DeltaTable, kept: list[tuple[DataFile, ...]], properties: CommitProperties, table: StoreTable = table
        ) -> None:
            files = [part for parts in kept for part in parts]
            _check_there(table, files)
            delta.create_write_transaction(
                [_action(file) for file in files],
                mode="append",
                schema=table.schema,
                partition_by=list(table.partitions),
                commit_properties=properties,
            )

        table.commit_once(some, add)
    table = store._tables["segments"]

    def listed(delta: DeltaTable, kept: list[dict[str, Any]], properties: CommitProperties) -> None:
        write_deltalake(
            delta,
            pa.Table.from_pylist(kept, schema=SEGMENTS),
            mode="append",
            commit_properties=properties,
            writer_properties=table.writer,
        )

    return table.commit_once([(c.app, c.segment.chunk, segment_row(c.key, c.segment)) for c in chunks], listed)


# ---- files -------------------------------------------------------------------------------------------------------


def _files(table: StoreTable, rows: pa.Table) -> list[DataFile]:
    """Write `rows` of one stream, a file a day."""
    found = []
    for day in pc.unique(rows["date"]).to_pylist():
        some = rows.filter(pc.equal(rows["date"], day))
        partition = (("stream_id", some["stream_id"][0].as_py()), ("date", day))
        folder = "/".join(f"{name}={value}" for name, value in partition)
        path = f"{folder}/part-{uuid.uuid4()}.parquet"
        some = some.drop_columns(list(_PARTITIONS))
        size = _write(table, path, some)
        found.append(DataFile(path, size, partition, _stats(some)))
    return found


def _write(table: StoreTable, path: str, rows: pa.Table) -> int:
    with translate_errors(table.uri):
        system, root = fsspec.core.url_to_fs(table.uri)
        place = f"{root}/{path}"
        if "://" not in table.uri:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
        with system.open(place, "wb") as file:
            pq.write_table(rows, file, **_settings(table.writer, rows.column_names))
        return int(system.size(place))


def _settings(writer: WriterProperties, names: Sequence[str]) -> dict[str, Any]:
    """The same file, as Arrow's writer is told."""
    plain = {name.split(".")[0] for name in writer.column_properties or {}}  # neither dictionaries nor statistics
    others = [name for name in names if name not in plain]
    compression = (writer.compression or "SNAPPY").split("(")[0]
    return {
        "compression": "NONE" if compression == "UNCOMPRESSED" else compression,
        "compression_level": 3 if compression == "ZSTD" else None,
        "use_dictionary": others,
        "write_statistics": others,
        "row_group_size": writer.max_row_group_size,
    }


def _stats(rows: pa.Table) -> str:
    """What Delta skips files by: least and greatest of the columns that queries name."""
    low, high = (pc.strftime(f(rows["captured_at"]), format=_MICROSECONDS).as_py() for f in (pc.min, pc.max))
    key = rows["segment"][0].as_py()
    return json.dumps(
        {
            "numRecords": rows.num_rows,
            "minValues": {"captured_at": low, "segment": key},
            "maxValues": {"captured_at": high, "segment": key},
            "nullCount": {"captured_at": 0, "segment": 0},
        }
    )


def _action(part: DataFile) -> AddAction:
    return AddAction(part.path, part.size, dict(part.partition), round(time() * 1000), True, part.stats)


def _check_there(table: StoreTable, files: Sequence[DataFile]) -> None:
    system, root = fsspec.core.url_to_fs(table.uri)
    for file in files:
        if not system.exists(f"{root}/{file.path}") or system.size(f"{root}/{file.path}") != file.size:
            raise StoreCorrupt(f"{mask_url(table.uri)}/{file.path}: written and now gone; run the same backfill again")
