"""Noticing that a table was deleted and made anew at its place, without opening it.

A handle that is kept asks for the log's entries after its version. Of another table at the same place it would read
nothing, or entries that do not belong to what it has: rows of both tables. A commit through it would leave a gap in the
other log. So an entry of the log that the handle has read is marked, and must stay the file or object that it was: one
`stat`, or one request. A reader looks before it brings its handle up to date, and again after entries were found, since
the other table may have got them in between. Does not know what the entries say.
"""

from __future__ import annotations

import math
import os
import time

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from index.delta.objects import file_system

__all__ = ["LogMark"]


_KEPT_SECONDS = 60.0  # much less than the ten minutes after which entries may be cleaned


class LogMark:
    """An entry of the log that a handle has read.

    Args:
        uri: path or URL of the table.
        seconds: in an object store, look at most this often; `follow` also looks when entries were found.
    """

    def __init__(self, uri: str, seconds: float = 0.0) -> None:
        self._uri, self._seconds = uri, seconds
        self._version = -1
        self._mark: tuple[object, ...] | None = None
        self._marked_at = self._at = -math.inf

    def forget(self) -> None:
        """Forget the entry, because the handle was opened anew."""
        self._mark, self._at = None, -math.inf

    def note(self, version: int) -> None:
        """Take the entry of a version of the table for the one that must stay.

        An entry that was taken less than a minute ago stays the marked one, so that a handle whose version changes with
        each use has something to compare.
        """
        now = time.monotonic()
        unknown = self._mark is None and self._due()
        if unknown or (version != self._version and now - self._marked_at >= _KEPT_SECONDS):
            self._version, self._mark = version, self._look(version)
            self._marked_at = self._at = now

    def stays(self) -> bool:
        """Whether the entry is still there; also True if it is not known, or was looked at just now."""
        return self._mark is None or not self._due() or self._still()

    def follow(self, handle: DeltaTable) -> bool:
        """Bring a reader's handle up to date; False if it has to be opened anew, because the table is another one.

        Where entries were found, the mark is looked at in any case: they may be those of another table.
        """
        if not self.stays():
            return False
        before = handle.version()
        if self._mark is not None and "://" not in self._uri and self._look(before + 1) is None:
            return True  # nothing was committed; deltalake would take milliseconds to say so
        try:
            handle.update_incremental()
        except DeltaError:  # such as a log that ends before the handle's version; opening anew says what it is
            return False
        return handle.version() == before or self._mark is None or self._still()

    def _still(self) -> bool:
        found, self._at = self._look(self._version), time.monotonic()
        return found == self._mark

    def _due(self) -> bool:
        return "://" not in self._uri or time.monotonic() - self._at >= self._seconds

    def _look(self, version: int) -> tuple[object, ...] | None:
        """What tells the entry of a version from another one of its name; None if there is none."""
        name = f"_delta_log/{version:020d}.json"
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
