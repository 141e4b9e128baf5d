"""One version of a Delta table: its files, which of them can hold wanted rows, and reading those alone.

A table is opened once for an operation, and everything that the operation reads is read from that version:

    snapshot = table.snapshot()
    snapshot.summaries()                      rows, first and last time of each stream, without a scan
    snapshot.read(columns, where)             opens those files only that `where` cannot rule out

A file is ruled out by its partition (stream, day) and by its statistics in the log (times, segments). Delta keeps
the times of a file in milliseconds, cut off: a file whose greatest time is t has rows up to t + 999 µs.
Files of a writer without statistics are never ruled out by them.

What is counted: a file that is opened costs 0.2 ms or more on a disk, and two requests of an object store. Arrow's
filter of a file, as deltalake makes it from all statistics, costs 0.3 ms more, so the filters here name
partitions only.

This module does not know what the columns mean, nor how versions are followed; `index.delta.table` does that.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeVar
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.fs import DeltaStorageHandler
from numpy.typing import NDArray

from index.delta.failures import translate_errors
from index.delta.row_filter import RowFilter

__all__ = ["THREADS", "StreamFrames", "TableSnapshot"]

Result = TypeVar("Result")

THREADS = min(16, 2 * (os.cpu_count() or 1))
"""Threads that read one table: twice the cores, because some wait for the disk while others decode."""

_TIME = "captured_at"
_CUT_OFF = 999  # microseconds by which a greatest time in the log may be less than that of the rows
_SPLIT_BYTES = 8 * 2**20  # of a file whose row groups are read side by side
_READ_BYTES = 32 * 2**20  # of row groups that one thread reads
_FOOTERS = 1_000  # that are kept in any case
_ALWAYS = np.iinfo(np.int64)


@dataclass(frozen=True, slots=True)
class StreamFrames:
    """The rows of one stream in one version of a table."""

    stream_id: str
    """Name of the stream."""
    rows: int
    """Number of rows."""
    first: int
    """Least `captured_at`, UTC microseconds."""
    last: int
    """Greatest `captured_at`, UTC microseconds."""


@dataclass(frozen=True, slots=True, eq=False)
class TableSnapshot:
    """Some files of one version of a table, all of them if `StoreTable.snapshot` returned it. It never changes.

    Any number of threads may use it. Its files stay readable for `table.GRACE_HOURS` after they were replaced.
    """

    uri: str
    """The table."""
    version: int
    """Its version."""
    schema: pa.Schema
    """Schema of the rows that are read: what the caller knows."""
    held: pa.Schema
    """Schema of the table, which may lack optional columns."""
    listed: pa.Table
    """One row a file: path, size_bytes, num_records, stream, date (null without such a partition), first and last
    (int64, UTC microseconds; of unknown times the limits of int64), low and high (segments; null if unknown)."""
    options: Mapping[str, str] | None = None
    """Options of the object store."""
    footers: dict[str, tuple[int, int, int]] = field(default_factory=dict, repr=False)
    """Rows, least and greatest time of files whose footers were read; shared by the versions of a table."""
    table: str = ""
    """Id of the table; another one was made later at the same place."""

    # ---- files -------------------------------------------------------------------------------------------------------

    @classmethod
    def of(
        cls,
        table: DeltaTable,
        uri: str,
        schema: pa.Schema,
        options: Mapping[str, str] | None,
        footers: dict[str, tuple[int, int, int]],
    ) -> TableSnapshot:
        """All files of an opened table."""
        actions = pa.table(table.get_add_actions(flatten=True))
        held = pa.schema(table.schema().to_arrow())
        return cls(uri, table.version(), schema, held, _listed(actions), options, footers, table.metadata().id)

    def __len__(self) -> int:
        return len(self.listed)

    @property
    def paths(self) -> list[str]:
        """The files, as paths below the table."""
        return [unquote(path) for path in self.listed["path"].to_pylist()]

    @property
    def bytes(self) -> int:
        """Bytes of the files."""
        return int(pc.sum(self.listed["size_bytes"]).as_py() or 0)

    def partition_values(self, column: str) -> list[str]:
        """The distinct values of `stream_id` or `date`, ascending."""
        name = "stream" if column == "stream_id" else column
        return sorted(value for value in pc.unique(self.listed[name]).to_pylist() if value is not None)

    @property
    def rows(self) -> int | None:
        """Number of rows of the files; None if the log does not have it for all of them."""
        counts = self.listed["num_records"].to_numpy()
        return None if (counts < 0).any() else int(counts.sum())

    def by_day(self) -> dict[tuple[str, str], TableSnapshot]:
        """The files of each partition, by stream and UTC day, ascending."""
        ordered = self.listed.append_column("row", pa.array(np.arange(len(self)))).sort_by(
            [("stream", "ascending"), ("date", "ascending"), ("first", "ascending"), ("path", "ascending")]
        )
        rows = ordered["row"].to_numpy()
        names = list(zip(ordered["stream"].to_pylist(), ordered["date"].to_pylist(), strict=True))
        bounds = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]] + [len(names)]
        return {names[low]: self.take(rows[low:high]) for low, high in pairwise(bounds)}

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> TableSnapshot:
        """Some of the files: int[n], rows of `listed`, or bool[len], whether each is meant."""
        if rows.dtype == np.bool_:
            if rows.all():
                return self
            rows = np.flatnonzero(rows)
        return replace(self, listed=self.listed.take(pa.array(rows)))

    def matching(self, where: RowFilter | None) -> TableSnapshot:
        """Those files that can hold rows that match `where`."""
        return self if where is None else self.take(where.keeps(self.listed))

    # ---- what is known without reading rows --------------------------------------------------------------------------

    def summaries(self, streams: Sequence[str] | None = None) -> list[StreamFrames]:
        """Rows and times of `streams` (of all when None) that have any, by name.

        The numbers are those of the log. The log has times in milliseconds; the exact first and last time are in the
        footers of one or two files of each stream, which are read once.

        Raises:
            StoreCorrupt, StoreUnavailable: a footer cannot be read.
        """
        listed = self.listed
        if streams is not None:
            listed = listed.filter(pc.is_in(listed["stream"], pa.array(list(streams), pa.string())))
        names = listed["stream"].dictionary_encode().combine_chunks()
        if not len(listed):
            return []
        codes = names.indices.to_numpy()
        rows, first, last = (listed[name].to_numpy() for name in ("num_records", "first", "last"))
        unknown = (rows < 0) | (last == _ALWAYS.max)
        least = np.full(len(names.dictionary), _ALWAYS.max)
        greatest = np.full(len(names.dictionary), _ALWAYS.min)
        np.minimum.at(least, codes, first)
        np.maximum.at(greatest, codes[~unknown], last[~unknown])
        edge = unknown | (first <= least[codes] + _CUT_OFF) | (last >= greatest[codes] - _CUT_OFF)
        edge &= rows != 0
        found = self._footers([unquote(path) for path in listed["path"].filter(pa.array(edge)).to_pylist()])
        counts = np.where(edge, 0, rows)
        total = np.zeros(len(names.dictionary), np.int64)
        np.add.at(total, codes, counts)
        least[:], greatest[:] = _ALWAYS.max, _ALWAYS.min
        for code, (count, low, high) in zip(codes[edge].tolist(), found, strict=True):
            total[code] += count
            if count:
                least[code], greatest[code] = min(least[code], low), max(greatest[code], high)
        result = [
            StreamFrames(name, int(total[i]), int(least[i]), int(greatest[i]))
            for i, name in enumerate(names.dictionary.to_pylist())
            if total[i]
        ]
        return sorted(result, key=lambda each: each.stream_id)

    def row_counts(self) -> dict[str, int]:
        """Number of rows of each stream that has any; footers are read only of files whose rows the log lacks."""
        counts = self.listed["num_records"].to_numpy()
        known, unknown = self.take(counts > 0), self.take(counts < 0)
        found = known.listed.group_by("stream").aggregate([("num_records", "sum")])
        result = dict(zip(found["stream"].to_pylist(), found["num_records_sum"].to_pylist(), strict=True))
        for each in unknown.summaries():
            result[each.stream_id] = result.get(each.stream_id, 0) + each.rows
        return result

    def has_rows(self, where: RowFilter) -> bool:
        """Whether any row matches a filter of streams and times; reads files only where the log does not decide."""
        some = self.matching(where)
        inside = where.contains(some.listed) & (some.listed["num_records"].to_numpy() > 0)
        return bool(inside.any()) or (len(some) > 0 and len(some.read([_TIME], where)) > 0)

    def _footers(self, paths: Sequence[str]) -> list[tuple[int, int, int]]:
        """Rows, least and greatest time of files."""
        if len(self.footers) > 2 * max(len(self), _FOOTERS):  # of files that were replaced since
            self.footers.clear()
        missing = [path for path in paths if path not in self.footers]
        if missing:
            system = self._file_system()
            with translate_errors(self.uri), ThreadPoolExecutor(min(THREADS, len(missing))) as pool:
                read = dict(zip(missing, pool.map(lambda path: _footer(system, path), missing), strict=True))
            self.footers.update(read)
            return [read[path] if path in read else self.footers[path] for path in paths]
        return [self.footers[path] for path in paths]

    # ---- reading -----------------------------------------------------------------------------------------------------

    def dataset(self, where: RowFilter | None = None) -> pads.Dataset:
        """The files as an Arrow dataset, without those that `where` rules out.

        A table on a local disk is read by Arrow's own file system. Through Delta's, Arrow's threads would call into
        Python: slower, and a scan that was not read to its end would abort or hang the process at exit.
        """
        some = self.matching(where)
        with translate_errors(self.uri):
            system = some._file_system()
            format_ = pads.ParquetFileFormat(
                default_fragment_scan_options=pads.ParquetFragmentScanOptions(pre_buffer=True)
            )
            dated = "date" in self.held.names
            partitions: dict[tuple[str, str | None], pads.Expression] = {}
            fragments = []
            columns = (some.listed[name].to_pylist() for name in ("path", "stream", "date"))
            for path, stream, date in zip(*columns, strict=True):
                key = (stream, date)
                if key not in partitions:
                    of_stream = pads.field("stream_id") == stream if stream is not None else pads.scalar(True)
                    partitions[key] = of_stream & (pads.field("date") == date) if dated else of_stream
                fragments.append(
                    format_.make_fragment(unquote(path), filesystem=system, partition_expression=partitions[key])
                )
            return pads.FileSystemDataset(fragments, self.held, format_, system)

    def read(self, columns: Sequence[str], where: RowFilter | None = None) -> pa.Table:
        """The named columns of the rows that match `where` (all when None), in no particular order.

        An optional column that the table does not have yet is null.
        """
        with translate_errors(self.uri):
            held = set(self.held.names)
            absent = [name for name in columns if name not in held and self.schema.field(name).nullable]
            found = self.dataset(where).to_table(
                columns=[name for name in columns if name not in absent], filter=_expression(where)
            )
            found.validate(full=True)
            for name in absent:
                column = self.schema.field(name)
                found = found.append_column(column, pa.nulls(len(found), column.type))
            return found

    def values_by_file(self, column: str) -> dict[str, frozenset[str]]:
        """The distinct values of a column of strings in each of the files, by path."""
        with translate_errors(self.uri):
            rows = self.dataset().to_table(columns=["__filename", column])
            rows.validate(full=True)
            found = rows.cast(pa.schema([("__filename", pa.string()), (column, pa.string())]))
            groups = found.group_by(["__filename", column]).aggregate([])
        result: dict[str, set[str]] = {path: set() for path in self.paths}
        for path, value in zip(groups["__filename"].to_pylist(), groups[column].to_pylist(), strict=True):
            result[path].add(value)
        return {path: frozenset(values) for path, values in result.items()}

    def read_batches(self, columns: Sequence[str], where: RowFilter | None, rows: int) -> Iterator[pa.RecordBatch]:
        """The same in batches of at most `rows` rows, so that a large column is never in memory as a whole."""
        with translate_errors(self.uri):
            batches = self.dataset(where).to_batches(
                columns=list(columns),
                filter=_expression(where),
                batch_size=rows,
                batch_readahead=2,
                fragment_readahead=1,
            )
            yield from map(_checked, batches)

    def map_batches(
        self,
        columns: Sequence[str],
        where: RowFilter | None,
        rows: int,
        function: Callable[[pa.RecordBatch], Result],
    ) -> Iterator[Result]:
        """Apply `function` to batches of at most `rows` rows in several threads; results come in no particular order.

        Files, and the row groups of large ones, are read side by side; at most twice as many of them as there are
        threads are in progress.
        """
        with translate_errors(self.uri):
            dataset, wanted = self.dataset(where), _expression(where)
            small = pc.less(self.listed["size_bytes"], _SPLIT_BYTES)
            whole = {unquote(path) for path in self.listed["path"].filter(small).to_pylist()}
            streams = dict(zip(self.paths, self.listed["stream"].to_pylist(), strict=True))
            schema = pa.schema([dataset.schema.field(name) for name in columns])

            def split(fragment: pads.Fragment) -> list[pads.Fragment]:
                """The row groups of a file that can hold wanted rows, by their statistics; a small file as it is."""
                if fragment.path in whole and (where is None or where.wanted is None):
                    return [fragment]
                groups = list(fragment.split_by_row_group(wanted, schema=dataset.schema))
                if where is not None and where.wanted is not None:
                    groups = [group for group in groups if _wants(group, streams[fragment.path], where)]
                return [fragment.subset(row_group_ids=ids) for ids in _together(groups)]

            def read(fragment: pads.Fragment) -> list[Result]:
                """The results for one row group."""
                found = fragment.to_batches(
                    schema=dataset.schema,
                    columns=list(columns),
                    filter=wanted,
                    batch_size=rows,
                    batch_readahead=0,
                    fragment_readahead=0,
                    use_threads=False,
                )
                return [function(_checked(batch.cast(schema))) for batch in found if len(batch)]

            with ThreadPoolExecutor(THREADS) as pool:
                pending: deque[Future[list[Result]]] = deque()
                row_groups = pool.map(split, list(dataset.get_fragments(wanted)))
                for fragment in (each for some in row_groups for each in some):
                    pending.append(pool.submit(read, fragment))
                    if len(pending) > 2 * THREADS:
                        yield from pending.popleft().result()
                while pending:
                    yield from pending.popleft().result()

    def _file_system(self) -> pafs.FileSystem:
        if "://" not in self.uri:
            return pafs.SubTreeFileSystem(self.uri, pafs.LocalFileSystem())
        sizes = dict(zip(self.paths, self.listed["size_bytes"].to_pylist(), strict=True))
        options = None if self.options is None else dict(self.options)
        return pafs.PyFileSystem(DeltaStorageHandler(self.uri, options, sizes))


def _expression(where: RowFilter | None) -> pads.Expression | None:
    return None if where is None else where.rows


def _together(groups: Sequence[pads.Fragment]) -> Iterator[list[int]]:
    """The numbers of row groups that are read by one thread: neighbours, up to 32 MB."""
    ids, size = list[int](), 0
    for group in groups:
        found = group.row_groups[0]
        if ids and size + found.total_byte_size > _READ_BYTES:
            yield ids
            ids, size = [], 0
        ids.append(found.id)
        size += found.total_byte_size
    if ids:
        yield ids


def _wants(group: pads.Fragment, stream: str, where: RowFilter) -> bool:
    """Whether a row group can hold a frame that a filter wants, by its statistics."""
    times = (group.row_groups[0].statistics or {}).get(_TIME)
    if times is None:
        return True
    ends = pa.array([times["min"], times["max"]], pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    return bool(where.wants(stream, ends[:1], ends[1:])[0])


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, once its bytes are valid: text that is not UTF-8 would fail later, where nothing names the table."""
    batch.validate(full=True)
    return batch


def _listed(actions: pa.Table) -> pa.Table:
    """`TableSnapshot.listed` of the files of a log."""
    count, names = len(actions), set(actions.schema.names)

    def column(name: str, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
        return actions[name].cast(kind) if name in names else pa.nulls(count, kind)

    def times(name: str, missing: int) -> pa.ChunkedArray | pa.Array:
        kind = pa.timestamp("us", "UTC")
        return pc.fill_null(column(name, kind).cast(pa.int64()), pa.scalar(missing, pa.int64()))

    last = times(f"max.{_TIME}", _ALWAYS.max - _CUT_OFF)
    return pa.table(
        {
            "path": column("path", pa.string()),
            "size_bytes": column("size_bytes", pa.int64()),
            "num_records": pc.fill_null(column("num_records", pa.int64()), -1),
            "stream": column("partition.stream_id", pa.string()),
            "date": column("partition.date", pa.string()),
            "first": times(f"min.{_TIME}", _ALWAYS.min),
            "last": pc.add(last, pa.scalar(_CUT_OFF, pa.int64())),
            "low": column("min.segment", pa.string()),
            "high": column("max.segment", pa.string()),
        }
    )


def _footer(system: pafs.FileSystem, path: str) -> tuple[int, int, int]:
    """Rows, least and greatest time of one file; the times of an empty one are limits of int64."""
    with system.open_input_file(path) as opened:
        file = pq.ParquetFile(opened)
        meta, low, high = file.metadata, int(_ALWAYS.max), int(_ALWAYS.min)
        for group in range(meta.num_row_groups):
            found = meta.row_group(group)
            if not found.num_rows:
                continue
            place = next(i for i in range(found.num_columns) if found.column(i).path_in_schema == _TIME)
            stats = found.column(place).statistics
            if stats is not None and stats.has_min_max and isinstance(stats.min_raw, int):
                low, high = min(low, stats.min_raw), max(high, stats.max_raw)
            else:
                values = file.read_row_group(group, columns=[_TIME])[_TIME].cast(pa.int64())
                low, high = min(low, pc.min(values).as_py()), max(high, pc.max(values).as_py())
        return meta.num_rows, low, high
