"""Bridge from a job on the worker thread to the event loop: items, end, deadline, disconnection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from time import monotonic
from typing import Any, TypeVar

from starlette.requests import Request

from index.errors import DeadlineExceeded
from pipeline.service.admission import Admission, JobEnd, QueuedRequest, RequestCancelled

__all__ = ["RequestStream", "unless_disconnected"]

T = TypeVar("T")

# A job normally ends itself at its deadline, between two steps. The event loop waits this much longer before it reports
# the deadline itself.
_GRACE_SECONDS = 0.25


class RequestStream(AsyncIterator[Any]):
    """Submits a job, and iterates over its items on the event loop.

    Args:
        admission: the queue of the model.
        work: the job, see `Admission.submit`.
        seconds: longest time of the request, the wait in the queue included.

    Raises:
        ServiceBusy, ServiceUnavailable: the job was not admitted; raised by the constructor.
        DeadlineExceeded: the deadline has passed; raised by the iteration, as are the other errors of the job.
        RequestCancelled: `cancel` was called; raised by the iteration.
    """

    def __init__(self, admission: Admission, work: Callable[[QueuedRequest], Iterator[Any]], *, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Any] = asyncio.Queue()  # its length is limited by that of the answer
        self._admission, self.seconds, self.began = admission, seconds, monotonic()
        self.job = admission.submit(work, deadline=self.began + seconds, emit=self._emit)

    def cancel(self) -> None:
        """Cancel the job; does nothing if it has ended."""
        self._admission.cancel(self.job)

    @property
    def seconds_left(self) -> float:
        """Time until the deadline, in seconds; 0 after it."""
        return max(0.0, self.job.deadline - monotonic())

    async def __anext__(self) -> Any:
        try:
            async with asyncio.timeout(self.seconds_left + _GRACE_SECONDS):
                item = await self._items.get()
        except TimeoutError:
            late = DeadlineExceeded(f"no answer within {self.seconds:.1f} s; allow more time, or try again later")
            self._admission.cancel(self.job, late)
            raise late from None
        if not isinstance(item, JobEnd):
            return item
        if item.error is not None:
            raise item.error
        raise StopAsyncIteration

    def _emit(self, item: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed, because the server has stopped
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, and cancel it as soon as the client closes the connection.

    Raises:
        RequestCancelled: the client has closed the connection.
    """

    async def disconnected() -> None:
        """Return when the client closes the connection."""
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.create_task(work), asyncio.create_task(disconnected())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RequestCancelled
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
