"""Time and counted work of the operations on one store, as it is, sealed and compacted; and of appends as a log grows.

Each operation begins with a store that is opened anew, as a command does. Work is counted by the operating system:
bytes and calls of reads of this process (`/proc/self/io`); what is mapped into memory is not in them. The page cache is
warm or not as the machine left it.

`measure` uses no more of the store than earlier versions have, so that the same file measures two versions of the code
on copies of one store.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.records import FrameRecords
from index.store import Store
from pipeline.bench.scale.synthetic import covering_segment

__all__ = ["machine", "measure", "measure_appends"]

_HOUR = 3_600_000_000
_SECOND = 1_000_000
_AFTER = 86_400 * 400 * _SECOND  # of appended footage, behind all that a synthetic store has
_TOP = 100
_BEGAN = 1_709_251_200_000_000  # 2024-03-01T00:00:00Z


def _counted(operation: Callable[[], object]) -> dict[str, Any]:
    """Seconds, CPU seconds, megabytes and calls of reads of an operation."""
    before, cpu, began = _io(), time.process_time(), time.perf_counter()
    operation()
    seconds, used, after = time.perf_counter() - began, time.process_time() - cpu, _io()
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(used, 3),
        "read_mb": round((after["rchar"] - before["rchar"]) / 1e6, 1),
        "reads": after["syscr"] - before["syscr"],
    }


def _io() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def measure(url: str, query: NDArray[np.float32], *, change: bool = True) -> dict[str, Any]:
    """Measure the operations on a store.

    Args:
        url: the store.
        query: float32[Df], unit norm.
        change: also measure `seal` and `compact`, which change the store, and searches after each of them.

    Returns:
        Figures by operation; see the module's docstring.
    """
    first = Store.open(url).streams()[0]
    hour = (first.first + 8 * _HOUR, first.first + 9 * _HOUR)

    def search(start: int | None = None, end: int | None = None) -> object:
        """A search over all streams."""
        return Store.open(url).search(query, top=_TOP, start=start, end=end)

    operations: list[tuple[str, Callable[[], object]]] = [
        ("streams", lambda: Store.open(url).streams()),
        ("last_frame", lambda: Store.open(url).last_captured_at(first.stream_id)),
        ("window_one_stream_one_hour", lambda: Store.open(url).window([first.stream_id], *hour)),
        ("window_all_streams_one_hour", lambda: Store.open(url).window(None, *hour)),
        ("search_live", search),
        ("search_live_one_hour", lambda: search(*hour)),
        ("verify_quick", lambda: Store.open(url).verify(quick=True)),
        ("verify", lambda: Store.open(url).verify()),
    ]
    if change:
        operations += [
            ("seal", lambda: Store.open(url).seal()),
            ("search_sealed", search),
            ("search_sealed_one_hour", lambda: search(*hour)),
            ("verify_sealed", lambda: Store.open(url).verify()),
            ("compact", lambda: Store.open(url).compact()),
            ("search_compacted", search),
            ("window_compacted_one_hour", lambda: Store.open(url).window(None, *hour)),
            ("verify_quick_compacted", lambda: Store.open(url).verify(quick=True)),
        ]
    return {name: _counted(operation) for name, operation in operations}


def measure_appends(
    url: str,
    marks: Sequence[int],
    *,
    each: int = 100,
    frames: int = 10,
    on_mark: Callable[[str, dict[str, Any]], None] = lambda mark, figures: None,
) -> dict[str, Any]:
    """Append segments of one stream one by one, and time the last `each` of them at certain numbers of commits.

    Args:
        url: the store.
        marks: ascending numbers of appends after which they are timed.
        each: number of appends that are timed: those of one interval between checkpoints, whose costs differ.
        frames: frames of a segment.
        on_mark: called with each mark and its figures.

    Returns:
        For each mark, milliseconds of an append: median, largest, and mean CPU time; and the entries of the log of
        `frames`.
    """
    store = Store.open(url)
    pair, rng = store.encoders, np.random.default_rng(5)
    found: dict[str, Any] = {}
    took: list[float] = []
    used: list[float] = []
    for number in range(marks[-1]):
        start = _BEGAN + _AFTER + number * frames * _SECOND
        vectors = rng.standard_normal((frames, pair.frame.dimension), np.float32)
        records = FrameRecords(
            stream_id="appended",
            clock_source="given",
            captured_at=start + np.arange(frames, dtype=np.int64) * _SECOND,
            pts_seconds=(start - _BEGAN) / 1e6 + np.arange(frames, dtype=np.float64),
            frame_vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
            patch_pooled=np.full((frames, pair.patch.dimension), 0.5, np.float32),
            patches=np.zeros((frames, pair.patches, pair.patch.dimension), np.float16),
            pictures=[b"picture"] * frames,
        )
        segment = covering_segment(records, source="appended", chunk=number)
        began, cpu = time.perf_counter(), time.process_time()
        store.append(segment, records)
        took.append(time.perf_counter() - began)
        used.append(time.process_time() - cpu)
        if number + 1 in marks:
            last = np.array(took[-each:]) * 1e3
            log = sum(name.endswith(".json") for name in os.listdir(f"{store.tables.frames.uri}/_delta_log"))
            found[str(number + 1)] = {
                "median_ms": round(float(np.median(last)), 1),
                "largest_ms": round(float(last.max()), 1),
                "mean_cpu_ms": round(1e3 * float(np.mean(used[-each:])), 1),
                "log_entries": log,
            }
            on_mark(str(number + 1), found[str(number + 1)])
    return found


def machine() -> str:
    """What a figure depends on."""
    return f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
