"""One Delta table of the store: creation, exactly-once appends, reads by predicate, deletion and log maintenance.

`StoreTable` wraps a table of `deltalake`. Each write is one Delta commit. A commit can carry *application
transactions*: pairs of an application id (a string) and a version (an integer) that Delta stores in the same commit as
the rows. They make an append that is repeated after a crash harmless, and they fence off a worker that another one has
replaced.

A commit may *require* properties of the table: it is refused when one of them has another value. A commit that was
begun before the property changed conflicts with that change, so the requirement holds at the moment of the commit.

A commit that conflicts with a concurrent one is tried again from the start, and errors of the libraries are translated
into those of `index.errors`; see `index.delta.failures`.

This module does not know what the columns mean, nor how the three tables of a store depend on each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
from deltalake import (
    CommitProperties,
    DeltaTable,
    PostCommitHookProperties,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, DeltaError

from index.delta.failures import retry_conflicts, translate_errors
from index.delta.files import TableFiles
from index.delta.log_mark import LogMark
from index.delta.objects import delta_options
from index.delta.row_filter import RowFilter
from index.delta.snapshot import TableSnapshot
from index.delta.time_order import write_by_time
from index.delta.transactions import Transactions
from index.delta.writers import WRITERS
from index.errors import CommitFenced, IdentityMismatch, StoreCorrupt, mask_url
from index.schemas import ENCODERS_KEY, PATCHES_KEY, TABLES

__all__ = ["GRACE_HOURS", "RequirementFailed", "StoreTable"]

Result = TypeVar("Result")

GRACE_HOURS = 1
"""Hours for which files that no version lists any more are kept for their readers."""

_HANDLE_SECONDS = 60
_CHECKPOINT_EVERY = 100  # versions, deltalake's default; whoever commits such a version cleans the log behind it
_READER_SECONDS = 600
_READER_MARK_SECONDS = 10  # in an object store, where a look is a request
_WRITER_MARK_SECONDS = 2
_IDENTITY = (ENCODERS_KEY, PATCHES_KEY)
# Replaced files are kept for readers, log entries for commits in progress: without its entry, a commit that lost a race
# could not detect that, or could be written where no reader looks. Only `purge` removes both at once.
_CONFIGURATION = {
    "delta.logRetentionDuration": "interval 10 minutes",
    "delta.deletedFileRetentionDuration": f"interval {GRACE_HOURS} hours",
    "delta.enableExpiredLogCleanup": "false",  # `clean_log` does it
}
_NOTHING: Mapping[str, str] = MappingProxyType({})
_PURGING = dict.fromkeys(("delta.logRetentionDuration", "delta.deletedFileRetentionDuration"), "interval 0 seconds")


class RequirementFailed(CommitFenced):
    """A property of the table has another value than a commit requires; nothing was written."""


class StoreTable:
    """One named table of a store.

    Args:
        uri: path or URL of the table.
        name: one of `schemas.TABLES`, or another name with `schema`, `writer` and `partitions`.
        options: options of the object store, as deltalake takes them; those of `index.delta.objects` when None.
        schema: the Arrow schema; that of `schemas.TABLES` when None.
        writer: how Parquet files are written; chosen by `name` when None.
        partitions: the partition columns; those of `schemas.TABLES` when None.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        options: dict[str, str] | None = None,
        *,
        schema: pa.Schema | None = None,
        writer: WriterProperties | None = None,
        partitions: Sequence[str] | None = None,
    ) -> None:
        self.uri, self.name, self._options = uri, name, options
        self.schema = schema or TABLES[name][0]
        self.partitions = list(TABLES[name][1] if partitions is None else partitions)
        self.writer = writer or WRITERS[name]
        self._lock = threading.Lock()
        self._handle: DeltaTable | None = None
        self._handle_at = 0.0
        self._transactions = Transactions(uri)
        self._reading = threading.Lock()
        self._reader: DeltaTable | None = None  # not the writers' one: a commit begins at the version that was checked
        self._reader_at = 0.0
        self._marks = (
            LogMark(uri, _WRITER_MARK_SECONDS),
            LogMark(uri, _READER_MARK_SECONDS),
        )  # of the writers' handle and of the readers'
        self._table_id, self._identity = "", dict[str, str]()
        self._snapshot: TableSnapshot | None = None
        self._footers: dict[str, tuple[int, int, int]] = {}

    @property
    def options(self) -> dict[str, str] | None:
        """The options of the object store, as deltalake takes them."""
        return delta_options(self.uri) if self._options is None else self._options

    # ---- opening -----------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether there is a Delta table at this place."""
        with translate_errors(self.uri):
            return bool(DeltaTable.is_deltatable(self.uri, storage_options=self.options))

    def create(self, configuration: dict[str, str]) -> None:
        """Create the table with these properties; an existing table is left unchanged."""
        with translate_errors(self.uri):
            DeltaTable.create(
                self.uri,
                self.schema,
                mode="ignore",
                partition_by=self.partitions,
                configuration={**_CONFIGURATION, **configuration},
                storage_options=self.options,
                raise_if_key_not_exists=False,
            )

    @retry_conflicts
    def open(self) -> DeltaTable:
        """The newest version of the table, opened anew. Raises StoreNotFound, StoreCorrupt."""
        with translate_errors(self.uri):
            return DeltaTable(self.uri, storage_options=self.options)

    def _open_to_keep(self) -> DeltaTable:
        """The same for a handle that is kept: what is known of another table that was here before is forgotten.

        Raises:
            IdentityMismatch: the table that is here now has vectors of other encoders.
        """
        table = self.open()
        held = table.metadata()
        if self._table_id not in ("", held.id):
            self._transactions = Transactions(self.uri)
            if any(held.configuration.get(name) != self._identity.get(name) for name in _IDENTITY):
                raise IdentityMismatch(
                    f"{mask_url(self.uri)}: the store was deleted and made anew for other encoders; open it again"
                )
        self._table_id, self._identity = held.id, dict(held.configuration)
        return table

    def configuration(self) -> dict[str, str]:
        """The properties of the table."""
        return dict(self.open().metadata().configuration)

    def newest_configuration(self, *, update: bool = True) -> dict[str, str]:
        """The same through a handle that is kept, for a writer that needs them for every commit.

        Args:
            update: look for commits of others first; without it, as of the last look.
        """
        with self._newest(update=update) as table:
            return dict(table.metadata().configuration)

    def configure(self, values: Mapping[str, str] = MappingProxyType(_CONFIGURATION)) -> None:
        """Set properties of the table; nothing is committed when all have these values already."""
        self.change_configuration(lambda _: values)

    @retry_conflicts
    def change_configuration(self, change: Callable[[Mapping[str, str]], Mapping[str, str]]) -> None:
        """Set the properties that `change` returns for the present ones; it is called again after a conflict."""
        with translate_errors(self.uri):
            table = self.open()
            held = table.metadata().configuration
            values = change(held)
            if not held.items() >= values.items():
                table.alter.set_table_properties(dict(values), raise_if_not_exists=False)

    # ---- writing -----------------------------------------------------------------------------------------------------

    @retry_conflicts
    def append_if_new(self, rows: pa.Table, app: str, version: int, requires: Mapping[str, str] = _NOTHING) -> bool:
        """Append `rows` unless the table already holds the transaction (`app`, `version`) or a later one of `app`.

        Delta accepts a lower version without an error, so the stored version is read first. A commit between that read
        and this write makes the write fail, and everything is tried again.

        Returns:
            Whether the rows were appended.

        Raises:
            RequirementFailed: a property has another value than `requires` says.
            StoreFull, StoreCorrupt: nothing was appended.
        """
        with self._newest() as table:
            self._check(table, requires)
            stored = self._transactions.at(table, [app])[app]
            if stored is not None and stored >= version:
                return False
            self.write(table, rows, CommitProperties(app_transactions=[Transaction(app, version)]))
            self._transactions.advance(table.version(), {app: version})
            return True

    @retry_conflicts
    def commit_new(
        self,
        items: Sequence[tuple[str, int, Result]],
        write: Callable[[DeltaTable, list[Result], CommitProperties], None],
        requires: Mapping[str, str] = _NOTHING,
    ) -> int:
        """Commit, all at once, the items whose transactions the table does not hold yet.

        Args:
            items: (application id, version, item); the versions of one application must ascend.
            write: called with the table, the new items and the properties of the commit, which carry the transactions;
                must make exactly one commit. It may be called again after a conflict.
            requires: properties that the table must have.

        Returns:
            The number of new items; `write` is not called when there are none.

        Raises:
            RequirementFailed: a property has another value.
        """
        with self._newest() as table:
            self._check(table, requires)
            stored = self._transactions.at(table, [app for app, _, _ in items])
            reached_before = {app: -1 if version is None else version for app, version in stored.items()}
            new = [(app, version, item) for app, version, item in items if version > reached_before[app]]
            if new:
                reached = {app: version for app, version, _ in new}
                transactions = [Transaction(app, version) for app, version in reached.items()]
                write(table, [item for _, _, item in new], CommitProperties(app_transactions=transactions))
                self._transactions.advance(table.version(), reached)
            return len(new)

    @retry_conflicts
    def append_and_advance(
        self,
        rows: pa.Table,
        advances: Mapping[str, tuple[int | None, int]],
        replace: str = "",
        requires: Mapping[str, str] = _NOTHING,
        *,
        update: bool = True,
    ) -> None:
        """Append `rows` and set the versions of applications in one commit, if each has the expected version.

        Args:
            rows: may be empty; the versions are set all the same.
            advances: application id to (expected version, new version); None expects an application without any.
            replace: a predicate that all of `rows` satisfy; the rows of the table that satisfy it are deleted in the
                same commit. With two commits, a worker that is fenced in between would have deleted valid rows.
            requires: properties that the table must have.
            update: look for commits of others first. Without it, a commit to what was the newest version at the last
                look: Delta compares it with all commits since, and what does not fit is tried again, with a look.

        Raises:
            CommitFenced: an application has another version than expected; nothing was written.
            RequirementFailed: a property has another value; nothing was written.
        """
        with self._newest(update=update) as table:
            self._check(table, requires)
            held = self._transactions.at(table, list(advances))
            for app, (expected, _) in advances.items():
                stored = held[app]
                if stored != expected:
                    raise CommitFenced(
                        f"{mask_url(self.uri)}: {app} is at {stored}, this worker expected {expected}: another worker "
                        "has committed it; start again from the stored offset"
                    )
            transactions = [Transaction(app, version) for app, (_, version) in advances.items()]
            self.write(table, rows, CommitProperties(app_transactions=transactions), replace)
            self._transactions.advance(table.version(), {app: version for app, (_, version) in advances.items()})

    def write(self, table: DeltaTable, rows: pa.Table, properties: CommitProperties, replace: str = "") -> None:
        """Write rows in one commit to a version of this table.

        A table of an earlier version lacks the optional columns that were added since. It gets them with the first row
        that has a value there. Optional columns of a later version get null.

        Args:
            table: as `open` returns it.
            rows: cast to the table's schema.
            properties: of the commit.
            replace: a predicate that all of `rows` satisfy; the rows that satisfy it are deleted in the same commit.
        """
        held, rows = {field.name for field in table.schema().fields}, rows.cast(self.schema)
        rows = rows.drop_columns(
            [name for name in rows.column_names if name not in held and rows[name].null_count == len(rows)]
        )
        write_deltalake(
            table,
            rows,
            mode="overwrite" if replace else "append",
            schema_mode=None if held == set(rows.column_names) else "merge",
            predicate=replace or None,
            commit_properties=properties,
            writer_properties=self.writer,
        )

    @retry_conflicts
    def delete(self, predicate: str) -> int:
        """Delete the rows that satisfy `predicate`, in one commit; returns their number."""
        with translate_errors(self.uri):
            outcome: dict[str, Any] = self.open().delete(predicate, writer_properties=self.writer)
            return int(outcome.get("num_deleted_rows") or 0)

    @retry_conflicts
    def delete_once(self, predicate: str, app: str, version: int) -> int:
        """Delete the rows that satisfy `predicate`, unless the table has the transaction (`app`, `version`) or a later
        one of `app`: in one commit, which carries it. Returns the number of rows."""
        with translate_errors(self.uri):
            table = self.open()
            if (table.transaction_version(app) or 0) >= version:
                return 0
            before, properties = table.version(), CommitProperties(app_transactions=[Transaction(app, version)])
            outcome = table.delete(predicate, writer_properties=self.writer, commit_properties=properties)
            if table.version() == before:  # no row: deltalake makes no commit
                self.write(table, self.schema.empty_table(), properties)
            return int(outcome.get("num_deleted_rows") or 0)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def transaction_versions(self, apps: Sequence[str], *, update: bool = True) -> dict[str, int | None]:
        """The stored version of each application id, None for one without any.

        Args:
            apps: the application ids.
            update: look for commits of others first; without it, as of the last look.
        """
        with self._newest(update=update) as table:
            return self._transactions.at(table, apps)

    def snapshot(self) -> TableSnapshot:
        """The newest version of a table of streams, for everything that one operation reads.

        The log is followed: what was committed since the last call is read, 3 ms if nothing was, against 120 ms to open
        a table of 8,000 files. Raises StoreNotFound, StoreCorrupt, StoreUnavailable.
        """
        with self._reading, translate_errors(self.uri):
            handle, self._reader = self._reader, None  # kept again only if nothing fails
            now = time.monotonic()
            if handle is None or now - self._reader_at > _READER_SECONDS or not self._marks[1].follow(handle):
                handle, self._snapshot = self._open_to_keep(), None
                self._marks[1].forget()
            self._marks[1].note(handle.version())
            if self._snapshot is None or self._snapshot.version != handle.version():
                self._snapshot = TableSnapshot.of(handle, self.uri, self.schema, self.options, self._footers)
            self._reader, self._reader_at = handle, now
            return self._snapshot

    def partition_values(self, column: str) -> list[str]:
        """The distinct values of a partition column, ascending; read from the log, no file is opened."""
        return self.snapshot().partition_values(column)

    def files(self) -> TableFiles:
        """The files of the newest version, for readers that keep what they read of each."""
        found = self.snapshot()
        return TableFiles(
            found.version, found.table, dict(zip(found.paths, found.listed["stream"].to_pylist(), strict=True))
        )

    def dataset(self, where: RowFilter | None = None) -> pads.Dataset:
        """The newest version as an Arrow dataset, of those files only that `where` cannot rule out."""
        if "stream_id" in self.partitions:
            return self.snapshot().dataset(where)
        with translate_errors(self.uri):
            local = None if "://" in self.uri else pafs.SubTreeFileSystem(self.uri, pafs.LocalFileSystem())
            return self.open().to_pyarrow_dataset(filesystem=local)

    def read(self, columns: Sequence[str], where: RowFilter | None = None) -> pa.Table:
        """The named columns of rows of the newest version, see `TableSnapshot.read`."""
        return self.snapshot().read(columns, where)

    def read_batches(self, columns: Sequence[str], where: RowFilter | None, rows: int) -> Iterator[pa.RecordBatch]:
        """The same in batches, see `TableSnapshot.read_batches`."""
        yield from self.snapshot().read_batches(columns, where, rows)

    def map_batches(
        self,
        columns: Sequence[str],
        where: RowFilter | None,
        rows: int,
        function: Callable[[pa.RecordBatch], Result],
    ) -> Iterator[Result]:
        """Apply `function` to batches of the newest version, see `TableSnapshot.map_batches`."""
        yield from self.snapshot().map_batches(columns, where, rows, function)

    # ---- maintenance -------------------------------------------------------------------------------------------------

    def purge(self) -> None:
        """Remove from the disk, and from the log, what the newest version does not list.

        A file that no version lists may belong to a commit in progress; it is removed when it is older than
        `GRACE_HOURS`.
        """
        self.configure(_PURGING)  # the log must go too: the names of files contain the names of streams
        with translate_errors(self.uri):
            self.open().vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
        self.vacuum()
        self._checkpoint()
        self.configure(_CONFIGURATION)

    def vacuum(self) -> int:
        """Delete files that were replaced, or written and never committed, over `GRACE_HOURS` ago; returns their
        number."""
        with translate_errors(self.uri):
            found = self.open().vacuum(GRACE_HOURS, dry_run=False, enforce_retention_duration=False, full=True)
            return len(found)

    @retry_conflicts
    def merge_files(self, partition: Sequence[tuple[str, str]], target_bytes: int, sort_bytes: int = 0) -> None:
        """Merge the files of a partition, pairs of column and value, into files of about `target_bytes`.

        Rows stay in the order of their commits. With `sort_bytes` they are written in the order of time, if files that
        overlap have at most these bytes. Concurrent appends do not conflict with it; a deletion does, and the merge
        begins again. Raises CommitFailedError when each of twelve attempts conflicts.
        """
        with self._newest() as table:
            began = table.version()
            try:
                if sort_bytes:
                    files = TableSnapshot.of(table, self.uri, self.schema, self.options, self._footers)
                    if write_by_time(table, files, dict(partition), self.writer, target_bytes, sort_bytes):
                        return
                table.optimize.compact(
                    partition_filters=[(name, "=", value) for name, value in partition],
                    target_size=target_bytes,
                    max_concurrent_tasks=1,
                    writer_properties=self.writer,
                    post_commithook_properties=PostCommitHookProperties(create_checkpoint=False),  # one, at the end
                )
            except (StoreCorrupt, DeltaError, OSError) as error:
                if isinstance(error, CommitFailedError) or self.open().version() == began:
                    raise
                raise CommitFailedError("files were deleted while they were merged") from error

    def clean_log(self) -> None:
        """Write a checkpoint and delete log entries before it that are older than ten minutes."""
        self.configure(_CONFIGURATION)  # a table of an earlier Sightline, or of a `purge` that was killed
        self._checkpoint()

    @retry_conflicts
    def _checkpoint(self) -> None:
        with translate_errors(self.uri):
            table = self.open()
            table.create_checkpoint()
            table.cleanup_metadata()

    def _check(self, table: DeltaTable, requires: Mapping[str, str]) -> None:
        """Raise RequirementFailed unless all these properties have these values; one that is absent counts as "0"."""
        held = table.metadata().configuration if requires else {}
        if any(held.get(name, "0") != value for name, value in requires.items()):
            raise RequirementFailed(f"{mask_url(self.uri)}: footage was deleted in between; run the same command again")

    @contextmanager
    def _newest(self, *, update: bool = True) -> Iterator[DeltaTable]:
        """The newest version for a writer, one thread at a time: a handle that is kept and updated.

        Opening a table takes longer the longer its log is, and a worker needs it several times a commit. A handle that
        was not brought up to date for a minute is discarded, because log entries that it needs may have been cleaned.

        Args:
            update: bring it up to date; without it, the version of the last look or commit.
        """
        with self._lock, translate_errors(self.uri):
            handle, self._handle = self._handle, None  # kept again only if the block succeeds
            now = time.monotonic()
            if handle is None or now - self._handle_at > _HANDLE_SECONDS or not self._marks[0].stays():
                handle = self._open_to_keep()
                self._marks[0].forget()
            elif update:
                handle.update_incremental()
            else:
                now = self._handle_at
            before = handle.version()
            self._marks[0].note(before)
            yield handle
            self._marks[0].note(handle.version())
            self._handle, self._handle_at = handle, now if handle.version() == before else time.monotonic()
            if handle.version() != before and handle.version() % _CHECKPOINT_EVERY == 0:
                with suppress(DeltaError, OSError):  # another writer cleans too
                    handle.cleanup_metadata()
