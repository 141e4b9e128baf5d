"""An audit trail as one Parquet file, with its digests, so that the copy can be verified anywhere."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from index.errors import StoreDenied
from index.files import atomic_file
from pipeline.audit.log import AuditTable
from pipeline.audit.record import SCHEMA, record_rows

__all__ = ["export_trail"]

_ROWS = 10_000


def export_trail(
    table: AuditTable, path: Path, *, start: int | None = None, end: int | None = None, user: str | None = None
) -> int:
    """Write the records of a trail, by sequence; returns their number. Only the whole trail can be verified.

    Args:
        table: the trail.
        path: the file, which is replaced.
        start: UTC microseconds of the first record, inclusive.
        end: UTC microseconds, exclusive.
        user: name of the user.

    Raises:
        StoreError: the trail cannot be read.
        StoreDenied: the file cannot be written.
    """
    count = 0
    try:
        with atomic_file(path) as part, pq.ParquetWriter(part, SCHEMA, compression="zstd") as writer:
            rest = (
                record
                for record in table.read()
                if (start is None or record.at >= start)
                and (end is None or record.at < end)
                and (user is None or record.user == user)
            )
            while records := list(islice(rest, _ROWS)):
                writer.write_table(record_rows(records))
                count += len(records)
    except OSError as error:
        raise StoreDenied(f"{path}: cannot be written ({error.strerror}); choose another file") from None
    return count
