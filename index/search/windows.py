"""Windows of a store: read as a whole, or without their vectors, which are then read a part at a time.

    large = LargeWindow.read(table, streams, start, end, dimension)
    large.window                              streams, times, and no vectors: 24 bytes a frame
    large.read(first, last)                   the vectors of some consecutive frames of one stream

Everything is read from one version of the table, so that frames which are committed or deleted meanwhile do not change
a window. A part is read from those files that its stream and times do not rule out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.columns import to_matrix
from index.delta.row_filter import in_frames, in_window
from index.delta.snapshot import TableSnapshot
from index.errors import StoreCorrupt, mask_url
from index.records import rfc3339
from index.window import Window

__all__ = ["LargeWindow", "most_rows", "read_pictures", "read_vectors", "read_window"]

_BATCH = 8_192
_PICTURES = 1_024


def most_rows(files: TableSnapshot, streams: Sequence[str], start: int | None, end: int | None) -> int | None:
    """At most so many frames are in a window, by the log alone; None if the log does not say."""
    return files.matching(in_window(streams, start, end)).rows


def read_window(files: TableSnapshot, streams: list[str], start: int | None, end: int | None, dimension: int) -> Window:
    """The frames of some streams with start ≤ captured_at < end, in UTC microseconds; it may be empty.

    Args:
        files: a version of the table `frames`.
        streams: names of streams, ascending.
        start, end: no limit if None.
        dimension: Df.
    """
    columns = ["stream_id", "captured_at", "pts_seconds", "frame_vector"]
    rows = files.read(columns, in_window(streams, start, end))
    stream_index = pc.index_in(rows["stream_id"], pa.array(streams, pa.string())).to_numpy().astype(np.int32)
    captured_at = rows["captured_at"].cast(pa.int64()).to_numpy()
    order = np.lexsort((captured_at, stream_index))
    vectors = to_matrix(rows["frame_vector"], dimension)
    in_order = bool((order == np.arange(len(order))).all())
    return Window(
        streams,
        stream_index[order],
        captured_at[order],
        rows["pts_seconds"].to_numpy()[order],
        vectors if in_order else vectors[order],
    )


def read_vectors(files: TableSnapshot, window: Window, dimension: int) -> NDArray[np.float32]:
    """The vectors of the frames of a window that has none, float32[N, Df], in its row order.

    Raises:
        StoreCorrupt: the table does not have one of the frames.
    """
    result, missing = np.zeros((len(window), dimension), np.float32), np.ones(len(window), bool)

    def take(batch: pa.RecordBatch) -> None:
        """Put the vectors of a batch into their places."""
        rows = window.locate(batch.column("stream_id"), batch.column("captured_at").cast(pa.int64()).to_numpy())
        inside = rows >= 0
        result[rows[inside]] = to_matrix(pa.chunked_array([batch.column("frame_vector")]), dimension)[inside]
        missing[rows[inside]] = False

    if len(window):
        where = in_frames(window.stream_ids, window.stream_index, window.captured_at)
        for _ in files.map_batches(["stream_id", "captured_at", "frame_vector"], where, _BATCH, take):
            pass
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        raise _missing(files, window.stream_ids[window.stream_index[row]], int(window.captured_at[row]))
    return result


def read_pictures(files: TableSnapshot, window: Window) -> tuple[list[bytes], NDArray[np.bool_]]:
    """The picture of each of a window's frames, JPEG, in its row order, and which frames have none, bool[N]."""
    result, missing = [b""] * len(window), np.ones(len(window), bool)

    def take(batch: pa.RecordBatch) -> None:
        """Put the pictures of a batch into their places."""
        rows = window.locate(batch.column("stream_id"), batch.column("captured_at").cast(pa.int64()).to_numpy())
        inside = np.flatnonzero(rows >= 0)
        for place, picture in zip(rows[inside].tolist(), batch.column("picture").take(inside), strict=True):
            result[place] = picture.as_py()
        missing[rows[inside]] = False

    if len(window):
        where = in_frames(window.stream_ids, window.stream_index, window.captured_at)
        for _ in files.map_batches(["stream_id", "captured_at", "picture"], where, _PICTURES, take):
            pass
    return result, missing


@dataclass(frozen=True, slots=True)
class LargeWindow:
    """A window whose vectors are read in parts; an `index.selectors.streamed.FrameReader`."""

    window: Window
    """Its frames, without vectors."""
    files: TableSnapshot
    """The files that hold them, of one version of the table `frames`."""
    dimension: int
    """Df."""

    @classmethod
    def open(
        cls, files: TableSnapshot, streams: list[str], start: int | None, end: int | None, dimension: int
    ) -> LargeWindow:
        """Read streams and times of the frames of a window; arguments as in `read_window`."""
        chosen = files.matching(in_window(streams, start, end))
        numbers, times, clocks = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)], [np.zeros(0, np.float64)]
        for number, name in enumerate(streams):
            where = in_window([name], start, end)
            some = chosen.matching(where)
            if len(some) == 0:
                continue
            rows = some.read(["captured_at", "pts_seconds"], where)
            at = rows["captured_at"].cast(pa.int64()).to_numpy()
            order = np.argsort(at, kind="stable")
            numbers.append(np.full(len(at), number, np.int32))
            times.append(at[order])
            clocks.append(rows["pts_seconds"].to_numpy()[order])
        captured_at = np.concatenate(times)
        window = Window(
            streams,
            np.concatenate(numbers),
            captured_at,
            np.concatenate(clocks),
            np.zeros((len(captured_at), 0), np.float32),
        )
        return cls(window, chosen, dimension)

    @property
    def stream_index(self) -> NDArray[np.int32]:
        """The stream of each frame, int32[N], as an index into the window's `stream_ids`."""
        return self.window.stream_index

    def read(self, first: int, last: int) -> NDArray[np.float32]:
        """The vectors of the rows from `first` to `last`, exclusive, which are of one stream; float32[n, Df].

        Raises:
            StoreCorrupt, StoreUnavailable: a file cannot be read; it may have been deleted by `forget`.
        """
        name, times = self.window.stream_ids[self.stream_index[first]], self.window.captured_at[first:last]
        rows = self.files.read(["captured_at", "frame_vector"], in_window([name], int(times[0]), int(times[-1]) + 1))
        at = rows["captured_at"].cast(pa.int64()).to_numpy()
        vectors = to_matrix(rows["frame_vector"], self.dimension)
        if not np.array_equal(at, times):
            order = np.argsort(at, kind="stable")
            if not np.array_equal(at[order], times):
                raise _missing(self.files, name, int(times[0]))
            vectors = vectors[order]
        return vectors


def _missing(files: TableSnapshot, stream: str, at: int) -> StoreCorrupt:
    return StoreCorrupt(
        f"{mask_url(files.uri)}: frames of {stream} from {rfc3339(at)} on are listed and not there; ask again, and run "
        "`sightline verify` if that does not help"
    )
