"""Jobs of the desk: work that outlasts a request, such as a verification or an export, with its progress and result.

A few run at once, the others wait in a bounded queue. A job belongs to the caller who began it, and does not exist for
others. What is finished is kept for an hour.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal

import structlog

from index.errors import ServiceBusy, ServiceUnavailable, SightlineError, UnknownItem, mask_url
from pipeline.access.caller import Caller

__all__ = ["Job", "JobCancelled", "JobState", "Jobs"]

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
_KEEP_SECONDS = 3_600.0
_WAITING = 32
_OF_ONE_CALLER = 8
_log = structlog.get_logger("sightline.desk")


class JobCancelled(Exception):
    """The job was cancelled; its work ends."""


class Job:
    """One job. Its work calls `advance` now and then.

    Attributes:
        id: random, URL-safe.
        kind: what it does, such as `verify`.
        owner: name of the caller who began it.
        streams: the streams that it reads.
        state: where it is.
        progress: 0 to 1.
        result: what it has found so far, and when it is done all.
        error: why it failed.
        version: increases with each change.
    """

    def __init__(self, kind: str, caller: Caller, streams: tuple[str, ...], work: Callable[[Job], Mapping[str, Any]]):
        self.id, self.kind, self.owner, self.streams = secrets.token_urlsafe(12), kind, caller.name, streams
        self.state: JobState = "queued"
        self.progress = 0.0
        self.result: Mapping[str, Any] | None = None
        self.error: Exception | None = None
        self.version = 0
        self.finished_at: float | None = None
        self._work: Callable[[Job], Mapping[str, Any]] | None = work
        self._cancelled = threading.Event()

    @property
    def ended(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.finished_at is not None

    def advance(self, progress: float, result: Mapping[str, Any] | None = None) -> None:
        """Note the progress, and what was found so far. Raises JobCancelled if the job must end."""
        if self._cancelled.is_set():
            raise JobCancelled
        self.progress = progress
        if result is not None:
            self.result = result
        self.version += 1

    def cancel(self) -> None:
        """End the job at its next `advance`."""
        self._cancelled.set()

    def run(self) -> None:
        """Do the work, on the thread of the caller; no exception leaves it."""
        work, self._work = self._work, None
        try:
            if work is None or self._cancelled.is_set():
                raise JobCancelled
            self.state = "running"
            self.version += 1
            self.result = work(self)
            self.progress, self.state = 1.0, "done"
        except JobCancelled:
            self.state = "cancelled"
        except SightlineError as error:
            self.state, self.error = "failed", error
        except Exception as error:
            _log.error("a job failed", kind=self.kind, problem=mask_url(repr(error)), exc_info=True)
            self.state, self.error = "failed", error
        self.finished_at = time.monotonic()
        self.version += 1


class Jobs:
    """Runs jobs.

    Args:
        threads: how many run at once.
    """

    def __init__(self, threads: int = 2) -> None:
        self._jobs: dict[str, Job] = {}
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"sightline-job-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def begin(
        self, kind: str, caller: Caller, work: Callable[[Job], Mapping[str, Any]], *, streams: tuple[str, ...] = ()
    ) -> Job:
        """Add a job to the queue.

        Args:
            kind: what it does.
            caller: who begins it.
            work: returns the result, a JSON object.
            streams: the streams that it reads; a caller who may no longer see one of them does not find the job.

        Raises:
            ServiceBusy: too many jobs wait, of all callers or of this one.
            ServiceUnavailable: the desk is stopping.
        """
        with self._changed:
            self._forget()
            if self._closed:
                raise ServiceUnavailable("the desk is stopping; try again when it is back")
            mine = sum(job.owner == caller.name and not job.ended for job in self._jobs.values())
            if len(self._queue) >= _WAITING or mine >= _OF_ONE_CALLER:
                raise ServiceBusy(f"too many jobs wait ({len(self._queue)}, {mine} of yours); try again in 10 s", 10)
            job = Job(kind, caller, streams, work)
            self._jobs[job.id] = job
            self._queue.append(job)
            self._changed.notify()
            return job

    def find(self, caller: Caller, job_id: str) -> Job:
        """A caller's job. Raises UnknownItem."""
        with self._changed:
            self._forget()
            job = self._jobs.get(job_id)
        if job is None or job.owner != caller.name or len(caller.visible(job.streams)) < len(job.streams):
            raise UnknownItem("there is no such job; it may have ended more than an hour ago")
        return job

    def close(self) -> None:
        """Refuse new jobs and cancel all others."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.cancel()
            self._changed.notify_all()

    def _forget(self) -> None:
        old = time.monotonic() - _KEEP_SECONDS
        for job_id in [i for i, job in self._jobs.items() if job.finished_at is not None and job.finished_at < old]:
            del self._jobs[job_id]

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue) or self._closed)
                if not self._queue:
                    return
                job = self._queue.popleft()
            job.run()
