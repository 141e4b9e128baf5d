"""Loading of patches from a store, measured beside a plain sequential read of the same files in the same run."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from deltalake import DeltaTable
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from index.patches.codec import PatchEncoding
from index.records import EncoderIdentity, EncoderPair, FrameRecords, Segment
from index.store import Store
from index.window import Window

__all__ = ["LoadRow", "bench_load", "fill", "full_size", "patch_bytes"]

BEGAN = 1_709_280_000_000_000
SEGMENT = 300
_REPEATS = 3


class LoadRow(BaseModel):
    """Loading one window; seconds are medians."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    encoding: str
    """How the store keeps patches."""
    frames: int
    """Frames of the window."""
    shape: list[int]
    """Patches a frame and their dimension, [M, D]."""
    file_bytes: int
    """Bytes of the Parquet files."""
    patch_bytes: int
    """Bytes of the loaded patches."""
    write_seconds: float
    """Writing the store."""
    plain_cold_seconds: float
    """Reading the files and nothing else, not in the page cache."""
    plain_bytes_per_second: float
    """Bytes of the files read a second by that."""
    load_cold_seconds: float
    """Loading the patches, files not in the page cache."""
    load_warm_seconds: float
    """Loading the patches, files in the page cache."""
    load_warm_cpu_seconds: float
    """CPU seconds of all threads for that; comparable where the machine does other work."""
    first_touch_warm_seconds: float
    """Loading into memory that was never written before; the other loads fill the same array again."""
    file_bytes_per_second: float
    """Bytes of the files a second, cold."""
    patch_bytes_per_second: float
    """Bytes of patches a second, cold."""
    share_of_plain_read: float
    """`plain_cold_seconds` by `load_cold_seconds`."""


def patch_files(store: Store) -> list[Path]:
    """Return the live Parquet files of a local store's patches."""
    return [Path(path.removeprefix("file://")) for path in DeltaTable(f"{store.url}/patches").file_uris()]


def patch_bytes(store: Store) -> int:
    """Return the bytes on disk of a local store's patches."""
    return sum(path.stat().st_size for path in patch_files(store))


def fill(
    url: Path, pair: EncoderPair, encoding: PatchEncoding, patches: NDArray[np.float16], captured_at: NDArray[np.int64]
) -> Store:
    """Create a store of one stream, `camera`, in segments of five minutes.

    Args:
        url: folder of the store.
        pair: identity of the encoders.
        encoding: how the store keeps patches.
        patches: float16[N, M, D]; the frame vectors are zero.
        captured_at: capture times, UTC microseconds, int64[N].
    """
    store = Store.create(url, pair, encoding)
    for chunk, first in enumerate(range(0, len(patches), SEGMENT)):
        some = slice(first, min(first + SEGMENT, len(patches)))
        count = some.stop - first
        records = FrameRecords(
            stream_id="camera",
            clock_source="given",
            captured_at=captured_at[some],
            pts_seconds=np.arange(first, some.stop, dtype=np.float64),
            frame_vectors=np.zeros((count, pair.frame.dimension), np.float32),
            patch_pooled=np.zeros((count, pair.patch.dimension), np.float32),
            patches=patches[some],
            pictures=[b""] * count,
        )
        segment = Segment(
            stream_id="camera",
            source="bench",
            chunk=chunk,
            uri="bench",
            start=int(captured_at[first]),
            end=int(captured_at[some.stop - 1]) + 1_000_000,
            frames=count,
            decode_mode="all",
            clock_source="given",
        )
        store.append(segment, records)
    return store


def full_size(frames: int, *, m: int = 729, d: int = 1152) -> tuple[EncoderPair, NDArray[np.float16]]:
    """Make patches of the size of SigLIP-so400m: a still scene with noise, in which a twentieth of the patches changes.

    Returns:
        Identity of the synthetic encoders, and patches float16[frames, m, d].
    """
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(m * d + frames, dtype=np.float32)
    scene = rng.standard_normal((m, d), dtype=np.float32)
    result = np.empty((frames, m, d), np.float16)
    for i in range(frames):
        moved = rng.random(m) < 0.05
        scene[moved] = scene[rng.permutation(m)[: int(moved.sum())]]
        result[i] = scene + 0.02 * noise[i : i + m * d].reshape(m, d)

    def identity(name: str, dimension: int) -> EncoderIdentity:
        return EncoderIdentity(
            name=name, revision="0", weights_digest="0", preprocessing_digest="0", dimension=dimension
        )

    return EncoderPair(frame=identity("synthetic", 8), patch=identity("synthetic", d), patches=m), result


def bench_load(
    work: Path | None, pair: EncoderPair, encoding: PatchEncoding, patches: NDArray[np.float16], frames: int
) -> LoadRow:
    """Write `frames` frames, repeating `patches`, to a store in `work`, and time loading them."""
    rows = np.arange(frames) % len(patches)
    captured_at = BEGAN + np.arange(frames, dtype=np.int64) * 1_000_000
    with tempfile.TemporaryDirectory(prefix="sightline-bench-", dir=work) as folder:
        since = perf_counter()
        store = fill(Path(folder), pair, encoding, patches if frames == len(patches) else patches[rows], captured_at)
        written = perf_counter() - since
        files, window = patch_files(store), store.window()
        size = sum(file.stat().st_size for file in files)
        seconds: dict[str, list[float]] = {name: [] for name in ("plain", "cold", "warm", "cpu", "first")}
        out = np.zeros((frames, *patches.shape[1:]), np.float16)
        for _ in range(_REPEATS):
            _forget_cache(files)
            seconds["plain"].append(_plain(files))
            _forget_cache(files)
            seconds["cold"].append(_timed(store, window, out))
            since = process_time()
            seconds["warm"].append(_timed(store, window, out))
            seconds["cpu"].append(process_time() - since)
            seconds["first"].append(_timed(store, window, None))
    plain, cold, warm, cpu, first = (float(np.median(values)) for values in seconds.values())
    return LoadRow(
        encoding=str(encoding),
        frames=frames,
        shape=list(patches.shape[1:]),
        file_bytes=size,
        patch_bytes=out.nbytes,
        write_seconds=written,
        plain_cold_seconds=plain,
        plain_bytes_per_second=size / plain,
        load_cold_seconds=cold,
        load_warm_seconds=warm,
        load_warm_cpu_seconds=cpu,
        first_touch_warm_seconds=first,
        file_bytes_per_second=size / cold,
        patch_bytes_per_second=out.nbytes / cold,
        share_of_plain_read=plain / cold,
    )


def _timed(store: Store, window: Window, out: NDArray[np.float16] | None) -> float:
    since = perf_counter()
    store.patches(window, out)
    return perf_counter() - since


def _plain(files: list[Path]) -> float:
    """Time reading every file from start to end, 4 MiB at a time into one buffer, as `dd bs=4M` does."""
    buffer = bytearray(4 * 2**20)
    since = perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return perf_counter() - since


def _forget_cache(files: list[Path]) -> None:
    """Sync the files and drop their pages from the cache. The kernel follows this advice for clean pages."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
