"""The UTC time at which footage begins, and the source of that time."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import structlog

from index.records import ClockSource, to_micros

__all__ = ["find_start", "stream_name", "time_in_name"]

_TIME = re.compile(
    r"(?P<y>(?:19|20)\d\d)-?(?P<mo>[01]\d)-?(?P<d>[0-3]\d)[T_ -]"
    r"(?P<h>[0-2]\d)[-:]?(?P<mi>[0-5]\d)[-:]?(?P<s>[0-5]\d)(?P<z>Z)?"
)
_NOT_IN_STREAM_ID = re.compile(r"[^A-Za-z0-9._-]+")
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
    """The stream id that a file's name gives: its stem without the time, invalid characters replaced by `-`."""
    stem = PurePosixPath(path).stem
    name = _NOT_IN_STREAM_ID.sub("-", _TIME.sub("", stem)).strip("-_.")
    return (name or _NOT_IN_STREAM_ID.sub("-", stem).strip("-_.") or "stream")[:128]


def find_start(path: Path, *, given: datetime | None, created: datetime | None) -> tuple[int, ClockSource]:
    """UTC microseconds of a local file's first frame, and the source of that time.

    Sources in order of preference: `given`, the file's name, `created`, the file's modification time. The last is
    a guess: it is the time at which the recording ended or was copied.

    Args:
        path: a local file.
        given: start given by the user.
        created: creation time in the container.

    Raises:
        UsageError: `given` has no time zone.
    """
    if given is not None:
        return to_micros(given), "given"
    named = time_in_name(path.name)
    if named is not None:
        return to_micros(named), "filename"
    if created is not None and created.year > 1971:  # cameras without a clock write 1970, and QuickTime 1904
        return to_micros(created), "container"
    _log.warning("start time unknown, using the file's modification time; pass --start", file=path.name)
    return to_micros(datetime.fromtimestamp(path.stat().st_mtime, UTC)), "mtime"
