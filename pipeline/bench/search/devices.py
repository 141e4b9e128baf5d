"""Benchmark of FAISS on a GPU beside the CPU: building the large index, and exact search of vectors in memory.

    1. make vectors of fixed cameras (`pipeline.bench.search.vectors`), in several processes
    2. on each device train a codebook, assign all vectors to lists, and make their codes, which the CPU does on both
    3. on each device search exactly by text, one query at a time

Everything is in memory: reading Parquet and writing shards are not part of it. What both devices find is compared.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter, process_time

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from index.child_processes import process_pool
from index.errors import UsageError
from index.files import load_array
from index.search.ann.codebook import Codebook, SampleOfFrames, lists_for, train
from index.search.gpu import GPU, FlatVectors
from pipeline.bench.search.vectors import CameraVectors

__all__ = ["DeviceReport", "DeviceTimes", "bench_devices"]

_HOUR = 3600
_TOP = 100
_BATCH = 65_536
_MOST_FLAT = 2_000_000


class DeviceTimes(BaseModel):
    """What one device took."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    train_seconds: float
    """Training the codebook."""
    assign_seconds: float
    """Assigning all vectors to lists; on a GPU with the copies to and from it."""
    build_seconds: float
    """Training, rotation, assignment and codes together."""
    build_cpu_seconds: float
    """Seconds of the processor, of all cores, in that time."""
    first_search_ms: float
    """The first exact search, on a GPU with the copy of all vectors, in milliseconds."""
    search_ms: float
    """Median of the exact searches after it, one query at a time, in milliseconds."""
    squared_error: float
    """Mean squared distance of the training sample and its nearest centroids."""


class DeviceReport(BaseModel):
    """Result of the benchmark."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    frames: int
    """Vectors in the lists."""
    flat_frames: int
    """Vectors that are searched exactly."""
    dimension: int
    """Df."""
    lists: int
    """Lists."""
    cores: int
    """Cores of this process."""
    faiss: str
    """Version of FAISS."""
    cpu: DeviceTimes
    """The CPU."""
    gpu: DeviceTimes
    """The GPU."""
    same_lists: float
    """Share of the vectors that both devices assign to the same list of one codebook."""
    same_hits: float
    """Share of the best 100 vectors of a query that both devices find."""
    load: float
    """Load of the machine at the end, of the last minute."""


def bench_devices(
    frames: int, *, cameras: int = 200, dimension: int = 512, queries: int = 50, work: Path | None = None
) -> DeviceReport:
    """Compare the GPU and the CPU.

    Args:
        frames: number of vectors, in whole hours of cameras.
        cameras: number of streams.
        dimension: Df.
        queries: number of texts.
        work: folder for the vectors; a temporary one if None.

    Raises:
        UsageError: FAISS has no GPU here.
    """
    if GPU.choice.device == "cpu":
        raise UsageError(f"FAISS uses no GPU: {GPU.choice.reason}; install the extra `gpu` on a machine with one")
    cores = len(os.sched_getaffinity(0))
    source = CameraVectors(cameras, dimension)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        vectors = _made(Path(folder) / "vectors.npy", source, frames, cores)
        lists = lists_for(len(vectors))
        sample = SampleOfFrames(lists, dimension)
        hours = len(vectors) // _HOUR
        chosen = np.unique(np.linspace(0, hours - 1, min(hours, 1 + 4 * sample.wanted // _HOUR)).round()).tolist()
        for number, hour in enumerate(chosen):
            rows = np.array(vectors[int(hour) * _HOUR : (int(hour) + 1) * _HOUR])
            (sample.hold_out if number % 8 == 7 else sample.add)(rows)
        flat = min(len(vectors), _MOST_FLAT)
        exact = faiss.IndexFlatIP(dimension)
        exact.add(np.ascontiguousarray(vectors[:flat]))
        texts = source.texts(queries)
        kept = FlatVectors()
        searches: dict[str, Callable[[NDArray[np.float32]], NDArray[np.int64]]] = {
            "cpu": lambda text: exact.search(text[None], _TOP)[1][0],
            "gpu": partial(_on_gpu, kept, exact),
        }
        few = SampleOfFrames(64, dimension)
        few.add(np.array(vectors[:5_000]))
        _build(few, 64, vectors[:5_000])  # loads libraries and makes the GPU ready
        times, codebooks, hits = dict[str, DeviceTimes](), dict[str, Codebook](), dict[str, list[set[int]]]()
        for device in ("cpu", "gpu"):
            with GPU.paused() if device == "cpu" else nullcontext():
                began, busy = perf_counter(), process_time()
                codebook, training, assigning = _build(sample, lists, vectors)
                building, busy = perf_counter() - began, process_time() - busy
                first, median, hits[device] = _search(searches[device], texts)
                codebooks[device] = codebook
                error = _error(codebook, sample.rare())
            times[device] = DeviceTimes(
                train_seconds=training,
                assign_seconds=assigning,
                build_seconds=building,
                build_cpu_seconds=busy,
                first_search_ms=first,
                search_ms=median,
                squared_error=error,
            )
        same = _same(codebooks["gpu"], vectors)
    return DeviceReport(
        frames=len(vectors),
        flat_frames=flat,
        dimension=dimension,
        lists=lists,
        cores=cores,
        faiss=faiss.__version__,
        cpu=times["cpu"],
        gpu=times["gpu"],
        same_lists=same,
        same_hits=float(np.mean([len(a & b) / _TOP for a, b in zip(hits["cpu"], hits["gpu"], strict=True)])),
        load=os.getloadavg()[0],
    )


def _made(path: Path, source: CameraVectors, frames: int, processes: int) -> NDArray[np.float32]:
    """Vectors float32[n, d] in a file, hours of all cameras one after the other."""
    hours = -(-frames // _HOUR)
    np.lib.format.open_memmap(path, "w+", np.float32, (hours * _HOUR, source.dimension)).flush()
    work = [(path, source.cameras, source.dimension, source.seed, each) for each in range(hours)]
    with process_pool(processes) as pool:
        list(pool.map(_make, work, chunksize=4))
    return load_array(path, mapped=True)


_sources: dict[tuple[int, int, int], CameraVectors] = {}


def _make(work: tuple[Path, int, int, int, int]) -> None:
    """Make one hour, in a process of the pool."""
    path, *source, number = work
    key = (int(source[0]), int(source[1]), int(source[2]))
    made = _sources.setdefault(key, CameraVectors(*key))
    out = np.lib.format.open_memmap(path, "r+")
    out[number * _HOUR : (number + 1) * _HOUR] = made.hour(number % made.cameras, number // made.cameras)


def _build(sample: SampleOfFrames, lists: int, vectors: NDArray[np.float32]) -> tuple[Codebook, float, float]:
    """Train a codebook and encode all vectors; returns it, and the seconds of training and of assigning."""
    began = perf_counter()
    codebook = train(sample, lists, identity="bench", rows=len(vectors))
    training, assigning = perf_counter() - began, 0.0
    for at in range(0, len(vectors), _BATCH):
        rotated = codebook.rotated(vectors[at : at + _BATCH])
        began = perf_counter()
        places, _ = codebook.assign(rotated)
        assigning += perf_counter() - began
        codebook.encode(rotated, places)
    return codebook, training, assigning


def _on_gpu(kept: FlatVectors, exact: faiss.IndexFlatIP, text: NDArray[np.float32]) -> NDArray[np.int64]:
    found = kept.nearest("all", lambda: exact, text, (0, exact.ntotal), _TOP)
    if found is None:
        raise UsageError("the vectors do not fit into the memory of the GPU; take fewer frames")
    return found


def _search(
    search: Callable[[NDArray[np.float32]], NDArray[np.int64]], texts: NDArray[np.float32]
) -> tuple[float, float, list[set[int]]]:
    """Milliseconds of the first search and the median of all texts, and what was found."""
    took, found = list[float](), list[set[int]]()
    for text in [texts[0], *texts]:
        began = perf_counter()
        rows = search(text)
        took.append(1000 * (perf_counter() - began))
        found.append(set(rows.tolist()))
    return took[0], float(np.median(took[1:])), found[1:]


def _error(codebook: Codebook, sample: NDArray[np.float32]) -> float:
    """Mean squared distance of vectors and the centroids of their lists."""
    total = 0.0
    for at in range(0, len(sample), _BATCH):
        rotated = codebook.rotated(sample[at : at + _BATCH])
        apart = rotated - codebook.centroids[codebook.assign(rotated)[0]]
        total += float(np.einsum("nd,nd->", apart, apart))
    return total / len(sample)


def _same(codebook: Codebook, vectors: NDArray[np.float32]) -> float:
    """Share of at most a million vectors whose list is the same on both devices."""
    same = count = 0
    for at in range(0, min(len(vectors), 1_000_000), _BATCH):
        rotated = codebook.rotated(vectors[at : at + _BATCH])
        found, _ = codebook.assign(rotated)
        with GPU.paused():
            same += int((codebook.assign(rotated)[0] == found).sum())
        count += len(found)
    return same / count
