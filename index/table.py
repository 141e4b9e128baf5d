"""One Delta table: created, appended to exactly once, read by predicate, forgotten for good."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
from deltalake import ColumnProperties, CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from index.errors import CommitFenced, StoreCorrupt, StoreFull, StoreNotFound, mask_url
from index.schemas import TABLES

__all__ = ["THREADS", "Table", "patch_writer"]

Kept = TypeVar("Kept")
# Twice the cores: while some threads wait for the disk, others unpack what it gave.
THREADS = min(16, 2 * (os.cpu_count() or 1))

_FULL = ("no space left", "os error 28", "file too large", "os error 27", "quota", "storage full", "filesystem full")
# Each forgotten row must be gone from every file at once, so no history is kept behind the present version.
_NO_HISTORY = {
    "delta.logRetentionDuration": "interval 0 seconds",
    # Only `purge` removes log entries: removed at a checkpoint, a commit that began before it could not be finished.
    "delta.enableExpiredLogCleanup": "false",
    "delta.deletedFileRetentionDuration": "interval 0 seconds",
}


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn the libraries' errors into ours."""
    try:
        yield
    except CommitFailedError:
        raise
    except TableNotFoundError as error:
        raise StoreNotFound(f"{uri}: no table there; ingest some footage first, or check --store") from error
    except (OSError, DeltaError, pa.ArrowException) as error:
        text = str(error).lower()
        if "invalid table version" in text:  # the log was cleaned between our reading and our commit
            raise CommitFailedError(str(error)) from error
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(w in text for w in _FULL):
            raise StoreFull(
                f"{uri}: no space left; free some and run the same command again, nothing is half stored"
            ) from error
        raise StoreCorrupt(
            f"{uri}: cannot be read or written ({str(error).splitlines()[0]}); run `sightline verify`"
        ) from error


class Table:
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

    def exists(self) -> bool:
        return bool(DeltaTable.is_deltatable(self.uri, storage_options=self.options))

    def create(self, configuration: dict[str, str]) -> None:
        """Create the table; one that exists already is left as it is."""
        with _explained(self.uri):
            DeltaTable.create(
                self.uri,
                self.schema,
                mode="ignore",
                partition_by=self.partitions,
                configuration={**_NO_HISTORY, **configuration},
                storage_options=self.options,
                raise_if_key_not_exists=False,
            )

    def open(self) -> DeltaTable:
        with _explained(self.uri):
            return DeltaTable(self.uri, storage_options=self.options)

    def configuration(self) -> dict[str, str]:
        return dict(self.open().metadata().configuration)

    @retry(
        retry=retry_if_exception_type(CommitFailedError),
        stop=stop_after_attempt(12),
        wait=wait_random_exponential(0.05, max=2),
        reraise=True,
    )
    def append_once(self, rows: pa.Table, app: str, version: int) -> bool:
        """Append `rows` unless the transaction (`app`, `version`) is in the table already; whether it was appended.

        Delta accepts a lower version without a word, so the stored one is read first; a commit between that reading
        and ours makes ours fail, and it is tried again from the start.
        """
        with _explained(self.uri):
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

    def versions(self, apps: Sequence[str]) -> dict[str, int | None]:
        """The version that each application's transactions have reached, None where there is none."""
        with _explained(self.uri):
            table = self.open()
            return {app: table.transaction_version(app) for app in apps}

    @retry(
        retry=retry_if_exception_type(CommitFailedError),
        stop=stop_after_attempt(12),
        wait=wait_random_exponential(0.05, max=2),
        reraise=True,
    )
    def append_from(self, rows: pa.Table, steps: Mapping[str, tuple[int | None, int]], remove: str = "") -> None:
        """Append `rows` and move each application of `steps` from its first version to its second, in one commit.

        Args:
            rows: may be empty; the applications move all the same.
            remove: rows that match this predicate are deleted first, in a commit with the same guard.

        Raises:
            CommitFenced: an application is not at its first version; nothing was written.
        """
        with _explained(self.uri):
            table = DeltaTable(self.uri, storage_options=self.options)
            for app, (before, _) in steps.items():
                stored = table.transaction_version(app)
                if stored != before:
                    raise CommitFenced(
                        f"{mask_url(self.uri)}: {app} stands at {stored}, this worker left it at {before}: another one has "
                        "taken it over; start again from what the store says"
                    )
            if remove:
                # The same version again: a commit of the same application meanwhile makes one of the two fail.
                same = [Transaction(app, before) for app, (before, _) in steps.items() if before is not None]
                table.delete(remove, commit_properties=CommitProperties(app_transactions=same))
                table.update_incremental()
            moves = [Transaction(app, after) for app, (_, after) in steps.items()]
            write_deltalake(
                table,
                rows.cast(self.schema),
                mode="append",
                commit_properties=CommitProperties(app_transactions=moves),
                writer_properties=self.writer,
            )

    def dataset(self) -> pads.Dataset:
        """The present version, read by Arrow itself where it is on a local disk.

        Through Delta's own file system Arrow's threads would call into Python: slower, and a scan that nobody finished
        would abort the process, or hang it, when the interpreter ends.
        """
        with _explained(self.uri):
            local = None if "://" in self.uri else pafs.SubTreeFileSystem(self.uri, pafs.LocalFileSystem())
            return self.open().to_pyarrow_dataset(filesystem=local)

    def read(self, columns: Sequence[str], where: pads.Expression | None = None) -> pa.Table:
        with _explained(self.uri):
            return self.dataset().to_table(columns=list(columns), filter=where)

    def batches(self, columns: Sequence[str], where: pads.Expression | None, rows: int) -> Iterator[pa.RecordBatch]:
        """Batches of at most `rows` rows, so that the largest column never is in memory twice."""
        with _explained(self.uri):
            yield from self.dataset().to_batches(
                columns=list(columns), filter=where, batch_size=rows, batch_readahead=2, fragment_readahead=1
            )

    def read_parts(
        self, columns: Sequence[str], where: pads.Expression | None, rows: int, keep: Callable[[pa.RecordBatch], Kept]
    ) -> Iterator[Kept]:
        """What `keep` makes of each batch of at most `rows` rows, in no order; row groups are read side by side.

        `keep` runs in several threads. At most twice as many row groups as threads are under way.
        """
        with _explained(self.uri):
            dataset = self.dataset()
            schema = pa.schema([dataset.schema.field(name) for name in columns])

            def pieces(fragment: pads.Fragment) -> list[pads.Fragment]:
                return list(fragment.split_by_row_group(where, schema=dataset.schema))

            def read(fragment: pads.Fragment) -> list[Kept]:
                found = fragment.to_batches(
                    schema=dataset.schema,
                    columns=list(columns),
                    filter=where,
                    batch_size=rows,
                    batch_readahead=0,
                    fragment_readahead=0,
                    use_threads=False,
                )
                return [keep(batch.cast(schema)) for batch in found if len(batch)]

            with ThreadPoolExecutor(THREADS) as pool:
                waiting: deque[Future[list[Kept]]] = deque()
                split = pool.map(pieces, list(dataset.get_fragments(where)))
                for fragment in (piece for some in split for piece in some):
                    waiting.append(pool.submit(read, fragment))
                    if len(waiting) > 2 * THREADS:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()

    @retry(
        retry=retry_if_exception_type(CommitFailedError),
        stop=stop_after_attempt(12),
        wait=wait_random_exponential(0.05, max=2),
        reraise=True,
    )
    def replace(self, rows: pa.Table, predicate: str) -> None:
        """Put `rows`, all of which fit `predicate`, in the place of those that do, in one commit."""
        with _explained(self.uri):
            write_deltalake(
                self.open(),
                rows.cast(self.schema),
                mode="overwrite",
                predicate=predicate,
                writer_properties=self.writer,
            )

    @retry(
        retry=retry_if_exception_type(CommitFailedError),
        stop=stop_after_attempt(12),
        wait=wait_random_exponential(0.05, max=2),
        reraise=True,
    )
    def delete(self, predicate: str) -> int:
        with _explained(self.uri):
            outcome: dict[str, Any] = self.open().delete(predicate)
            return int(outcome.get("num_deleted_rows") or 0)

    def update(self, values: dict[str, str], predicate: str) -> None:
        with _explained(self.uri):
            self.open().update(updates=values, predicate=predicate)

    def purge(self) -> None:
        """Remove every file and log entry that is not part of the present version."""
        with _explained(self.uri):
            table = self.open()
            table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False, full=True)
            table = self.open()
            table.create_checkpoint()
            table.cleanup_metadata()


_RAW = ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE")
_WRITER = {
    # Vectors, pictures and patches neither repeat nor compress: dictionaries, statistics and codecs would only cost time.
    "frames": WriterProperties(
        compression="UNCOMPRESSED",
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
