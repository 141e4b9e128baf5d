"""Sealed FAISS shards: one immutable file a stream and day, a cache of what Parquet holds.

A shard is two files: `<day>.faiss` (a flat inner-product index, memory-mapped when read) and `<day>.npz` (capture
times, covered segments, the encoder's digest). The second is written last and by renaming, so a shard is whole or
absent. Flat and exact: a day is 86,400 vectors, which one core scans in some milliseconds, and nothing has to be trained.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from index.files import atomic_file, write_atomically

__all__ = ["FaissShard", "FaissShards"]


@dataclass(frozen=True, slots=True)
class FaissShard:
    """captured_at int64[N] ascending (UTC microseconds); vectors stay in the mapped file until searched."""

    path: Path
    captured_at: NDArray[np.int64]
    segments: frozenset[str]
    identity: str

    def _index(self) -> object:
        import faiss

        return faiss.read_index(str(self.path), faiss.IO_FLAG_MMAP_IFC)

    def vectors(self) -> NDArray[np.float32]:
        """float32[N, Df], as the index holds them."""
        index = self._index()
        return index.reconstruct_n(0, index.ntotal)  # type: ignore[attr-defined, no-any-return]

    def search(
        self, query: NDArray[np.float32], top: int, start: int | None, end: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best `top` frames with start ≤ captured_at < end: their times and scores, best first."""
        import faiss

        low = 0 if start is None else int(np.searchsorted(self.captured_at, start))
        high = len(self.captured_at) if end is None else int(np.searchsorted(self.captured_at, end))
        top = min(top, high - low)
        if top <= 0:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        chosen = faiss.SearchParameters(sel=faiss.IDSelectorRange(low, high))  # type: ignore[call-arg]
        scores, rows = self._index().search(query[None], top, params=chosen)  # type: ignore[attr-defined]
        return self.captured_at[rows[0]], scores[0]


class FaissShards:
    """The shards below one folder, by stream and day."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, stream_id: str, day: str) -> FaissShard | None:
        """The shard, or None when it is absent or does not read back (a cache is never worth an error)."""
        path = self.folder / stream_id / f"{day}.faiss"
        try:
            with np.load(path.with_suffix(".npz")) as side:
                captured_at, segments = side["captured_at"], frozenset(str(s) for s in side["segments"])
                identity, size = str(side["identity"]), int(side["size"])
            if path.stat().st_size != size:
                return None
        except (OSError, ValueError, KeyError, EOFError):
            return None
        return FaissShard(path, captured_at, segments, identity)

    def write(
        self,
        stream_id: str,
        day: str,
        captured_at: NDArray[np.int64],
        vectors: NDArray[np.float32],
        segments: frozenset[str],
        identity: str,
    ) -> None:
        """Seal a day: rows ascending in time, vectors float32[N, Df] of unit norm."""
        import faiss

        path = self.folder / stream_id / f"{day}.faiss"
        side = path.with_suffix(".npz")
        side.unlink(missing_ok=True)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors))
        with atomic_file(path, parents=True) as part:
            faiss.write_index(index, str(part))
        size = path.stat().st_size

        def write(file: BinaryIO) -> None:
            np.savez(
                file,
                captured_at=captured_at,
                segments=np.array(sorted(segments)),
                identity=np.array(identity),
                size=np.array(size),
            )

        write_atomically(side, write)

    def days(self) -> list[tuple[str, str]]:
        """(stream, day) of every shard there is."""
        return sorted((p.parent.name, p.stem) for p in self.folder.glob("*/*.faiss"))

    def drop(self, stream_id: str | None = None) -> None:
        """Remove the shards of one stream, or all."""
        shutil.rmtree(self.folder / stream_id if stream_id else self.folder, ignore_errors=True)
