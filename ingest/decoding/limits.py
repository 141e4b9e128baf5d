"""What decoding one file may cost."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DecodeLimits"]


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What one file may cost: pixels of a frame, sampled frames, bytes of memory, seconds of CPU, seconds of silence."""

    pixels: int = 64_000_000
    frames: int = 1_000_000
    memory_bytes: int = 6 * 2**30
    cpu_seconds: int = 24 * 3600
    stall_seconds: float = 60.0
