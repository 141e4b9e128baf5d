"""Child processes that compute: a pool whose processes end with their parent, however that ends.

The processes of `concurrent.futures` wait for work on a pipe that they hold open for one another, so they outlive a
parent that is killed. These watch a pipe that only the parent holds open, and on Linux the system kills them with it.
They take no part in an interruption from the terminal: the parent decides, and ends them when the block of the pool
fails. Does not know what they compute.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

__all__ = ["end_with_parent", "process_pool"]

_PR_SET_PDEATHSIG = 1
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def end_with_parent() -> None:
    """Have this process killed when the thread that started it ends. Does nothing where the system has no `prctl`.

    A parent that ended before the call is not noticed.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class _Pool(ProcessPoolExecutor):
    """A pool that starts its processes, as work comes, with SIGINT blocked; a process inherits that."""

    def submit(self, work: Callable[_Arguments, _Result], /, *args: Any, **kwargs: Any) -> Future[_Result]:
        """Have a process call `work`."""
        with _sigint_blocked():
            return super().submit(work, *args, **kwargs)

    def kill(self) -> None:
        """End the processes, also those that are still starting and do not watch their parent yet."""
        for process in list((self._processes or {}).values()):
            process.kill()


@contextlib.contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of at most `workers` fresh processes, which no SIGINT reaches.

    When the block raises, `KeyboardInterrupt` included, the processes are ended in the middle of their work. A thread
    that submits work must run until the end of the block.
    """
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    with theirs, ours:
        pool = _Pool(workers, context, initializer=_begin, initargs=(theirs,))
        try:
            yield pool
        except BaseException:
            ours.close()
            pool.kill()
            pool.shutdown(cancel_futures=True)
            raise
        pool.shutdown()


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Hold SIGINT back from this thread during the block, and for ever from the processes that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(parent: Connection) -> None:
    """Prepare a process of a pool."""
    end_with_parent()
    threading.Thread(target=_wait_for_end, args=(parent,), name="parent", daemon=True).start()


def _wait_for_end(parent: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        parent.recv_bytes()  # the parent sends nothing
    os._exit(1)
