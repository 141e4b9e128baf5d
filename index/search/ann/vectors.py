"""Exact vectors of single frames, read from the Parquet files of the table `frames` by their place.

A row group that is written without compression and without a dictionary has its vectors in pages, byte by byte as they
are in memory. `places` finds where each vector begins, by comparing the bytes with what Arrow decodes, so it relies on
no detail of the format. Vectors with a place are read there directly: 2 kB each, neighbours together, and from an
object store by ranges, many at a time. All others are read by row groups. Does not know codes and shards.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.columns import to_matrix
from index.delta.failures import translate_errors
from index.delta.files import open_file
from index.delta.objects import file_system

__all__ = ["FileRows", "VectorReader"]

_OPEN_FILES = 128
_COLUMN = "frame_vector"
_NEAR_BYTES = 64 * 1024
_AT_ONCE = 64  # requests


@dataclass(frozen=True, slots=True)
class FileRows:
    """Rows of one file that follow each other; row i of every array is one frame."""

    row: NDArray[np.int32]
    """int32[n]: rows of the file."""
    captured_at: NDArray[np.int64]
    """int64[n]: UTC microseconds."""
    vectors: NDArray[np.float32]
    """float32[n, d]."""
    offset: NDArray[np.int64]
    """int64[n]: the byte of the file where the vector begins, −1 if it is not in one piece."""


class VectorReader:
    """Reads vectors of a table. Any number of threads may use it.

    Args:
        uri: path or URL of the table `frames`.
        dimension: d.
    """

    def __init__(self, uri: str, dimension: int) -> None:
        self._uri, self.dimension = uri, dimension
        self._handles: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def is_local(self) -> bool:
        """Whether the files are on a disk of this machine."""
        return "://" not in self._uri

    def file(self, path: str, groups: Sequence[int] | None = None, *, places: bool = True) -> Iterator[FileRows]:
        """The rows of a file, a row group at a time.

        Args:
            path: below the table.
            groups: numbers of row groups; all when None.
            places: look for the place of each vector.

        Raises:
            StoreCorrupt, StoreUnavailable: the file cannot be read.
        """
        with translate_errors(self._uri):
            held = open_file(self._uri, path)
            meta = held.metadata
            firsts = np.cumsum([0, *(meta.row_group(i).num_rows for i in range(meta.num_row_groups))])
            for number in range(meta.num_row_groups) if groups is None else groups:
                rows = held.read_row_group(number, columns=["captured_at", _COLUMN])
                vectors = to_matrix(rows[_COLUMN], self.dimension)
                offset = np.full(len(rows), -1, np.int64)
                if places:
                    offset = _places(self._chunk(path, meta.row_group(number)), vectors)
                first = int(firsts[number])
                yield FileRows(
                    np.arange(first, first + len(rows), dtype=np.int32),
                    rows["captured_at"].cast(pa.int64()).to_numpy(),
                    vectors,
                    offset,
                )

    def count(self, path: str) -> int:
        """The number of rows of a file. Raises as `file`."""
        with translate_errors(self._uri):
            return int(open_file(self._uri, path).metadata.num_rows)

    def groups(self, path: str) -> int:
        """The number of row groups of a file. Raises as `file`."""
        with translate_errors(self._uri):
            return int(open_file(self._uri, path).num_row_groups)

    def read(
        self, paths: Sequence[str], file: NDArray[np.int32], row: NDArray[np.int32], offset: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Vectors of some rows, float32[n, d].

        Args:
            paths: files, below the table.
            file: int[n], index into `paths`.
            row: int[n], as in `FileRows`.
            offset: int[n], as in `FileRows`.

        Raises:
            StoreCorrupt, StoreUnavailable: a file cannot be read, for example because it was replaced meanwhile.
        """
        result = np.empty((len(row), self.dimension), np.float32)
        placed = np.flatnonzero(offset >= 0)
        if len(placed):
            order = placed[np.lexsort((offset[placed], file[placed]))]
            (self._read_bytes if self.is_local else self._read_ranges)(paths, file[order], offset[order], order, result)
        rest = np.flatnonzero(offset < 0)
        for number in np.unique(file[rest]).tolist():
            self._read_groups(paths[number], row, rest[file[rest] == number], result)
        return result

    def _read_groups(
        self, path: str, row: NDArray[np.int32], members: NDArray[np.int64], result: NDArray[np.float32]
    ) -> None:
        """Read the rows `row[members]` of a file by row groups."""
        with translate_errors(self._uri):
            held = open_file(self._uri, path)
            counts = [held.metadata.row_group(i).num_rows for i in range(held.num_row_groups)]
            firsts = np.cumsum([0, *counts])
            group = np.searchsorted(firsts, row[members], side="right") - 1
            for number in np.unique(group).tolist():
                wanted = members[group == number]
                rows = held.read_row_group(number, columns=[_COLUMN])[_COLUMN]
                result[wanted] = to_matrix(rows, self.dimension)[row[wanted] - firsts[number]]

    def _read_bytes(
        self,
        paths: Sequence[str],
        file: NDArray[np.int32],
        place: NDArray[np.int64],
        order: NDArray[np.int64],
        result: NDArray[np.float32],
    ) -> None:
        """Read `result[order]` at its places, sorted by file and place; those that follow each other at once."""
        width = 4 * self.dimension
        firsts = np.flatnonzero(np.append(True, (np.diff(place) != width) | (np.diff(file) != 0)))
        cuts = [*(firsts * width).tolist(), len(order) * width]
        held = np.empty((len(order), self.dimension), np.float32)
        target = held.view(np.uint8).reshape(-1).data
        opened, handle = -1, -1
        with translate_errors(self._uri), self._lock:
            for number, begin, start, end in zip(
                file[firsts].tolist(), place[firsts].tolist(), cuts, cuts[1:], strict=False
            ):
                if number != opened:
                    opened, handle = number, self._handle(paths[number])
                if os.preadv(handle, [target[start:end]], begin) != end - start:
                    raise OSError(f"{paths[number]} is shorter than it was")
        result[order] = held

    def _read_ranges(
        self,
        paths: Sequence[str],
        file: NDArray[np.int32],
        place: NDArray[np.int64],
        order: NDArray[np.int64],
        result: NDArray[np.float32],
    ) -> None:
        """The same from an object store; what is between near ones is read too, because a request costs more."""
        width = 4 * self.dimension
        apart = (np.diff(place) > width + _NEAR_BYTES) | (np.diff(file) != 0)
        runs = np.split(np.arange(len(order)), np.flatnonzero(apart) + 1)
        begins = [int(place[run[0]]) for run in runs]
        ends = [int(place[run[-1]]) + width for run in runs]
        names = [paths[int(file[run[0]])] for run in runs]
        with translate_errors(self._uri):
            system, root = file_system(self._uri)
            found = system.cat_ranges([f"{root}/{name}" for name in names], begins, ends, batch_size=_AT_ONCE)
            for run, name, begin, end, data in zip(runs, names, begins, ends, found, strict=True):
                if len(data) != end - begin:
                    raise OSError(f"{name} is shorter than it was")
                for each in run.tolist():
                    result[order[each]] = np.frombuffer(data, np.float32, self.dimension, int(place[each]) - begin)

    def _chunk(self, path: str, group: pq.RowGroupMetaData) -> tuple[bytes, int]:
        """The bytes of the vectors of a row group, and where they begin in the file."""
        for number in range(group.num_columns):
            column = group.column(number)
            if column.path_in_schema.startswith(f"{_COLUMN}."):
                begin = column.dictionary_page_offset or column.data_page_offset
                end = begin + column.total_compressed_size
                if not self.is_local:
                    system, root = file_system(self._uri)
                    return bytes(system.cat_file(f"{root}/{path}", start=begin, end=end)), begin
                return np.memmap(f"{self._uri}/{path}", np.uint8, "r")[begin:end].tobytes(), begin
        return b"", 0

    def _handle(self, path: str) -> int:
        found = self._handles.get(path)
        if found is None:
            found = self._handles[path] = os.open(f"{self._uri}/{path}", os.O_RDONLY | os.O_CLOEXEC)
            while len(self._handles) > _OPEN_FILES:
                os.close(self._handles.popitem(last=False)[1])
        else:
            self._handles.move_to_end(path)
        return found

    def forget(self, listed: set[str]) -> None:
        """Close the files that are not in `listed`."""
        with self._lock:
            for path in [path for path in self._handles if path not in listed]:
                os.close(self._handles.pop(path))

    def __del__(self) -> None:
        for handle in self._handles.values():
            os.close(handle)


def _places(held: tuple[bytes, int], vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """Where each vector of a row group, float32[n, d], begins in the file, given `_chunk` of it; −1 if nowhere."""
    chunk, begin = held
    found = np.full(len(vectors), -1, np.int64)
    width, at, row = 4 * vectors.shape[1], 0, 0
    plain = np.ascontiguousarray(vectors).view(np.uint8).reshape(len(vectors), -1)
    while row < len(vectors):
        place = chunk.find(plain[row].tobytes(), at)
        if place < 0:
            row += 1
            continue
        most = min(len(vectors) - row, (len(chunk) - place) // width)
        same = np.frombuffer(chunk, np.uint8, most * width, place).reshape(most, width) == plain[row : row + most]
        run = int(np.argmin(np.append(same.all(axis=1), False)))
        found[row : row + run] = begin + place + width * np.arange(run)
        row, at = row + run, place + run * width
    return found
