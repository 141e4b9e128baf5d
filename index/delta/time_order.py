"""Files of a stream's day in the order of time.

Merging files keeps the order of their commits. Live footage is committed as time goes on. Workers of a backfill commit
the files of a day in any order, so that each row group of a merged file has frames of the whole day, and no window
rules one out by its times. Such files are read in the order of time instead, a run of files that overlap at once.

Does not know which partitions are merged, nor when.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from time import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, WriterProperties
from deltalake.transaction import RemoveAction
from numpy.typing import NDArray

from index.delta.data_files import DataFile, remove_files, write_file
from index.delta.snapshot import TableSnapshot

__all__ = ["is_scattered", "runs", "write_by_time"]

_STEPS = 3
"""Times the day's length that the steps from each file to the next may add up to: with sorted files once."""


def is_scattered(first: NDArray[np.int64]) -> bool:
    """Whether files that are merged in this order make row groups of times far apart.

    Args:
        first: the least time of each file in the order of commits, ascending or descending, int64[n], microseconds.
    """
    return len(first) > 1 and float(np.abs(np.diff(first)).sum()) > _STEPS * float(np.ptp(first))


def runs(first: NDArray[np.int64], last: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Files in the order of time, those together whose times overlap.

    Args:
        first, last: the least and greatest time of each file, int64[n], microseconds.

    Returns:
        The numbers of the files of each run: all times of a run are before all times of the next one.
    """
    order = np.argsort(first, kind="stable")
    reached = np.maximum.accumulate(last[order])
    return np.split(order, np.flatnonzero(first[order][1:] > reached[:-1]) + 1) if len(order) else []


def write_by_time(
    table: DeltaTable,
    files: TableSnapshot,
    partition: Mapping[str, str],
    writer: WriterProperties,
    target_bytes: int,
    most_bytes: int,
) -> bool:
    """Replace the files of a partition by files in the order of time, in one commit that changes no row.

    Args:
        table: the version of the table that the commit follows.
        files: the files of that version.
        partition: value of each partition column: stream and day.
        writer: how files are written.
        target_bytes: about the size of the new files.
        most_bytes: bytes that the files of a run may have; one run, and one new file, are in memory at a time.

    Returns:
        Whether it was done; False if a run of files is larger.
    """
    listed = files.listed
    wanted = pc.and_(pc.equal(listed["stream"], partition["stream_id"]), pc.equal(listed["date"], partition["date"]))
    files = files.take(wanted.to_numpy())
    listed = files.listed
    found = runs(listed["first"].to_numpy(), listed["last"].to_numpy())
    sizes = listed["size_bytes"].to_numpy()
    if any(int(sizes[run].sum()) > most_bytes for run in found):
        return False
    folder = files.paths[0].rsplit("/", 1)[0]
    removed = [
        RemoveAction(path, False, round(time() * 1000), size, dict(partition))
        for path, size in zip(files.paths, sizes.tolist(), strict=True)  # deltalake encodes them itself
    ]
    written = list[DataFile]()
    try:
        for rows in _large_parts(files, found, target_bytes):
            written.append(write_file(files.uri, folder, partition, rows, writer))
    except Exception:
        remove_files(files.uri, [file.path for file in written])
        raise
    table.create_write_transaction(
        [*(file.added(new_rows=False) for file in written), *removed],
        mode="append",
        schema=files.held,
        partition_by=list(partition),
    )
    return True


def _large_parts(files: TableSnapshot, found: Sequence[NDArray[np.int64]], target_bytes: int) -> Iterator[pa.Table]:
    """All rows in the order of time, in parts of about `target_bytes`, at most twice as many."""
    held, size = list[pa.Table](), 0
    for run in found:
        held.append(files.take(run).read(files.held.names).sort_by("captured_at"))
        size += held[-1].nbytes
        if size >= target_bytes:
            rows = pa.concat_tables(held)
            count = -(-len(rows) // (size // target_bytes))
            yield from (rows.slice(first, count) for first in range(0, len(rows), count))
            held, size = [], 0
    if held:
        yield pa.concat_tables(held)
