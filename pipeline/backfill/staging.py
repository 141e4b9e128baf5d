"""Staging area of a backfill: pieces that wait until their group can be committed.

    <url>/<digest of stream and source>/<digest of encoders>-<chunk seconds>/<chunk>.parquet   one file a chunk
    <url>/<digest of stream and source>/<digest of encoders>-<chunk seconds>/<first>-<end>.json   one marker a piece

The marker is written last. Each file appears whole: it is renamed into place on a local disk, and put as one object in
an object store. A piece that is done twice writes the same files twice, and a run continues with the pieces that an
earlier run finished. This module does not know Beam or the decoder.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index.columns import digest, to_matrix
from index.delta.failures import translate_errors
from index.delta.objects import file_system, open_object
from index.errors import StoreCorrupt, mask_url
from index.files import write_atomically
from index.records import EncoderPair, FrameRecords, Segment
from ingest.chunks import SourceFootage
from pipeline.backfill.elements import StagedRange

__all__ = ["Staging", "get", "put", "remove"]


def put(url: str, data: bytes | memoryview) -> None:
    """Write a file, all or nothing; missing local folders are created."""
    with translate_errors(url):
        if "://" in url:
            with open_object(url, "wb") as file:
                file.write(data)
        else:
            write_atomically(url, lambda file: file.write(data), parents=True)


def get(url: str) -> bytes | None:
    """Return the content of a file, or None if there is no such file."""
    with translate_errors(url):
        try:
            with open_object(url) as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None


def remove(url: str) -> None:
    """Remove a folder with its content, if it exists."""
    if "://" not in url:
        shutil.rmtree(url, ignore_errors=True)
        return
    with translate_errors(url):
        system, path = file_system(url)
        if system.exists(path):
            system.rm(path, recursive=True)


class Staging:
    """The staging area at `url`, for vectors of `encoders`."""

    def __init__(self, url: str, encoders: EncoderPair) -> None:
        self._url, self._encoders = url, encoders

    def _source(self, footage: SourceFootage) -> str:
        return f"{self._url}/{digest(footage.stream_id, footage.source)}"

    def _folder(self, footage: SourceFootage, seconds: int) -> str:
        return f"{self._source(footage)}/{digest(self._encoders.model_dump_json())}-{seconds}"

    def write(self, footage: SourceFootage, segment: Segment, frames: FrameRecords, seconds: int) -> str:
        """Write the frames of one chunk and return the URL of the file."""
        n, m, d = frames.patches.shape
        columns = {
            "captured_at": pa.array(frames.captured_at),
            "pts_seconds": pa.array(frames.pts_seconds),
            "frame_vector": _vector_column(frames.frame_vectors),
            "patch_pooled": _vector_column(frames.patch_pooled),
            "patches": pa.array([row.tobytes() for row in np.ascontiguousarray(frames.patches, "<f2")], pa.binary()),
            "picture": pa.array(frames.pictures, pa.binary()),
        }
        if frames.frame_norms is not None:
            columns["frame_norm"] = pa.array(frames.frame_norms)
        table = pa.table(columns).replace_schema_metadata({"shape": json.dumps([n, m, d])})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="NONE", use_dictionary=False, write_statistics=False)
        url = f"{self._folder(footage, seconds)}/{segment.chunk:06d}.parquet"
        put(url, memoryview(sink.getvalue()))
        return url

    def read(self, url: str, footage: SourceFootage) -> FrameRecords:
        """Read a staged chunk.

        Raises:
            StoreCorrupt: the file is missing or damaged.
        """
        data = get(url)
        if data is None:
            raise StoreCorrupt(
                f"{mask_url(url)}: the staged frames of {footage.name} are missing; run the same backfill again"
            )
        try:
            table = pq.read_table(pa.BufferReader(data))
            n, m, d = json.loads(table.schema.metadata[b"shape"])
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise StoreCorrupt(
                f"{mask_url(url)}: the staged frames of {footage.name} are damaged ({error}); remove the file and run "
                "the same backfill again"
            ) from None
        patches = np.frombuffer(b"".join(table["patches"].to_pylist()), "<f2").reshape(n, m, d)
        return FrameRecords(
            stream_id=footage.stream_id,
            clock_source=footage.clock,
            captured_at=table["captured_at"].to_numpy(),
            pts_seconds=table["pts_seconds"].to_numpy(),
            frame_vectors=to_matrix(table["frame_vector"], self._encoders.frame.dimension),
            patch_pooled=to_matrix(table["patch_pooled"], self._encoders.patch.dimension),
            patches=patches,
            pictures=table["picture"].to_pylist(),
            # Absent where an earlier version staged the chunk.
            frame_norms=table["frame_norm"].to_numpy() if "frame_norm" in table.column_names else None,
        )

    def _marker(self, footage: SourceFootage, first: int, end: int | None, seconds: int) -> str:
        return f"{self._folder(footage, seconds)}/{first}-{'end' if end is None else end}.json"

    def finish(self, footage: SourceFootage, first: int, end: int | None, seconds: int, staged: StagedRange) -> None:
        """Write the marker of a finished piece. A piece with a problem gets none, so that the next run tries it
        again."""
        if staged.problem is None and staged.kind is None:
            held = {"mode": staged.mode, "chunks": staged.chunks}
            put(self._marker(footage, first, end, seconds), json.dumps(held).encode())

    def finished(self, footage: SourceFootage, first: int, end: int | None, seconds: int) -> dict[str, Any] | None:
        """Return `mode` and `chunks` of a piece that an earlier run finished, or None."""
        data = get(self._marker(footage, first, end, seconds))
        if data is None:
            return None
        held = json.loads(data)
        return {"mode": held["mode"], "chunks": tuple((int(chunk), str(url)) for chunk, url in held["chunks"])}

    def drop(self, footage: SourceFootage) -> None:
        """Remove everything that is staged of a source."""
        remove(self._source(footage))


def _vector_column(values: np.ndarray[Any, np.dtype[np.float32]]) -> pa.Array:
    """float32[N, D] as an Arrow column of lists."""
    width = values.shape[1]
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, width).cast(pa.list_(pa.float32()))
