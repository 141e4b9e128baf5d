"""Sampling of HiCo: which frames of a window are read (VideoChat-Flash, section 3.1).

    duration, frames ─ adaptive_count ─▶ T ─ sample_frames ─▶ the middle frame of each of T equal intervals
    stored clips, limit ─ clips_to_read ─▶ whole clips, spread evenly

The published rule picks single frames, D / T seconds apart, and encodes every four of them as one clip. A store has
clips of one frame a second, which are encoded once, before any question. Of a window with more frames than T_max,
`clips_to_read` therefore leaves whole clips out: the frames of a clip stay one second apart, and the clips are spread
evenly. Windows of T_min to T_max frames are read whole, as by the published rule at one frame a second.

Does not know stores, encoders or language models.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from index.errors import UsageError
from model.profiles.profile import HicoSpec

__all__ = ["adaptive_count", "clips_to_read", "covered_seconds", "sample_frames"]


def adaptive_count(seconds: float, frames: int, spec: HicoSpec) -> int:
    """T, the number of frames to sample from a video: min(T_max, max(D, T_min)) in whole clips of c frames.

    D is rounded down to a multiple of c, and is at least c. A video of fewer than T_min frames lowers T_min to its
    number of frames, rounded down likewise.

    Args:
        seconds: the video's duration D.
        frames: number of frames that the video has.
        spec: T_min, T_max and c.
    """
    clip = spec.clip_frames
    count = min(max(clip, clip * int(seconds // clip)), spec.max_frames)
    least = spec.min_frames if frames >= spec.min_frames else clip * (frames // clip)
    return max(count, least)


def sample_frames(frames: int, count: int) -> NDArray[np.int64]:
    """Positions of `count` frames among `frames`: the middle of each of `count` equal intervals, int64[count].

    The bounds of the intervals are rounded down, and so is a middle between two frames. With fewer frames than `count`
    every frame is taken, and the last one is repeated.

    Raises:
        UsageError: there is no frame.
    """
    if frames < 1:
        raise UsageError("a video without frames has none to sample")
    # `linspace` as in the published code: a bound such as 81 · 717/243 comes out just below 239 and becomes 238.
    bounds = np.linspace(0, frames, min(count, frames) + 1).astype(np.int64)
    middles = (bounds[:-1] + bounds[1:] - 1) // 2
    return np.concatenate([middles, np.full(count - len(middles), middles[-1])])


def clips_to_read(clips: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Rows of whole clips, spread evenly, with at most `limit` frames together.

    Args:
        clips: number of the clip of each row, ascending, int64[N]; see `model.encoders.clips.clip_numbers`.
        limit: most rows.

    Returns:
        Ascending rows, int64[≤ limit]; all of them if N is at most `limit`.

    Raises:
        UsageError: not even one clip fits.
    """
    if len(clips) <= limit:
        return np.arange(len(clips))
    starts = np.flatnonzero(np.diff(clips, prepend=clips[0] - 1))
    sizes = np.diff(starts, append=len(clips))
    # As many clips as would fit if all had the mean size; clips that are chosen may be longer than that.
    count = min(len(starts), limit * len(starts) // len(clips))
    while count:
        chosen = ((2 * np.arange(count) + 1) * len(starts)) // (2 * count)
        if sizes[chosen].sum() <= limit:
            return np.concatenate([np.arange(starts[i], starts[i] + sizes[i]) for i in chosen])
        count -= 1
    raise UsageError(f"--max-frames {limit} is less than one clip of {int(sizes.max())} frames; give a larger number")


def covered_seconds(captured_at: NDArray[np.int64], stream_index: NDArray[np.integer], clip_frames: int = 4) -> float:
    """Seconds of footage that frames stand for.

    A frame stands for the time until the next one of its stream, at most `clip_frames` seconds, so that time without
    footage does not count; the last frame of a stream stands for one second.

    Args:
        captured_at: capture times, int64[N], UTC microseconds, ascending within each stream.
        stream_index: stream of each frame, int[N], rows of a stream together.
        clip_frames: frames of a whole clip, which has one a second.
    """
    if not len(captured_at):
        return 0.0
    steps = np.diff(captured_at) / 1e6
    same = stream_index[1:] == stream_index[:-1]
    return float(np.where(same, np.clip(steps, 0.0, clip_frames), 1.0).sum() + 1.0)
