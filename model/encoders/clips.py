"""Clips: which frames a clip encoder reads together, by their capture times.

A profile with a `hico` section reads footage by clips of a few frames. Where a clip begins follows from the capture
times alone: cells of UTC time, `clip_frames` seconds long. Ingest, which encodes clips, and a question, which reads
them, therefore agree on them although nothing is stored about clips. Knows numbers, no pictures and no encoders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.errors import UsageError

__all__ = ["ClipBoundary", "clip_batches", "clip_numbers"]

_SECOND = 1_000_000


def clip_numbers(
    captured_at: ArrayLike, stream_index: ArrayLike | None = None, clip_frames: int = 4
) -> NDArray[np.int64]:
    """The clip of each of N frames, int64[N], numbered from 0.

    A clip begins where the stream changes, where the cell of UTC time changes (`captured_at` divided by `clip_frames`
    seconds), and after `clip_frames` frames. A clip has fewer frames where footage has a gap, begins or ends.

    Args:
        captured_at: capture times, int64[N], UTC microseconds, in order within a stream.
        stream_index: a number for each frame, int[N], that differs between streams; None if all are of one stream.
        clip_frames: most frames of a clip.

    Raises:
        UsageError: `clip_frames` is below 1, or the arrays differ in length.
    """
    times = np.asarray(captured_at, np.int64)
    streams = np.zeros(len(times), np.int64) if stream_index is None else np.asarray(stream_index, np.int64)
    if clip_frames < 1:
        raise UsageError(f"clip_frames must be at least 1, got {clip_frames}")
    if times.ndim != 1 or times.shape != streams.shape:
        raise UsageError(f"captured_at is [N] and stream_index [N], got {list(times.shape)} and {list(streams.shape)}")
    cells = times // (clip_frames * _SECOND)
    rows = np.arange(len(times))
    begins = np.ones(len(times), np.bool_)
    begins[1:] = (np.diff(cells) != 0) | (np.diff(streams) != 0)
    first = np.maximum.accumulate(np.where(begins, rows, 0))  # row at which the cell of each frame begins
    begins |= (rows - first) % clip_frames == 0
    return np.cumsum(begins, dtype=np.int64) - 1


def clip_batches(clips: NDArray[np.int64], batch_frames: int) -> Iterator[slice]:
    """Slices of the rows of at most `batch_frames` frames that never cut a clip; a clip that is longer is one slice.

    Args:
        clips: clip of each frame, int64[N], ascending; see `clip_numbers`.
        batch_frames: most frames of a slice.
    """
    ends = np.append(np.flatnonzero(np.diff(clips)) + 1, len(clips))
    at = 0
    while at < len(clips):
        fitting = int(np.searchsorted(ends, at + max(1, batch_frames), side="right"))
        end = int(ends[fitting - 1]) if fitting and ends[fitting - 1] > at else int(ends[fitting])
        yield slice(at, end)
        at = end


@dataclass(slots=True)
class ClipBoundary:
    """Finds the first frames of clips in one stream whose frames arrive one after another, as `clip_numbers` does."""

    clip_frames: int
    """Most frames of a clip."""
    _cell: int | None = None
    _frames: int = 0

    def begins(self, captured_at: int) -> bool:
        """Whether the next frame, of capture time `captured_at` (UTC microseconds), is the first of a clip."""
        cell = captured_at // (self.clip_frames * _SECOND)
        if cell != self._cell:
            self._cell, self._frames = cell, 0
        self._frames += 1
        return (self._frames - 1) % self.clip_frames == 0

    def reset(self) -> None:
        """Make the next frame the first of a clip, as at the start of a chunk or segment."""
        self._cell = None
