"""The lock that allows one compaction of a store at a time.

deltalake 1.6.6 lets two compactions commit the same files, twice. The lock is an application transaction of the table
`segments`; its version is the time, in UTC milliseconds, at which the lock expires unless it is extended.

Releasing it is a commit, which a full disk or a kill prevents. So the holder of a store on a local disk also locks the
folder of the table (`flock`), which the operating system undoes in every case, and writes the same version under the
name of its machine. A lock that names this machine, whose folder is not locked, is that of a compaction that failed or
was killed, and is taken over at once. A lock of another machine, or in an object store, expires by itself.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from index.columns import digest
from index.delta.table import StoreTable
from index.errors import CommitFenced, StoreBusy, StoreError, mask_url
from index.records import rfc3339

__all__ = ["CompactionLock"]

_APPLICATION = "sightline.compaction"
_LOCK_SECONDS = 900
_BYTES_PER_SECOND = 2_000_000  # bytes merged a second by the slowest machine
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class CompactionLock:
    """The lock of one compaction. Acquire and extend it with `acquire`; `release` must be called in every case.

    Args:
        table: the table `segments` of the store.
    """

    def __init__(self, table: StoreTable) -> None:
        self._table = table
        self._mine: int | None = None
        self._folder: int | None = None
        self._here = f"{_APPLICATION}/{digest(_machine())[:12]}"

    def acquire(self, size: int) -> None:
        """Acquire or extend the lock for merging `size` bytes. Raises StoreBusy if another process holds it.

        A lock that lasts long enough is left as it is: extending it is a commit.
        """
        now, needed = time.time_ns() // 1_000_000, size * 1000 // _BYTES_PER_SECOND
        if self._mine is not None and self._mine - now > needed + _LOCK_SECONDS * 500:
            return
        alone = self._lock_folder()
        held = self._table.transaction_versions([_APPLICATION, self._here])
        until, local = held[_APPLICATION], held[self._here]
        left_behind = alone and until == local  # of a compaction on this machine that failed or was killed
        if until is not None and until != self._mine and until > now and not left_behind:
            raise self._busy(until)
        mine = max(now + _LOCK_SECONDS * 1000 + needed, (until or 0) + 1)
        advances = {_APPLICATION: (until, mine)}
        if alone:
            advances[self._here] = (local, mine)
        try:
            self._table.append_and_advance(self._table.schema.empty_table(), advances)
        except CommitFenced:
            raise self._busy(mine) from None
        self._mine = mine

    def release(self) -> None:
        """Release the lock, if it is still held. Raises nothing for a store that cannot be written to: the error that
        ended the compaction says so already."""
        try:
            if self._mine is not None:
                with suppress(StoreError):  # also CommitFenced: another process took it over
                    self._table.append_and_advance(self._table.schema.empty_table(), {_APPLICATION: (self._mine, 0)})
        finally:
            self._mine = None
            if self._folder is not None:
                os.close(self._folder)  # undoes the `flock`
                self._folder = None

    def _lock_folder(self) -> bool:
        """Whether this process has the folder of the table for itself. False for a store in an object store, and on
        file systems without locks.

        Raises:
            StoreBusy: another process has it.
        """
        if self._folder is not None:
            return True
        if "://" in self._table.uri:
            return False
        try:
            folder = os.open(self._table.uri, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return False  # reading the table says what is wrong
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            raise self._busy(None) from None
        except OSError:
            os.close(folder)
            return False
        self._folder = folder
        return True

    def _busy(self, until: int | None) -> StoreBusy:
        when = "" if until is None else f", at the latest after {rfc3339(until * 1000)}"
        killed = "" if until is None else ", or was killed"
        return StoreBusy(f"{mask_url(self._table.uri)}: another compaction is active{killed}; try again later{when}")


def _machine() -> str:
    """What tells this machine, since it was started, from others that use the same folder."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return socket.gethostname()
