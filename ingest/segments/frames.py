"""Decoding of one segment into the frames of the seconds that it covers.

Frames are sampled on the grid of UTC seconds (`index.second_grid`), not on seconds since the segment's start. The
sampler gets the offset of the first frame within its UTC second and takes the first frame of every UTC second that the
segment touches. A long segment is encoded while it is decoded, a part at a time, so that its pixels are never all in
memory. This module does not know where a segment's file comes from, or what encoding means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from index.errors import MessageInvalid, NoFrames, SourceError
from index.records import FrameRecords
from index.second_grid import phase_of
from ingest.decoding.frame import FrameBatch
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding
from model.encoders.clips import ClipBoundary

__all__ = ["PartEncoder", "SegmentFrames", "decode_segment"]


@dataclass(frozen=True, slots=True)
class PartEncoder:
    """How the parts of a long segment are encoded while the rest is decoded."""

    encode: Callable[[FrameBatch], FrameRecords]
    """Encodes one part and removes its pixels; called in the thread that decodes."""
    max_frames: int
    """Most frames of a part."""
    max_bytes: int
    """Most bytes of pixels of a part; a single clip may have more."""
    clip_frames: int = 1
    """Frames of a clip. A part ends with a clip, because the frames of a clip are encoded together."""

    def full(self, frames: int, size: int, frame_bytes: int) -> bool:
        """Whether a part of `frames` frames and `size` bytes of pixels has no room for a clip, whose frames have
        `frame_bytes` bytes each."""
        return frames + self.clip_frames > self.max_frames or size + self.clip_frames * frame_bytes > self.max_bytes


@dataclass(frozen=True, slots=True)
class SegmentFrames(FrameBatch):
    """The sampled frames of one segment: those of its last part, and the records of the parts before."""

    decode_mode: str
    """How they were decoded, see `ingest.decoding.decoder`."""
    problem: str | None = None
    """Why decoding ended after these frames, None if the whole segment was decoded."""
    encoded: list[FrameRecords] = field(default_factory=list)
    """The frames before, in order, encoded already; empty unless the segment is longer than one part."""


def decode_segment(
    path: Path,
    *,
    name: str,
    start: int,
    duration: float,
    limits: DecodeLimits,
    parts: PartEncoder | None = None,
) -> SegmentFrames:
    """The frames of a segment's file, one for each UTC second that it touches.

    Args:
        name: name of the segment in error messages.
        start: UTC microseconds of its first frame.
        duration: longest duration in seconds.
        parts: encodes the frames in parts, so that at most the pixels of one part are held. All are held when it is
            None, for short footage.

    Raises:
        MessageInvalid: the segment is longer than `duration`, or its timestamps reach beyond it.
        NotVideo, NoFrames, DecodeFailed: no frame decodes.
    """
    max_frames = int(duration) + 2  # whole seconds, and a part of a second at either end
    frames, encoded, count, size = FrameBatch([], [], []), list[FrameRecords](), 0, 0
    problem: str | None = None
    clip = ClipBoundary(parts.clip_frames if parts else 1)
    with Decoding(path, name=name, phase=phase_of(start), limits=limits) as decoding:
        info = decoding.info()
        try:
            for pts, pixels in decoding:
                if count == max_frames:
                    raise MessageInvalid(
                        f"{name}: the segment is longer than its duration of {duration:g} s; produce it again"
                    )
                if pts - info.first > duration + 2:
                    raise MessageInvalid(
                        f"{name}: a frame is {pts - info.first:.0f} s after the start of a segment of {duration:g} s; "
                        "produce the segment again with timestamps that ascend"
                    )
                captured_at = start + round((pts - info.first) * 1e6)
                begins = clip.begins(captured_at)
                if parts and begins and len(frames) and parts.full(len(frames), size, pixels.nbytes):
                    encoded.append(parts.encode(frames))
                    frames, size = FrameBatch([], [], []), 0
                count, size = count + 1, size + pixels.nbytes
                frames.captured_at.append(captured_at)
                frames.pts_seconds.append(pts)
                frames.pixels.append(pixels)
        except SourceError as error:
            if not count:
                raise
            problem = str(error)
    if not count:
        raise NoFrames(f"{name}: no frame decodes")
    problem = problem or info.clock_problem(name)
    return SegmentFrames(frames.captured_at, frames.pts_seconds, frames.pixels, info.mode, problem, encoded)
