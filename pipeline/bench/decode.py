"""Benchmark of decoding, `sightline bench decode`: the decoder beside `ffmpeg -vf fps=1`, on the same files in turn.

The decoder is measured from the request for the decoder's process to the last RGB frame in this process. The fork
server runs already, as in every run of more than one file; the CPU seconds are those of this process and of the
decoder's. ffmpeg decodes and samples, and neither converts nor writes anything.
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
from pydantic import BaseModel, ConfigDict

from ingest.decoding.h264 import h264_disposable, length_bytes
from ingest.decoding.sandbox import Decoding
from pipeline.bench.footage import camera_footage, repeated

__all__ = ["DecodeReport", "bench_decode"]

_REPEATS = 3
_GOPS = (250, 30)
_CODED_FRAMES = 750  # 25 s: a whole number of groups of pictures of either length, repeated to the wanted length


class Run(BaseModel):
    """One way of decoding a file: medians over the repeats."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    wall_seconds: float
    """Seconds of wall time."""
    cpu_seconds: float
    """CPU seconds of all threads and processes."""
    realtime_factor: float
    """Seconds of footage decoded a second."""


class DecodeRow(BaseModel):
    """One file."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    file: str
    """Name of the file."""
    seconds: float
    """Length of its footage."""
    megabits_per_second: float
    """Bit rate."""
    disposable: float | None
    """Share of H.264 frames that no other frame refers to; None for other codecs."""
    decode_mode: str
    """How the decoder reads the file (see `ingest.decoding`)."""
    frames: int
    """Frames that are sampled."""
    ours: Run
    """The decoder of Sightline."""
    ffmpeg: Run | None
    """ffmpeg; None if it is not installed."""
    ratio_to_ffmpeg: float | None
    """ffmpeg's wall seconds by ours: above 1, ours is faster."""
    cpu_ratio_to_ffmpeg: float | None
    """ffmpeg's CPU seconds by ours."""


class DecodeReport(BaseModel):
    """Result of the benchmark."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    ffmpeg: str | None
    """Version of ffmpeg; None if it is not installed."""
    cores: int
    """Cores of the machine."""
    load_before: float
    """Load average before the benchmark (one minute)."""
    load_after: float
    """Load average after it."""
    rows: list[DecodeRow]
    """One row for each file."""


def bench_decode(path: Path | None = None, *, seconds: float = 300.0) -> DecodeReport:
    """Measure both decoders; runs alternate, medians count.

    Args:
        path: a video file; two files (GOP 250 and GOP 30) are made if None.
        seconds: length of the files that are made.
    """
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
        with Decoding(file) as decoding:
            count = sum(1 for _ in decoding)
        # The decoder is the fork server's child and not ours: the server reports what it used.
        ours.append(_clock() - began + np.array([0.0, decoding.process.cpu_seconds or 0.0]))
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
    """Wall seconds, and CPU seconds of this process and of its finished children."""
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
