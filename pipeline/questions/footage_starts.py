"""The start of each source of footage, by which a capture time becomes a position in its file."""

from __future__ import annotations

from collections.abc import Sequence

from index.records import Segment

__all__ = ["FootageStarts"]


class FootageStarts:
    """The start of each source of footage, to express a capture time as a position in its file."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self.began = {(s.stream_id, s.source): s.start for s in segments if s.chunk == 0}

    def offset(self, stream_id: str, at: int, pts_seconds: float) -> float:
        """Time from the first frame of the footage that contains `at` (UTC microseconds), in seconds.

        If that first frame is no longer in the store the result is `pts_seconds`, the pts of the frame itself. The two
        differ in files whose pts do not start at 0.
        """
        segment = self.segment(stream_id, at)
        began = None if segment is None else self.began.get((stream_id, segment.source))
        return pts_seconds if began is None else (at - began) / 1e6

    def segment(self, stream_id: str, at: int) -> Segment | None:
        """The segment that contains `at` (UTC microseconds), the one that begins last if there are several."""
        within = [s for s in self.segments if s.stream_id == stream_id and s.start <= at < s.end]
        return max(within, key=lambda s: s.start, default=None)
