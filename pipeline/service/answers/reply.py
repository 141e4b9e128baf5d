"""The reply to a question over HTTP: events while the answer is made, or one JSON object at its end.

The model service and the desk share it. Does not know where the answer comes from.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from index.errors import SightlineError
from pipeline.service.admission import RequestCancelled
from pipeline.service.answers.finished import FinishedAnswer
from pipeline.service.answers.format import ReplyFormat
from pipeline.service.request_stream import unless_disconnected
from pipeline.service.schemas import problem_of

__all__ = ["reply_with"]

_log = structlog.get_logger("sightline.service")
_MAX_READ_DELAY_SECONDS = 30.0


async def reply_with(
    request: Request,
    pieces: AsyncGenerator[str | FinishedAnswer],
    form: ReplyFormat,
    *,
    stream: bool,
    cancel: Callable[[], None],
    seconds_left: Callable[[], float],
) -> Response:
    """Reply with an answer in a format.

    Args:
        request: the request.
        pieces: the parts of the answer, then the finished one. It is closed when the reply ends, in whatever way.
        form: the format.
        stream: whether to reply with events.
        cancel: ends the work on the answer; called when the reply ends, also when the client leaves.
        seconds_left: returns the time until the deadline of the answer.

    Raises:
        SightlineError: the answer failed before its first part; it then determines the status of the reply.
        RequestCancelled: the client has closed the connection.
    """

    async def whole() -> Any:
        """The last item of the job."""
        last: Any = None
        async for item in pieces:
            last = item
        return last

    try:
        if not stream:
            return JSONResponse(form.whole(await unless_disconnected(request, whole())))
        first = await unless_disconnected(request, _next(pieces))
    except BaseException:
        cancel()
        await pieces.aclose()
        raise

    async def events() -> AsyncGenerator[bytes]:
        """The items of the job as server-sent events."""
        item = first
        try:
            while item is not None:
                yield form.end(item) if isinstance(item, FinishedAnswer) else form.piece(item)
                item = await _next(pieces)
        except (SightlineError, RequestCancelled) as error:
            yield form.error(problem_of(error))

    return _Events(events(), pieces, cancel, seconds_left)


async def _next(pieces: AsyncGenerator[Any]) -> Any:
    """The next item, or None at the end."""
    return await anext(pieces, None)


class _Events(StreamingResponse):
    """A stream of server-sent events; the job is cancelled when the response ends, whichever side ends it."""

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        pieces: AsyncGenerator[Any],
        cancel: Callable[[], None],
        seconds_left: Callable[[], float],
    ) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events, self._pieces, self._cancel, self._seconds_left = events, pieces, cancel, seconds_left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # A client that stops reading without closing the connection would keep the response open for ever.
            async with asyncio.timeout(self._seconds_left() + _MAX_READ_DELAY_SECONDS):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            _log.warning("a client did not read its answer in time")
        finally:
            self._cancel()
            await self._events.aclose()
            await self._pieces.aclose()
