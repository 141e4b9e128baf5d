"""The files of a Delta table, for readers that keep what they read of each file: a committed file never changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from index.delta.failures import translate_errors
from index.delta.objects import file_system

__all__ = ["TableFiles", "listed_files", "open_file"]


@dataclass(frozen=True, slots=True)
class TableFiles:
    """The files of one version of a table."""

    version: int
    """The version of the table."""
    streams: Mapping[str, str]
    """The stream of each file, by its path below the table."""


def listed_files(table: DeltaTable) -> TableFiles:
    """The files of an opened table, whose first partition column is `stream_id`."""
    actions = pa.table(table.get_add_actions(flatten=True))
    paths = [unquote(path) for path in actions["path"].to_pylist()]
    return TableFiles(table.version(), dict(zip(paths, actions["partition.stream_id"].to_pylist(), strict=True)))


def open_file(uri: str, path: str) -> pq.ParquetFile:
    """Open a file of the table at `uri`. Raises StoreCorrupt, StoreUnavailable."""
    with translate_errors(uri):
        if "://" not in uri:
            return pq.ParquetFile(f"{uri}/{path}", memory_map=True)
        system, root = file_system(uri)
        return pq.ParquetFile(system.open(f"{root}/{path}", "rb"))
