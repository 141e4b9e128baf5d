"""Who may use the model, and when: one worker thread, a bounded queue before it, deadlines and cancellation.

Does not know HTTP, models or questions: a job is a function that yields items, and asks `QueuedRequest.check` between its steps
whether it should go on.
"""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from index.errors import DeadlineExceeded, ServiceBusy, ServiceUnavailable

__all__ = ["Admission", "Cancelled", "End", "QueuedRequest"]

_LONGEST_RETRY_SECONDS = 60
_FORGETTING = 0.2  # weight of the newest job in the mean that Retry-After is made of


class Cancelled(Exception):
    """Whoever asked has gone; nobody is left to be told."""


@dataclass(frozen=True, slots=True)
class End:
    """The last thing a job says: what went wrong, or None."""

    error: Exception | None


@dataclass(eq=False, slots=True)
class QueuedRequest:
    """One admitted request. `deadline`, `submitted` and `started` are `time.monotonic()` seconds."""

    work: Callable[[QueuedRequest], Iterator[Any]] | None
    deadline: float
    emit: Callable[[Any], None]
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    _stop: Exception | None = None

    def check(self) -> None:
        """Go on, or raise why not.

        Raises:
            Cancelled, ServiceUnavailable: what `Admission.cancel` was told.
            DeadlineExceeded: the time is up.
        """
        if self._stop is not None:
            raise self._stop
        if time.monotonic() > self.deadline:
            raise DeadlineExceeded(
                f"no answer within {self.deadline - self.submitted:.1f} s; allow more time, or ask about fewer frames"
            )

    @property
    def waited(self) -> float:
        """Seconds in the queue."""
        return (self.started or time.monotonic()) - self.submitted


class Admission:
    """Runs one job at a time, in the order they came; refuses those for whom there is no room.

    Args:
        waiting: most jobs in the queue, beside the one that runs.
        translate: turns what a job raised into the error its owner is told. It is called with the exception's frames
            cleared, so nothing the job held is alive by then.
    """

    def __init__(self, *, waiting: int, translate: Callable[[Exception], Exception] = lambda error: error) -> None:
        if waiting < 1:
            raise ValueError(f"waiting must be at least 1, got {waiting}")
        self.waiting, self._translate = waiting, translate
        self._queue: deque[QueuedRequest] = deque()
        self._running: QueuedRequest | None = None
        self._changed = threading.Condition()
        self._draining = self._closed = False
        self._mean_seconds = 1.0
        self._thread = threading.Thread(target=self._serve, name="sightline-model", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Jobs that wait."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Jobs that run: 0 or 1."""
        return int(self._running is not None)

    @property
    def accepting(self) -> bool:
        """Whether a new job would be looked at: the worker lives and nobody has asked it to stop."""
        return self._thread.is_alive() and not self._draining

    @property
    def retry_after(self) -> int:
        """Whole seconds after which there is likely room again, 1 to 60."""
        return min(_LONGEST_RETRY_SECONDS, max(1, math.ceil(self._mean_seconds)))

    def submit(
        self, work: Callable[[QueuedRequest], Iterator[Any]], *, deadline: float, emit: Callable[[Any], None]
    ) -> QueuedRequest:
        """Queue `work`; `emit` gets each item it yields, then one `End`, all on the worker's thread.

        Raises:
            ServiceBusy: the queue is full.
            ServiceUnavailable: the service is stopping.
        """
        with self._changed:
            if not self.accepting:
                raise ServiceUnavailable("the service is stopping; ask again when it is back")
            if len(self._queue) >= self.waiting:
                raise ServiceBusy(
                    f"{len(self._queue)} requests wait already, as many as may; try again in {self.retry_after} s",
                    self.retry_after,
                )
            job = QueuedRequest(work, deadline, emit)
            self._queue.append(job)
            self._changed.notify_all()
            return job

    def cancel(self, job: QueuedRequest, reason: Exception | None = None) -> None:
        """Give `job` up: at once if it waits, at its next `check` if it runs. A job that is over stays so."""
        with self._changed:
            job._stop = job._stop or reason or Cancelled()
            waited = job in self._queue
            if waited:
                self._queue.remove(job)
                job.work = None
            self._changed.notify_all()
        if waited:
            job.emit(End(job._stop))

    def drain(self) -> None:
        """Take nothing new; what waits and runs goes on. Safe in a signal handler: takes no lock."""
        self._draining = True

    def stop(self, timeout: float) -> bool:
        """Finish what runs and waits for at most `timeout` seconds, then give the rest up; whether all was finished."""
        self.drain()
        with self._changed:
            finished = self._changed.wait_for(lambda: not self._queue and self._running is None, timeout)
            left = [*self._queue, *([self._running] if self._running else [])]
        for job in left:
            self.cancel(job, ServiceUnavailable("the service is stopping and could not finish; ask again later"))
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(1.0)  # a daemon: one that hangs inside the model does not keep the process
        return finished

    # ---- the worker's thread -----------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue) or self._closed)
                if not self._queue:
                    return
                job = self._running = self._queue.popleft()
            error = self._run(job)
            with self._changed:
                self._running = None
                self._changed.notify_all()
            job.emit(End(error))
            del job, error  # nothing of a finished job stays alive while the worker waits for the next

    def _run(self, job: QueuedRequest) -> Exception | None:
        """Run one job to its end; everything it held is free on return."""
        job.started = time.monotonic()
        work, job.work = job.work, None
        try:
            job.check()
            assert work is not None  # only waiting jobs lose it, and they are no longer in the queue
            items = work(job)
            try:
                for item in items:
                    job.check()
                    job.emit(item)
            finally:
                if isinstance(items, Generator):
                    items.close()  # what it holds goes now, not when somebody collects it
        except Exception as error:
            for each in _chain(error):
                # A traceback keeps every frame alive, and with them tensors, caches and patches.
                traceback.clear_frames(each.__traceback__)
            told = self._translate(error)
            told.__traceback__ = told.__cause__ = told.__context__ = None
            return told
        finally:
            del work
            seconds = time.monotonic() - job.started
            self._mean_seconds += _FORGETTING * (seconds - self._mean_seconds)
        return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and everything it came from, each once."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        each = pending.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            pending += [each.__cause__, each.__context__]
