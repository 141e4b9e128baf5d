"""Noticing that a table was deleted and made anew at its place, without opening it.

A handle that is kept asks for the log's entries after its version. Of another table at the same place it would read
nothing, or entries that do not belong to what it has, and a commit through it would leave a gap in the other log. So
before it is brought up to date, the entry of its version must be the file or object that it was: one `stat`, or one
request. Does not know what the entries say.
"""

from __future__ import annotations

import os
import time

from index.delta.objects import file_system

__all__ = ["LogMark"]


class LogMark:
    """The entry of the log at which a handle is.

    Args:
        uri: path or URL of the table.
        seconds: in an object store, look at most this often.
    """

    def __init__(self, uri: str, seconds: float = 0.0) -> None:
        self._uri, self._seconds = uri, seconds
        self._version = -1
        self._mark: tuple[object, ...] | None = None
        self._at = 0.0

    def note(self, version: int) -> None:
        """Take the entry of a version of the table for the one that must stay."""
        if version != self._version:
            self._version, self._mark = version, None
        if self._mark is None and self._due():
            self._mark, self._at = self._look(), time.monotonic()

    def stays(self) -> bool:
        """Whether the entry is still there; also True if it is not known, or was looked at just now."""
        if self._mark is None or not self._due():
            return True
        found, self._at = self._look(), time.monotonic()
        return found == self._mark

    def _due(self) -> bool:
        return "://" not in self._uri or time.monotonic() - self._at >= self._seconds

    def _look(self) -> tuple[object, ...] | None:
        """What tells the entry from another one of its name; None if there is none."""
        name = f"_delta_log/{self._version:020d}.json"
        try:
            if "://" not in self._uri:
                facts = os.stat(f"{self._uri}/{name}")
                return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
            system, root = file_system(self._uri)
            system.invalidate_cache(f"{root}/_delta_log")
            entry = system.info(f"{root}/{name}")
            return entry.get("size"), str(entry.get("ETag") or entry.get("etag")), str(entry.get("LastModified"))
        except FileNotFoundError:
            return None
