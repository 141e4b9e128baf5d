"""`sightline bench memory`: does ingesting hours take more memory than ingesting minutes? (Linux: it reads /proc.)

The same minute of footage, repeated to two lengths without coding it again, is ingested into a fresh store by a fresh
process each time; `python -m pipeline.bench.memory FILE STORE PROFILE` is that process. Peaks are VmHWM: a child's
`ru_maxrss` would include what its parent held when it was forked.
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

from pydantic import BaseModel

from index.errors import UsageError
from index.store import Store
from ingest.file_ingest import ingest_sources
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from pipeline.bench.footage import camera_footage, repeated

__all__ = ["MemoryReport", "bench_memory"]

_EVERY_SECONDS = 0.1
_MOST_SECONDS = 4 * 3600


class Peaks(BaseModel):
    """One ingest: highest resident memory of the ingesting process and of the decoder's process, in bytes."""

    minutes: float
    frames: int
    ingest_seconds: float
    ingest_peak_bytes: int
    decoder_peak_bytes: int


class MemoryReport(BaseModel):
    """Both lengths; the ratios are the long one's peak by the short one's."""

    profile: str
    rows: list[Peaks]
    ingest_ratio: float
    decoder_ratio: float


def bench_memory(profile: str = "micro", *, short_minutes: int = 10, long_minutes: int = 180) -> MemoryReport:
    """Ingest both lengths.

    Raises:
        UsageError: not on Linux, or the lengths are not 1 ≤ short < long.
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
    """Looks at this process's children now and then, and remembers the highest VmHWM of any."""

    def __init__(self) -> None:
        super().__init__(name="children-peak", daemon=True)
        self.peak, self._stop_asked = 0, threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(_EVERY_SECONDS):
            for child in _children():
                self.peak = max(self.peak, _peak_of(child))

    def stop(self) -> int:
        self._stop_asked.set()
        self.join()
        return self.peak


def _children() -> list[str]:
    found: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += (task / "children").read_text().split()
    return found


def _peak_of(pid: str) -> int:
    """VmHWM in bytes; 0 of a process that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


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
        ingest_peak_bytes=_peak_of("self"),
        decoder_peak_bytes=decoder,
    )


if __name__ == "__main__":
    sys.stdout.write(_ingest(*sys.argv[1:4]).model_dump_json() + "\n")
