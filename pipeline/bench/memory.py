"""Benchmark of memory, `sightline bench memory`: peak memory of ingesting minutes and of ingesting hours. Linux only.

The same minute of footage, repeated to two lengths without coding it again, is ingested into a new store by a new
process each time; `python -m pipeline.bench.memory FILE STORE PROFILE` is that process. Peaks are VmHWM from /proc,
because a child's `ru_maxrss` includes the memory of its parent at the fork.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from index.errors import UsageError
from index.store import Store
from ingest.file_ingest import ingest_sources
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from pipeline.bench.footage import camera_footage, repeated

__all__ = ["MemoryReport", "bench_memory", "peak_bytes", "reset_peak"]

_EVERY_SECONDS = 0.1
_MOST_SECONDS = 4 * 3600


class Peaks(BaseModel):
    """One ingest."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    minutes: float
    """Length of the footage."""
    frames: int
    """Frames ingested."""
    ingest_seconds: float
    """Seconds of the ingest."""
    ingest_peak_bytes: int
    """Peak resident memory of the ingesting process."""
    decoder_peak_bytes: int
    """Peak resident memory of the decoder's process."""


class MemoryReport(BaseModel):
    """Result of the benchmark."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    rows: list[Peaks]
    """The short and the long ingest."""
    ingest_ratio: float
    """Peak of the ingesting process: long by short."""
    decoder_ratio: float
    """Peak of the decoder's process: long by short."""


def bench_memory(profile: str = "micro", *, short_minutes: int = 10, long_minutes: int = 180) -> MemoryReport:
    """Ingest both lengths.

    Args:
        profile: name of the profile, or the path of its TOML file.
        short_minutes: the short length.
        long_minutes: the long length.

    Raises:
        UsageError: the system is not Linux, or not 1 ≤ short < long.
    """
    if not Path("/proc/self/status").exists():
        raise UsageError("bench memory reads /proc and runs on Linux only")
    if not 1 <= short_minutes < long_minutes:
        raise UsageError(f"expected 1 ≤ short < long, got {short_minutes} and {long_minutes} minutes")
    rows = []
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        minute = Path(folder) / "minute.mp4"
        camera_footage(minute, gop=250, frames=1800, size=(320, 180))
        for minutes in (short_minutes, long_minutes):
            film = Path(folder) / f"camera-{minutes}.mp4"
            repeated(minute, film, times=minutes)
            rows.append(_in_fresh_process(film, Path(folder) / f"store-{minutes}", profile, minutes))
    first, second = rows
    return MemoryReport(
        profile=profile,
        rows=rows,
        ingest_ratio=second.ingest_peak_bytes / first.ingest_peak_bytes,
        decoder_ratio=second.decoder_peak_bytes / first.decoder_peak_bytes,
    )


def _in_fresh_process(film: Path, store: Path, profile: str, minutes: int) -> Peaks:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.bench.memory", str(film), str(store), profile],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])},
        check=True,
        stdout=subprocess.PIPE,
        timeout=_MOST_SECONDS,
    )
    return Peaks.model_validate_json(done.stdout.splitlines()[-1]).model_copy(update={"minutes": minutes})


class _ChildrenPeak(threading.Thread):
    """Thread that polls the children of this process and keeps the highest VmHWM of any."""

    def __init__(self) -> None:
        super().__init__(name="children-peak", daemon=True)
        self.peak, self._stop_asked = 0, threading.Event()

    def run(self) -> None:
        """Poll until asked to stop."""
        while not self._stop_asked.wait(_EVERY_SECONDS):
            for child in _children():
                self.peak = max(self.peak, peak_bytes(child))

    def stop(self) -> int:
        """Stop polling and return the peak in bytes."""
        self._stop_asked.set()
        self.join()
        return self.peak


def _children() -> list[str]:
    found: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += (task / "children").read_text().split()
    return found


def peak_bytes(pid: str = "self") -> int:
    """Return the peak resident memory of a process (VmHWM), in bytes; 0 for a process that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    """Make the peak of this process its present resident memory, so that `peak_bytes` reports what follows."""
    Path("/proc/self/clear_refs").write_text("5")


def _ingest(film: str, store: str, profile: str) -> Peaks:
    encoders = load_encoders(load_profile(profile))
    children = _ChildrenPeak()
    children.start()
    report = ingest_sources(
        [film], store=Store.create(store, encoders.pair), encoders=encoders, start=datetime(2024, 3, 1, tzinfo=UTC)
    )
    decoder = children.stop()
    return Peaks(
        minutes=report.footage_seconds / 60,
        frames=report.frames,
        ingest_seconds=report.wall_seconds,
        ingest_peak_bytes=peak_bytes("self"),
        decoder_peak_bytes=decoder,
    )


if __name__ == "__main__":
    sys.stdout.write(_ingest(*sys.argv[1:4]).model_dump_json() + "\n")
