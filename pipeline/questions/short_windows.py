"""Short windows of a profile that reads clips: their footage is read again, at more than one frame a second.

    stored seconds of a stream ─ footage ─ confined decoder ─ clip encoder ─▶ T_min frames in clips of four

VideoChat-Flash samples at least T_min frames of a video, however short it is (section 3.1). The store has one frame a
second, so that a window of less than T_min seconds is read from its recording or source file. Frames of seconds that
the store does not have are left out: they may have been forgotten. Does not know prompts or language models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.errors import SourceError
from index.window import Window
from model.encoders.encoder import Encoders
from model.hico.sampling import adaptive_count, sample_frames
from model.profiles.profile import HicoSpec
from pipeline.media.footage import FootageFinder
from pipeline.media.stretch import read_stretch

__all__ = ["ReadAgain", "read_again"]

_SECOND = 1_000_000
_WHOLE_STEP = 1_900_000
"""Time between two stored frames, in microseconds, from which on a second between them is missing."""


@dataclass(frozen=True, slots=True)
class ReadAgain:
    """T frames that were read from footage; row i of every array is the same frame."""

    stream_index: NDArray[np.int32]
    """Stream of each frame, as an index into the window's `stream_ids`, int32[T]."""
    captured_at: NDArray[np.int64]
    """Capture times, int64[T], UTC microseconds."""
    clips: NDArray[np.int64]
    """Number of the clip of each frame, int64[T]."""
    patches: NDArray[np.float16]
    """Tokens of the clips, float16[T, M, Dp]."""

    def __len__(self) -> int:
        return len(self.captured_at)


def read_again(finder: FootageFinder, window: Window, encoders: Encoders, spec: HicoSpec) -> ReadAgain | str:
    """Read the footage of a short window again.

    The T_min frames are shared among the window's streams by their stored frames. Of each stream they are the frames at
    the middles of equal intervals; a stream whose footage has fewer frames gives what it has, in whole clips.

    Args:
        finder: finds recordings and source files.
        window: fewer than T_min frames.
        encoders: their patch encoder encodes the clips.
        spec: T_min and the size of clips.

    Returns:
        The frames, or the reason why they were not read, for the user.
    """
    indexes, times = list[NDArray[np.int32]](), list[NDArray[np.int64]]()
    clips, pictures = list[NDArray[np.int64]](), list[NDArray[np.uint8]]()
    for index in np.unique(window.stream_index).tolist():
        stored = window.captured_at[window.stream_index == index]
        share = spec.clip_frames * max(1, round(spec.min_frames * len(stored) / len(window) / spec.clip_frames))
        name = window.stream_ids[index]
        try:
            found = _of_stream(finder, name, stored, share)
        except SourceError as error:
            return str(error)
        if isinstance(found, str):
            return found
        at, pixels = found
        count = adaptive_count(len(stored), len(at), spec.model_copy(update={"min_frames": share}))
        rows = sample_frames(len(at), count)
        first = clips[-1][-1] + 1 if clips else 0
        indexes.append(np.full(count, index, np.int32))
        times.append(at[rows])
        clips.append(first + np.arange(count) // spec.clip_frames)
        pictures += [pixels[row] for row in rows]
    numbers = np.concatenate(clips)
    _, patches = encoders.patch.encode_frames(pictures, numbers)
    return ReadAgain(np.concatenate(indexes), np.concatenate(times), numbers, patches)


def _of_stream(
    finder: FootageFinder, name: str, stored: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], list[NDArray[np.uint8]]] | str:
    """At most `count` frames of the stored seconds of a stream, or the reason why there are none."""
    start, end = int(stored[0]), int(stored[-1]) + _SECOND
    footage = finder.find(name, start, end)
    if footage is None:
        return f"the footage of {name} is not at hand"
    times, pictures = read_stretch(footage, start, end, count)
    # The stored frame before each one, which stands for it until the next stored frame, unless a second is missing.
    before = np.searchsorted(stored, times, side="right") - 1
    steps = np.diff(stored, append=end)
    lasting = np.where(steps < _WHOLE_STEP, steps, _SECOND)
    kept = np.flatnonzero(times - stored[before] < lasting[before])
    missing = len(stored) - len(np.unique(before[kept]))
    if missing > 1:  # the second in which footage ends may be too short for a sample
        return f"the footage of {name} has no frames in {missing} of {len(stored)} seconds"
    return times[kept], [pictures[row] for row in kept]
