"""Child processes that compute: a pool whose processes end with their parent, however that ends.

The processes of `concurrent.futures` wait for work on a pipe that they hold open for one another, so they outlive a
parent that is killed. On Linux these ask the system to be killed with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

__all__ = ["end_with_parent", "process_pool"]

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have this process killed when the thread that started it ends. Does nothing where the system has no `prctl`."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def process_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of `workers` fresh processes. The thread that submits the first work must outlive the pool."""
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=end_with_parent)
