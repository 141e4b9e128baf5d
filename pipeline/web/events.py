"""Server-sent events: names and data as lines, a comment now and then so that proxies keep the connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel
from starlette.responses import StreamingResponse

__all__ = ["EVENT_MODELS", "EventStream", "documented_events", "event"]

_QUIET_SECONDS = 10.0
EVENT_MODELS = "x-sightline-events"
"""Field of the OpenAPI schema beside that of a stream of events: the schema of each event's data, by its name.

OpenAPI 3.1 has no field of its own for events, so a generated client returns text, and has the types of the data.
"""


def documented_events(**models: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """How a route documents that its reply is a stream of events: the model of each event's data, by its name."""
    data = {name: {"$ref": f"#/components/schemas/{model.__name__}"} for name, model in models.items()}
    return {
        200: {
            "description": "Events, until the connection is closed or the last event is sent.",
            "content": {"text/event-stream": {"schema": {"type": "string"}, EVENT_MODELS: data}},
        }
    }


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
