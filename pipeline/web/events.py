"""Server-sent events: names and data as lines, a comment now and then so that proxies keep the connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel
from starlette.responses import StreamingResponse

__all__ = ["EVENTS", "EventStream", "event"]

_QUIET_SECONDS = 10.0
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events, until the connection is closed or the last event is sent.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
"""How a route documents that its reply is a stream of events."""


def event(name: str, data: BaseModel | dict[str, Any]) -> bytes:
    """One event."""
    text = data.model_dump_json() if isinstance(data, BaseModel) else json.dumps(data)
    return f"event: {name}\ndata: {text}\n\n".encode()


class EventStream(StreamingResponse):
    """A reply with events; `: wait` is sent while there are none."""

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_with_comments(events), media_type="text/event-stream", headers=headers)


async def _with_comments(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    pending: asyncio.Task[bytes] | None = None
    yield b": open\n\n"
    try:
        while True:
            pending = pending or asyncio.ensure_future(_next(events))
            done, _ = await asyncio.wait({pending}, timeout=_QUIET_SECONDS)
            if not done:
                yield b": wait\n\n"
                continue
            try:
                item = pending.result()
            except StopAsyncIteration:
                return
            pending = None
            yield item
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


async def _next(events: AsyncIterator[bytes]) -> bytes:
    return await anext(events)
