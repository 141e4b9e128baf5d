"""Retention of recordings: deletes segments that are old enough, by their names, and no other file."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from index.delta.objects import file_system, object_reason
from index.errors import SourceNotFound, mask_url
from index.files import PART
from ingest.segments.names import NamedSegment, day_of, parse_name

__all__ = ["expire"]

_TEMPORARY = re.compile(rf"\.[0-9a-f]{{8}}{re.escape(PART)}$")  # left by a process that was killed while it wrote


def expire(place: str, before: int) -> list[NamedSegment]:
    """Delete the segments of every stream in `place` that end at or before `before`.

    Args:
        place: the URL of the recordings' folder or bucket.
        before: UTC microseconds.

    Returns:
        The deleted segments, including temporary files of segments. Files with other names stay.

    Raises:
        SourceNotFound: the place cannot be listed, or a segment cannot be deleted; those before it are deleted.
    """
    gone = []
    try:
        system, root = file_system(place)
        for stream in _folders(system, root):
            for day in _folders(system, stream):
                if day.rstrip("/").rsplit("/", 1)[-1] > day_of(before):
                    continue
                for name in system.ls(day, detail=False):
                    segment = parse_name(_TEMPORARY.sub("", name))
                    if segment is not None and segment.end <= before:
                        system.rm_file(name)
                        gone.append(segment)
                with suppress(Exception):  # it is not empty, or a bucket, which has no folders
                    system.rmdir(day)
    except Exception as error:  # each file system of fsspec has its own exceptions
        raise SourceNotFound(f"{mask_url(place)}: old recordings cannot be deleted ({object_reason(error)})") from None
    return gone


def _folders(system: Any, root: str) -> list[str]:
    try:
        return [entry["name"] for entry in system.ls(root, detail=True) if entry["type"] == "directory"]
    except FileNotFoundError:
        return []
