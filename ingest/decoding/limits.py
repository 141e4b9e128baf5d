"""Limits of the process that decodes a file, and where it decodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["DecodeLimits", "Decoder"]

Decoder = Literal["software", "gpu", "gpu-only"]
"""Where video is decoded: on the processor, on a GPU where that can, or on a GPU alone."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Limits on the resources that decoding one file may use. A file that exceeds one raises DecodeFailed."""

    pixels: int = 64_000_000
    """Largest width × height of a frame."""
    frames: int = 1_000_000
    """Largest number of sampled frames."""
    memory_bytes: int = 6 * 2**30
    """Address space of the process."""
    cpu_seconds: int = 24 * 3600
    """CPU time of the process, all threads together."""
    stall_seconds: float = 60.0
    """Longest time without a message from the process."""
    require_sandbox: bool = False
    """Whether to decode nothing in a process that is not confined, see `ingest.decoding.confinement.require`."""
    decoder: Decoder = "software"
    """Where the file is decoded. `gpu` falls back to software; with `gpu-only` that is an error."""

    def in_software(self) -> DecodeLimits:
        """The same for a file of which little is read: a GPU takes longer to start than that takes."""
        return replace(self, decoder="software")
