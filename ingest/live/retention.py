"""Recordings that are old enough go: whole segments, by their names, and nothing else that lies beside them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from index.errors import SourceNotFound, mask_url
from ingest.segments.names import NamedSegment, day_of, parse_name

__all__ = ["expire"]


def expire(place: str, before: int) -> list[NamedSegment]:
    """Delete the segments of every stream in `place` (a URL) that end at or before `before`, UTC microseconds.

    Returns:
        What was deleted. Files that are not called as segments are, and younger ones, are not touched.

    Raises:
        SourceNotFound: the place cannot be listed, or a segment not be deleted; those before it are gone.
    """
    import fsspec

    gone = []
    try:
        system, root = fsspec.core.url_to_fs(place)
        for stream in _folders(system, root):
            for day in _folders(system, stream):
                if day.rstrip("/").rsplit("/", 1)[-1] > day_of(before):
                    continue
                for name in system.ls(day, detail=False):
                    segment = parse_name(name)
                    if segment is not None and segment.end <= before:
                        system.rm_file(name)
                        gone.append(segment)
                with suppress(Exception):  # it has others in it, or is no folder but part of a name, as in a bucket
                    system.rmdir(day)
    except Exception as error:  # every file system of fsspec brings its own kind
        raise SourceNotFound(f"{mask_url(place)}: old recordings stay ({mask_url(str(error))})") from None
    return gone


def _folders(system: Any, root: str) -> list[str]:
    try:
        return [entry["name"] for entry in system.ls(root, detail=True) if entry["type"] == "directory"]
    except FileNotFoundError:
        return []
