"""The patch tokens of one store: frames encoded as rows of the table `patches`, and rows decoded to frames.

`index.patches.codec` defines the bytes of a row and their error. This module knows which rows belong together: a
differential row is decoded from the rows of its chain, which are those of one segment and UTC day with the same `head`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.columns import MICROS_PER_DAY, key_columns, sql_string, sql_timestamp
from index.delta.row_filter import RowFilter, in_frames, in_window
from index.delta.snapshot import THREADS, TableSnapshot
from index.delta.table import StoreTable
from index.delta.writers import patch_writer
from index.errors import StoreCorrupt, UsageError, mask_url
from index.patches.codec import (
    PatchEncoding,
    Row,
    check_row,
    decode_chain,
    decode_int8,
    drop_first_rows,
    encode_chain,
    encode_int8,
    split_chains,
)
from index.records import EncoderPair, FrameRecords, rfc3339
from index.schemas import PATCHES, PATCHES_DIFFERENTIAL, PATCHES_INT8
from index.window import Window

__all__ = ["PatchStore", "patch_table"]

_ROW_GROUP_BYTES = 2 * 2**20  # what is read for one frame of many hours
_BATCH_BYTES = 8 * 2**20
_ARRAY_BYTES = 2**30  # an Arrow array of binaries holds less than 2 GiB
_SCHEMAS = {"fp16": PATCHES, "int8": PATCHES_INT8, "differential": PATCHES_DIFFERENTIAL}

_Chain = tuple[str, str, int]  # stream, segment, captured_at of the head


def patch_table(uri: str, encoders: EncoderPair, encoding: PatchEncoding) -> StoreTable:
    """The table `patches` of a store at `uri` with these encoders and encoding."""
    rows = max(1, _ROW_GROUP_BYTES // (2 * encoders.patches * encoders.patch.dimension))
    writer = patch_writer(compressed=encoding.kind != "fp16", rows=rows)
    return StoreTable(uri, "patches", schema=_SCHEMAS[encoding.kind], writer=writer)


@dataclass(frozen=True, slots=True)
class _ChainRows:
    """Rows of a differential table, column-wise; the rows of `data` share memory with Arrow's buffers."""

    stream_ids: list[str]
    segments: list[str]
    captured_at: NDArray[np.int64]
    heads: NDArray[np.int64]
    data: list[Row]


class PatchStore:
    """Encodes and decodes the patch tokens of one store, float16[M, D] of every frame.

    Args:
        table: the table `patches`.
        encoders: the store's encoders, which define M and D.
        encoding: how patches are stored.
        url: the store, for messages.
    """

    def __init__(self, table: StoreTable, encoders: EncoderPair, encoding: PatchEncoding, url: str) -> None:
        self._table, self._encoding, self._url = table, encoding, url
        self._m, self._d = encoders.patches, encoders.patch.dimension
        self._batch = max(1, _BATCH_BYTES // (2 * self._m * self._d))

    # ---- writing -----------------------------------------------------------------------------------------------

    def rows(self, key: str, frames: FrameRecords) -> pa.Table:
        """The rows of one segment for the table; `key` is its `segment_key`.

        Raises:
            UsageError: a value is not finite and the encoding is not fp16.
        """
        captured_at, patches = frames.captured_at, frames.patches
        keys = key_columns(frames.stream_id, key, captured_at)
        if self._encoding.kind == "fp16":
            raw = np.ascontiguousarray(patches, "<f2").reshape(len(patches), -1).view(np.uint8)
            return pa.Table.from_arrays([*keys, _binary_array(raw)], schema=PATCHES)
        if self._encoding.kind == "int8":
            return pa.Table.from_arrays([*keys, _binary_array(encode_int8(patches))], schema=PATCHES_INT8)
        data: list[Row] = []
        heads = captured_at.copy()
        # The rows of two days are in two files; a chain must be in one.
        days = np.flatnonzero(np.diff(captured_at // MICROS_PER_DAY)) + 1
        for first, last in pairwise([0, *days.tolist(), len(captured_at)]):
            for positions in split_chains(last - first):
                chain = slice(first + positions.start, first + positions.stop)
                data += encode_chain(patches[chain], self._encoding.epsilon)
                heads[chain] = captured_at[chain.start]
        return pa.Table.from_arrays([*keys, _timestamps(heads), _binary_array(data)], schema=PATCHES_DIFFERENTIAL)

    def make_independent(self, stream_id: str, before: int, app: str) -> None:
        """Make the frames from `before` on (UTC microseconds) decodable without earlier ones, which may then be
        deleted.

        Each chain that contains `before` is split there, in one commit. Where a patch of a later frame had not changed
        since an earlier frame, its value is kept with the later frame.

        Args:
            stream_id: the stream.
            before: UTC microseconds.
            app: application id of the deletion that follows. Its version stays as it is; that fences off a process
                which has not noticed that another one has made the deletion.

        Raises:
            CommitFenced: another process does the same.
            StoreCorrupt: a chain cannot be decoded.
        """
        if self._encoding.kind != "differential":
            return
        midnight = (before // MICROS_PER_DAY + 1) * MICROS_PER_DAY  # a chain ends with its day
        reached = self._table.transaction_versions([app])[app]
        heads = self._table.read(["head"], in_window([stream_id], before, midnight))["head"].cast(pa.int64()).to_numpy()
        affected = heads[heads < before]
        if not len(affected):
            return
        low = int(affected.min())
        for (_, segment, head), (captured_at, data) in self._read_chains(in_window([stream_id], low, midnight)).items():
            first = int(np.searchsorted(captured_at, before))
            if head >= before or first == len(captured_at):
                continue
            try:
                left = drop_first_rows(data, first, self._m, self._d)
            except ValueError as error:
                raise self._corrupt(stream_id, head, error) from None
            times = captured_at[first:]
            heads = np.full(len(times), times[0])
            columns = [*key_columns(stream_id, segment, times), _timestamps(heads), _binary_array(left)]
            self._table.append_and_advance(
                pa.Table.from_arrays(columns, schema=PATCHES_DIFFERENTIAL),
                {app: (reached, reached or 0)},
                f"stream_id = {sql_string(stream_id)} AND segment = '{segment}' AND captured_at >= "
                f"{sql_timestamp(int(times[0]))} AND captured_at <= {sql_timestamp(int(times[-1]))}",
            )
            reached = reached or 0

    # ---- reading -----------------------------------------------------------------------------------------------

    def read(
        self, window: Window, out: NDArray[np.float16] | None = None
    ) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """The patch tokens of a window's frames, in its row order.

        Row groups are read and decoded side by side, each frame directly into the result.

        Args:
            window: the frames.
            out: float16[N, M, D] to fill; allocated when None.

        Returns:
            float16[N, M, D], which is `out` if given, and bool[N]: which frames have no patches.

        Raises:
            UsageError: `out` has another shape or dtype.
            StoreCorrupt: a row has another size, or a row of a chain is missing.
        """
        shape = (len(window), self._m, self._d)
        if out is not None and (out.shape != shape or out.dtype != np.float16):
            raise UsageError(f"expected out of float16 {shape}, got {out.dtype} {out.shape}")
        result = np.empty(shape, np.float16) if out is None else out
        missing = np.ones(len(window), bool)
        if len(window) == 0:
            return result, missing
        where = in_frames(window.stream_ids, window.stream_index, window.captured_at)
        if self._encoding.kind == "differential":
            self._decode_chains(window, where, result, missing)
            return result, missing

        def decode(batch: pa.RecordBatch) -> None:
            """Decode the patches of a record batch into their places of the output."""
            rows = window.locate(batch.column("stream_id"), batch.column("captured_at").cast(pa.int64()).to_numpy())
            inside = rows >= 0
            column = batch.column("patches")
            try:
                if self._encoding.kind == "fp16":
                    block = self._fp16_view(column)
                    if inside.all() and (np.diff(rows) == 1).all():
                        result[rows[0] : rows[-1] + 1] = block
                    else:
                        result[rows[inside]] = block[inside]
                else:
                    data = _row_views(column)
                    some = np.flatnonzero(inside)
                    decode_int8([data[i] for i in some], self._m, self._d, [result[rows[i]] for i in some])
            except ValueError as error:
                raise StoreCorrupt(f"{mask_url(self._url)}: patches have {error}; run `sightline verify`") from None
            missing[rows[inside]] = False

        for _ in self._table.map_batches(["stream_id", "captured_at", "patches"], where, self._batch, decode):
            pass
        return result, missing

    def _fp16_view(self, column: pa.Array) -> NDArray[np.float16]:
        """The rows of an fp16 column as float16[n, M, D] in Arrow's memory. Raises ValueError for another size."""
        _, offsets, data = column.buffers()
        at = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
        if not (np.diff(at) == 2 * self._m * self._d).all():
            raise ValueError(f"another size than float16 [{self._m}, {self._d}]")
        count = len(column) * self._m * self._d
        return np.frombuffer(data, "<f2", count=count, offset=int(at[0])).reshape(-1, self._m, self._d)

    def _decode_chains(
        self, window: Window, where: RowFilter, result: NDArray[np.float16], missing: NDArray[np.bool_]
    ) -> None:
        """Fill `result` from differential rows, and set `missing` to false for each frame that was found."""
        keys = self._table.read(["stream_id", "captured_at", "head"], where)
        held = window.locate(keys["stream_id"], keys["captured_at"].cast(pa.int64()).to_numpy())
        heads, some = keys["head"].cast(pa.int64()).to_numpy()[held >= 0], held[held >= 0]
        if not len(heads):
            return
        chains = in_frames(window.stream_ids, window.stream_index[some], heads, window.captured_at[some])
        found = self._read_chains(chains)

        def decode(item: tuple[_Chain, tuple[NDArray[np.int64], list[Row]]]) -> None:
            """Decode one chain of differential patches into their places of the output."""
            (stream, _, head), (captured_at, data) = item
            rows = window.locate(pa.array([stream] * len(captured_at)), captured_at)
            inside = np.flatnonzero(rows >= 0)
            if not len(inside):
                return
            last = int(inside[-1]) + 1
            targets = [result[row] if row >= 0 else None for row in rows[:last].tolist()]
            try:
                decode_chain(data[:last], self._m, self._d, targets)
            except ValueError as error:
                raise self._corrupt(stream, head, error) from None
            missing[rows[inside]] = False

        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(decode, found.items()):
                pass

    def _read_chains(self, where: RowFilter) -> dict[_Chain, tuple[NDArray[np.int64], list[Row]]]:
        """Times int64[n], ascending, and encoded rows of every chain; at most half the bytes of the decoded frames."""
        columns = ["stream_id", "segment", "captured_at", "head", "patches"]
        parts = list(self._table.map_batches(columns, where, self._batch, _chain_rows))
        if not parts:
            return {}
        streams = np.array([s for part in parts for s in part.stream_ids])
        segments = np.array([s for part in parts for s in part.segments])
        captured_at = np.concatenate([part.captured_at for part in parts])
        heads = np.concatenate([part.heads for part in parts])
        data = [row for part in parts for row in part.data]
        order = np.lexsort((captured_at, heads, segments, streams))
        changes = np.zeros(len(order), bool)
        for keys in (streams[order], segments[order], heads[order]):
            changes[1:] |= keys[1:] != keys[:-1]
        result: dict[_Chain, tuple[NDArray[np.int64], list[Row]]] = {}
        for first, last in pairwise([0, *np.flatnonzero(changes).tolist(), len(order)]):
            some = order[first:last]
            one = some[0]
            key = (str(streams[one]), str(segments[one]), int(heads[one]))
            result[key] = (captured_at[some], [data[i] for i in some])
        return result

    # ---- maintenance -------------------------------------------------------------------------------------------------

    def damaged(self, files: TableSnapshot, where: RowFilter) -> tuple[pa.Table, int]:
        """Check rows of a whole day of a stream, in batches.

        Args:
            files: a version of the table, or those of its files that hold the day.
            where: the rows of the day.

        Returns:
            Their columns captured_at and segment, and the number of rows or chains that cannot be decoded.

        Raises:
            StoreCorrupt, StoreUnavailable: a file cannot be read.
        """
        differential = self._encoding.kind == "differential"
        columns = ["captured_at", "segment", *(["head"] if differential else []), "patches"]
        keys, wrong = list[pa.Table](), 0
        seen: dict[tuple[str, int], list[int]] = {}
        size = 2 * self._m * self._d if self._encoding.kind == "fp16" else (4 + self._m) * self._d
        for batch in files.read_batches(columns, where, self._batch):
            if not len(batch):
                continue
            keys.append(pa.Table.from_batches([batch.select(["captured_at", "segment"])]))
            if differential:
                heads = batch.column("head").cast(pa.int64()).to_pylist()
                names = batch.column("segment").to_pylist()
                for name, head, row in zip(names, heads, _row_views(batch.column("patches")), strict=True):
                    seen.setdefault((name, head), []).append(self._position(row))
            else:
                lengths = pc.binary_length(batch.column("patches"))
                wrong += int(pc.sum(pc.not_equal(lengths, size)).as_py())
        wrong += sum(sorted(found) != list(range(len(found))) for found in seen.values())
        held = pa.schema([PATCHES.field("captured_at"), PATCHES.field("segment")])
        return (pa.concat_tables(keys).cast(held) if keys else held.empty_table()), wrong

    def _position(self, row: Row) -> int:
        """The position of a differential row in its chain; −1 for a row of a wrong size."""
        try:
            return check_row(row, self._m, self._d)
        except ValueError:
            return -1

    def _corrupt(self, stream_id: str, head: int, error: ValueError) -> StoreCorrupt:
        return StoreCorrupt(
            f"{mask_url(self._url)}: {stream_id}: patches from {rfc3339(head)} on cannot be decoded ({error}); "
            "run `sightline verify`"
        )


def _chain_rows(batch: pa.RecordBatch) -> _ChainRows:
    return _ChainRows(
        batch.column("stream_id").to_pylist(),
        batch.column("segment").to_pylist(),
        batch.column("captured_at").cast(pa.int64()).to_numpy(),
        batch.column("head").cast(pa.int64()).to_numpy(),
        _row_views(batch.column("patches")),
    )


def _row_views(column: pa.Array) -> list[Row]:
    """Each value of a binary column as uint8[size] in Arrow's memory."""
    _, offsets, data = column.buffers()
    at = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].tolist()
    whole = np.frombuffer(data, np.uint8)
    return [whole[first:last] for first, last in pairwise(at)]


def _timestamps(micros: NDArray[np.int64]) -> pa.Array:
    """int64[N] UTC microseconds as an Arrow array."""
    return pa.array(micros).cast(pa.timestamp("us", "UTC"))


def _binary_array(rows: Sequence[Row] | NDArray[np.uint8]) -> pa.ChunkedArray:
    """Rows as a binary column, split into arrays that are small enough for Arrow."""
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    chunks = []
    first = 0
    while first < len(rows):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + _ARRAY_BYTES, side="right")))
        offsets = np.concatenate([[0], ends[first:last] - before]).astype(np.int32)
        some = rows[first:last]
        data = some.reshape(-1) if isinstance(some, np.ndarray) else np.concatenate(some)
        chunks.append(
            pa.Array.from_buffers(pa.binary(), last - first, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
        )
        first = last
    return pa.chunked_array(chunks, pa.binary())
