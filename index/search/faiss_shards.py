"""FAISS shards: one immutable file per stream and UTC day, a cache of the vectors in Parquet.

A shard is two files: `<day>.faiss`, a flat inner-product index that is memory-mapped for reading, and `<day>.npz`, with
the capture times, the segments it contains, the files that they were in, the identity of the encoder and the size of
the first file. The second file is written last. Both are written atomically and durably, so a shard is complete or
absent, also after a power cut.

Search is flat and exact: a day has at most 86,400 vectors, which one core scans in a few milliseconds, and no index has
to be trained. With a GPU, the vectors of a shard that was searched stay in its memory, and the scores of what it finds
are computed by the CPU. This module does not know Parquet; `index.search.vector_search` decides what a shard contains.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

from index.files import DAMAGED_ARRAYS, atomic_file, load_arrays, write_atomically
from index.schemas import decode_stream_id, encode_stream_id
from index.search.gpu import FlatVectors
from index.search.scores import cosines

__all__ = ["FaissShard", "FaissShards"]

_BLOCK = 4096  # vectors that are copied from the file at once


@dataclass(frozen=True, slots=True)
class FaissShard:
    """One shard. The vectors stay on the disk until they are searched."""

    path: Path
    """The `.faiss` file."""

    captured_at: NDArray[np.int64]
    """int64[N]: UTC microseconds, ascending."""

    segments: frozenset[str]
    """Keys of the segments whose frames it contains."""

    identity: str
    """Identity of the frame encoder, JSON."""

    files: frozenset[str] = frozenset()
    """Files of the table `frames` that held these frames when the shard was written, as paths below the table."""

    flat: FlatVectors | None = field(default=None, repr=False, compare=False)
    """Vectors on a GPU."""

    def _index(self) -> faiss.Index:
        return faiss.read_index(str(self.path), faiss.IO_FLAG_MMAP_IFC)

    def vectors(self) -> NDArray[np.float32]:
        """The vectors, float32[N, Df]. Raises RuntimeError for a damaged file."""
        index = self._index()
        return index.reconstruct_n(0, index.ntotal)  # type: ignore[no-any-return]

    def scores(
        self, query: NDArray[np.float32], start: int | None, end: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Times int64[n], ascending, and inner products float32[n] of all frames with start ≤ captured_at < end.

        Arguments as in `search`. The vectors are read in blocks, so that a day needs no memory of its size.
        """
        low, high = self._rows(start, end)
        index = self._index()
        values = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)  # type: ignore[attr-defined]
        flat = values.reshape(index.ntotal, index.d)
        result = np.empty(high - low, np.float32)
        for at in range(low, high, _BLOCK):
            until = min(at + _BLOCK, high)
            result[at - low : until - low] = cosines(np.array(flat[at:until]), query)
        return self.captured_at[low:high], result

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of some rows, float32[n, Df]."""
        index = self._index()
        return np.stack([index.reconstruct(row) for row in rows.tolist()])

    def _key(self) -> tuple[str, int, int]:
        """Names the content of the file of vectors."""
        facts = self.path.stat()
        return str(self.path), facts.st_ino, facts.st_mtime_ns

    def _rows(self, start: int | None, end: int | None) -> tuple[int, int]:
        """The first row with captured_at ≥ `start`, and the first one after it with captured_at ≥ `end`."""
        low = 0 if start is None else int(np.searchsorted(self.captured_at, start))
        high = len(self.captured_at) if end is None else int(np.searchsorted(self.captured_at, end))
        return low, max(low, high)

    def search(
        self, query: NDArray[np.float32], top: int, start: int | None, end: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `top` frames with start ≤ captured_at < end that are most similar to `query`, best first.

        Args:
            query: float32[Df], unit norm.
            top: largest number of frames.
            start: UTC microseconds; no limit when None.
            end: likewise, exclusive.

        Returns:
            Times int64[n], UTC microseconds, and inner products float32[n]; n ≤ top.
        """
        low, high = self._rows(start, end)
        top = min(top, high - low)
        if top <= 0:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        if (
            self.flat is not None
            and (near := self.flat.nearest(self._key(), self._index, query, (low, high), top)) is not None
        ):
            scores = cosines(self.rows(near), query)
            order = np.argsort(-scores, kind="stable")
            return self.captured_at[near[order]], scores[order]
        chosen = faiss.SearchParameters(sel=faiss.IDSelectorRange(low, high))  # type: ignore[call-arg]
        scores, rows = self._index().search(query[None], top, params=chosen)
        return self.captured_at[rows[0]], scores[0]


class FaissShards:
    """The shards of one store, by stream and day.

    Args:
        folder: where they are; created when the first one is written.

    Attributes:
        flat: the vectors on a GPU.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.flat = folder, FlatVectors()

    def open(self, stream_id: str, day: str) -> FaissShard | None:
        """The shard of a stream and day (YYYY-MM-DD), or None if it is absent or damaged: a cache raises no error."""
        path = self.folder / encode_stream_id(stream_id) / f"{day}.faiss"
        try:
            side = load_arrays(path.with_suffix(".npz"))
            captured_at, segments = side["captured_at"], frozenset(str(s) for s in side["segments"])
            identity, size = str(side["identity"]), int(side["size"])
            files = frozenset(str(s) for s in side["files"]) if "files" in side else frozenset()
            if path.stat().st_size != size:
                return None
        except DAMAGED_ARRAYS:
            return None
        return FaissShard(path, captured_at, segments, identity, files, self.flat)

    def write(
        self,
        stream_id: str,
        day: str,
        captured_at: NDArray[np.int64],
        vectors: NDArray[np.float32],
        segments: frozenset[str],
        identity: str,
        files: Iterable[str] = (),
    ) -> None:
        """Write the shard of a stream and day; an existing one is replaced.

        Args:
            stream_id: the stream.
            day: UTC day, YYYY-MM-DD.
            captured_at: int64[N], UTC microseconds, ascending.
            vectors: float32[N, Df], unit norm.
            segments: keys of the segments whose frames these are.
            identity: identity of the frame encoder, JSON.
            files: files of the table `frames` that hold these frames, as paths below the table.

        Raises:
            OSError: the shard cannot be written.
        """
        path = self.folder / encode_stream_id(stream_id) / f"{day}.faiss"
        side = path.with_suffix(".npz")
        side.unlink(missing_ok=True)
        self.flat.forget(lambda key: key[0] == str(path))
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors))
        with atomic_file(path, parents=True) as part:
            try:
                faiss.write_index(index, str(part))
            except RuntimeError as error:  # FAISS's error for a full disk
                raise OSError(f"{part}: cannot be written ({error})") from error
        _write_side(FaissShard(path, captured_at, segments, identity, frozenset(files)))

    def relist(self, shard: FaissShard, files: Iterable[str]) -> None:
        """Record that the frames of a shard are in these files now, as after a compaction. Raises OSError."""
        _write_side(replace(shard, files=frozenset(files)))

    def days(self) -> list[tuple[str, str]]:
        """Stream and day of every shard, ascending."""
        return sorted((decode_stream_id(p.parent.name), p.stem) for p in self.folder.glob("*/*.faiss"))

    def drop(self, stream_id: str | None = None, until: str | None = None) -> None:
        """Delete the shards of one stream, or all when None.

        Args:
            stream_id: the stream.
            until: the last UTC day, YYYY-MM-DD, whose shards are deleted; every day when None.
        """
        self.flat.forget()  # what is deleted does not stay in memory
        if stream_id is not None and until is not None:
            for path in (self.folder / encode_stream_id(stream_id)).glob("[0-9]*"):
                if path.name[: len(until)] <= until:
                    path.unlink(missing_ok=True)
            return
        shutil.rmtree(self.folder / encode_stream_id(stream_id) if stream_id else self.folder, ignore_errors=True)


def _write_side(shard: FaissShard) -> None:
    """Write the second file of a shard, whose first one is complete."""
    size = shard.path.stat().st_size

    def write(file: BinaryIO) -> None:
        """Write the arrays of the shard."""
        np.savez(
            file,
            captured_at=shard.captured_at,
            segments=np.array(sorted(shard.segments)),
            identity=np.array(shard.identity),
            size=np.array(size),
            files=np.array(sorted(shard.files), dtype=np.str_),
        )

    write_atomically(shard.path.with_suffix(".npz"), write)
