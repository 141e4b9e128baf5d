"""`sightline bench decode`: the decoder beside `ffmpeg -vf fps=1`, on the same files in the same run.

Ours is measured as anybody would use it: `ingest.decoding.sandbox.read_frames`, from starting the decoder's process to the last RGB
frame in this one. ffmpeg decodes, samples, converts nothing and writes nothing.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path
from time import perf_counter

import av
import numpy as np
from pydantic import BaseModel

from ingest.decoding.h264 import h264_disposable, length_bytes
from ingest.decoding.sandbox import Decoding, read_frames
from pipeline.bench.footage import camera_footage, repeated

__all__ = ["DecodeReport", "bench_decode"]

_REPEATS = 3
_GOPS = (250, 30)
_CODED_FRAMES = 750  # 25 s: a whole number of groups of either length, repeated as often as it takes
_START = "2024-03-01T08:00:00Z"


class Run(BaseModel):
    """One way of decoding a file: medians over the repeats. CPU seconds are of all threads and processes."""

    wall_seconds: float
    cpu_seconds: float
    realtime_factor: float


class DecodeRow(BaseModel):
    """One file. `disposable` is the part of H.264 frames that no other refers to (null for other codecs).

    The ratios are ffmpeg's seconds by ours, in the same run: above 1, ours is faster.
    """

    file: str
    seconds: float
    megabits_per_second: float
    disposable: float | None
    decode_mode: str
    frames: int
    ours: Run
    ffmpeg: Run | None
    ratio_to_ffmpeg: float | None
    cpu_ratio_to_ffmpeg: float | None


class DecodeReport(BaseModel):
    """All files, and the machine: what it had to do beside (load average of a minute) before and after."""

    ffmpeg: str | None
    cores: int
    load_before: float
    load_after: float
    rows: list[DecodeRow]


def bench_decode(path: Path | None = None, *, seconds: float = 300.0) -> DecodeReport:
    """Measure `path`, or two files made for it (GOP 250 and GOP 30); runs alternate, medians count."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        files = [path] if path else []
        for gop in () if path else _GOPS:
            coded = Path(folder) / "coded.mp4"
            camera_footage(coded, gop=gop, frames=_CODED_FRAMES)
            files.append(Path(folder) / f"1080p30-gop{gop}.mp4")
            repeated(coded, files[-1], times=max(1, round(seconds * 30 / _CODED_FRAMES)))
        rows = [_row(file, there=shutil.which("ffmpeg") is not None) for file in files]
    return DecodeReport(
        ffmpeg=_ffmpeg_version(), cores=os.cpu_count() or 1, load_before=load, load_after=os.getloadavg()[0], rows=rows
    )


def _row(file: Path, *, there: bool) -> DecodeRow:
    with Decoding(file) as decoding:
        info = decoding.info()
        mode, length = info.mode, info.duration or 0.0
    ours, theirs, count = [], [], 0
    for _ in range(_REPEATS):
        began = _clock()
        count = sum(1 for _ in read_frames(file, start=_START))
        ours.append(_clock() - began)
        if there:
            began = _clock()
            _ffmpeg(file)
            theirs.append(_clock() - began)
    own, other = _run(ours, length), _run(theirs, length) if theirs else None
    return DecodeRow(
        file=file.name,
        seconds=length,
        megabits_per_second=file.stat().st_size * 8e-6 / max(length, 1e-9),
        disposable=_disposable(file),
        decode_mode=mode,
        frames=count,
        ours=own,
        ffmpeg=other,
        ratio_to_ffmpeg=other.wall_seconds / own.wall_seconds if other else None,
        cpu_ratio_to_ffmpeg=other.cpu_seconds / own.cpu_seconds if other else None,
    )


def _clock() -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Wall seconds, and CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return np.array([perf_counter(), sum(u.ru_utime + u.ru_stime for u in used)])


def _run(took: list[np.ndarray[tuple[int], np.dtype[np.float64]]], length: float) -> Run:
    wall, cpu = np.median(took, axis=0)
    return Run(wall_seconds=wall, cpu_seconds=cpu, realtime_factor=length / wall)


def _ffmpeg(path: Path) -> None:
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(path), "-an", "-vf", "fps=1", "-f", "null", "-"],
        check=True,
        stdin=subprocess.DEVNULL,
    )


def _ffmpeg_version() -> str | None:
    if shutil.which("ffmpeg") is None:
        return None
    done = subprocess.run(["ffmpeg", "-version"], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stdout.partition(" Copyright")[0]


def _disposable(path: Path) -> float | None:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if stream.codec_context.name != "h264":
            return None
        lengths = length_bytes(stream.codec_context.extradata)
        marks = [h264_disposable(bytes(packet), lengths) for packet in container.demux(stream) if packet.size]
    return sum(marks) / max(1, len(marks))
