"""Names of live segments: the stream, the UTC time of the first frame, and the duration.

    gate/2026-03-01/2026-03-01T08-00-00.123456Z_10.040000.mp4

A name holds everything that finding a segment needs, so a folder or bucket of segments is its own index and is complete
as soon as the last file is written. This module knows nothing of the segments' contents.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from index.errors import UsageError
from index.schemas import check_stream_id

if TYPE_CHECKING:
    from ingest.segments.cutter import Media

__all__ = ["NamedSegment", "day_of", "parse_name", "segment_name"]

_SUFFIX: dict[Media, str] = {"video/mp4": "mp4", "video/x-matroska": "mkv"}
_MEDIA: dict[str, Media] = {suffix: media for media, suffix in _SUFFIX.items()}
_NAME = re.compile(
    r"(?P<stream>[^/\\\s?#]+)/[0-9-]{10}/(?P<date>\d{4}-\d\d-\d\d)T"
    r"(?P<h>\d\d)-(?P<m>\d\d)-(?P<s>\d\d)\.(?P<us>\d{6})Z"
    r"_(?P<seconds>\d+\.\d{6})\.(?P<suffix>mp4|mkv)"
)
_MOST_CHARACTERS = 1024
"""Characters at the end of a path that are read; a stream id has at most 128."""


@dataclass(frozen=True, slots=True, order=True)
class NamedSegment:
    """What a segment's name tells. Ordered by stream and start."""

    stream: str
    """Stream id."""
    start: int
    """UTC microseconds of the first frame."""
    duration: float
    """Seconds."""
    media_type: Media
    """Media type of the file."""
    name: str
    """Path relative to the folder of all streams."""

    @property
    def end(self) -> int:
        """UTC microseconds of the end, exclusive."""
        return self.start + round(self.duration * 1e6)


def _time_text(micros: int) -> str:
    at = datetime.fromtimestamp(micros // 1_000_000, UTC)
    return f"{at:%Y-%m-%dT%H-%M-%S}.{micros % 1_000_000:06d}Z"


def day_of(micros: int) -> str:
    """The name of a UTC day's folder, `2026-03-01`, for a time in UTC microseconds."""
    return _time_text(micros)[:10]


def segment_name(stream: str, start: int, duration: float, media_type: Media) -> str:
    """The path of a segment relative to the folder of all streams.

    Args:
        stream: stream id.
        start: UTC microseconds of the first frame.
        duration: seconds.
        media_type: of the file.
    """
    return f"{stream}/{day_of(start)}/{_time_text(start)}_{duration:.6f}.{_SUFFIX[media_type]}"


def parse_name(path: str) -> NamedSegment | None:
    """What the end of a path or URL tells; None if it is not the name of a segment."""
    found = _NAME.fullmatch("/".join(path[-_MOST_CHARACTERS:].rsplit("/", 3)[-3:]))
    if found is None:
        return None
    text = f"{found['date']}T{found['h']}:{found['m']}:{found['s']}+00:00"
    try:
        check_stream_id(found["stream"])
        start = round(datetime.fromisoformat(text).timestamp()) * 1_000_000 + int(found["us"])
    except (ValueError, UsageError):
        return None
    return NamedSegment(found["stream"], start, float(found["seconds"]), _MEDIA[found["suffix"]], found[0])
