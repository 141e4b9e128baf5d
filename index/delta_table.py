"""One Delta table: created, appended to exactly once, read by predicate, forgotten for good."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
from deltalake import ColumnProperties, CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from index.errors import CommitFenced, StoreCorrupt, StoreFull, StoreNotFound, mask_url
from index.row_filter import RowFilter
from index.schemas import TABLES

__all__ = ["GRACE_HOURS", "THREADS", "StoreTable", "patch_writer", "retry_conflicts", "translate_errors"]

Kept = TypeVar("Kept")
# Twice the cores: while some threads wait for the disk, others unpack what it gave.
THREADS = min(16, 2 * (os.cpu_count() or 1))

_FULL = ("no space left", "os error 28", "file too large", "os error 27", "quota", "storage full", "filesystem full")
GRACE_HOURS = 1
_HANDLE_SECONDS = 60
# Files that were replaced stay for their readers, log entries for commits that are under way: with its entry gone, a
# commit that was overtaken could not find out, or be written where nobody reads it. Only `purge` removes both at once.
_CONFIGURATION = {
    "delta.logRetentionDuration": "interval 10 minutes",
    "delta.deletedFileRetentionDuration": f"interval {GRACE_HOURS} hours",
    "delta.enableExpiredLogCleanup": "false",  # `trim` does it
}
_PURGING = dict.fromkeys(("delta.logRetentionDuration", "delta.deletedFileRetentionDuration"), "interval 0 seconds")


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Turn the libraries' errors into ours."""
    try:
        yield
    except CommitFailedError:
        raise
    except TableNotFoundError as error:
        raise StoreNotFound(f"{uri}: no table there; ingest some footage first, or check --store") from error
    except (OSError, DeltaError, pa.ArrowException) as error:
        text = str(error).lower()
        gone = "not found" in text or "no such file" in text
        if "invalid table version" in text or (gone and "_delta_log/" in text):  # the log was trimmed meanwhile
            raise CommitFailedError(str(error)) from error
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(w in text for w in _FULL):
            raise StoreFull(
                f"{uri}: no space left; free some and run the same command again, nothing is half stored"
            ) from error
        raise StoreCorrupt(
            f"{uri}: cannot be read or written ({str(error).splitlines()[0]}); run `sightline verify`"
        ) from error


retry_conflicts = retry(
    retry=retry_if_exception_type(CommitFailedError),
    stop=stop_after_attempt(12),
    wait=wait_random_exponential(0.05, max=2),
    reraise=True,
)


class StoreTable:
    """A named table of the store at `uri`; `name` is one of `schemas.TABLES`, which says its schema unless `schema` does.

    `writer` says how its files are written, by table where it is None.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        options: dict[str, str] | None = None,
        *,
        schema: pa.Schema | None = None,
        writer: WriterProperties | None = None,
    ) -> None:
        self.uri, self.name, self.options = uri, name, options
        self.schema, self.partitions = schema or TABLES[name][0], TABLES[name][1]
        self.writer = writer or _WRITER[name]
        self._lock = threading.Lock()
        self._handle: DeltaTable | None = None
        self._handle_at = 0.0

    def exists(self) -> bool:
        return bool(DeltaTable.is_deltatable(self.uri, storage_options=self.options))

    def create(self, configuration: dict[str, str]) -> None:
        """Create the table; one that exists already is left as it is."""
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
        with translate_errors(self.uri):
            return DeltaTable(self.uri, storage_options=self.options)

    def configuration(self) -> dict[str, str]:
        return dict(self.open().metadata().configuration)

    @retry_conflicts
    def append_once(self, rows: pa.Table, app: str, version: int) -> bool:
        """Append `rows` unless the transaction (`app`, `version`) is in the table already; whether it was appended.

        Delta accepts a lower version without a word, so the stored one is read first; a commit between that reading
        and ours makes ours fail, and it is tried again from the start.
        """
        with translate_errors(self.uri):
            table = DeltaTable(self.uri, storage_options=self.options)
            stored = table.transaction_version(app)
            if stored is not None and stored >= version:
                return False
            write_deltalake(
                table,
                rows.cast(self.schema),
                mode="append",
                commit_properties=CommitProperties(app_transactions=[Transaction(app, version)]),
                writer_properties=self.writer,
            )
            return True

    @retry_conflicts
    def commit_once(
        self,
        items: Sequence[tuple[str, int, Kept]],
        write: Callable[[DeltaTable, list[Kept], CommitProperties], None],
    ) -> int:
        """Commit what comes with each transaction (application, version) that the table lacks; how many there were.

        `write` puts them into one commit with the given properties. Versions of an application must ascend.
        """
        with translate_errors(self.uri):
            table = DeltaTable(self.uri, storage_options=self.options)
            reached = {app: table.transaction_version(app) for app, _, _ in items}
            new = [
                (app, version, item)
                for app, version, item in items
                if version > (-1 if reached[app] is None else reached[app])
            ]
            if new:
                moves = {app: version for app, version, _ in new}
                properties = CommitProperties(app_transactions=[Transaction(*move) for move in moves.items()])
                write(table, [item for _, _, item in new], properties)
            return len(new)

    def versions(self, apps: Sequence[str]) -> dict[str, int | None]:
        """The version that each application's transactions have reached, None where there is none."""
        with self._latest() as table:
            return {app: table.transaction_version(app) for app in apps}

    @contextmanager
    def _latest(self) -> Iterator[DeltaTable]:
        """The present version for a writer, one thread at a time: a handle that is kept and brought up to date.

        To open a table takes as long as its log is; a worker does it several times a commit. One that was not used for
        a minute is opened anew, because it may be from before the log was trimmed.
        """
        with self._lock, translate_errors(self.uri):
            handle, self._handle = self._handle, None  # kept only if all goes well
            now = time.monotonic()
            if handle is None or now - self._handle_at > _HANDLE_SECONDS:
                handle = self.open()
            else:
                handle.update_incremental()
            yield handle
            self._handle, self._handle_at = handle, now

    @retry_conflicts
    def append_from(self, rows: pa.Table, steps: Mapping[str, tuple[int | None, int]], replace: str = "") -> None:
        """Append `rows` and move each application of `steps` from its first version to its second, in one commit.

        Args:
            rows: may be empty; the applications move all the same.
            replace: rows that match this predicate, as all of `rows` do, are deleted in the same commit. In two commits
                others could come between them, and whoever is fenced then would have deleted what counts.

        Raises:
            CommitFenced: an application is not at its first version; nothing was written.
        """
        with self._latest() as table:
            for app, (before, _) in steps.items():
                stored = table.transaction_version(app)
                if stored != before:
                    raise CommitFenced(
                        f"{mask_url(self.uri)}: {app} stands at {stored}, this worker left it at {before}: another one has "
                        "taken it over; start again from what the store says"
                    )
            moves = [Transaction(app, after) for app, (_, after) in steps.items()]
            write_deltalake(
                table,
                rows.cast(self.schema),
                mode="overwrite" if replace else "append",
                predicate=replace or None,
                commit_properties=CommitProperties(app_transactions=moves),
                writer_properties=self.writer,
            )

    def dataset(self, where: RowFilter | None = None) -> pads.Dataset:
        """The present version, read by Arrow itself where it is on a local disk; of the files that `where` may need.

        Through Delta's own file system Arrow's threads would call into Python: slower, and a scan that nobody finished
        would abort the process, or hang it, when the interpreter ends.
        """
        with translate_errors(self.uri):
            local = None if "://" in self.uri else pafs.SubTreeFileSystem(self.uri, pafs.LocalFileSystem())
            return self.open().to_pyarrow_dataset(
                filesystem=local, file_pruning_predicate=None if where is None else list(where.partitions)
            )

    def partition_values(self, column: str) -> list[str]:
        """What a partition column holds, ascending; from the log alone, no file is opened."""
        with translate_errors(self.uri):
            return sorted({values[column] for values in self.open().partitions()})

    def read(
        self,
        columns: Sequence[str],
        where: RowFilter | None = None,
    ) -> pa.Table:
        with translate_errors(self.uri):
            return self.dataset(where).to_table(columns=list(columns), filter=_rows(where))

    def batches(self, columns: Sequence[str], where: RowFilter | None, rows: int) -> Iterator[pa.RecordBatch]:
        """Batches of at most `rows` rows, so that the largest column never is in memory twice."""
        with translate_errors(self.uri):
            yield from self.dataset(where).to_batches(
                columns=list(columns), filter=_rows(where), batch_size=rows, batch_readahead=2, fragment_readahead=1
            )

    def read_parts(
        self, columns: Sequence[str], where: RowFilter | None, rows: int, keep: Callable[[pa.RecordBatch], Kept]
    ) -> Iterator[Kept]:
        """What `keep` makes of each batch of at most `rows` rows, in no order; row groups are read side by side.

        `keep` runs in several threads. At most twice as many row groups as threads are under way.
        """
        with translate_errors(self.uri):
            dataset, wanted = self.dataset(where), _rows(where)
            schema = pa.schema([dataset.schema.field(name) for name in columns])

            def pieces(fragment: pads.Fragment) -> list[pads.Fragment]:
                return list(fragment.split_by_row_group(wanted, schema=dataset.schema))

            def read(fragment: pads.Fragment) -> list[Kept]:
                found = fragment.to_batches(
                    schema=dataset.schema,
                    columns=list(columns),
                    filter=wanted,
                    batch_size=rows,
                    batch_readahead=0,
                    fragment_readahead=0,
                    use_threads=False,
                )
                return [keep(batch.cast(schema)) for batch in found if len(batch)]

            with ThreadPoolExecutor(THREADS) as pool:
                waiting: deque[Future[list[Kept]]] = deque()
                split = pool.map(pieces, list(dataset.get_fragments(wanted)))
                for fragment in (piece for some in split for piece in some):
                    waiting.append(pool.submit(read, fragment))
                    if len(waiting) > 2 * THREADS:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()

    @retry_conflicts
    def replace(self, rows: pa.Table, predicate: str) -> None:
        """Put `rows`, all of which fit `predicate`, in the place of those that do, in one commit."""
        with translate_errors(self.uri):
            write_deltalake(
                self.open(),
                rows.cast(self.schema),
                mode="overwrite",
                predicate=predicate,
                writer_properties=self.writer,
            )

    @retry_conflicts
    def delete(self, predicate: str) -> int:
        with translate_errors(self.uri):
            outcome: dict[str, Any] = self.open().delete(predicate, writer_properties=self.writer)
            return int(outcome.get("num_deleted_rows") or 0)

    def update(self, values: dict[str, str], predicate: str) -> None:
        with translate_errors(self.uri):
            self.open().update(updates=values, predicate=predicate, writer_properties=self.writer)

    # ---- care --------------------------------------------------------------------------------------------------------

    def purge(self, stream_id: str, until: str | None = None) -> None:
        """Remove every file that the present version does not list: all of the stream's, of others what is surely dead.

        A file that is in no version may be one that a live writer is about to commit. It is removed at once where it may
        hold what was forgotten (the stream's, of days up to `until`, all when None), else when it is an hour old.
        """
        self.configure(_PURGING)  # the names of files are names of streams
        with translate_errors(self.uri):
            self.open().vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
            listed = {path.rsplit("/", 1)[-1] for path in self.open().get_add_actions()["path"].to_pylist()}
            files, folder = fsspec.core.url_to_fs(f"{self.uri}/stream_id={stream_id}")
            for path in files.find(folder):
                day = path.rpartition("/date=")[2].split("/")[0] if "/date=" in path else ""
                if path.rsplit("/", 1)[-1] not in listed and (until is None or day <= until):
                    files.rm_file(path)
        self.vacuum()
        self._checkpoint()
        self.configure(_CONFIGURATION)

    def vacuum(self) -> int:
        """Delete files that no version has listed for an hour, nor a writer just made; how many."""
        with translate_errors(self.uri):
            return len(
                self.open().vacuum(
                    retention_hours=GRACE_HOURS, dry_run=False, enforce_retention_duration=False, full=True
                )
            )

    def trim(self) -> None:
        """Write a checkpoint and remove what is old of the log before it."""
        self.configure(_CONFIGURATION)  # of an earlier Sightline, or of a `purge` that was killed
        self._checkpoint()

    @retry_conflicts
    def _checkpoint(self) -> None:
        with translate_errors(self.uri):
            table = self.open()
            table.create_checkpoint()
            table.cleanup_metadata()

    @retry_conflicts
    def configure(self, values: Mapping[str, str] = MappingProxyType(_CONFIGURATION)) -> None:
        """Set those properties that differ."""
        with translate_errors(self.uri):
            table = self.open()
            if not table.metadata().configuration.items() >= values.items():
                table.alter.set_table_properties(dict(values), raise_if_not_exists=False)


def _rows(where: RowFilter | None) -> pads.Expression | None:
    return None if where is None else where.rows


_RAW = ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE")
_WRITER = {
    # Vectors, pictures and patches neither repeat nor compress: dictionaries, statistics and codecs would only cost time.
    "frames": WriterProperties(
        compression="UNCOMPRESSED",
        max_row_group_size=4096,  # what a reader of pictures holds at once
        column_properties=dict.fromkeys(("frame_vector.list.element", "patch_pooled.list.element", "picture"), _RAW),
    ),
    "patches": WriterProperties(compression="UNCOMPRESSED", column_properties={"patches": _RAW}),
    "segments": WriterProperties(compression="SNAPPY"),
}


def patch_writer(*, compressed: bool, rows: int) -> WriterProperties:
    """How patches are written: row groups of `rows` rows, which are read side by side; ZSTD where it finds something."""
    return WriterProperties(
        compression="ZSTD" if compressed else "UNCOMPRESSED",
        compression_level=3 if compressed else None,
        max_row_group_size=rows,
        column_properties={"patches": _RAW},
    )
