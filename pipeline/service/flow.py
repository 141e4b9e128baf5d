"""One admitted job as the event loop sees it: items that arrive from the worker's thread, an end, a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from time import monotonic
from typing import Any, TypeVar

from starlette.requests import Request

from index.errors import DeadlineExceeded
from pipeline.service.admission import Admission, Cancelled, End, QueuedRequest

__all__ = ["Flow", "unless_gone"]

T = TypeVar("T")

# At its deadline a job usually ends itself, between two steps; the event loop waits this much longer before it says so
# in the model's place.
_GRACE_SECONDS = 0.25


class Flow(AsyncIterator[Any]):
    """Submits `work` and yields what it yields; raises what ended it.

    Raises:
        ServiceBusy, ServiceUnavailable: on construction, the job was not taken.
        DeadlineExceeded: while iterating, after `seconds` (the wait in the queue counts).
        Cancelled: while iterating, after `cancel`.
    """

    def __init__(self, admission: Admission, work: Callable[[QueuedRequest], Iterator[Any]], *, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Any] = asyncio.Queue()  # bounded by the answer's length
        self._admission, self.seconds, self.began = admission, seconds, monotonic()
        self.job = admission.submit(work, deadline=self.began + seconds, emit=self._emit)

    def cancel(self) -> None:
        """Give the job up; nothing happens when it is over."""
        self._admission.cancel(self.job)

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.job.deadline - monotonic())

    async def __anext__(self) -> Any:
        try:
            async with asyncio.timeout(self.seconds_left + _GRACE_SECONDS):
                item = await self._items.get()
        except TimeoutError:
            late = DeadlineExceeded(f"no answer within {self.seconds:.1f} s; allow more time, or ask again later")
            self._admission.cancel(self.job, late)
            raise late from None
        if not isinstance(item, End):
            return item
        if item.error is not None:
            raise item.error
        raise StopAsyncIteration

    def _emit(self, item: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has stopped and nobody listens
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled as soon as the client closes its connection.

    Raises:
        Cancelled: the client has gone.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Cancelled
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
