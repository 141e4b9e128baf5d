"""The end of a process: a deadline after the signal to stop, and a watchdog of a thread that must not stand still.

Every state that Sightline writes survives a kill at any moment, so a process that does not end in time is ended: after
`STOP_SECONDS`, or after `COMMIT_SECONDS` while a commit is under way. The signals are read from Python's wakeup file
descriptor, because a signal handler does not run while the main thread is inside a library.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["COMMIT_SECONDS", "STOP_SECONDS", "Watchdog", "commit_under_way", "end_process", "limit_stop"]

STOP_SECONDS = 10.0
"""Longest time from SIGINT or SIGTERM to the end of the process."""
COMMIT_SECONDS = 30.0
"""Longest time while a commit is under way."""
_STEP_SECONDS = 0.1
_lock = threading.Lock()
_blocks: list[float | None] = []  # of each block under way, its own limit in seconds


@contextmanager
def commit_under_way(seconds: float | None = None) -> Iterator[None]:
    """Have the process wait for the block when it is to stop, up to `seconds`; by default up to `COMMIT_SECONDS`."""
    with _lock:
        _blocks.append(seconds)
    try:
        yield
    finally:
        with _lock:
            _blocks.remove(seconds)


def end_process(reason: str) -> None:
    """Print one line on standard error and end the process at once, with exit code 1."""
    os.write(2, f"sightline: {reason}\n".encode(errors="replace"))
    os._exit(1)


def limit_stop(
    *,
    stop_seconds: float = STOP_SECONDS,
    commit_seconds: float = COMMIT_SECONDS,
    end: Callable[[str], None] = end_process,
) -> None:
    """From now on, end the process if it still runs some seconds after the first SIGINT or SIGTERM.

    Call it once, from the main thread. It has no effect on a signal whose action is the system's default.

    Args:
        stop_seconds: seconds after the signal.
        commit_seconds: seconds after the signal while a commit is under way.
        end: ends the process; called with the reason.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        """Wait for a signal, then for the deadline."""
        while not set(os.read(reader, 16)) & {signal.SIGINT, signal.SIGTERM}:
            pass
        began = time.monotonic()
        while (waited := time.monotonic() - began) < _allowed(stop_seconds, commit_seconds):
            time.sleep(_STEP_SECONDS)
        end(f"did not stop within {waited:.0f} s of the signal and was ended; what is committed is safe")

    threading.Thread(target=watch, name="stop-deadline", daemon=True).start()


def _allowed(stop_seconds: float, commit_seconds: float) -> float:
    with _lock:
        return max([stop_seconds, *(commit_seconds if block is None else block for block in _blocks)])


class Watchdog:
    """Reports a thread that stands still. The thread calls `beat` again and again; a context manager.

    Args:
        what: what the thread does, for the report.
        seconds: longest time between two calls of `beat`.
        on_stall: called once, in another thread, with the reason.
    """

    def __init__(self, what: str, seconds: float, on_stall: Callable[[str], None]) -> None:
        self._what, self._seconds, self._on_stall = what, seconds, on_stall
        self._beat, self._stop = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Report that the thread makes progress."""
        self._beat = time.monotonic()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._seconds / 4)):
            still = time.monotonic() - self._beat
            if still > self._seconds:
                self._on_stall(f"{self._what} stands still for {still:.0f} s; start the command again")
                return

    def __enter__(self) -> Watchdog:
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
