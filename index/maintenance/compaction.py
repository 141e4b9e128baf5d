"""Many small files of the store's tables merged into few, logs and what nobody needs any more removed.

Workers commit every few seconds and leave a file of a few frames for each stream in every commit; a table of a hundred
thousand files is slow to open for everybody. Compaction reads the small files of one partition (a stream's day) and
writes them as one, in a commit of its own, row for row the same:

- It changes no row, so appends beside it never conflict. A deletion does; then the partition is done again. Compactions
  take turns.
- Applications' transactions stand in the log and in its checkpoints and are not touched. FAISS shards name segments and
  times, never files, and stay valid.
- Files that were replaced stay for an hour for whoever is reading them, and so do files that no version lists, because
  a writer may be about to commit them; entries of the log stay for ten minutes. The next compaction removes them;
  forgetting a stream removes its own at once.
- Memory: one file is written at a time, of at most about `TARGET_BYTES`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import fsspec
from deltalake import PostCommitHookProperties
from deltalake.exceptions import CommitFailedError
from pydantic import BaseModel

from index.delta_table import StoreTable, retry_conflicts, translate_errors
from index.errors import CommitFenced, StoreBusy, UnknownStream, mask_url
from index.records import rfc3339
from index.schemas import TABLES

if TYPE_CHECKING:
    from index.store import Store

__all__ = ["TARGET_BYTES", "TableCompaction", "compact"]

TARGET_BYTES = 64 * 2**20
_APPLICATION = "sightline.compaction"
_TURN_SECONDS = 900
_LEAST_RATE = 2_000_000  # bytes merged a second by the slowest machine
_LEAST = 4  # merging fewer is not worth writing their bytes again


class TableCompaction(BaseModel):
    """What became of one table; bytes and files of its present version.

    partitions: which were merged (`dry_run`: would be). merged: small files that went into larger ones. removed: files
    deleted from the disk. log_before, log_after: entries of its log.
    """

    table: str
    partitions: int
    merged: int
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    removed: int
    log_before: int
    log_after: int


_Partition = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _File:
    partition: _Partition
    size: int


def compact(
    store: Store,
    streams: Sequence[str] | None = None,
    *,
    dry_run: bool = False,
    target_bytes: int = TARGET_BYTES,
    on_partition: Callable[[str, str], None] = lambda table, partition: None,
) -> list[TableCompaction]:
    """Merge small files of `streams` (all when None), then clean every table's log and remove what it left behind.

    Args:
        dry_run: only say what would be done; merged files are counted, the sizes stay as they are.
        on_partition: told each table and partition before it is merged.

    Raises:
        UnknownStream: a name the store does not have.
        StoreBusy: another compaction is under way, or a partition changed under every one of twelve attempts.
        StoreFull, StoreCorrupt: as when reading and writing; the store stays as it was.
    """
    held = {dict(file.partition)["stream_id"] for file in _files(store._tables["segments"])}
    for name in streams or ():
        if name not in held:
            raise UnknownStream(f"{name}: the store has no such stream; `sightline streams` lists those it has")
    if dry_run:
        return [_compact_table(store._tables[name], streams, target_bytes, None, on_partition) for name in TABLES]
    turn = _Turn(store._tables["segments"])
    turn.take(0)
    try:
        return [_compact_table(store._tables[name], streams, target_bytes, turn, on_partition) for name in TABLES]
    finally:
        turn.give_back()


class _Turn:
    """One compaction at a time: deltalake 1.6.6 lets two of the same files both commit, which doubles their rows.

    Whose turn it is stands in the table's log: an application whose version is the time, in UTC milliseconds, at which
    the turn ends unless it is taken anew. A compaction that was killed is waited for until then.
    """

    def __init__(self, table: StoreTable) -> None:
        self._table = table
        self._mine: int | None = None

    def take(self, size: int) -> None:
        """Take the turn, or keep it, for merging `size` bytes. Raises StoreBusy where it is another's."""
        now = time.time_ns() // 1_000_000
        held = self._table.versions([_APPLICATION])[_APPLICATION]
        if held is not None and held != self._mine and held > now:
            raise self._busy(held)
        until = max(now + _TURN_SECONDS * 1000 + size * 1000 // _LEAST_RATE, (held or 0) + 1)
        try:
            self._table.append_from(self._table.schema.empty_table(), {_APPLICATION: (held, until)})
        except CommitFenced:
            raise self._busy(until) from None
        self._mine = until

    def give_back(self) -> None:
        with suppress(CommitFenced):
            self._table.append_from(self._table.schema.empty_table(), {_APPLICATION: (self._mine, 0)})

    def _busy(self, until: int) -> StoreBusy:
        return StoreBusy(
            f"{mask_url(self._table.uri)}: another compaction is under way, or was killed; try again later, at the latest "
            f"after {rfc3339(until * 1000)}"
        )


def _compact_table(
    table: StoreTable,
    streams: Sequence[str] | None,
    target_bytes: int,
    turn: _Turn | None,
    on_partition: Callable[[str, str], None],
) -> TableCompaction:
    before, log_before = _files(table), log_entries(table)
    chosen = [
        (partition, small, size)
        for partition, small, size in _crowded(before, target_bytes)
        if streams is None or dict(partition)["stream_id"] in streams
    ]
    removed = 0
    if turn is not None:
        table.configure()
        for partition, _, size in chosen:
            turn.take(size)
            on_partition(table.name, "/".join(value for _, value in partition))
            try:
                _merge(table, partition, target_bytes)
            except CommitFailedError as error:
                raise StoreBusy(
                    f"{mask_url(table.uri)}: {partition} changed under every attempt to merge it; try again later"
                ) from error
        removed = table.vacuum()
        table.trim()
    after = _files(table) if turn else before
    return TableCompaction(
        table=table.name,
        partitions=len(chosen),
        merged=sum(small for _, small, _ in chosen),
        files_before=len(before),
        files_after=len(after),
        bytes_before=sum(file.size for file in before),
        bytes_after=sum(file.size for file in after),
        removed=removed,
        log_before=log_before,
        log_after=log_entries(table) if turn else log_before,
    )


def _files(table: StoreTable) -> list[_File]:
    """The files of the present version, by partition."""
    with translate_errors(table.uri):
        rows = table.open().get_add_actions(flatten=True)
        names = [f"partition.{name}" for name in table.partitions]
        values = [rows.column(name).to_pylist() for name in names]
        keys = [tuple(zip(table.partitions, key, strict=True)) for key in zip(*values, strict=True)]
        sizes = rows.column("size_bytes").to_pylist()
    return sorted((_File(key, size) for key, size in zip(keys, sizes, strict=True)), key=lambda file: file.partition)


def _crowded(files: Sequence[_File], target_bytes: int) -> Iterator[tuple[_Partition, int, int]]:
    """Partitions with several files of less than half the size wanted, how many, and their bytes."""
    for partition, group in groupby(files, key=lambda file: file.partition):
        small = [file.size for file in group if file.size < target_bytes // 2]
        if len(small) >= _LEAST:
            yield partition, len(small), sum(small)


@retry_conflicts
def _merge(table: StoreTable, partition: Sequence[tuple[str, str]], target_bytes: int) -> None:
    with translate_errors(table.uri):
        table.open().optimize.compact(
            partition_filters=[(name, "=", value) for name, value in partition],
            target_size=target_bytes,
            max_concurrent_tasks=1,
            writer_properties=table.writer,
            post_commithook_properties=PostCommitHookProperties(create_checkpoint=False),  # one, when all is done
        )


def log_entries(table: StoreTable) -> int:
    """How many commits lie in the table's log, those before its checkpoint too."""
    files, folder = fsspec.core.url_to_fs(f"{table.uri}/_delta_log")
    return sum(str(path).endswith(".json") for path in files.ls(folder, detail=False))
