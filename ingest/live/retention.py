"""Retention of recordings: deletes segments that are old enough, by their names, and no other file.

Segments that overlap a stretch that is held as evidence stay (`ingest.live.holds`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from index.commits.held import Hold
from index.delta.objects import file_system, object_reason
from index.errors import SourceNotFound, mask_url
from index.files import PART
from ingest.live.holds import Markers
from ingest.segments.names import NamedSegment, day_of, parse_name

__all__ = ["ExpiredSegments", "expire"]

_TEMPORARY = re.compile(rf"\.[0-9a-f]{{8}}{re.escape(PART)}$")  # left by a process that was killed while it wrote


class ExpiredSegments(NamedTuple):
    """What became of the segments that are old enough."""

    gone: list[NamedSegment]
    """The deleted ones, including temporary files of segments."""
    held: list[NamedSegment]
    """Those that evidence locks keep."""


def expire(place: str, before: int, *, held: Sequence[Hold] = ()) -> ExpiredSegments:
    """Delete the segments of every stream in `place` that end at or before `before`; files with other names stay.

    Args:
        place: the URL of the recordings' folder or bucket.
        before: UTC microseconds.
        held: evidence locks of a store; those that have a marker in the place count in any case.

    Raises:
        SourceNotFound: the place or a marker cannot be read, or a segment cannot be deleted; those before it are
            deleted.
    """
    gone: list[NamedSegment] = []
    kept: list[NamedSegment] = []
    try:
        system, root = file_system(place)
        markers = Markers(system, root)
        for stream in _folders(system, root):
            for day in _folders(system, stream):
                if day.rstrip("/").rsplit("/", 1)[-1] > day_of(before):
                    continue
                for name in sorted(system.ls(day, detail=False)):  # the oldest first
                    segment = parse_name(_TEMPORARY.sub("", name))
                    if segment is None or segment.end > before:
                        continue
                    if _is_held(segment, [*held, *markers.holds()]):
                        kept.append(segment)
                        continue
                    system.rm_file(name)
                    gone.append(segment)
                with suppress(Exception):  # it is not empty, or a bucket, which has no folders
                    system.rmdir(day)
    except SourceNotFound:
        raise
    except Exception as error:  # each file system of fsspec has its own exceptions
        raise SourceNotFound(f"{mask_url(place)}: old recordings cannot be deleted ({object_reason(error)})") from None
    return ExpiredSegments(gone, kept)


def _is_held(segment: NamedSegment, holds: Sequence[Hold]) -> bool:
    return any(
        hold.stream_id == segment.stream and hold.start < segment.end and hold.end > segment.start for hold in holds
    )


def _folders(system: Any, root: str) -> list[str]:
    try:
        found = [entry["name"] for entry in system.ls(root, detail=True) if entry["type"] == "directory"]
        return [name for name in found if not str(name).rstrip("/").rsplit("/", 1)[-1].startswith(".")]
    except FileNotFoundError:
        return []
