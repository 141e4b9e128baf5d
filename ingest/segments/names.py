"""What a live segment is called wherever it lies: its stream, the UTC time of its first frame, and how long it lasts.

    gate/2026-03-01/2026-03-01T08-00-00.123456Z_10.040000.mp4

Names say everything that finding a segment needs, so a folder or bucket of them is its own index, complete as soon as
the last file is. This module knows nothing of what is inside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ingest.segments.cutter import Media

__all__ = ["NamedSegment", "day_of", "parse_name", "segment_name"]

_SUFFIX: dict[Media, str] = {"video/mp4": "mp4", "video/x-matroska": "mkv"}
_MEDIA: dict[str, Media] = {suffix: media for media, suffix in _SUFFIX.items()}
_NAME = re.compile(
    r"(?P<stream>[A-Za-z0-9._-]+)/[0-9-]{10}/(?P<date>\d{4}-\d\d-\d\d)T(?P<h>\d\d)-(?P<m>\d\d)-(?P<s>\d\d)\.(?P<us>\d{6})Z"
    r"_(?P<seconds>\d+\.\d{6})\.(?P<suffix>mp4|mkv)"
)


@dataclass(frozen=True, slots=True, order=True)
class NamedSegment:
    """start: UTC microseconds of the first frame. duration: seconds. name: relative to the folder."""

    stream: str
    start: int
    duration: float
    media_type: Media
    name: str

    @property
    def end(self) -> int:
        return self.start + round(self.duration * 1e6)


def _moment(micros: int) -> str:
    at = datetime.fromtimestamp(micros // 1_000_000, UTC)
    return f"{at:%Y-%m-%dT%H-%M-%S}.{micros % 1_000_000:06d}Z"


def day_of(micros: int) -> str:
    """The folder of a day, `2026-03-01`."""
    return _moment(micros)[:10]


def segment_name(stream: str, start: int, duration: float, media_type: Media) -> str:
    """`start` in UTC microseconds, `duration` in seconds."""
    return f"{stream}/{day_of(start)}/{_moment(start)}_{duration:.6f}.{_SUFFIX[media_type]}"


def parse_name(path: str) -> NamedSegment | None:
    """What the end of a path says, None when it is no segment's."""
    found = _NAME.search(path)
    if found is None or found.end() != len(path):
        return None
    text = f"{found['date']}T{found['h']}:{found['m']}:{found['s']}+00:00"
    try:
        start = round(datetime.fromisoformat(text).timestamp()) * 1_000_000 + int(found["us"])
    except ValueError:
        return None
    return NamedSegment(found["stream"], start, float(found["seconds"]), _MEDIA[found["suffix"]], found[0])
