"""Where pieces of a backfill wait for their turn to be committed: a Parquet file a chunk, and a marker a finished piece.

    <url>/<digest of stream and source>/<digest of encoders>-<chunk seconds>/<chunk>.parquet   and   <first>-<end>.json

Everything is written under another name and renamed, or put as one object, so what is there is whole; doing a piece
twice writes the same files twice. A run that was stopped leaves its finished pieces to the next one.
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index.columns import digest, matrix
from index.errors import StoreCorrupt, mask_url
from index.records import EncoderPair, FrameRecords, Segment
from ingest.chunks import SourceFootage

if TYPE_CHECKING:
    from pipeline.backfill.work import Staged

__all__ = ["Staging", "put", "remove"]


def put(url: str, data: bytes | memoryview) -> None:
    """Write one file whole or not at all."""
    if "://" in url:
        with fsspec.open(url, "wb") as file:
            file.write(data)
        return
    path = Path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    part.write_bytes(data)
    part.replace(path)


def get(url: str) -> bytes | None:
    """The bytes of a file, or None when there is none."""

    try:
        with fsspec.open(url, "rb") as file:
            return bytes(file.read())
    except FileNotFoundError:
        return None


def remove(url: str) -> None:
    """Remove a folder and all in it, if it is there."""
    if "://" not in url:
        shutil.rmtree(url, ignore_errors=True)
        return

    system, path = fsspec.core.url_to_fs(url)
    if system.exists(path):
        system.rm(path, recursive=True)


class Staging:
    """The staging area at `url` for vectors of `encoders`."""

    def __init__(self, url: str, encoders: EncoderPair) -> None:
        self._url, self._encoders = url, encoders

    def _source(self, footage: SourceFootage) -> str:
        return f"{self._url}/{digest(footage.stream_id, footage.source)}"

    def _folder(self, footage: SourceFootage, seconds: int) -> str:
        return f"{self._source(footage)}/{digest(self._encoders.model_dump_json())}-{seconds}"

    def write(self, footage: SourceFootage, segment: Segment, frames: FrameRecords, seconds: int) -> str:
        """Stage one chunk; where it lies."""
        n, m, d = frames.patches.shape
        columns = {
            "captured_at": pa.array(frames.captured_at),
            "pts_seconds": pa.array(frames.pts_seconds),
            "frame_vector": _rows(frames.frame_vectors),
            "patch_pooled": _rows(frames.patch_pooled),
            "patches": pa.array([row.tobytes() for row in np.ascontiguousarray(frames.patches, "<f2")], pa.binary()),
            "picture": pa.array(frames.pictures, pa.binary()),
        }
        table = pa.table(columns).replace_schema_metadata({"shape": json.dumps([n, m, d])})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="NONE", use_dictionary=False, write_statistics=False)
        place = f"{self._folder(footage, seconds)}/{segment.chunk:06d}.parquet"
        put(place, memoryview(sink.getvalue()))
        return place

    def read(self, place: str, footage: SourceFootage) -> FrameRecords:
        """A staged chunk. Raises StoreCorrupt when it is gone or damaged."""
        data = get(place)
        if data is None:
            raise StoreCorrupt(
                f"{mask_url(place)}: staged frames of {footage.name} are gone; run the same backfill again"
            )
        try:
            table = pq.read_table(pa.BufferReader(data))
            n, m, d = json.loads(table.schema.metadata[b"shape"])
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise StoreCorrupt(
                f"{mask_url(place)}: staged frames of {footage.name} do not read back ({error}); remove it and run again"
            ) from None
        patches = np.frombuffer(b"".join(table["patches"].to_pylist()), "<f2").reshape(n, m, d)
        return FrameRecords(
            stream_id=footage.stream_id,
            clock_source=footage.clock,
            captured_at=table["captured_at"].to_numpy(),
            pts_seconds=table["pts_seconds"].to_numpy(),
            frame_vectors=matrix(table["frame_vector"], self._encoders.frame.dimension),
            patch_pooled=matrix(table["patch_pooled"], self._encoders.patch.dimension),
            patches=patches,
            pictures=table["picture"].to_pylist(),
        )

    def _marker(self, footage: SourceFootage, first: int, end: int | None, seconds: int) -> str:
        return f"{self._folder(footage, seconds)}/{first}-{'end' if end is None else end}.json"

    def finish(self, footage: SourceFootage, first: int, end: int | None, seconds: int, staged: Staged) -> None:
        """Say that a piece is whole, unless something went wrong with it: that is worth another try."""
        if staged.problem is None and staged.kind is None:
            held = {"mode": staged.mode, "chunks": staged.chunks}
            put(self._marker(footage, first, end, seconds), json.dumps(held).encode())

    def piece(self, footage: SourceFootage, first: int, end: int | None, seconds: int) -> dict[str, Any] | None:
        """`mode` and `chunks` of a piece that an earlier run finished, or None."""
        data = get(self._marker(footage, first, end, seconds))
        if data is None:
            return None
        held = json.loads(data)
        return {"mode": held["mode"], "chunks": tuple((int(chunk), str(place)) for chunk, place in held["chunks"])}

    def drop(self, footage: SourceFootage) -> None:
        """Remove all that is staged of a source."""
        remove(self._source(footage))


def _rows(values: np.ndarray[Any, np.dtype[np.float32]]) -> pa.Array:
    width = values.shape[1]
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, width).cast(pa.list_(pa.float32()))
