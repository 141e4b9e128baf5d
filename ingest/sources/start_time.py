"""When footage began, in UTC, and who says so."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import PurePosixPath

import structlog

from index.records import ClockSource, to_micros

__all__ = ["began_at", "stream_name", "time_in_name"]

_TIME = re.compile(
    r"(?P<y>(?:19|20)\d\d)-?(?P<mo>[01]\d)-?(?P<d>[0-3]\d)[T_ -](?P<h>[0-2]\d)[-:]?(?P<mi>[0-5]\d)[-:]?(?P<s>[0-5]\d)(?P<z>Z)?"
)
_log = structlog.get_logger(__name__)


def time_in_name(name: str) -> datetime | None:
    """The UTC time in a file name such as `front_2024-03-01T08-00-00Z.mp4` or `20240301_080000.mkv`."""
    found = _TIME.search(name)
    if found is None:
        return None
    try:
        year, month, day, hour, minute, second = (int(found[part]) for part in ("y", "mo", "d", "h", "mi", "s"))
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None


def stream_name(path: str) -> str:
    """The stream a file belongs to by its name: the stem without the time, in the letters a stream may have."""
    stem = PurePosixPath(path).stem
    bare = _TIME.sub("", stem)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", bare).strip("-_.")
    return (name or re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-_.") or "stream")[:128]


def began_at(
    name: str, *, given: datetime | None, container: datetime | None, modified: datetime
) -> tuple[int, ClockSource]:
    """UTC microseconds of the first frame and where that is known from, the surest source first.

    Args:
        name: the file's name.
        given: what the user said.
        container: the container's creation time.
        modified: the file's mtime, of last resort: it is when the recording ended or was copied.
    """
    if given is not None:
        return to_micros(given), "given"
    named = time_in_name(name)
    if named is not None:
        return to_micros(named), "filename"
    if container is not None and container.year > 1971:
        return to_micros(container), "container"
    _log.warning("no start time known, taking the file's modification time; pass --start", file=name)
    return to_micros(modified), "mtime"
