"""Export of frame vectors and their metadata, in the layout of clip-retrieval and embedding-reader.

    FOLDER/img_emb/img_emb_00000.npy             float16[n, Df] (or float32), unit norm
    FOLDER/metadata/metadata_00000.parquet       n rows: row i describes vector i
    FOLDER/export.json                           encoders, number of frames; written last, so that it marks the end

Rows are by stream and time. The columns of the metadata are `image_path` (a name, no file), `stream_id`, `captured_at`,
`pts_seconds`, `clock_source`, `segment`, `frame_norm`, and `picture` (JPEG) if asked for. At most two files and one
stream's day are in memory. Everything is of one version of the table `frames`.

This module does not export patches, so a store cannot be made from an export again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index.columns import to_matrix
from index.delta.row_filter import in_window
from index.errors import UsageError
from index.files import write_atomically
from index.tables import Tables

__all__ = ["export_vectors"]

_COLUMNS = ("stream_id", "captured_at", "pts_seconds", "clock_source", "segment", "frame_norm")


def export_vectors(
    tables: Tables,
    folder: Path,
    streams: Sequence[str],
    start: int | None = None,
    end: int | None = None,
    *,
    rows: int = 100_000,
    exact: bool = False,
    pictures: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Write the frames of `streams` with start ≤ captured_at < end, in UTC microseconds, to a folder.

    Args:
        tables: the store.
        folder: a folder that does not exist, or is empty.
        streams: names of streams.
        start: no limit when None.
        end: no limit when None.
        rows: frames of a file.
        exact: vectors as float32, as they are stored, instead of float16.
        pictures: also the pictures, as a column of the metadata.
        on_progress: called with the number of frames that are written.

    Returns:
        The number of frames.

    Raises:
        UsageError: the folder is not empty.
        StoreError: the store cannot be read.
        OSError: the folder cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is not an empty folder; choose another one for the export")
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    where, snapshot = in_window(streams, start, end), tables.frames.snapshot()
    columns = [*_COLUMNS, "frame_vector", *(["picture"] if pictures else [])]
    waiting, count, number, done = list[pa.Table](), 0, 0, 0

    def write(some: pa.Table) -> None:
        """Write one file of each kind."""
        vectors = to_matrix(some["frame_vector"], tables.encoders.frame.dimension)
        metadata = some.drop_columns(["frame_vector"]).add_column(0, "image_path", _names(some))

        def save(file: BinaryIO) -> None:
            """Write the vectors."""
            np.save(file, vectors if exact else vectors.astype(np.float16))

        def save_metadata(file: BinaryIO) -> None:
            """Write the metadata."""
            pq.write_table(metadata, file)

        write_atomically(folder / "img_emb" / f"img_emb_{number:05d}.npy", save)
        write_atomically(folder / "metadata" / f"metadata_{number:05d}.parquet", save_metadata)

    for files in snapshot.matching(where).by_day().values():
        found = files.read(columns, where).sort_by("captured_at")
        waiting.append(found)
        count += len(found)
        while count >= rows:
            joined = pa.concat_tables(waiting)
            write(joined.slice(0, rows))
            waiting, count, number, done = [joined.slice(rows)], count - rows, number + 1, done + rows
            on_progress(done)
    if count:
        write(pa.concat_tables(waiting))
        done += count
        on_progress(done)
    about = {
        "frames": done,
        "encoder": tables.encoders.frame.model_dump(),
        "dtype": "float32" if exact else "float16",
        "version": snapshot.version,
    }
    write_atomically(folder / "export.json", lambda file: file.write(json.dumps(about, indent=1).encode()))
    return done


def _names(rows: pa.Table) -> pa.ChunkedArray:
    """A name for the picture of each frame, STREAM/TIME.jpg."""
    times = pc.strftime(rows["captured_at"], format="%Y-%m-%dT%H:%M:%SZ")
    return pc.binary_join_element_wise(
        rows["stream_id"].cast(pa.string()), pc.binary_join_element_wise(times, ".jpg", ""), "/"
    )
