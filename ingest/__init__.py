"""From footage to stored frames: sources, isolated decoding, one frame a second, the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingest.decoding.frame import Frame
    from ingest.decoding.sandbox import read_frames

__all__ = ["Frame", "read_frames"]


def __getattr__(name: str) -> Any:
    if name == "read_frames":
        from ingest.decoding.sandbox import read_frames

        return read_frames
    if name == "Frame":
        from ingest.decoding.frame import Frame

        return Frame
    raise AttributeError(f"module 'ingest' has no attribute {name!r}")
