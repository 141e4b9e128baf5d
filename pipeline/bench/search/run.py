"""Benchmark of search over many frames: recall against the exact search, latency, and bytes in memory.

    1. make a store of frames of fixed cameras (`pipeline.bench.search.vectors`), an hour of a camera at a time, and
       keep the best 100 frames of each query while they are made: the exact result
    2. build the large index
    3. search by text: all frames; one hour of all cameras; the exact search on the same store, for comparison

Every search opens a new scope and reads the exact vectors of its candidates from Parquet. Each query is searched twice;
the second time is counted, so files are in the system's cache. Memory is that of the lists and the codebook as the
system counts it after all queries (resident pages of `lists.bin`, and arrays).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow as pa
from deltalake import CommitProperties
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from index.columns import frame_rows
from index.files import load_arrays
from index.records import EncoderIdentity, EncoderPair, FrameRecords
from index.store import Store
from pipeline.bench.search.vectors import CameraVectors

__all__ = ["SearchReport", "SearchTimes", "bench_search"]

_HOUR = 3600
_TOP = 100
_BEGAN = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
_SECOND = 1_000_000
_EXACT_QUERIES = 3


class SearchTimes(BaseModel):
    """Searches of one kind."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    frames: int
    """Frames that were searched."""
    queries: int
    """Number of queries."""
    p50_ms: float
    """Median, in milliseconds."""
    p95_ms: float
    """95th percentile, likewise."""
    recall_at_100: float
    """Share of the best 100 frames of the exact search that were found."""


class SearchReport(BaseModel):
    """Result of the benchmark."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    frames: int
    """Frames in the store."""
    cameras: int
    """Streams."""
    dimension: int
    """Df."""
    lists: int
    """Lists of the index."""
    shards: int
    """Its shards."""
    make_seconds: float
    """Making the store, and the exact result; 0 if it was there."""
    build_seconds: float
    """Building the index; 0 if it was there."""
    disk_bytes_per_frame: float
    """Bytes of the index on the disk a frame, the places of vectors included."""
    resident_bytes_per_frame: float
    """Bytes of lists and codebook in memory after all queries, a frame."""
    everything: SearchTimes
    """All frames."""
    one_hour: SearchTimes
    """One hour of all cameras."""
    exact: SearchTimes | None
    """The exact search of all frames of the same store; None if it was left out."""
    load: float
    """Load of the machine at the end, of the last minute: more than its cores means that others ran."""


def bench_search(
    frames: int,
    *,
    cameras: int = 200,
    dimension: int = 512,
    queries: int = 100,
    work: Path | None = None,
    exact: bool = True,
) -> SearchReport:
    """Measure search over `frames` frames.

    Args:
        frames: number of frames; whole hours of cameras, so a little more may be made.
        cameras: number of streams.
        dimension: Df.
        queries: number of texts.
        work: folder for the store, which a later run uses again; a temporary one if None.
        exact: also measure the exact search.
    """
    folder = work or Path(tempfile.mkdtemp(prefix="sightline-search-"))
    try:
        return _bench(folder, frames, cameras, dimension, queries, exact)
    finally:
        if work is None:
            shutil.rmtree(folder, ignore_errors=True)


def _bench(folder: Path, frames: int, cameras: int, dimension: int, queries: int, exact: bool) -> SearchReport:
    source = CameraVectors(cameras, dimension)
    texts = source.texts(queries)
    best_file, since = folder / f"best-{frames}-{queries}.npz", perf_counter()
    made = not best_file.exists()
    if made:  # a run that was stopped may have left a part
        shutil.rmtree(folder / "store", ignore_errors=True)
    store = Store.open_or_create(folder / "store", _pair(dimension))
    if made:
        best = _make(store, source, frames, texts)
        np.savez(best_file, *best)
    best = list(load_arrays(best_file).values())
    make_seconds, since = perf_counter() - since if made else 0.0, perf_counter()
    large = store.vectors.large
    built = large.build()
    build_seconds = perf_counter() - since if built.rows else 0.0
    store.vectors.flat_rows = 0
    everything = _measure(store, texts, best[0], None)
    one_hour = _measure(store, texts, best[1], _BEGAN)
    shards, codebook = large.catalog.shards(), large.catalog.codebook
    held_frames = sum(map(len, shards))
    centroids = 0 if codebook is None else codebook.nbytes
    compared = None
    if exact:
        store.vectors.flat_rows = 10**12
        compared = _measure(store, texts[:_EXACT_QUERIES], best[0][:_EXACT_QUERIES], None)
    return SearchReport(
        frames=held_frames,
        cameras=cameras,
        dimension=dimension,
        lists=0 if codebook is None else codebook.lists,
        shards=len(shards),
        make_seconds=round(make_seconds, 1),
        build_seconds=round(build_seconds, 1),
        disk_bytes_per_frame=round((sum(each.nbytes for each in shards) + centroids) / held_frames, 1),
        resident_bytes_per_frame=round((_resident("lists.bin") + centroids) / held_frames, 1),
        everything=everything,
        one_hour=one_hour,
        exact=compared,
        load=round(os.getloadavg()[0], 1),
    )


def _make(store: Store, source: CameraVectors, frames: int, texts: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    """Store the frames; the best 100 of each text, in all frames and in the first hour, as camera · 10^10 + second."""
    hours = max(1, -(-frames // (_HOUR * source.cameras)))
    count, table = min(frames, hours * source.cameras * _HOUR), store.tables.frames
    keys = [np.zeros((len(texts), 0), np.int64)] * 2
    scores = [np.zeros((len(texts), 0), np.float32)] * 2
    done = 0
    for hour in range(hours):
        rows: list[pa.Table] = []
        for camera in range(source.cameras):
            vectors = source.hour(camera, hour)[: count - done]
            if not len(vectors):
                break
            rows.append(_rows(camera, hour, vectors))
            done += len(vectors)
            found = texts @ vectors.T
            at = camera * 10**10 + hour * _HOUR + np.arange(len(vectors))
            for kind in (0, 1) if hour == 0 else (0,):
                both = np.concatenate([scores[kind], found], axis=1)
                names = np.concatenate([keys[kind], np.broadcast_to(at, found.shape)], axis=1)
                top = np.argpartition(-both, min(_TOP, both.shape[1]) - 1, axis=1)[:, :_TOP]
                scores[kind], keys[kind] = np.take_along_axis(both, top, 1), np.take_along_axis(names, top, 1)
            if len(rows) >= 20 or done >= count:
                table.write(table.open(), pa.concat_tables(rows), CommitProperties())
                rows = []
        if rows:
            table.write(table.open(), pa.concat_tables(rows), CommitProperties())
    return keys


def _rows(camera: int, hour: int, vectors: NDArray[np.float32]) -> pa.Table:
    count = len(vectors)
    seconds = hour * _HOUR + np.arange(count)
    records = FrameRecords(
        stream_id=f"camera-{camera:03}",
        clock_source="given",
        captured_at=_BEGAN + seconds * _SECOND,
        pts_seconds=seconds.astype(np.float64),
        frame_vectors=vectors,
        patch_pooled=np.ones((count, 1), np.float32),
        patches=np.zeros((count, 1, 1), np.float16),
        pictures=[b""] * count,
    )
    return frame_rows(f"{camera}/{hour}", records)


def _measure(store: Store, texts: NDArray[np.float32], best: NDArray[np.int64], start: int | None) -> SearchTimes:
    """Search for each text; `start` searches the hour that begins there."""
    end = None if start is None else start + _HOUR * _SECOND
    streams = store.check_scope()
    seconds, found = [], []
    for text, wanted in zip(texts, best, strict=True):
        for _ in range(2):
            since = perf_counter()
            hits = store.vectors.search(text, streams, start, end, _TOP)
            taken = perf_counter() - since
        seconds.append(taken)
        keys = [int(hit.stream_id[-3:]) * 10**10 + (hit.captured_at - _BEGAN) // _SECOND for hit in hits]
        found.append(np.isin(wanted, keys).mean())
    scope = store.vectors.large.scope(streams, start, end)
    return SearchTimes(
        frames=0 if scope is None else scope.rows,
        queries=len(texts),
        p50_ms=round(1e3 * float(np.median(seconds)), 2),
        p95_ms=round(1e3 * float(np.quantile(seconds, 0.95)), 2),
        recall_at_100=round(float(np.mean(found)), 4),
    )


def _resident(name: str) -> int:
    """Bytes of the mapped files of this name that are in memory, as Linux counts them; 0 where it does not."""
    total, inside = 0, False
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        head = line.split()
        if "-" in head[0] and ":" not in head[0]:
            inside = line.endswith(name)
        elif inside and head[0] == "Rss:":
            total += 1024 * int(head[1])
    return total


def _pair(dimension: int) -> EncoderPair:
    made = {"revision": "1", "weights_digest": "made", "preprocessing_digest": "made"}
    return EncoderPair(
        frame=EncoderIdentity(name="made", dimension=dimension, **made),
        patch=EncoderIdentity(name="made", dimension=1, **made),
        patches=1,
    )
