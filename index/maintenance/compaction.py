"""Compaction: the small files of the store's tables merged into large ones, logs cleaned, unused files deleted.

Workers commit every few seconds, and each commit adds a file of a few frames for every stream. A table of a hundred
thousand files is slow to open for every process. Compaction reads the small files of one partition (a stream's day) and
writes them as one file in a commit of its own, without changing a row:

- Concurrent appends never conflict with it. A concurrent deletion does; that partition is then merged again. Two
  compactions of one store are never active at once (see `index.maintenance.compaction_lock`).
- Application transactions are in the log and its checkpoints and stay as they are. FAISS shards refer to segments and
  times, not to files, and stay valid.
- A replaced file is kept for an hour for processes that are reading it. So is a file that no version lists, because a
  writer may be about to commit it. Log entries are kept for ten minutes. The next compaction deletes what is older;
  `forget` deletes the files of its stream at once.
- Files of `frames` that were committed in no order of time, as workers of a backfill do, are sorted as they are merged,
  so that a window reads the row groups of its own times; see `index.delta.time_order`.
- Memory is bounded: one file is written at a time, of about `TARGET_BYTES`; at most `_SORT_BYTES` are sorted at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import numpy as np
from deltalake.exceptions import CommitFailedError
from pydantic import BaseModel, ConfigDict

from index.delta.failures import translate_errors
from index.delta.objects import file_system
from index.delta.table import StoreTable
from index.delta.time_order import is_scattered
from index.errors import StoreBusy, UnknownStream, mask_url
from index.maintenance.compaction_lock import CompactionLock
from index.tables import Tables

__all__ = ["TARGET_BYTES", "TableCompaction", "compact", "count_log_entries"]

TARGET_BYTES = 64 * 2**20
"""Size of the files that small ones are merged into."""

_MIN_FILES = 4  # merging fewer is not worth writing their bytes again
_SORTED = "frames"  # the table whose windows are read by time; row groups of patches hold few frames in any order
_SORT_BYTES = 256 * 2**20  # of files that overlap, which are sorted in memory

_Partition = tuple[tuple[str, str], ...]  # name and value of each partition column


class TableCompaction(BaseModel):
    """What a compaction did to one table, or with `dry_run` would do."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    table: str
    """Name of the table."""

    partitions: int
    """Number of partitions whose files were merged."""

    merged: int
    """Number of small files that were merged into larger ones."""

    files_before: int
    """Number of files of the newest version, before."""

    files_after: int
    """Number of files of the newest version, after."""

    bytes_before: int
    """Their bytes, before."""

    bytes_after: int
    """Their bytes, after."""

    removed: int
    """Number of unused files that were deleted from the disk."""

    log_before: int
    """Number of entries of the log, before."""

    log_after: int
    """Number of entries of the log, after."""


@dataclass(frozen=True, slots=True)
class _TableFile:
    partition: _Partition
    size: int
    first: int


@dataclass(frozen=True, slots=True)
class _Merge:
    """A partition that is merged."""

    partition: _Partition
    small: int
    """Number of its files below half of the target."""
    size: int
    """Bytes of those."""
    scattered: bool
    """Whether its rows are sorted."""


def compact(
    tables: Tables,
    streams: Sequence[str] | None = None,
    *,
    dry_run: bool = False,
    target_bytes: int = TARGET_BYTES,
    most_bytes: int | None = None,
    on_partition: Callable[[str, str], None] = lambda table, partition: None,
) -> list[TableCompaction]:
    """Merge small files of `streams` (all when None), then clean the log of every table and delete unused files.

    Args:
        tables: the store.
        streams: names of streams.
        dry_run: change nothing; report the files that would be merged, with sizes as they are.
        target_bytes: size of the merged files.
        most_bytes: about how many bytes of each table are merged at most, those of the oldest days first, so that a run
            beside writers ends; the next run goes on. No limit when None.
        on_partition: called with table and partition before each merge.

    Raises:
        UnknownStream: the store has no such stream.
        StoreBusy: another compaction is active, or a partition changed during each of twelve attempts.
        StoreFull, StoreCorrupt: reading or writing failed; no row is lost.
    """
    held = {dict(file.partition)["stream_id"] for file in _list_files(tables.segments)}
    for name in streams or ():
        if name not in held:
            raise UnknownStream(f"{name}: the store has no such stream; `sightline streams` lists those it has")
    if dry_run:
        return [_compact_table(table, streams, target_bytes, most_bytes, None, on_partition) for table in tables.all()]
    lock = CompactionLock(tables.segments)
    try:
        lock.acquire(0)
        return [_compact_table(table, streams, target_bytes, most_bytes, lock, on_partition) for table in tables.all()]
    finally:
        lock.release()


def _compact_table(
    table: StoreTable,
    streams: Sequence[str] | None,
    target_bytes: int,
    most_bytes: int | None,
    lock: CompactionLock | None,
    on_partition: Callable[[str, str], None],
) -> TableCompaction:
    """Compact one table; without a lock, only count."""
    before, log_before = _list_files(table), count_log_entries(table)
    chosen = [
        merge
        for merge in _mergeable(before, target_bytes)
        if streams is None or dict(merge.partition)["stream_id"] in streams
    ]
    if most_bytes is not None:
        chosen.sort(key=lambda each: dict(each.partition).get("date", ""))
        reached = list(accumulate((each.size for each in chosen), initial=0))
        chosen = [each for each, before_it in zip(chosen, reached, strict=False) if before_it < most_bytes]
    removed = 0
    if lock is not None:
        table.configure()
        for merge in chosen:
            lock.acquire(merge.size)
            on_partition(table.name, "/".join(value for _, value in merge.partition))
            sort_bytes = _SORT_BYTES if merge.scattered and table.name == _SORTED else 0
            try:
                table.merge_files(merge.partition, target_bytes, sort_bytes)
            except CommitFailedError as error:
                raise StoreBusy(
                    f"{mask_url(table.uri)}: {merge.partition} changed during every attempt to merge it; "
                    "try again later"
                ) from error
        removed = table.vacuum()
        table.clean_log()
    after = _list_files(table) if lock else before
    return TableCompaction(
        table=table.name,
        partitions=len(chosen),
        merged=sum(each.small for each in chosen),
        files_before=len(before),
        files_after=len(after),
        bytes_before=sum(file.size for file in before),
        bytes_after=sum(file.size for file in after),
        removed=removed,
        log_before=log_before,
        log_after=count_log_entries(table) if lock else log_before,
    )


def _list_files(table: StoreTable) -> list[_TableFile]:
    """The files of the newest version, by partition."""
    listed = table.snapshot().listed
    columns = {"stream_id": listed["stream"].to_pylist(), "date": listed["date"].to_pylist()}
    values = [columns[name] for name in table.partitions]
    keys = [tuple(zip(table.partitions, key, strict=True)) for key in zip(*values, strict=True)]
    sizes = listed["size_bytes"].to_pylist()
    firsts = listed["first"].to_pylist()
    files = (_TableFile(*each) for each in zip(keys, sizes, firsts, strict=True))
    return sorted(files, key=lambda file: file.partition)


def _mergeable(files: Sequence[_TableFile], target_bytes: int) -> Iterator[_Merge]:
    """Partitions with enough files below half of `target_bytes`.

    Sorting writes all files of a partition again, so it waits until at least half of the bytes are in small files.
    """
    for partition, group in groupby(files, key=lambda file: file.partition):
        found = list(group)
        small = [file.size for file in found if file.size < target_bytes // 2]
        if len(small) >= _MIN_FILES:
            worth = 2 * sum(small) >= sum(file.size for file in found)
            scattered = worth and is_scattered(np.array([file.first for file in found]))
            yield _Merge(partition, len(small), sum(small), scattered)


def count_log_entries(table: StoreTable) -> int:
    """Number of commits in the folder of the table's log, including those before its checkpoint."""
    with translate_errors(table.uri):
        files, folder = file_system(f"{table.uri}/_delta_log")
        return sum(str(path).endswith(".json") for path in files.ls(folder, detail=False))
