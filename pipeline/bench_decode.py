"""`sightline bench decode`: the decoder beside `ffmpeg -vf fps=1`, on the same files in the same run."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import numpy as np
from pydantic import BaseModel

from ingest.sandbox import Decoding
from ingest.writer import VideoWriter

__all__ = ["DecodeReport", "bench_decode"]

_REPEATS = 3
_GOPS = (250, 30)


class DecodeRow(BaseModel):
    """One file. Real-time factors are footage seconds by wall seconds, medians; the ratio is ours by ffmpeg's."""

    file: str
    seconds: float
    decode_mode: str
    frames: int
    realtime_factor: float
    ffmpeg_realtime_factor: float | None
    ratio_to_ffmpeg: float | None


class DecodeReport(BaseModel):
    """All files, and whether ffmpeg was there to compare with."""

    ffmpeg: bool
    rows: list[DecodeRow]


def make_footage(path: Path, *, gop: int, seconds: float) -> None:
    """1080p at 30 frames a second: a textured ground with noise and things that move over it."""
    rng = np.random.default_rng(0)
    ground = rng.integers(60, 180, (1080 // 8, 1920 // 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    noise = rng.integers(0, 12, (4, 1080, 1920, 1), dtype=np.uint8)
    with VideoWriter(path, 1920, 1080, fps=30, gop=gop, created=datetime(2024, 3, 1, tzinfo=UTC)) as writer:
        for i in range(round(seconds * 30)):
            frame = ground + noise[i % 4]
            for thing in range(4):
                x, y = (i * (3 + 2 * thing) + 400 * thing) % 1800, 150 + 220 * thing
                frame[y : y + 120, x : x + 120] = (60 * thing, 255 - 50 * thing, 120)
            writer.write(frame)


def _ours(path: Path) -> tuple[float, str, int]:
    since = perf_counter()
    with Decoding(path) as decoding:
        count = sum(1 for _ in decoding)
        mode = decoding.info().mode
    return perf_counter() - since, mode, count


def _ffmpeg(path: Path) -> float:
    since = perf_counter()
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(path), "-vf", "fps=1", "-f", "null", "-"],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return perf_counter() - since


def bench_decode(path: Path | None = None, *, seconds: float = 60.0) -> DecodeReport:
    """Measure `path`, or two files made for it (GOP 250 and GOP 30); runs alternate, medians count."""
    there = shutil.which("ffmpeg") is not None
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        files = [path] if path else []
        for gop in () if path else _GOPS:
            files.append(Path(folder) / f"1080p30-gop{gop}.mp4")
            make_footage(files[-1], gop=gop, seconds=seconds)
        rows = []
        for file in files:
            ours, theirs = [], []
            with Decoding(file) as first:
                length = first.info().duration or seconds
            for _ in range(_REPEATS):
                took, mode, count = _ours(file)
                ours.append(took)
                if there:
                    theirs.append(_ffmpeg(file))
            factor = length / float(np.median(ours))
            other = length / float(np.median(theirs)) if theirs else None
            rows.append(
                DecodeRow(
                    file=file.name,
                    seconds=length,
                    decode_mode=mode,
                    frames=count,
                    realtime_factor=factor,
                    ffmpeg_realtime_factor=other,
                    ratio_to_ffmpeg=factor / other if other else None,
                )
            )
    return DecodeReport(ffmpeg=there, rows=rows)
