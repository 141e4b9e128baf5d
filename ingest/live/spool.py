"""The spool: a bounded, ordered queue of segment files on disk, between the cameras and the sink.

A file stays on disk until the sink has accepted it, so segments survive a crash of the process; a camera's process
writes them durably, so they survive a power cut too. When the sink is slower than the cameras for so long that the size
limit is reached, the oldest files are deleted and counted. This module knows nothing of cameras or of what segments
contain.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import structlog
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from index.errors import SourceNotFound, UsageError
from index.files import PART
from ingest.segments.names import NamedSegment, parse_name

__all__ = ["Spool", "SpooledSegment", "forget_spooled"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SpooledSegment:
    """One segment in the spool."""

    segment: NamedSegment
    """Its stream, times and name."""
    path: Path
    """Its file."""
    size: int
    """The size of the file in bytes."""
    frames: int
    """The number of frames; 0 for a segment that an earlier process left."""


class Spool:
    """The segments in `folder/spool`, in the order they were put. One process at a time; safe for its threads.

    Args:
        folder: the folder of the running command; it is locked until `close`.
        max_bytes: the largest total size of the files.
        on_drop: called with each segment that is deleted because the spool is full.
        lock_seconds: seconds to wait for the folder, in which the camera processes of a killed command write their last
            segments.

    Raises:
        UsageError: another process uses the folder.
        SourceNotFound: the folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        on_drop: Callable[[SpooledSegment], None] = lambda _: None,
        lock_seconds: float = 5.0,
    ) -> None:
        self.folder, self.max_bytes, self._on_drop = folder / "spool", max_bytes, on_drop
        self._changed = threading.Condition()
        self._waiting: deque[SpooledSegment] = deque()
        self._in_use: dict[Path, SpooledSegment] = {}
        self._bytes = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock_file: IO[str] = (folder / "lock").open("w")
        except OSError as error:
            raise SourceNotFound(f"{folder}: cannot be written to ({error.strerror}); name another --folder") from None
        retrying = Retrying(
            retry=retry_if_exception_type(OSError),
            stop=stop_after_delay(lock_seconds),
            wait=wait_fixed(0.1),
            reraise=True,
        )
        try:
            retrying(fcntl.flock, self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock_file.close()
            raise UsageError(f"{folder}: another watch or record uses it; give this one its own --folder") from None
        self._recover()

    @property
    def lock(self) -> int:
        """The descriptor that holds the folder's lock. A child that inherits it keeps the lock when this process
        dies."""
        return self._lock_file.fileno()

    @property
    def bytes(self) -> int:
        """The total size of all segments that are not removed."""
        with self._changed:
            return self._bytes

    def __len__(self) -> int:
        """The number of segments that are not removed."""
        with self._changed:
            return len(self._waiting) + len(self._in_use)

    def _recover(self) -> None:
        """Queue the segments that an earlier process left, and delete its temporary files."""
        for part in [*self.folder.parent.glob(f"*{PART}"), *self.folder.rglob(f"*{PART}")]:
            part.unlink(missing_ok=True)
        left: list[SpooledSegment] = []
        for path in self.folder.rglob("*"):
            segment = parse_name(path.relative_to(self.folder).as_posix()) if path.is_file() else None
            if segment is not None:
                left.append(SpooledSegment(segment, path, path.stat().st_size, 0))
        for spooled in sorted(left, key=lambda spooled: spooled.segment.start):
            self._put(spooled)

    def put(self, segment: NamedSegment, size: int, frames: int) -> None:
        """Add a segment whose file is complete in `folder`. Never waits.

        Args:
            size: the size of its file in bytes.
            frames: its number of frames.
        """
        self._put(SpooledSegment(segment, self.folder / segment.name, size, frames))

    def _put(self, spooled: SpooledSegment) -> None:
        dropped: list[SpooledSegment] = []
        with self._changed:
            self._waiting.append(spooled)
            self._bytes += spooled.size
            while self._bytes > self.max_bytes and len(self._waiting) > 1:
                oldest = self._waiting.popleft()
                self._bytes -= oldest.size
                dropped.append(oldest)
            self._changed.notify_all()
        for oldest in dropped:
            oldest.path.unlink(missing_ok=True)
            _log.error("dropped: the spool is full", segment=oldest.segment.name, max_bytes=self.max_bytes)
            self._on_drop(oldest)

    def get(self, max_segments: int, *, timeout: float, gather_seconds: float = 0.0) -> list[SpooledSegment]:
        """The oldest segments that wait. They are kept until they are passed to `remove`.

        Args:
            max_segments: the largest number to return.
            timeout: seconds to wait for a first one.
            gather_seconds: seconds to wait for more once there is one.

        Returns:
            The segments, in order; none when the timeout expired.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._waiting:
                left = deadline - time.monotonic()
                if left <= 0:
                    return []
                self._changed.wait(left)
            deadline = time.monotonic() + gather_seconds
            while len(self._waiting) < max_segments and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            found = [self._waiting.popleft() for _ in range(min(max_segments, len(self._waiting)))]
            self._in_use.update((spooled.path, spooled) for spooled in found)
            return found

    def remove(self, segments: Sequence[SpooledSegment]) -> None:
        """Delete the files of segments that the sink has accepted."""
        for spooled in segments:
            spooled.path.unlink(missing_ok=True)
            with suppress(OSError):
                os.rmdir(spooled.path.parent)  # the day, once it is empty
        with self._changed:
            for spooled in segments:
                if self._in_use.pop(spooled.path, None) is not None:
                    self._bytes -= spooled.size

    def close(self) -> None:
        """Release the folder."""
        self._lock_file.close()


def forget_spooled(folder: Path, stream: str, before: int | None = None) -> int:
    """Delete the segments of a stream that an ended command left in the spool of `folder`.

    Args:
        folder: the folder of the command.
        stream: stream id.
        before: UTC microseconds; only segments that begin before it, whole segments; all if None.

    Returns:
        The number of segments deleted.

    Raises:
        UsageError: a running command uses the folder.
    """
    if not (folder / "spool").is_dir():
        return 0
    spool = Spool(folder, max_bytes=sys.maxsize, lock_seconds=0.0)
    try:
        left = spool.get(max(1, len(spool)), timeout=0.0)
        mine = [s for s in left if s.segment.stream == stream and (before is None or s.segment.start < before)]
        spool.remove(mine)
    finally:
        spool.close()
    return len(mine)
