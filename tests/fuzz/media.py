"""Damaged and hostile video files: whatever they hold, the parent lives, and the file ends in frames or in a typed error.

Small sound files of several containers are mutated: bits flipped, bytes cut out, doubled or spliced from another file, numbers
set to extremes, the end cut off. A seed and a number name a case, so that one that fails can be made again.
"""

from __future__ import annotations

import random
import resource
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from index.errors import SourceError
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding
from tests.support.footage import make_video

__all__ = ["MediaResult", "fuzz_media", "mutations", "sound_files"]

LIMITS = DecodeLimits(frames=2000, memory_bytes=2 * 2**30, cpu_seconds=20, stall_seconds=30.0)
"""Bounds of one case."""

_EXTREMES = [
    bytes(4),
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x00",
    b"\xff" * 8,
    bytes(8),
    b"\x00\x00\x00\x01",
]


def sound_files(folder: Path) -> list[bytes]:
    """Three seconds of footage in each of several containers and codecs."""
    kinds = [("a.mp4", "libx264"), ("b.mkv", "libx264"), ("c.ts", "libx264"), ("d.avi", "mpeg4"), ("e.flv", "libx264")]
    kinds += [("f.mkv", "mjpeg"), ("g.mp4", "mpeg4"), ("h.mpg", "mpeg2video")]
    files = []
    for name, codec in kinds:
        rate = 25 if codec == "mpeg2video" else 5
        make_video(folder / name, seconds=3, rate=rate, codec=codec, gop=5, pixel_format=_pixels(codec))
        files.append((folder / name).read_bytes())
    return files


def _pixels(codec: str) -> str:
    return "yuvj420p" if codec == "mjpeg" else "yuv420p"


def mutations(files: Sequence[bytes], seed: int, cases: int, first: int = 0) -> Iterator[bytes]:
    """Case `first` and those behind it; each depends on the seed and its number alone."""
    for number in range(first, first + cases):
        rng = random.Random(f"{seed}/{number}")
        data = bytearray(rng.choice(files))
        for _ in range(rng.choice([1, 1, 2, 3, 8, 30])):
            _mutate(rng, data, files)
        yield bytes(data)


def _mutate(rng: random.Random, data: bytearray, files: Sequence[bytes]) -> None:
    if not data:
        data += rng.randbytes(64)
    # Most of what a demuxer believes stands at the start and, in MP4, at the end.
    at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(512, len(data)))
    if rng.random() < 0.2:
        at = max(0, len(data) - 1 - rng.randrange(min(1024, len(data))))
    match rng.randrange(7):
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            data[at] = rng.randrange(256)
        case 2:
            value = rng.choice(_EXTREMES)
            data[at : at + len(value)] = value
        case 3:
            del data[at : at + rng.randrange(1, 200)]
        case 4:
            data[at:at] = data[at : at + rng.randrange(1, 400)]
        case 5:
            other = rng.choice(files)
            start = rng.randrange(len(other))
            data[at : at + rng.randrange(1, 2000)] = other[start : start + rng.randrange(1, 2000)]
        case _:
            del data[rng.randrange(1, len(data) + 1) :]


@dataclass(slots=True)
class MediaResult:
    """What became of all cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """How many ended whole (`frames`), or with each type of error."""
    failures: list[tuple[int, str]] = field(default_factory=list)
    """Number and reason of each case that broke a promise."""
    seconds: float = 0.0
    """Seconds that all took."""
    slowest: float = 0.0
    """Seconds of the slowest case."""
    peak_mib: float = 0.0
    """Peak resident memory of this process, in MiB."""


def fuzz_media(folder: Path, *, seed: int, cases: int, first: int = 0) -> MediaResult:
    """Decode `cases` mutated files; see `MediaResult` for what is counted."""
    result, path, began = MediaResult(), folder / "case.bin", time.monotonic()
    for number, data in enumerate(mutations(sound_files(folder), seed, cases, first), start=first):
        path.write_bytes(data)
        since = time.monotonic()
        outcome = "frames"
        try:
            with Decoding(path, limits=LIMITS) as decoding:
                times = [pts for pts, _ in decoding]
            if any(b <= a for a, b in pairwise(times)):
                result.failures.append((number, f"times do not ascend: {times[:20]}"))
        except SourceError as error:
            outcome = type(error).__name__
            if "exit code" in str(error):
                result.failures.append((number, str(error)))
        except Exception as error:
            result.failures.append((number, f"untyped {type(error).__name__}: {error}"))
        result.outcomes[outcome] += 1
        result.slowest = max(result.slowest, time.monotonic() - since)
    result.seconds = time.monotonic() - began
    result.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result
