"""Parquet files of a table that are written first and named by a commit later.

Files are as deltalake writes them with the same `WriterProperties`, with statistics of the columns that predicates
name.

Does not know the transactions of a commit, nor which rows belong together.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import WriterProperties
from deltalake.transaction import AddAction

from index.delta.failures import translate_errors
from index.delta.objects import file_system
from index.errors import StoreCorrupt, mask_url

__all__ = ["DataFile", "check_present", "remove_files", "write_file"]

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

    def added(self, *, new_rows: bool = True) -> AddAction:
        """The action by which a commit adds the file; without `new_rows`, its rows were in the table before."""
        return AddAction(self.path, self.size, dict(self.partition), round(time() * 1000), new_rows, self.stats)


def write_file(
    uri: str, folder: str, partition: Mapping[str, str], rows: pa.Table, writer: WriterProperties
) -> DataFile:
    """Write rows of one partition into a new file, which no reader sees until a commit adds it.

    Args:
        uri: the table.
        folder: the folder of the partition, below the table's.
        partition: value of each partition column.
        rows: rows of this partition, with the partition columns; at least one.
        writer: how the file is written.

    Raises:
        StoreFull, StoreDenied, StoreUnavailable: it was not written.
    """
    rows = rows.drop_columns([name for name in partition if name in rows.column_names])
    path = f"{folder}/part-{uuid.uuid4()}.parquet"
    with translate_errors(uri):
        system, root = file_system(uri)
        place = f"{root}/{path}"
        if "://" not in uri:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
        try:
            with system.open(place, "wb") as file:
                pq.write_table(rows, file, **_parquet_options(writer, rows.column_names))
        except Exception:
            remove_files(uri, [path])
            raise
        size = int(system.size(place))
    return DataFile(path, size, tuple(partition.items()), _statistics(rows))


def remove_files(uri: str, paths: Sequence[str]) -> None:
    """Delete files that no commit has added, as far as that is possible: their bytes are missing on a full disk."""
    system, root = file_system(uri)
    for path in paths:
        with suppress(Exception):  # `vacuum` does it later
            system.rm_file(f"{root}/{path}")


def check_present(uri: str, files: Sequence[DataFile]) -> None:
    """Raise StoreCorrupt unless all written files are there as they were written."""
    with translate_errors(uri):
        system, root = file_system(uri)
        gone = [
            file
            for file in files
            if not system.exists(f"{root}/{file.path}") or system.size(f"{root}/{file.path}") != file.size
        ]
    for file in gone:
        raise StoreCorrupt(f"{mask_url(uri)}/{file.path}: written and now gone; run the same backfill again")


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
    low["segment"], high["segment"] = (f(rows["segment"]).as_py() for f in (pc.min, pc.max))
    counts = dict.fromkeys(low, 0)
    return json.dumps({"numRecords": rows.num_rows, "minValues": low, "maxValues": high, "nullCount": counts})
