"""Segments on disk between the cameras and what takes them: bounded, in order, and found again after a crash.

A file is there until `done`. Where the taker is slower than the cameras for so long that the bound is met, the oldest
files go, and are counted.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import structlog

from index.errors import SourceNotFound, UsageError
from ingest.segments.names import NamedSegment, parse_name

__all__ = ["Spool", "SpooledSegment"]

_log = structlog.get_logger(__name__)
_PATIENCE = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class SpooledSegment:
    """One segment that waits. `frames` is 0 for one that an earlier process left."""

    segment: NamedSegment
    path: Path
    size: int
    frames: int


class Spool:
    """The folder `folder/spool`, for one process at a time.

    Args:
        most_bytes: of all files that wait.
        on_drop: told of each segment that was dropped.

    Raises:
        UsageError: another process uses the folder. SourceNotFound: it cannot be written to.
    """

    def __init__(
        self, folder: Path, *, max_bytes: int, on_drop: Callable[[SpooledSegment], None] = lambda _: None
    ) -> None:
        self.folder, self.max_bytes, self._on_drop = folder / "spool", max_bytes, on_drop
        self._any = threading.Condition()
        self._waiting: deque[SpooledSegment] = deque()
        self._taken: dict[Path, SpooledSegment] = {}
        self.bytes = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._owner: IO[str] = (folder / "lock").open("w")
        except OSError as error:
            raise SourceNotFound(f"{folder}: cannot be written to ({error.strerror}); name another --folder") from None
        if not self._locked():
            self._owner.close()
            raise UsageError(f"{folder}: another watch or record uses it; give this one its own --folder")
        self._find_left()

    @property
    def lock(self) -> int:
        """The descriptor that holds the folder: who inherits it may go on writing when this process has died."""
        return self._owner.fileno()

    def _locked(self) -> bool:
        """Whether the folder is ours; cameras' processes of one that was killed have a moment to close what they had."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.1)

    def _find_left(self) -> None:
        for part in self.folder.rglob("*.part"):
            part.unlink(missing_ok=True)
        left: list[SpooledSegment] = []
        for path in self.folder.rglob("*"):
            segment = parse_name(path.relative_to(self.folder).as_posix()) if path.is_file() else None
            if segment is not None:
                left.append(SpooledSegment(segment, path, path.stat().st_size, 0))
        for each in sorted(left, key=lambda one: one.segment.start):
            self._put(each)

    def put(self, segment: NamedSegment, size: int, frames: int) -> None:
        """Add a segment whose file lies whole in `folder`. Never waits."""
        self._put(SpooledSegment(segment, self.folder / segment.name, size, frames))

    def _put(self, one: SpooledSegment) -> None:
        dropped: list[SpooledSegment] = []
        with self._any:
            self._waiting.append(one)
            self.bytes += one.size
            while self.bytes > self.max_bytes and len(self._waiting) > 1:
                oldest = self._waiting.popleft()
                self.bytes -= oldest.size
                dropped.append(oldest)
            self._any.notify_all()
        for oldest in dropped:
            oldest.path.unlink(missing_ok=True)
            _log.error("dropped: the spool is full", segment=oldest.segment.name, max_bytes=self.max_bytes)
            self._on_drop(oldest)

    def take(self, most: int, *, timeout: float, gather: float = 0.0) -> list[SpooledSegment]:
        """The oldest segments, at most `most`; none after `timeout` seconds. They count as waiting until `done`.

        Args:
            gather: seconds to wait for more once there is one.
        """
        deadline = time.monotonic() + timeout
        with self._any:
            while not self._waiting:
                left = deadline - time.monotonic()
                if left <= 0:
                    return []
                self._any.wait(left)
            deadline = time.monotonic() + gather
            while len(self._waiting) < most and (left := deadline - time.monotonic()) > 0:
                self._any.wait(left)
            taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            self._taken.update((one.path, one) for one in taken)
            return taken

    def done(self, taken: Sequence[SpooledSegment]) -> None:
        """Forget segments that were taken, and their files."""
        for one in taken:
            one.path.unlink(missing_ok=True)
            with suppress(OSError):
                os.rmdir(one.path.parent)  # the day, once it is empty
        with self._any:
            for one in taken:
                if self._taken.pop(one.path, None) is not None:
                    self.bytes -= one.size

    def __len__(self) -> int:
        with self._any:
            return len(self._waiting) + len(self._taken)

    def close(self) -> None:
        self._owner.close()
