"""The UTC time at which footage begins, and the source of that time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import structlog

from index.errors import StartImplausible
from index.records import ClockFold, ClockSource, rfc3339, to_micros
from ingest.sources.naming import FileName, printable, read_name

__all__ = ["FoundStart", "find_start"]

_FIRST_YEAR = 1990
"""Cameras without a clock write 1970, and QuickTime 1904."""
_AHEAD = timedelta(days=1)
"""A clock may be wrong by its zone; footage that begins later than this is not believed."""
_log = structlog.get_logger(__name__)


class FoundStart(NamedTuple):
    """The time of a file's first frame, and how it is known."""

    micros: int
    """UTC microseconds."""
    source: ClockSource
    """The source of the time."""
    zone: str | None = None
    """The zone that a time in a name was read in, see `ingest.sources.naming.FileName`; that of a `given` time."""
    fold: ClockFold | None = None
    """How a time in a name was read that daylight saving makes doubtful."""


def find_start(
    path: Path,
    *,
    given: datetime | None,
    created: datetime | None,
    named: FileName | None = None,
    duration: float | None = None,
) -> FoundStart:
    """The time of a local file's first frame, and the source of that time.

    Sources in order of preference: `given`, the file's name, `created`, the file's modification time. The last is a
    guess: it is the time at which the recording ended, or at which the file was copied.

    Args:
        path: a local file.
        given: start given by the user; it may lie in the future.
        created: creation time in the container.
        named: what the file's name says, read here when None.
        duration: seconds of footage, which the modification time is taken to be the end of.

    Raises:
        UsageError: `given` has no time zone.
        StartImplausible: the file's name or container says that it begins more than a day from now.
    """
    if given is not None:
        return FoundStart(to_micros(given), "given", _zone_of(given))
    shown = printable(path.name)
    named = named or read_name(str(path))
    if named.start is not None:
        if named.note:
            _log.warning(named.note, file=shown)
        return FoundStart(_plausible(named.start, "filename", shown), "filename", named.zone or None, named.fold)
    if created is not None and created.year >= _FIRST_YEAR:
        return FoundStart(_plausible(created, "container", shown), "container")
    _log.warning("start time unknown, using the file's modification time as its end; pass --start", file=shown)
    modified = datetime.fromtimestamp(path.stat().st_mtime, UTC) - timedelta(seconds=duration or 0.0)
    return FoundStart(to_micros(modified), "mtime")


def _zone_of(time: datetime) -> str:
    """`UTC`, the name of a zone, or an offset such as `+01:00`."""
    offset = time.strftime("%z")
    return getattr(time.tzinfo, "key", None) or ("UTC" if offset == "+0000" else f"{offset[:3]}:{offset[3:5]}")


def _plausible(start: datetime, source: str, shown: str) -> int:
    if start > datetime.now(UTC) + _AHEAD:
        raise StartImplausible(
            f"{shown}: begins at {rfc3339(to_micros(start))} by its {source}, which is in the future; pass the "
            "true time with --start"
        )
    return to_micros(start)
