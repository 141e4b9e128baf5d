"""The files of a Delta table, for readers that keep what they read of each file: a committed file never changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.parquet as pq

from index.delta.failures import translate_errors
from index.delta.objects import file_system

__all__ = ["TableFiles", "open_file"]


@dataclass(frozen=True, slots=True)
class TableFiles:
    """The files of one version of a table."""

    version: int
    """The version of the table."""
    table: str
    """Id of the table; another one was made later at the same place."""
    streams: Mapping[str, str]
    """The stream of each file, by its path below the table."""


def open_file(uri: str, path: str) -> pq.ParquetFile:
    """Open a file of the table at `uri`. Raises StoreCorrupt, StoreUnavailable."""
    with translate_errors(uri):
        if "://" not in uri:
            return pq.ParquetFile(f"{uri}/{path}", memory_map=True)
        system, root = file_system(uri)
        return pq.ParquetFile(system.open(f"{root}/{path}", "rb"))
