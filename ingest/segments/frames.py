"""Decoding of one segment into the frames of the seconds that it covers.

Frames are sampled on the grid of UTC seconds (`index.second_grid`), not on seconds since the segment's start. The
sampler gets the offset of the first frame within its UTC second and takes the first frame of every UTC second that the
segment touches. This module does not know where a segment's file comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from index.errors import MessageInvalid, NoFrames, SourceError
from index.second_grid import phase_of
from ingest.decoding.frame import FrameBatch
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding

__all__ = ["SegmentFrames", "decode_segment"]


@dataclass(frozen=True, slots=True)
class SegmentFrames(FrameBatch):
    """The sampled frames of one segment."""

    decode_mode: str
    """How they were decoded, see `ingest.decoding.decoder`."""
    problem: str | None = None
    """Why decoding ended after these frames, None if the whole segment was decoded."""


def decode_segment(path: Path, *, name: str, start: int, duration: float, limits: DecodeLimits) -> SegmentFrames:
    """The frames of a segment's file, one for each UTC second that it touches.

    Args:
        name: name of the segment in error messages.
        start: UTC microseconds of its first frame.
        duration: longest duration in seconds.

    Raises:
        MessageInvalid: the segment is longer than `duration`, or its timestamps reach beyond it.
        NotVideo, NoFrames, DecodeFailed: no frame decodes.
    """
    max_frames = int(duration) + 2  # whole seconds, and a part of a second at either end
    frames = FrameBatch([], [], [])
    problem: str | None = None
    with Decoding(path, name=name, phase=phase_of(start), limits=limits) as decoding:
        info = decoding.info()
        try:
            for pts, pixels in decoding:
                if len(frames) == max_frames:
                    raise MessageInvalid(
                        f"{name}: the segment is longer than its duration of {duration:g} s; produce it again"
                    )
                if pts - info.first > duration + 2:
                    raise MessageInvalid(
                        f"{name}: a frame is {pts - info.first:.0f} s after the start of a segment of {duration:g} s; "
                        "produce the segment again with timestamps that ascend"
                    )
                frames.captured_at.append(start + round((pts - info.first) * 1e6))
                frames.pts_seconds.append(pts)
                frames.pixels.append(pixels)
        except SourceError as error:
            if not frames.pixels:
                raise
            problem = str(error)
    if not frames.pixels:
        raise NoFrames(f"{name}: no frame decodes")
    problem = problem or info.clock_problem(name)
    return SegmentFrames(frames.captured_at, frames.pts_seconds, frames.pixels, info.mode, problem)
