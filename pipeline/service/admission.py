"""Admission control of the model: one worker thread, a bounded queue, deadlines and cancellation.

A job is a function that yields items; it calls `QueuedRequest.check` between its steps, which raises if the job must
end. Does not know HTTP, models or questions.
"""

from __future__ import annotations

import contextvars
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from index.errors import DeadlineExceeded, ServiceBusy, ServiceUnavailable

__all__ = ["Admission", "JobEnd", "QueuedRequest", "RequestCancelled"]

_MAX_RETRY_SECONDS = 60
_MEAN_WEIGHT = 0.2  # weight of the newest job in the moving average of job times, from which Retry-After is computed


class RequestCancelled(Exception):
    """The client has closed the connection, so that there is no reply to send."""


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The last item of every job."""

    error: Exception | None
    """The error that ended the job, None if it finished."""


@dataclass(eq=False, slots=True)
class QueuedRequest:
    """One admitted request. Times are seconds of `time.monotonic()`."""

    work: Callable[[QueuedRequest], Iterator[Any]] | None
    """The job; None once it has started or is cancelled."""
    deadline: float
    """Time at which the request fails with DeadlineExceeded."""
    emit: Callable[[Any], None]
    """Receives each item of the job and its JobEnd, on the worker's thread."""
    submitted: float = field(default_factory=time.monotonic)
    """Time of admission."""
    started: float | None = None
    """Time at which the job left the queue."""
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    """Context variables of the request, such as its id for the log; the job runs with them."""
    cancelled_with: Exception | None = None
    """The error that `check` raises, once the request is cancelled."""

    def check(self) -> None:
        """Return if the job may continue.

        Raises:
            RequestCancelled, ServiceUnavailable: `Admission.cancel` was called; the error is its `reason`.
            DeadlineExceeded: the deadline has passed.
        """
        if self.cancelled_with is not None:
            raise self.cancelled_with
        if time.monotonic() > self.deadline:
            raise DeadlineExceeded(
                f"no answer within {self.deadline - self.submitted:.1f} s; allow more time, or ask about fewer frames"
            )

    @property
    def waited(self) -> float:
        """Time in the queue, in seconds."""
        return (self.started or time.monotonic()) - self.submitted


class Admission:
    """Runs jobs one at a time in the order of their admission, and refuses a job if the queue is full.

    Args:
        waiting: largest number of jobs in the queue, besides the one that runs.
        translate: maps an exception of a job to the error that is emitted. The frames of the exception are cleared
            before the call, so that the objects of the job are freed.
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
        """Number of jobs in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Number of running jobs: 0 or 1."""
        return int(self._running is not None)

    @property
    def current(self) -> QueuedRequest | None:
        """The request whose job runs."""
        return self._running

    @property
    def accepting(self) -> bool:
        """Whether the worker thread is alive and not stopping."""
        return self._thread.is_alive() and not self._draining

    @property
    def retry_after(self) -> int:
        """Estimated seconds until the queue has room again, 1 to 60."""
        return min(_MAX_RETRY_SECONDS, max(1, math.ceil(self._mean_seconds)))

    def submit(
        self, work: Callable[[QueuedRequest], Iterator[Any]], *, deadline: float, emit: Callable[[Any], None]
    ) -> QueuedRequest:
        """Add a job to the queue. `emit` receives its items and one `JobEnd`, on the worker's thread.

        Raises:
            ServiceBusy: the queue is full.
            ServiceUnavailable: the service is stopping.
        """
        with self._changed:
            if not self.accepting:
                raise ServiceUnavailable("the service is stopping; try again when it is back")
            if len(self._queue) >= self.waiting:
                raise ServiceBusy(
                    f"the queue is full ({len(self._queue)} requests wait); try again in {self.retry_after} s",
                    self.retry_after,
                )
            job = QueuedRequest(work, deadline, emit)
            self._queue.append(job)
            self._changed.notify_all()
            return job

    def cancel(self, job: QueuedRequest, reason: Exception | None = None) -> None:
        """Cancel a job: at once if it waits, at its next `check` if it runs. Does nothing if the job has ended."""
        with self._changed:
            job.cancelled_with = job.cancelled_with or reason or RequestCancelled()
            waited = job in self._queue
            if waited:
                self._queue.remove(job)
                job.work = None
            self._changed.notify_all()
        if waited:
            job.emit(JobEnd(job.cancelled_with))

    def drain(self) -> None:
        """Refuse new jobs; admitted jobs continue. Takes no lock, so a signal handler may call it."""
        self._draining = True

    def stop(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the admitted jobs, then cancel those that are left.

        Returns:
            Whether all jobs finished.
        """
        self.drain()
        with self._changed:
            finished = self._changed.wait_for(lambda: not self._queue and self._running is None, timeout)
            left = [*self._queue, *([self._running] if self._running else [])]
        for job in left:
            self.cancel(job, ServiceUnavailable("the service is stopping before it could answer; try again later"))
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(1.0)  # a daemon thread: a job that hangs does not keep the process alive
        return finished

    # ---- the worker's thread -----------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue) or self._closed)
                if not self._queue:
                    return
                job = self._running = self._queue.popleft()
            error = job.context.run(self._run, job)
            with self._changed:
                self._running = None
                self._changed.notify_all()
            job.emit(JobEnd(error))
            del job, error  # free the objects of a finished job while the worker waits for the next one

    def _run(self, job: QueuedRequest) -> Exception | None:
        """Run one job to its end and return its error. Objects of the job are freed on return."""
        job.started = time.monotonic()
        work, job.work = job.work, None
        try:
            job.check()
            assert work is not None  # set to None only by `cancel`, which removes the job from the queue
            items = work(job)
            try:
                for item in items:
                    job.check()
                    job.emit(item)
            finally:
                if isinstance(items, Generator):
                    items.close()  # free its objects now, not at the next garbage collection
        except Exception as error:
            for each in _chain(error):
                # A traceback keeps every frame alive, and with it tensors, caches and patches.
                traceback.clear_frames(each.__traceback__)
            translated = self._translate(error)
            translated.__traceback__ = translated.__cause__ = translated.__context__ = None
            return translated
        finally:
            del work
            seconds = time.monotonic() - job.started
            self._mean_seconds += _MEAN_WEIGHT * (seconds - self._mean_seconds)
        return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and its causes and contexts, each once."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        each = pending.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            pending += [each.__cause__, each.__context__]
