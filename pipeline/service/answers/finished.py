"""A finished answer, and the frames that it refers to. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.answers import Answer
from pipeline.service.schemas import StreamFrames, Usage

__all__ = ["FinishedAnswer", "FrameReferences", "frame_references"]


@dataclass(frozen=True, slots=True)
class FrameReferences:
    """N frames of a store by stream and time: row i of every array is the same frame.

    The rows are grouped by stream and ascend in time within each stream.
    """

    stream_ids: list[str]
    """The streams."""
    stream_index: NDArray[np.int32]
    """Position of each frame's stream in `stream_ids`, int32[N]."""
    captured_at: NDArray[np.int64]
    """Capture times in UTC microseconds, int64[N]."""
    keyframe: NDArray[np.bool_]
    """Whether each frame is a keyframe, bool[N]."""
    footage_seconds: float | None = None
    """Seconds of footage that the frames were sampled from; None for the seconds that they cover themselves."""

    def __len__(self) -> int:
        return len(self.captured_at)

    @property
    def keyframes(self) -> int:
        """Number of keyframes."""
        return int(np.count_nonzero(self.keyframe))


def frame_references(frames: Sequence[StreamFrames], footage_seconds: float | None = None) -> FrameReferences:
    """The frames that a request refers to, stream by stream in the order of the request."""
    index = [np.full(len(part.captured_at), i, np.int32) for i, part in enumerate(frames)]
    times = [np.asarray(part.captured_at, np.int64) for part in frames]
    masks = [np.zeros(len(part.captured_at), np.bool_) for part in frames]
    for mask, part in zip(masks, frames, strict=True):
        mask[part.keyframes] = True
    return FrameReferences(
        [part.stream_id for part in frames],
        np.concatenate([np.zeros(0, np.int32), *index]),
        np.concatenate([np.zeros(0, np.int64), *times]),
        np.concatenate([np.zeros(0, np.bool_), *masks]),
        footage_seconds,
    )


@dataclass(frozen=True, slots=True)
class FinishedAnswer:
    """The last item of an answer's job."""

    answer: Answer
    """The answer of the model."""
    usage: Usage
    """Resources that the question used."""
    rows: FrameReferences
    """Frames that the model read."""
    queue_seconds: float
    """Time in the queue, in seconds."""
    notices: Sequence[str] = ()
    """Remarks about this answer."""
