"""Benchmark of keyframe selection, `sightline bench dks`: beside the naive algorithm and the bandwidth of memory.

More than two million frames are in a file that is mapped, and are selected by `index.selectors.streamed` with two
threads.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from index.errors import UsageError
from index.search.windows import LargeWindow
from index.selectors.selector import REDUNDANCIES, Redundancy, SelectionRule
from index.selectors.streamed import dks_streamed
from index.store import Store
from model.profiles.profile import load_profile
from model.selection import select_rows
from pipeline.bench.memory import peak_bytes, reset_peak

__all__ = ["DksReport", "bench_dks"]

_NAIVE_FRAMES = 20_000  # with more frames the N × N matrix takes gigabytes
_REPEATS = 5
_IN_MEMORY = 2_000_000
_BLOCK = 2_048
_MADE = 200_000
_MAPPED = 256 * 2**20


class DksRow(BaseModel):
    """One number of frames; seconds are medians."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    frames: int
    """Frames to select from."""
    dimension: int
    """Dimension of the vectors."""
    keyframes: int
    """Selected keyframes."""
    seconds: float
    """Selection by DKS."""
    cpu_seconds: float | None = None
    """Time of the processors, the system's included; None where it was not measured."""
    naive_seconds: float | None
    """The naive algorithm; None where its matrix is too large."""
    speedup: float | None
    """`naive_seconds` by `seconds`."""
    bytes_read: int
    """Bytes of all vectors, the least that an exact method must read; for a store, of those that were read."""
    flops: int
    """Operations of two dot products a frame."""
    memory_bytes_per_second: float | None
    """Bandwidth of memory, measured in the same run by summing the same array; of a
    file, from the system's cache; None for a store."""
    share_of_memory_bandwidth: float | None
    """Bytes read a second by that bandwidth; None for a store."""
    streamed: bool = False
    """Whether the vectors were read from a file in blocks."""
    redundancy: Redundancy = "fixed"
    """When two frames were alike."""
    memory_bytes: int | None = None
    """Peak resident memory of the process after a streamed selection."""


class DksReport(BaseModel):
    """Result of the benchmark."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    k: int
    """Largest number of keyframes."""
    tau: float
    """Similarity threshold τ."""
    limit: str
    """What limits the speed, in words."""
    rows: list[DksRow]
    """One row for each number of frames."""


def _footage(n: int, d: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Make vectors in scenes of 50 similar frames, as in footage."""
    rng = np.random.default_rng(seed)
    scenes = rng.standard_normal((max(1, n // 50), d), dtype=np.float32)
    frames = scenes[np.repeat(np.arange(len(scenes)), 50)[:n]]
    frames += 0.2 * rng.standard_normal(frames.shape, dtype=np.float32)
    return frames, rng.standard_normal(d, dtype=np.float32)


def _naive(frames: NDArray[np.float32], query: NDArray[np.float32], k: int, tau: float) -> list[int]:
    """ViLAMP, Algorithm 1, with the cosines of all pairs in one matrix."""
    unit = frames / np.linalg.norm(frames, axis=1, keepdims=True)
    scores = unit @ (query / np.linalg.norm(query))
    pairs = unit @ unit.T
    chosen: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        if len(chosen) < k and (not chosen or pairs[i, chosen].max() < tau):
            chosen.append(i)
    return chosen


def bench_dks(
    frames: Sequence[int] = (10_000, 1_000_000),
    dim: int = 512,
    k: int = 32,
    tau: float = 0.85,
    profile: str = "micro",
    store: Path | None = None,
) -> DksReport:
    """Measure the selection of `profile` with `k` and `tau`, on the threads that numpy has (the command sets one).

    With a store, all its frames are selected from, with each redundancy, in place of made ones.
    """
    settings = load_profile(profile)
    rows: list[DksRow] = []
    if store is not None:
        rows = [_stored(Store.open(store), k, tau, redundancy) for redundancy in REDUNDANCIES]
        return DksReport(k=k, tau=tau, limit="decoding of the vectors from Parquet", rows=rows)
    for n in frames:
        if n > _IN_MEMORY:
            rows.append(_streamed(n, dim, k, tau))
            continue
        vectors, query = _footage(n, dim)
        ours, sums, naives = [], [], []
        for repeat in range(_REPEATS):
            since = perf_counter()
            chosen = select_rows(vectors, query, settings, k=k, tau=tau, redundancy="fixed").rows
            ours.append(perf_counter() - since)
            since = perf_counter()
            np.add.reduce(vectors.reshape(-1))
            sums.append(perf_counter() - since)
            if n <= _NAIVE_FRAMES and repeat < 2:
                since = perf_counter()
                _naive(vectors, query, k, tau)
                naives.append(perf_counter() - since)
        seconds, naive = float(np.median(ours)), float(np.median(naives)) if naives else None
        bandwidth = vectors.nbytes / float(np.median(sums))
        rows.append(
            DksRow(
                frames=n,
                dimension=dim,
                keyframes=len(chosen),
                seconds=seconds,
                naive_seconds=naive,
                speedup=naive / seconds if naive else None,
                bytes_read=vectors.nbytes,
                flops=4 * n * dim,
                memory_bytes_per_second=bandwidth,
                share_of_memory_bandwidth=vectors.nbytes / seconds / bandwidth,
            )
        )
    return DksReport(k=k, tau=tau, limit="memory bandwidth: one pass over the vectors", rows=rows)


def _streamed(n: int, dim: int, k: int, tau: float) -> DksRow:
    """Measure the selection among vectors in a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vectors")
        query = np.random.default_rng(0).standard_normal(dim, dtype=np.float32)
        with path.open("wb") as file:
            for first in range(0, n, _MADE):
                _footage(min(_MADE, n - first), dim, seed=first)[0].tofile(file)
        vectors = _FileVectors(path, n, dim)
        with suppress(OSError):  # only Linux has it; else the peak contains the making of the vectors
            reset_peak()
        ours, busy, reads = [], [], []
        for _ in range(_REPEATS):
            since, cpu = perf_counter(), process_time()
            chosen, _ = dks_streamed(vectors, query, SelectionRule(k=k, tau=tau), block=_BLOCK)
            ours.append(perf_counter() - since)
            busy.append(process_time() - cpu)
            since = perf_counter()
            for first in range(0, n, _BLOCK):
                np.add.reduce(vectors.read(first, min(first + _BLOCK, n)).reshape(-1))
            reads.append(perf_counter() - since)
        seconds, bandwidth = float(np.median(ours)), 4 * n * dim / float(np.median(reads))
        return DksRow(
            frames=n,
            dimension=dim,
            keyframes=len(chosen.rows),
            seconds=seconds,
            cpu_seconds=float(np.median(busy)),
            naive_seconds=None,
            speedup=None,
            bytes_read=4 * n * dim,
            flops=4 * n * dim,
            memory_bytes_per_second=bandwidth,
            share_of_memory_bandwidth=4 * n * dim / seconds / bandwidth,
            streamed=True,
            memory_bytes=peak_bytes(),
        )


def _stored(store: Store, k: int, tau: float, redundancy: Redundancy) -> DksRow:
    """Measure one selection among all frames of a store, from its log to the keyframes."""
    with suppress(OSError):
        reset_peak()
    since, cpu, dim = perf_counter(), process_time(), store.encoders.frame.dimension
    large = store.large_window()
    if large is None:
        raise UsageError(f"{store.url} has no frames; make a store with `sightline bench store`")
    query = np.random.default_rng(0).standard_normal(dim, dtype=np.float32)
    counted = _Counted(large)
    chosen, _ = dks_streamed(counted, query, SelectionRule(k=k, tau=tau, redundancy=redundancy))
    seconds, busy = perf_counter() - since, process_time() - cpu
    return DksRow(
        frames=len(large.window),
        dimension=dim,
        redundancy=redundancy,
        keyframes=len(chosen.rows),
        seconds=seconds,
        cpu_seconds=busy,
        naive_seconds=None,
        speedup=None,
        bytes_read=4 * dim * counted.frames,
        flops=4 * dim * counted.frames,
        memory_bytes_per_second=None,
        share_of_memory_bandwidth=None,
        streamed=True,
        memory_bytes=peak_bytes(),
    )


class _Counted:
    """Frames of a window, with the number of those that were read."""

    def __init__(self, window: LargeWindow) -> None:
        self._window, self.frames = window, 0
        self.stream_index = window.stream_index

    def read(self, first: int, last: int) -> NDArray[np.float32]:
        """Some vectors, float32[n, d]."""
        self.frames += last - first
        return self._window.read(first, last)


class _FileVectors:
    """Vectors of one stream in a mapped file, as `index.selectors.streamed.FrameReader`.

    Pages that were read are unmapped soon after, so that they do not count as memory of this process; they stay in the
    system's cache.
    """

    def __init__(self, path: Path, n: int, dim: int) -> None:
        with path.open("rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._vectors = np.frombuffer(self._mapped, np.float32).reshape(n, dim)
        self.stream_index = np.zeros(n, np.int32)

    def read(self, first: int, last: int) -> NDArray[np.float32]:
        """Some vectors, float32[n, d]."""
        width = self._vectors.strides[0]
        done = (first * width - _MAPPED) // _MAPPED * _MAPPED
        if done >= 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED, done, _MAPPED)
        return self._vectors[first:last]
