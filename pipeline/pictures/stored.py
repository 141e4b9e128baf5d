"""Pictures of frames that are scattered over a store, read with few requests.

Frames of one stream within a few minutes are read together. A frame that was deleted meanwhile has no picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from index.errors import EmptyWindow, StoreCorrupt, UnknownStream
from index.store import Store

__all__ = ["FrameKey", "frame_pictures"]

FrameKey = tuple[str, int]
"""A frame: its stream, and its time in UTC microseconds."""
_NEAR = 120_000_000  # microseconds


def frame_pictures(store: Store, frames: Sequence[FrameKey]) -> dict[FrameKey, bytes]:
    """The pictures of some frames, JPEG; those that the store no longer has are left out.

    Args:
        store: the store.
        frames: the frames, in any order; the caller may see their streams.
    """
    result: dict[FrameKey, bytes] = {}
    for stream, times in _groups(frames):
        try:
            window = store.window([stream], times[0], times[-1] + 1)
            window = window.take(np.flatnonzero(np.isin(window.captured_at, times)))
            pictures = store.pictures(window)
        except (EmptyWindow, UnknownStream, StoreCorrupt):
            continue
        result.update({(stream, at): jpeg for at, jpeg in zip(window.captured_at.tolist(), pictures, strict=True)})
    return result


def _groups(frames: Sequence[FrameKey]) -> Iterator[tuple[str, list[int]]]:
    """The frames by stream and neighbourhood: ascending times, none farther than `_NEAR` from the one before."""
    group: tuple[str, list[int]] | None = None
    for stream, at in sorted(set(frames)):
        if group is not None and group[0] == stream and at - group[1][-1] <= _NEAR:
            group[1].append(at)
            continue
        if group is not None:
            yield group
        group = stream, [at]
    if group is not None:
        yield group
